"""The chat's endpoint and its page handlers, through the real client on a served page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import gradio as gr
import pytest
from gradio_client import Client

from bdh.config import FlatConfig
from bdh.models import build
from ui.limits import Limits
from ui.page import build_page, launch_options

FLAT = FlatConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gr.Blocks]:
    """One page for all, which takes a second to build; each test comes as somebody new."""
    home = tmp_path_factory.mktemp("chat")
    build(FLAT, seed=1).save_pretrained(home / "checkpoints" / "one")
    limits = Limits(max_prompt_bytes=2_000, max_at_once=4)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", str(home / "gradio"))
        patched.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        demo = build_page(home / "checkpoints", home / "data", limits, "cpu")
        demo.launch(**launch_options(limits, home / "data"), prevent_thread_lock=True, quiet=True)
        yield demo
        demo.close()


def client(page: gr.Blocks) -> Client:
    return Client(page.local_url, verbose=False, analytics_enabled=False)


def test_the_same_seed_gives_the_same_answer_in_two_fresh_conversations(page: gr.Blocks) -> None:
    answers = [client(page).predict("hello", seed=5, max_bytes=40, api_name="/chat") for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(answers[0].encode()) <= 40


def test_an_answer_grows_while_it_is_written(page: gr.Blocks) -> None:
    job = client(page).submit("hello", seed=5, max_bytes=1_500, temperature=1.5, api_name="/chat")
    job.result(timeout=60)
    outputs = job.outputs()
    assert len(outputs) > 1
    assert all(later.startswith(earlier) for earlier, later in pairwise(outputs))


def test_a_conversation_is_kept_between_turns_and_restarted_on_request(page: gr.Blocks) -> None:
    talker = client(page)
    first = talker.predict("hello", seed=5, max_bytes=30, api_name="/chat")
    second = talker.predict("hello", seed=5, max_bytes=30, api_name="/chat")
    again = talker.predict("hello", seed=5, max_bytes=30, restart=True, api_name="/chat")
    assert again == first
    assert second != first


def test_two_clients_do_not_share_a_conversation(page: gr.Blocks) -> None:
    anna, bert = client(page), client(page)
    first = anna.predict("hello", seed=5, max_bytes=30, api_name="/chat")
    anna.predict("a secret", seed=5, max_bytes=30, api_name="/chat")
    assert bert.predict("hello", seed=5, max_bytes=30, api_name="/chat") == first


def test_the_endpoint_says_what_it_takes_and_gives(page: gr.Blocks) -> None:
    endpoint = client(page).view_api(return_format="dict", print_info=False)["named_endpoints"]["/chat"]
    names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
    assert [returned["python_type"]["type"] for returned in endpoint["returns"]] == ["str"]
    assert names == ["message", "model", "temperature", "top_p", "max_bytes", "seed", "restart"]
    assert len(endpoint["returns"]) == 1


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"message": "x" * 2_001}, "at most 2,000"),
        ({"message": "  "}, "Write a message first"),
        ({"message": "hi", "model": "nobody"}, "no model 'nobody'"),
        ({"message": "hi", "temperature": 99.0}, "temperature is 99.0"),
    ],
)
def test_bad_input_is_answered_with_what_is_allowed(page: gr.Blocks, values: dict[str, object], text: str) -> None:
    with pytest.raises(Exception, match=text):
        client(page).predict(**values, api_name="/chat")


def test_a_cancelled_answer_frees_the_conversation(page: gr.Blocks) -> None:
    talker = client(page)
    job = talker.submit("hello", max_bytes=100_000, temperature=2.0, seed=1, api_name="/chat")
    while not job.outputs():
        time.sleep(0.02)
    job.cancel()
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = talker.predict("hello", seed=5, max_bytes=10, restart=True, api_name="/chat")
            break
        except Exception as error:
            assert "still busy" in str(error)
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert len(answer.encode()) <= 10


def test_four_people_are_answered_at_once_each_with_their_own_bytes(page: gr.Blocks) -> None:
    alone = [client(page).predict("hello", seed=seed, max_bytes=200, api_name="/chat") for seed in range(4)]
    together: dict[int, str] = {}

    def ask(seed: int) -> None:
        together[seed] = client(page).predict("hello", seed=seed, max_bytes=200, api_name="/chat")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [together[seed] for seed in range(4)] == alone
