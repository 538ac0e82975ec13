"""The page as programs meet it: its endpoints, /v1 beside it, tools for MCP clients, and the README's examples."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import openai
import pytest
import zoo
from gradio_client import Client
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from bdh.errors import ConfigError
from bdh.models import build
from bdh.stream import Stream
from ui import endpoints
from ui.limits import Limits
from ui.mcp import only_tools
from ui.page import build_page, launch_options, open_registry
from ui.registry import Registry

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("**From another program**") : README.index("## Models")]
EXAMPLES = re.findall(r"```(\w*)\n(.*?)```", SECTION, flags=re.DOTALL)
NAMES = ("chat", "english", "spanish")
HOME = "http://127.0.0.1:7860/"
LIMITS = Limits(max_prompt_bytes=20_000, max_at_once=4, mcp=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Registry]]:
    """The page's address and its models."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setattr("gradio.networking.url_ok", lambda url: True)  # which gives a busy machine three seconds
        for seed, name in enumerate(NAMES):
            zoo.louder(build(zoo.FLAT, seed=seed)).save_pretrained(folder / "checkpoints" / name)
        registry = open_registry(folder / "checkpoints", folder / "data", LIMITS, "cpu")
        page = build_page(folder / "checkpoints", folder / "data", LIMITS, registry=registry)
        options = launch_options(LIMITS, folder / "data", registry)
        page.launch(**options, prevent_thread_lock=True, quiet=True)
        assert page.local_url is not None
        yield page.local_url, registry
        page.close()


@pytest.fixture(scope="module")
def client(served: tuple[str, Registry]) -> Client:
    return Client(served[0], verbose=False, analytics_enabled=False)


@pytest.fixture(scope="module")
def talker(served: tuple[str, Registry]) -> openai.OpenAI:
    return openai.OpenAI(base_url=served[0] + "v1", api_key="none", max_retries=0)


def costs(registry: Registry, name: str, text: str) -> list[float]:
    with registry.lease(name, "") as model:
        return Stream(model).score(text.encode()).tolist()


def test_these_endpoints_are_public_each_with_words_for_what_it_takes_and_no_others(client: Client) -> None:
    offered = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(offered) == ["/chat", "/generate", "/load", "/merge_plan", "/models", "/score"]
    for name, endpoint in offered.items():
        assert endpoint["description"], name
        assert len(endpoint["returns"]) == 1, name
    names = {name: [one["parameter_name"] for one in endpoint["parameters"]] for name, endpoint in offered.items()}
    for line in re.findall(r"^\| `(/\w+)` \|[^|]*\|(.*)\|$", SECTION, flags=re.MULTILINE):
        assert names.pop(line[0]) == re.findall(r"`(\w+)`", line[1])
    assert not names


def test_a_text_is_scored_as_a_stream_scores_it(client: Client, served: Any) -> None:
    text = "In the beginning, é"
    bits = costs(served[1], "english", text)
    told = client.predict(text, model="english", api_name="/score")
    assert told == {"model": "english", "bytes": 20, "bits_per_byte": pytest.approx(sum(bits) / 20)}
    told = client.predict(text, model="english", per_byte=True, api_name="/score")
    assert told["bits"] == pytest.approx(bits)


def test_models_are_listed_and_a_merge_is_planned_without_being_made(client: Client, served: Any) -> None:
    listed = client.predict(api_name="/models")
    assert [entry["id"] for entry in listed] == list(NAMES)
    assert {entry["source"] for entry in listed} == {"shipped"}
    plan = client.predict(["english", "spanish"], weights=[1, 0.5], api_name="/merge_plan")
    assert plan["fits"] and plan["command"] == (
        "python -m bdh merge english spanish --weights=1,0.5 --out english-spanish"
    )
    assert plan["plan"][0].startswith("concat: ") and len(client.predict(api_name="/models")) == 3
    wrong = client.predict(["english", "spanish"], method="ties", api_name="/merge_plan")
    assert not wrong["fits"] and "choose the base" in wrong["line"] and wrong["plan"] == []


@pytest.mark.parametrize(
    ("api_name", "values", "words"),
    [
        ("/score", {"text": ""}, "the text is empty"),
        ("/score", {"text": 3}, "the text is empty"),
        ("/score", {"text": "a", "model": "nobody"}, "there is no model 'nobody'"),
        ("/score", {"text": "a" * 20_001}, "at most 20,000"),
        ("/score", {"text": "a" * 10_001, "per_byte": True}, "at most 10,000"),
        ("/merge_plan", {"models": "english"}, "a list of ids"),
        ("/merge_plan", {"models": ["english"]}, "must be 2 to 16"),
        ("/merge_plan", {"models": ["english", "spanish"], "weights": "all"}, "a list of numbers"),
        ("/merge_plan", {"models": ["english", "spanish"], "method": 3}, "must be texts"),
    ],
)
def test_what_an_endpoint_cannot_do_it_says_in_words(
    client: Client, api_name: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(AppError, match=words):
        client.predict(api_name=api_name, **values)


def test_the_bound_that_the_description_names_is_the_one_that_holds() -> None:
    assert f"at most {endpoints.MAX_BYTES_TOLD:,} bytes" in str(endpoints.Endpoints.score.__doc__)


def test_openais_client_gets_what_the_pages_endpoints_give(client: Client, talker: openai.OpenAI) -> None:
    assert [model.id for model in talker.models.list()] == list(NAMES)
    text = client.predict("In the beginning, ", model="english", max_bytes=80, seed=1, api_name="/generate")
    said = talker.completions.create(model="english", prompt="In the beginning, ", max_tokens=80, seed=1)
    assert said.choices[0].text == text and said.choices[0].finish_reason == "length"
    assert said.usage is not None and said.usage.total_tokens == 98
    streamed = talker.completions.create(
        model="english", prompt="In the beginning, ", max_tokens=80, seed=1, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == text
    answer = client.predict("hello", model="chat", max_bytes=60, seed=4, restart=True, api_name="/chat")
    asked: Any = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "seed": 4, "max_tokens": 60}
    whole = talker.chat.completions.create(**asked).choices[0].message.content
    assert str(whole).rstrip("\N{REPLACEMENT CHARACTER}") == answer
    chunks = list(talker.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_openais_client_knows_the_errors_for_what_they_are(talker: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there are: chat, english, spanish"):
        talker.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="tools: is not offered here"):
        talker.chat.completions.create(model="chat", messages=[{"role": "user", "content": "a"}], tools=[])


def test_pages_of_others_may_not_read_what_a_page_at_home_says(served: Any) -> None:
    asked = {"prompt": "a", "max_tokens": 1}
    strange = httpx.post(served[0] + "v1/completions", json=asked, headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in strange.headers
    own = httpx.post(served[0] + "v1/completions", json=asked, headers={"Origin": "http://localhost:1234"})
    assert own.headers["access-control-allow-origin"] == "http://localhost:1234"


def test_mcp_clients_get_these_tools_and_the_same_values(client: Client, served: Any) -> None:
    url = re.search(r'"url": "(.*?)"', SECTION)
    assert url is not None
    found: dict[str, Any] = {}

    async def go() -> None:
        async with (
            streamablehttp_client(url[1].replace(HOME, served[0])) as (reads, writes, _),
            ClientSession(reads, writes) as session,
        ):
            await session.initialize()
            found["tools"] = {tool.name: tool for tool in (await session.list_tools()).tools}
            for name, values in {
                "generate": {"prompt": "In the beginning, ", "model": "english", "max_bytes": 30, "seed": 1},
                "score": {"text": "hello", "model": "english"},
                "models": {},
                "merge_plan": {"models": ["english", "spanish"], "method": "mixture"},
                "load": {"source": "user/repo"},
                "api": {"message": "hello"},
            }.items():
                found[name] = await session.call_tool(name, values)
            found["wrong"] = await session.call_tool("score", {"text": ""})

    with anyio.from_thread.start_blocking_portal() as portal:
        portal.call(go)
    said = {name: result.content[0].text for name, result in found.items() if name != "tools"}
    assert sorted(found["tools"]) == ["generate", "merge_plan", "models", "score"]
    assert found["tools"]["score"].inputSchema["properties"]["text"]["type"] == "string"
    assert "ties" in found["tools"]["merge_plan"].inputSchema["properties"]["method"]["description"]
    predicted = client.predict("In the beginning, ", model="english", max_bytes=30, seed=1, api_name="/generate")
    assert said["generate"] == predicted
    assert said["score"] == str(client.predict("hello", model="english", api_name="/score"))
    assert said["models"] == str(client.predict(api_name="/models"))
    assert said["merge_plan"] == str(client.predict(["english", "spanish"], method="mixture", api_name="/merge_plan"))
    assert found["wrong"].isError and "the text is empty" in said["wrong"]
    assert found["load"].isError and found["api"].isError  # no tools, however they are called


def test_without_the_package_for_it_mcp_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'gradio[mcp]'")):
        only_tools()
    assert (
        Limits.from_environment({"BDH_MCP": "true"}).mcp and Limits.from_environment({"GRADIO_MCP_SERVER": "True"}).mcp
    )
    assert not Limits.from_environment({}).mcp


def test_the_readmes_examples_in_python_run(client: Client, talker: openai.OpenAI, served: Any) -> None:
    ran = [example.replace(HOME, served[0]) for kind, example in EXAMPLES if kind == "python"]
    ran = [example.replace(HOME.rstrip("/"), served[0].rstrip("/")) for example in ran]
    assert len(ran) == 2
    shown = []
    for example in ran:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(example, "README.md", "exec"), {})
        shown.append(out.getvalue())
    text = client.predict("In the beginning, ", model="english", max_bytes=100, seed=1, api_name="/generate")
    assert text in shown[0] and "These 2 can be merged by mixture" in shown[0]
    assert shown[1].startswith(f"{text} 118\n")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_readmes_examples_with_curl_run(client: Client, served: Any) -> None:
    ran = [example.replace(HOME.rstrip("/"), served[0].rstrip("/")) for kind, example in EXAMPLES if kind == "sh"]
    assert len(ran) == 2
    shown = [subprocess.run(["bash", "-c", one], capture_output=True, timeout=120, check=True).stdout for one in ran]
    text = client.predict("In the beginning, ", model="english", max_bytes=100, seed=1, api_name="/generate")
    last = shown[0].decode().strip().split("\n\n")[-1]
    assert last.startswith("event: complete") and json.loads(last.split("data: ")[1]) == [text]
    assert json.loads(shown[1])["choices"][0]["text"] == text.split("\n\n")[0]


def test_tools_are_there_on_request_only(tmp_path: Path) -> None:
    options = launch_options(Limits(), tmp_path)
    assert options["mcp_server"] is False and "lifespan" not in options["app_kwargs"]
