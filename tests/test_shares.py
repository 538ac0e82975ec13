"""Rows of a batch taken through the model by several threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.loop import Run, fit
from train.recipe import Recipe
from train.shares import Workers, choose_count, cut

_MODEL = {"kind": "flat", "n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 8}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Give torch its own number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _run(folder: Path, **changes: Any) -> Run:
    text = folder.parent / "rhyme.txt"
    text.write_bytes(b"the cat sat on the mat and the rat sat on the cat. " * 60)
    fields: dict[str, Any] = {
        "name": "shared",
        "model": {**_MODEL, "dropout": 0.0},
        "texts": {"rhyme": {"rows": 5, "source": str(text)}},
        "chunk_bytes": 16,
        "steps": 6,
        "precision": "float32",
        "evaluate_every": 3,
        "sample_bytes": 0,
        "seed": 1,
    }
    return Run(Recipe(**{**fields, **changes}), folder)


def _weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


@given(st.integers(0, 9), st.integers(1, 99), st.integers(1, 20))
def test_shares_cover_all_rows_in_order_and_differ_by_one_at_most(start: int, rows: int, count: int) -> None:
    shares = cut(range(start, start + rows), count)
    assert [row for share in shares for row in share] == list(range(start, start + rows))
    sizes = {len(share) for share in shares}
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1 and len(shares) == min(rows, count)


def test_workers_divide_torchs_threads_and_leave_those_of_others_alone() -> None:
    torch.set_num_threads(4)
    workers = Workers(2)
    barrier = threading.Barrier(2)

    def count(share: int) -> tuple[int, int]:
        barrier.wait()
        return share, torch.get_num_threads()

    assert workers.map(count, [0, 1]) == [(0, 2), (1, 2)]
    assert torch.get_num_threads() == 4
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [4]


def test_an_error_in_one_share_is_raised_after_the_others_have_ended() -> None:
    ended: list[int] = []

    def work(share: int) -> None:
        if not share:
            raise MemoryError("no room")
        time.sleep(0.2)
        ended.append(share)

    with pytest.raises(MemoryError, match="no room"):
        Workers(2).map(work, [0, 1])
    assert ended == [1]


@pytest.mark.parametrize("changes", [{}, {"activity": 0.2}, {"carried": False}, {"micro_rows": 2}, {"trained": "lora"}])
def test_however_many_threads_share_the_rows_what_is_learned_is_the_same(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        run = _run(tmp_path / str(threads), **changes)
        assert (run._workers.count if run._workers else 1) == threads  # of 5 rows
        reports = list(fit(run, report_every=1))
        found.append((reports, _weights(run)))
    (reports, weights), *others = found
    for other_reports, other_weights in others:
        for ours, theirs in zip(reports, other_reports, strict=True):
            assert theirs.bits_per_byte == pytest.approx(ours.bits_per_byte, rel=1e-4)
            assert theirs.active == pytest.approx(ours.active, rel=0.02, abs=0.02)
        for name, tensor in weights.items():
            torch.testing.assert_close(other_weights[name], tensor, atol=5e-5, rtol=1e-3)


def test_a_run_shared_by_threads_ends_in_the_same_bits_every_time_and_after_a_resume(tmp_path: Path) -> None:
    torch.set_num_threads(3)
    first, second = _run(tmp_path / "first"), _run(tmp_path / "second")
    list(fit(first))
    for report in fit(second, report_every=1):
        if report.step == 3:
            break
    second = _run(tmp_path / "second")
    second.resume()
    list(fit(second))
    ours, theirs = _weights(first), _weights(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("threads", "rows", "count"), [(1, 8, 1), (2, 8, 2), (2, 1, 1), (16, 8, 8), (16, 9, 8), (6, 4, 3)]
)
def test_rows_are_shared_by_as_many_threads_as_leave_fewest_idle(threads: int, rows: int, count: int) -> None:
    assert choose_count(threads, rows) == count


def test_a_run_with_dropout_draws_in_one_thread_so_that_it_can_be_repeated(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    assert _run(tmp_path / "run", model={**_MODEL, "dropout": 0.1})._workers is None
    members = [{**_MODEL, "dropout": rate} for rate in (0.0, 0.1)]
    composed = {"kind": "composed", "method": "average", "members": members}
    assert _run(tmp_path / "composed", model=composed)._workers is None
