from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import FLAT, fresh

from bdh import cli
from bdh.checkpoint import weights_checksum, write
from bdh.cli import main
from bdh.config import config_to_dict
from bdh.load import load
from bdh.presets import PRESETS
from bdh.sampling import Sampling
from bdh.stream import Stream

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return checkpoint_in(tmp_path, "flat")


def checkpoint_in(path: Path, name: str) -> str:
    model = fresh(name)
    return str(write(path / name, model.config, model.state_dict(), provenance={"recipe": "none"}))


class Terminal:
    """What a command said, and how it ended."""

    def __init__(self, capture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._capture, self._monkeypatch = capture, monkeypatch
        self.out, self.err = b"", ""

    def run(self, *arguments: str, stdin: bytes = b"") -> int:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status = main(list(arguments))
        out, err = self._capture.readouterr()
        self.out, self.err = out, err.decode()
        return status

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def terminal(capfdbinary: Any, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capfdbinary, monkeypatch)


def continued(folder: str, prompt: bytes, **options: Any) -> bytes:
    stream = Stream(load(folder, device="cpu"))
    stream.feed(prompt)
    return bytes(item.byte for item in stream.generate(Sampling(**options)) if not item.is_stop)


def test_generate_writes_the_bytes_of_the_stream(terminal: Terminal, folder: str) -> None:
    assert terminal.run("generate", folder, "--prompt", "Hello é", "--seed", "5", "--max-bytes", "40") == 0
    assert terminal.out == continued(folder, "Hello é".encode(), seed=5, max_bytes=40)
    assert terminal.err == ""


def test_every_sampling_option_reaches_the_sampler(terminal: Terminal, folder: str) -> None:
    options = {
        "max_bytes": 25,
        "temperature": 1.7,
        "top_k": 90,
        "top_p": 0.9,
        "min_p": 0.001,
        "repetition_penalty": 0.5,
        "repetition_decay": 0.9,
        "seed": 3,
    }
    flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert terminal.run("generate", folder, "--prompt", "x", *flags, "--valid-utf8") == 0
    assert terminal.out == continued(folder, b"x", valid_utf8=True, **options)


def test_generate_reads_the_prompt_from_standard_input(terminal: Terminal, folder: str) -> None:
    assert terminal.run("generate", folder, "--seed", "1", stdin=b"\xff\x00raw") == 0
    assert terminal.out == continued(folder, b"\xff\x00raw", seed=1)


def test_generate_stops_before_a_stop_string(terminal: Terminal, folder: str) -> None:
    options = ("generate", folder, "--prompt", "x", "--seed", "1", "--max-bytes", "80")
    whole = continued(folder, b"x", seed=1, max_bytes=80)
    stop = f"\\x{whole[20]:02x}\\x{whole[21]:02x}"
    assert terminal.run(*options, "--stop", "never written", "--stop", stop) == 0
    assert terminal.out == whole[: whole.index(whole[20:22])]


def test_escapes_in_stop_strings_are_understood() -> None:
    assert cli._unescaped(r"a\n\t\x00\xff\\né\q") == b"a\n\t\x00\xff\\n" + "é".encode() + rb"\q"


def test_generate_as_json_is_one_object_with_the_exact_bytes(terminal: Terminal, folder: str) -> None:
    assert terminal.run("generate", folder, "--prompt", "abc", "--max-bytes", "30", "--json") == 0
    found = terminal.json()
    data = continued(folder, b"abc", seed=found["seed"], max_bytes=30)
    assert base64.b64decode(found["base64"]) == data
    assert found["text"] == data.decode(errors="replace")
    assert (found["bytes"], found["ended_by"], found["position_bytes"]) == (30, "max_bytes", 33)
    assert 0 < found["surprise_bits"] / 30 < 20


def test_memory_is_saved_and_gone_on_with(terminal: Terminal, folder: str, tmp_path: Path) -> None:
    memory = str(tmp_path / "m.safetensors")
    generate = ("generate", folder, "--temperature", "0", "--max-bytes", "10")
    assert terminal.run(*generate, "--prompt", "one ", "--save-memory", memory) == 0
    first = terminal.out
    assert terminal.run(*generate, "--prompt", " two ", "--memory", memory, "--save-memory") == 0
    assert terminal.out == continued(folder, b"one " + first + b" two ", temperature=0, max_bytes=10)
    stream = Stream(load(folder, device="cpu"))
    stream.load(memory)
    assert stream.position_bytes == 4 + 10 + 5 + 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "a", "--temperature", "11"), "temperature is 11.0; it must be a number from 0 to 10"),
        (("--prompt", "a", "--memory", "absent"), "there is no file"),
        (("--prompt", "a", "--save-memory"), "name a file"),
        (("--prompt", "a", "--device", "tpu"), "device is 'tpu'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    terminal: Terminal, folder: str, arguments: tuple[str, ...], message: str
) -> None:
    assert terminal.run("generate", folder, *arguments) == 2
    assert terminal.out == b""
    assert re.fullmatch(r"error: [^\n]+\n", terminal.err)
    assert message in terminal.err


def test_an_unknown_checkpoint_is_refused_with_what_there_is(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_in(tmp_path, "flat")
    monkeypatch.setattr(cli, "SHIPPED", tmp_path)
    assert terminal.run("info", "nonesuch") == 2
    assert terminal.err.startswith("error: 'nonesuch' is no path here and no shipped checkpoint (there is: flat)")


def test_a_shipped_checkpoint_goes_by_its_name(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_in(tmp_path, "hebbian")
    monkeypatch.setattr(cli, "SHIPPED", tmp_path)
    assert terminal.run("info", "hebbian", "--json") == 0
    assert terminal.json()["kind"] == "hebbian"


def test_wrong_usage_is_status_2_with_the_usage(capsys: Any) -> None:
    for arguments in ([], ["dance"], ["generate", "--max-bytes", "some"], ["generate", "--dtype", "int8"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "usage: python -m bdh" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["generate"], ["chat"], ["score"], ["info"], ["convert"]])
def test_help_has_examples(capsys: Any, command: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert f"examples:\n  python -m bdh {' '.join(command)}".rstrip() in capsys.readouterr().out


def test_score_is_the_mean_cost_of_a_byte(terminal: Terminal, folder: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 21
    (tmp_path / "text").write_bytes(data)
    expected = float(Stream(load(folder, device="cpu")).score(data).mean())
    assert terminal.run("score", folder, str(tmp_path / "text"), "--json") == 0
    found = terminal.json()
    assert found["bits_per_byte"] == pytest.approx(expected, abs=1e-4)
    assert (found["bytes"], found["complete"]) == (len(data), True)
    assert found["weights"] == weights_checksum(fresh("flat").state_dict())
    assert terminal.run("score", folder, "-", stdin=data) == 0
    assert terminal.out.decode().startswith(f"{expected:.4f} bits per byte over 5,376 bytes, ")


def test_score_of_nothing_and_of_no_file_is_refused(terminal: Terminal, folder: str, tmp_path: Path) -> None:
    assert terminal.run("score", folder, "-") == 2
    assert "is empty" in terminal.err
    absent = str(tmp_path / "absent")
    assert terminal.run("score", folder, absent) == 2
    assert terminal.err == f"error: {absent}: No such file or directory\n"


def test_info_tells_what_a_checkpoint_is(terminal: Terminal, folder: str) -> None:
    model = fresh("flat")
    assert terminal.run("info", folder, "--json") == 0
    found = terminal.json()
    assert found["config"] == config_to_dict(FLAT)
    assert (found["kind"], found["source"], found["provenance"]) == ("flat", folder, {"recipe": "none"})
    assert (found["parameters"], found["state_bytes"]) == (model.parameter_count(), model.state_bytes())
    assert found["weights"] == weights_checksum(model.state_dict())
    assert terminal.run("info", folder) == 0
    lines = terminal.out.decode().splitlines()
    assert f"{'parameters':<36} {model.parameter_count():,}" in lines
    assert f"{'config.n_head':<36} 2" in lines


def test_info_lists_the_presets(terminal: Terminal) -> None:
    assert terminal.run("info", "--presets", "--json") == 0
    found = {preset["name"]: preset for preset in terminal.json()["presets"]}
    assert found.keys() == PRESETS.keys()
    assert found["flat-25m"]["parameters"] == 25_296_896
    assert terminal.run("info", "--presets") == 0
    assert re.search(r"^flat-25m +25,296,896 +201,326,600 bytes$", terminal.out.decode(), re.MULTILINE)


def test_convert_writes_a_folder_that_loads(terminal: Terminal, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert terminal.run("convert", str(GOLDEN / "wild_model_config.pt"), out, "--json") == 0
    found = terminal.json()
    model = load(out, device="cpu")
    assert (found["out"], found["kind"], found["parameters"]) == (out, "flat", model.parameter_count())
    assert found["weights"] == weights_checksum(model.state_dict())


def test_convert_asks_for_what_a_bare_state_dict_does_not_tell(terminal: Terminal, tmp_path: Path) -> None:
    arguments = ("convert", str(GOLDEN / "wild_compiled_bare.pt"), str(tmp_path / "out"))
    assert terminal.run(*arguments) == 2
    assert "--n-layer NUMBER" in terminal.err
    assert terminal.run(*arguments, "--n-layer", "3") == 0
    assert "a flat model of" in terminal.out.decode()
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 2}))
    assert terminal.run(*arguments[:2], str(tmp_path / "two"), "--config", str(tmp_path / "config.json")) == 0
    assert load(tmp_path / "two", device="cpu").config.n_layer == 2


def test_convert_says_what_it_had_to_mend(terminal: Terminal, tmp_path: Path) -> None:
    old = torch.load(GOLDEN / "wild_config_key.pt", weights_only=True)
    old["model_state_dict"]["attn.freqs"] = old["model_state_dict"]["attn.freqs"].bfloat16()
    torch.save(old, tmp_path / "old.pt")
    assert terminal.run("convert", str(tmp_path / "old.pt"), str(tmp_path / "new")) == 0
    assert terminal.err.startswith("warning: attn.freqs was rounded to torch.bfloat16")


def test_bfloat16_weights_are_asked_for_by_name(terminal: Terminal, folder: str) -> None:
    assert (
        terminal.run("generate", folder, "--prompt", "a", "--dtype", "bfloat16", "--seed", "1", "--max-bytes", "20")
        == 0
    )
    stream = Stream(load(folder, device="cpu", dtype=torch.bfloat16))
    stream.feed(b"a")
    assert terminal.out == bytes(item.byte for item in stream.generate(Sampling(seed=1, max_bytes=20)))


def test_chat_feeds_the_form_of_the_corpus_and_stops_at_the_line(terminal: Terminal, folder: str) -> None:
    options = ("chat", folder, "--seed", "2", "--max-bytes", "12")
    assert terminal.run(*options, stdin="How are you, é?\n\nAnd now?\n".encode()) == 0
    stream = Stream(load(folder, device="cpu"))
    sampling = Sampling(seed=2, max_bytes=12, stop=(b"\n",), valid_utf8=True)
    expected = b""
    for question in ("User: How are you, é?\nBot:", "User: And now?\nBot:"):
        stream.feed((("\n" if stream.recent[-1:] not in (b"", b"\n") else "") + question).encode())
        expected += b"Bot:" + bytes(item.byte for item in stream.generate(sampling) if not item.is_stop) + b"\n"
    assert terminal.out == expected


def test_chat_commands_clear_save_and_load_the_memory(terminal: Terminal, folder: str, tmp_path: Path) -> None:
    memory = tmp_path / "m"
    lines = (
        f"hello\n/save {memory}\n/clear\nhello\n/load {memory}\n/load {tmp_path / 'absent'}\n/dance\n/quit\nunread\n"
    )
    assert terminal.run("chat", folder, "--temperature", "0", "--max-bytes", "8", stdin=lines.encode()) == 0
    first, second = terminal.out.removeprefix(b"Bot:").split(b"Bot:")
    assert first == second
    said = terminal.err.splitlines()
    assert said[0] == f"(saved {memory})"
    assert said[1] == "(cleared)"
    assert re.fullmatch(rf"\(loaded {memory}: \d+ bytes heard\)", said[2])
    assert said[3].startswith("error: there is no file")
    assert said[4] == "commands: /clear, /save FILE, /load FILE, /quit"
    assert len(said) == 5


def test_chat_begins_and_ends_with_a_saved_memory(terminal: Terminal, folder: str, tmp_path: Path) -> None:
    memory = str(tmp_path / "m")
    assert terminal.run("chat", folder, "--save-memory", memory, stdin=b"hello\n") == 0
    first = Stream(load(folder, device="cpu"))
    first.load(memory)
    assert terminal.run("chat", folder, "--memory", memory, "--save-memory", stdin=b"again\n") == 0
    second = Stream(load(folder, device="cpu"))
    second.load(memory)
    assert second.position_bytes > first.position_bytes > len("User: hello\nBot:")


def test_a_character_is_written_whole(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bytes] = []
    monkeypatch.setattr(cli, "_show", shown.append)
    assert main(["generate", folder, "--prompt", "x", "--seed", "3", "--valid-utf8", "--temperature", "3"]) == 0
    assert "".join(data.decode() for data in shown).encode() == b"".join(shown)
    assert max(map(len, shown)) > 1


def test_ctrl_c_in_the_middle_saves_a_whole_memory(
    terminal: Terminal, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, count = cli._show, 0

    def interrupting(data: bytes) -> None:
        nonlocal count
        count += len(data)
        if count >= 10:
            signal.raise_signal(signal.SIGINT)
            monkeypatch.setattr(cli, "_show", show)
        show(data)

    monkeypatch.setattr(cli, "_show", interrupting)
    memory = str(tmp_path / "m")
    arguments = ("generate", folder, "--prompt", "x", "--temperature", "0", "--max-bytes", "none")
    before = signal.getsignal(signal.SIGINT)
    assert terminal.run(*arguments, "--save-memory", memory) == 130
    assert signal.getsignal(signal.SIGINT) == before
    assert terminal.out.endswith(b"\n")
    stream = Stream(load(folder, device="cpu"))
    stream.load(memory)
    heard = stream.position_bytes - 1
    assert terminal.out[:-1] == continued(folder, b"x", temperature=0, max_bytes=heard)


@contextlib.contextmanager
def running(*arguments: str) -> Any:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "bdh", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


ENDLESS = ("--prompt", "x", "--max-bytes", "none", "--temperature", "2")


def test_a_real_ctrl_c_ends_with_status_130_and_no_traceback(folder: str, tmp_path: Path) -> None:
    memory = tmp_path / "m"
    with running("generate", folder, *ENDLESS, "--save-memory", str(memory)) as process:
        for _ in range(50):  # what a buffer took beyond, communicate would not give
            assert len(os.read(process.stdout.fileno(), 1)) == 1
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=120)
        assert process.returncode == 130
    assert rest.endswith(b"\n")
    assert err == b""
    stream = Stream(load(folder, device="cpu"))
    stream.load(memory)
    # All that was heard was written, but for the bytes of a character that was not whole yet.
    assert 0 <= (stream.position_bytes - 1) - (50 + len(rest) - 1) <= 3


def test_a_closed_pipe_ends_silently(folder: str, tmp_path: Path) -> None:
    memory = tmp_path / "m"
    with running("generate", folder, *ENDLESS, "--save-memory", str(memory)) as process:
        assert len(process.stdout.read(20)) == 20
        process.stdout.close()
        assert process.wait(timeout=120) == 141
        assert process.stderr.read() == b""
    assert memory.is_file()
