"""Reports of a run shown in trackio beside those of other runs, through accelerate's trackers, where that is wished."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator

from accelerate import Accelerator

from bdh.errors import ConfigError

from .loop import Report, Run


def accelerator(project: str | None) -> Accelerator:
    """What a run trains with, ready for `tracked` if a project is named.

    Raises:
        ConfigError: trackio is not installed.
    """
    if project is None:
        return Accelerator()
    if importlib.util.find_spec("trackio") is None:
        raise ConfigError("--track needs trackio, which is not installed; pip install trackio, or leave --track out")
    return Accelerator(log_with="trackio")


@contextlib.contextmanager
def tracked(run: Run, project: str | None, *, resumed: bool = False) -> Iterator[Callable[[Report], None]]:
    """Gives what takes the run's reports, which goes nowhere without a project and in all processes but the main one.

    The run is called as its folder; `resumed`, it goes on where the project knows one of that name.

    Raises:
        ConfigError: trackio refuses the project.
    """
    if project is None:
        yield lambda report: None
        return
    options = {"name": run.folder.path.as_posix(), "resume": "allow" if resumed else "never"}
    with contextlib.redirect_stdout(sys.stderr):  # ours may be lines of JSON
        try:
            run.accelerator.init_trackers(project, dataclasses.asdict(run.recipe), {"trackio": options})
        except ValueError as error:
            raise ConfigError(f"trackio does not take the project {project!r:.100}: {str(error)[:300]}") from error
    try:
        yield lambda report: run.accelerator.log(values(report), step=report.step)
    finally:
        # accelerate would also part the processes, and leave trackio to end, and tell it, once more at exit.
        if run.accelerator.is_main_process:
            import trackio  # noqa: PLC0415 - optional

            with contextlib.redirect_stdout(sys.stderr):
                trackio.finish()


def values(report: Report) -> dict[str, float]:
    """The numbers of a report by name, those of texts and activations each under a heading."""
    return {
        "bits_per_byte": report.bits_per_byte,
        "learning_rate": report.learning_rate,
        "gradient_norm": report.gradient_norm,
        "penalty_weight": report.penalty_weight,
        "heard_bytes": report.heard_bytes,
        "bytes_per_s": report.bytes_per_s,
        **{f"validation/{name}": bits for name, bits in report.validation.items()},
        **{f"active/{name}": part for name, part in report.active.items()},
    }
