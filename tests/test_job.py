"""Runs as child processes: the queue, whose they are, and what becomes of them when the app or the machine goes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bdh.config import FlatConfig
from bdh.errors import TrainingError
from bdh.load import load
from bdh.models import build
from train import child
from train.clock import Clock
from train.job import FAILED, FINISHED, INTERRUPTED, RUNNING, STOPPED, STOPPING, WAITING, Job, Jobs

ROOT = Path(__file__).parents[1]
WAIT_S = 180.0
_LIGHT = {"OMP_NUM_THREADS": "1", "BDH_COMPILED": "off"}
"""The compiled loops have tests of their own, and take seconds of each start."""
ME, OTHER = "browser:me", "browser:other"
MODEL = '{kind = "flat", n_layer = 1, n_embd = 16, n_head = 2, mlp_internal_dim_multiplier = 4, dropout = 0.0}'
QUICK = ["chunk_bytes=32", "sample_bytes=8", "warmup_steps=1", "decay_steps=2", "validation=0.1", "test=0.1"]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    # What a run of a stranger gets is enough.
    made = Jobs(tmp_path / "runs", environment=child.needed(os.environ) | _LIGHT, most_each=3)
    yield made
    made.close()
    for path in made.root.glob("*/job.json"):
        pid = 0
        with contextlib.suppress(ValueError):  # the note that a test damaged
            pid = json.loads(path.read_text())["pid"]
        if pid and pid != os.getpid() and psutil.pid_exists(pid):
            psutil.Process(pid).kill()


def ask(jobs: Jobs, *, steps: int, owner: str = ME, text: str = "The cat sat on the mat. " * 100, **more: Any) -> str:
    with jobs.draft(owner) as (id, given):
        (given / "mine.txt").write_text(text)
        words = [
            "finetune", "base=", f"model={MODEL}", 'texts={mine = {rows = 2, source = "mine.txt"}}', f"steps={steps}",
            f"evaluate_every={max(1, steps // 3)}", "patience=0", *QUICK,
        ]  # fmt: skip
        jobs.submit(id, "tiny", words, {"amount": steps}, **more)
    return id


def until(jobs: Jobs, id: str, *states: str, owner: str = ME) -> Job:
    return when(jobs, id, lambda job: job.state in states, owner=owner)


def when(jobs: Jobs, id: str, holds: Callable[[Job], bool], owner: str = ME) -> Job:
    deadline = time.monotonic() + WAIT_S
    while True:
        job = jobs.get(id, owner)
        if holds(job):
            return job
        assert time.monotonic() < deadline, (job, job.log())
        time.sleep(0.05)


def test_a_job_trains_in_a_process_of_its_own_names_no_path_and_keeps_what_it_made_and_not_what_it_took(
    jobs: Jobs,
) -> None:
    jobs._environment["PYTHONPROFILEIMPORTTIME"] = "1"
    id = ask(jobs, steps=6)
    (jobs.root / ("f" * 16)).mkdir()
    (jobs.root / ("f" * 16) / "job.json").write_text("{")  # a damaged note hides no other job
    assert [job.id for job in jobs.of(ME)] == [id]
    job = until(jobs, id, FINISHED, FAILED)
    assert (job.state, job.message, job.form, job.place) == (FINISHED, "", {"amount": 6}, 0)
    assert job.checkpoint is not None and load(job.checkpoint).parameter_count() > 0
    assert [measure["step"] for measure in job.run.measures()][-1] == 6
    assert "checkpoint: " in job.log()
    told = (job.checkpoint / "README.md").read_text() + (job.checkpoint / "provenance.json").read_text() + job.log()
    assert str(jobs.root) not in told and 'source = "mine.txt"' in told
    imported = (job.path / "log.txt").read_text()
    heavy = ("torch._dynamo", "torch.distributed.tensor", "sympy", "gradio", "datasets", "transformers")
    assert "| torch" in imported and not [name for name in heavy if f" {name}\n" in imported]  # two seconds of a start
    assert oct(job.path.stat().st_mode & 0o777) == "0o700"
    jobs.advance()
    left = {path.name for path in (job.path / "run").iterdir()} - {".lock"}
    assert left == {"checkpoint", "end.json", "environment.json", "metrics.jsonl", "recipe.json", "texts.json"}


def test_one_trains_at_a_time_and_those_that_wait_know_their_place(jobs: Jobs) -> None:
    first = ask(jobs, steps=1_000_000)
    until(jobs, first, RUNNING)
    second, third = ask(jobs, steps=3), ask(jobs, steps=3, owner=OTHER)
    assert (jobs.get(second, ME).state, jobs.get(second, ME).place) == (WAITING, 1)
    assert (jobs.get(third, OTHER).state, jobs.get(third, OTHER).place) == (WAITING, 2)
    assert jobs.busy() == (1, 2)
    jobs.stop(second, ME)
    assert jobs.get(second, ME).state == STOPPED and "before its turn" in jobs.get(second, ME).message
    assert jobs.get(third, OTHER).place == 1
    jobs.stop(first, ME)
    until(jobs, third, FINISHED, owner=OTHER)
    assert jobs.get(first, ME).state == STOPPED


def test_a_job_has_its_folder_for_itself_and_stopped_keeps_its_best_so_far_and_goes_on_where_it_was(
    jobs: Jobs,
) -> None:
    id = ask(jobs, steps=30_000)
    job = when(jobs, id, lambda job: any(measure["step"] for measure in job.run.measures()))
    second = subprocess.run(
        [sys.executable, "-m", "train", *jobs.words(id)], cwd=job.given, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert second.returncode == 2 and "another process is training in" in second.stderr
    jobs.stop(id, ME)
    assert jobs.get(id, ME).state in (STOPPING, STOPPED)
    stopped = until(jobs, id, STOPPED)
    assert stopped.checkpoint is not None and stopped.resumable
    reached = stopped.run.measures()[-1]["step"]
    assert 0 < reached < 30_000
    jobs.resume(id, ME)
    job = when(jobs, id, lambda job: job.run.measures()[-1]["step"] > reached)
    assert [measure["step"] for measure in job.run.measures()] == sorted({m["step"] for m in job.run.measures()})


def test_another_can_neither_see_nor_stop_nor_delete_a_job(jobs: Jobs) -> None:
    id = ask(jobs, steps=3)
    assert jobs.of(OTHER) == [] and [job.id for job in jobs.of(ME)] == [id]
    for deed in (jobs.get, jobs.stop, jobs.resume, jobs.delete):
        for foreign in (id, "0" * 16, "../" + id, ""):
            with pytest.raises(TrainingError, match="no such run of yours"):
                deed(foreign, OTHER)
    assert ME not in (jobs.root / id / "job.json").read_text()


def test_a_new_app_on_the_same_folder_finds_what_runs_and_what_waits_and_goes_on(jobs: Jobs) -> None:
    running = ask(jobs, steps=1_000_000)
    until(jobs, running, RUNNING)
    waiting = ask(jobs, steps=3)
    jobs.close()
    later = Jobs(jobs.root, environment=os.environ | _LIGHT)
    assert {job.id: job.state for job in later.of(ME)} == {running: RUNNING, waiting: WAITING}
    later.stop(running, ME)
    until(later, running, STOPPED)
    until(later, waiting, FINISHED)
    later.close()


def test_a_job_outlives_the_app_that_began_it(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_job
jobs = test_job.Jobs(Path(sys.argv[1]))
id = test_job.ask(jobs, steps=1_000_000)
test_job.when(jobs, id, lambda job: any(m["step"] for m in job.run.measures()))
print(id, flush=True)
input()
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    app = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "runs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment, text=True,
    )  # fmt: skip
    assert app.stdout is not None
    id = app.stdout.readline().strip()
    app.send_signal(signal.SIGKILL)
    app.wait()
    later = Jobs(tmp_path / "runs")
    seen = later.get(id, ME).run.measures()[-1]["step"]
    assert when(later, id, lambda job: job.run.measures()[-1]["step"] > seen).state == RUNNING
    later.stop(id, ME)
    assert until(later, id, STOPPED).checkpoint is not None
    later.close()


def test_a_process_that_is_killed_leaves_an_interrupted_job_that_goes_on(jobs: Jobs) -> None:
    id = ask(jobs, steps=60)
    when(jobs, id, lambda job: any(measure["validation"] for measure in job.run.measures()))
    os.kill(json.loads((jobs.root / id / "job.json").read_text())["pid"], signal.SIGKILL)
    job = until(jobs, id, INTERRUPTED, FINISHED)
    assert job.state == INTERRUPTED and "restarted, or memory or disk ran out" in job.message
    jobs.resume(id, ME)
    assert until(jobs, id, FINISHED).run.measures()[-1]["step"] == 60


def test_a_job_that_cannot_begin_fails_with_the_words_of_the_command_line(jobs: Jobs) -> None:
    job = until(jobs, ask(jobs, steps=3, text="short"), FAILED, INTERRUPTED)
    assert job.state == FAILED and "use a longer text" in job.message
    jobs.delete(job.id, ME)
    assert jobs.of(ME) == [] and not job.path.exists()


def test_what_is_under_way_is_not_deleted_and_what_is_done_is_not_resumed(jobs: Jobs) -> None:
    id = ask(jobs, steps=1_000_000)
    until(jobs, id, RUNNING)
    with pytest.raises(TrainingError, match="stop it first"):
        jobs.delete(id, ME)
    with pytest.raises(TrainingError, match="cannot go on"):
        jobs.resume(id, ME)


def test_a_second_stop_ends_a_job_at_once(jobs: Jobs) -> None:
    id = ask(jobs, steps=1_000_000)
    until(jobs, id, RUNNING)
    jobs.stop(id, ME)
    if jobs.get(id, ME).state == STOPPING:
        jobs.stop(id, ME)
    assert until(jobs, id, STOPPED).resumable


def test_there_is_an_end_to_what_one_may_ask_for_and_to_the_queue(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "runs", most_each=2, most_waiting=3, watch=False)
    for _ in range(2):
        ask(jobs, steps=3)
    with pytest.raises(TrainingError, match="you have 2 runs waiting or under way"):
        ask(jobs, steps=3)
    ask(jobs, steps=3, owner=OTHER)
    with pytest.raises(TrainingError, match="3 runs are waiting"):
        ask(jobs, steps=3, owner="browser:third")
    assert len(list(jobs.root.glob("*/job.json"))) == 3


def test_a_job_that_takes_longer_than_it_may_is_stopped(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.job._GRACE_S", 1.0)
    id = ask(jobs, steps=1_000_000, limit_s=6.0)
    job = until(jobs, id, STOPPED)
    assert "may train for 0 minutes here" in job.message


def test_jobs_that_ended_long_ago_and_forgotten_drafts_are_deleted(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "runs", keep_s=3600, watch=False)
    old, fresh = ask(jobs, steps=3), ask(jobs, steps=3, owner=OTHER)
    for id, owner in ((old, ME), (fresh, OTHER)):
        jobs.stop(id, owner)
    with jobs.draft(ME) as (draft, _):
        pass
    assert jobs.of(ME)[0].id == old  # a draft is not shown
    past = time.time() - 7200
    for path in (jobs.root / old, *(jobs.root / old).rglob("*")):
        os.utime(path, (past, past))
    record = json.loads((jobs.root / draft / "job.json").read_text())
    (jobs.root / draft / "job.json").write_text(json.dumps(record | {"created": past}))
    jobs.advance()
    assert sorted(path.parent.name for path in jobs.root.glob("*/job.json")) == [fresh]


def test_a_dry_run_says_what_a_drafted_job_would_take_or_what_is_wrong(jobs: Jobs) -> None:
    words = ["finetune", "base=", f"model={MODEL}", 'texts={mine = {rows = 2, source = "mine.txt"}}', *QUICK, "steps=7"]
    with jobs.draft(ME) as (id, given):
        (given / "mine.txt").write_text("The cat sat on the mat. " * 100)
        found = jobs.try_out(id, words)
        with pytest.raises(TrainingError, match="learning_rate is 7"):
            jobs.try_out(id, [*words, "learning_rate=7"])
    assert found["steps"] == 7 and found["heard_bytes"] == 7 * 64 and found["text_bytes"] == 1920
    assert (
        found["parameters"]
        == build(FlatConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)).parameter_count()
    )
    jobs.drop(id)


def test_a_job_that_cannot_even_be_started_fails_and_those_behind_it_go_on(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, refused = child.begin, []

    def refuse_once(*given: Any) -> Any:
        if not refused:
            refused.append(True)
            "\ud800".encode()
        return begin(*given)

    monkeypatch.setattr(child, "begin", refuse_once)
    first, second = ask(jobs, steps=3), ask(jobs, steps=3, owner=OTHER)
    assert "could not be started" in until(jobs, first, FAILED).message
    until(jobs, second, FINISHED, owner=OTHER)


def test_a_clock_that_is_set_does_not_hide_a_process(tmp_path: Path) -> None:
    process = child.begin(["--list"], tmp_path, os.environ | {"PYTHONPATH": str(ROOT)}, tmp_path / "log")
    began = child.begun_at(process.pid)
    assert child.find(process.pid, began - 3600, tmp_path) is not None
    assert child.find(process.pid, began, tmp_path / "other") is not None
    assert child.find(process.pid, began - 3600, tmp_path / "other") is None
    process.wait()
    assert child.find(process.pid, began, tmp_path) is None


def test_of_an_owners_ended_jobs_the_oldest_go_and_what_is_in_use_stays(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "runs", most_each=9, most_kept=2, watch=False)
    ids = [ask(jobs, steps=3) for _ in range(4)]
    for id in ids:
        jobs.stop(id, ME)

    def hold_the_first(job: Job) -> None:
        if job.id == ids[0]:
            raise TrainingError("it is being used")

    jobs.before_removal = hold_the_first
    jobs.advance()
    assert {job.id for job in jobs.of(ME)} == {ids[0], ids[2], ids[3]}
    with pytest.raises(TrainingError, match="it is being used"):
        jobs.delete(ids[0], ME)


def test_one_estimate_is_made_at_a_time(jobs: Jobs) -> None:
    jobs._trying.acquire()
    with jobs.draft(ME) as (id, _), pytest.raises(TrainingError, match="another estimate is being made"):
        jobs.try_out(id, [])
    jobs.drop(id)


def test_what_is_left_of_jobs_that_were_being_made_or_deleted_is_swept(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "runs", watch=False)
    for name, age_s in (("a" * 16, 7200), ("b" * 16, 0), ("c" * 16 + ".gone", 0)):
        (jobs.root / name).mkdir()
        os.utime(jobs.root / name, (time.time() - age_s,) * 2)
    jobs.advance()
    assert [path.name for path in jobs.root.iterdir() if path.is_dir()] == ["b" * 16]


def test_what_a_kill_left_half_written_in_a_run_goes_and_a_checkpoint_that_was_being_replaced_comes_back(
    tmp_path: Path,
) -> None:
    jobs = Jobs(tmp_path / "runs", watch=False)
    id = ask(jobs, steps=3)
    jobs.stop(id, ME)
    path = jobs.root / id
    for name in ("run/.checkpoint.checkpoint.0123abcd.new", "run/.best.checkpoint.old"):
        (path / name).mkdir(parents=True)
        (path / name / "config.json").touch()
    for name in ("job.json.0123abcd", "run/run.new", "run/recipe.json.new", "run/kept.json"):
        (path / name).touch()
    jobs.advance()
    left = sorted(one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file())
    assert left == ["given/mine.txt", "job.json", "run/best/config.json", "run/end.json", "run/kept.json"]


def test_a_clock_that_is_set_ends_no_run_and_deletes_none(tmp_path: Path) -> None:
    wall, passed = [1_800_000_000.0], [0.0]
    clock = Clock(wall=lambda: wall[0], passed=lambda: passed[0])
    jobs = Jobs(tmp_path / "runs", watch=False, keep_s=3600, clock=clock)
    id = ask(jobs, steps=3, limit_s=60)
    jobs.stop(id, ME)
    for path in (jobs.root / id / "job.json", jobs.root / id / "run"):
        os.utime(path, (wall[0], wall[0]))
    for years in (5, -10, 5):
        wall[0] += years * 365 * 86_400
        jobs.advance()
        assert [job.id for job in jobs.of(ME)] == [id]
    for seconds in (1_800, 1_801):
        wall[0] += seconds
        passed[0] += seconds
        assert [job.id for job in jobs.of(ME)] == [id]
        jobs.advance()
    assert jobs.of(ME) == []
