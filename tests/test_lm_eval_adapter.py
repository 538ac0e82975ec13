"""The lm-eval harness on our models: the numbers it gets are those of plain streams. Needs `pip install lm-eval`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import zoo

from bdh import Sampling, Stream
from bdh.models import Model

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from train.lm_eval_adapter import HarnessModel, run_tasks, sampling

KINDS = ("flat-damped", "hierarchical", "transformer")


def request(kind: Any, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def nats(model: Model[Any], context: str, continuation: str) -> float:
    """Log probability of the continuation behind the context, byte by byte."""
    stream = Stream(model)
    stream.feed(context.encode() or b"\n")
    return -float(stream.score(continuation.encode()).sum()) * math.log(2)


def written(model: Model[Any], context: str, count: int) -> bytes:
    stream = Stream(model)
    stream.feed(context.encode())
    return bytes(one.byte for one in stream.generate(Sampling(temperature=0, max_bytes=count)))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_continuations_have_the_likelihood_that_a_stream_gives_them(name: str, batch_size: int | str) -> None:
    model = zoo.model(name)
    pairs = [
        ("The cat sat", " on the mat"),
        ("A dog", " barked"),
        ("The cat sat", " down"),
        ("", "Hello"),
        ("A dog", ""),
        ("The cat sat", " on the mat, and the dog lay by the door"),
        ("Où est-ce", " que tu vas ?"),
    ]
    harness = HarnessModel(model, batch_size=batch_size)
    results = harness.loglikelihood([request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(pairs, results, strict=True):
        assert value == pytest.approx(nats(model, context, continuation), abs=1e-3)
        assert greedy == (written(model, context or "\n", len(continuation.encode())) == continuation.encode())


def test_what_the_model_would_write_is_greedy() -> None:
    model = zoo.model("flat")
    # Of random models' bytes some are no text; take a context behind which the first two are.
    contexts = [f"context {number}" for number in range(300)]
    context = next(c for c in contexts if max(written(model, c, 1)) < 0x80)
    first = written(model, context, 1).decode()
    other = chr(ord(first) ^ 1)
    asked = [request("loglikelihood", context, text) for text in (first, other)]
    assert [greedy for _, greedy in HarnessModel(model).loglikelihood(asked, disable_tqdm=True)] == [True, False]


def test_a_whole_text_is_one_stream_however_long() -> None:
    model = zoo.model("hebbian")
    texts = ["The cat sat on the mat. " * 60, "x", ""]
    asked = [request("loglikelihood_rolling", text) for text in texts]
    values = HarnessModel(model).loglikelihood_rolling(asked, disable_tqdm=True)
    for text, value in zip(texts, values, strict=True):
        assert value == pytest.approx(nats(model, "", text), rel=1e-5, abs=1e-4)


def test_writing_ends_before_the_stop_or_after_so_many_bytes() -> None:
    model = zoo.model("flat")
    free = written(model, "The cat", 40)
    asked = [request("generate_until", "The cat", {"until": [], "max_gen_toks": 40})]
    stop = next(bytes([byte]) for byte in free if byte < 0x80)
    asked.append(request("generate_until", "The cat", {"until": [stop.decode()], "max_gen_toks": 40}))
    whole, cut = HarnessModel(model).generate_until(asked, disable_tqdm=True)
    assert whole == free.decode("utf-8", "replace")
    assert cut == free[: free.index(stop)].decode("utf-8", "replace")


def test_generation_arguments_are_understood() -> None:
    assert sampling({}) == Sampling(max_bytes=256, temperature=0.0, seed=0)
    wishes = {"until": "\n", "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_gen_toks": 8}
    expected = Sampling(max_bytes=8, temperature=0.7, top_p=0.9, top_k=50, stop=(b"\n",), seed=0)
    assert sampling(wishes) == expected
    assert sampling({"do_sample": False, "temperature": 0.7}).temperature == 0.0


def test_the_harness_knows_the_model_by_its_name(tmp_path: Path) -> None:
    folder = zoo.fresh("flat").save_pretrained(tmp_path / "made")
    harness = get_model("bdh").create_from_arg_string(f"pretrained={folder}", {"batch_size": 2, "device": "cpu"})
    assert isinstance(harness, HarnessModel) and harness.streams == 2
    assert harness.model.config == zoo.FLAT


CHOICE = """
task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
"""


def test_the_harness_scores_tasks_as_streams_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model = zoo.model("flat-damped")
    docs = [
        {"question": f"A {animal} says", "choices": ["moo", "miaow", "tweet"], "answer": index % 3}
        for index, animal in enumerate(("cow", "cat", "bird", "calf", "kitten", "sparrow"))
    ]
    file = tmp_path / "animals.json"
    file.write_text("\n".join(json.dumps(doc) for doc in docs))
    for name, task in (("animals", CHOICE), ("rolling", ROLLING)):
        (tmp_path / f"{name}.yaml").write_text(task.replace("FILE", str(file)))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = run_tasks(model, ["animals", "rolling"], task_manager=manager, bootstrap_iters=0)
    right = sum(
        max(range(3), key=lambda choice: nats(model, doc["question"], " " + doc["choices"][choice])) == doc["answer"]
        for doc in docs
    )
    assert 0 < right < len(docs)
    assert results["animals"]["acc,none"] == right / len(docs)
    total = sum(nats(model, "", doc["question"]) for doc in docs)
    size = sum(len(doc["question"]) for doc in docs)
    assert results["rolling"]["bits_per_byte,none"] == pytest.approx(-total / size / math.log(2), abs=1e-4)
