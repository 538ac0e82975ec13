"""A training process of its own: begun, known again later, ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_NICENESS = 5
_NEEDED = re.compile(
    # what a process of this system is found by, speaks and writes to
    "PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_[A-Z]+|TZ|TERM|TMPDIR|TEMP|TMP|XDG_CACHE_HOME|XDG_CONFIG_HOME"
    "|SYSTEMROOT|SYSTEMDRIVE|WINDIR|COMSPEC|PATHEXT|USERPROFILE|APPDATA|LOCALAPPDATA|PROGRAMDATA"
    r"|PROGRAMFILES(\(X86\))?|PROGRAMW6432|NUMBER_OF_PROCESSORS|PROCESSOR_[A-Z]+"
    # Python and its packages
    "|PYTHON[A-Z0-9]+|VIRTUAL_ENV|CONDA_PREFIX|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_[A-Z_]+"
    "|MPLCONFIGDIR|MPLBACKEND"
    # compilers that Triton and torch call, and where these look
    "|CC|CXX|CPATH|C_INCLUDE_PATH|LIBRARY_PATH|INCLUDE|LIB"
    # threads, memory and devices
    "|(OMP|KMP|GOMP|MKL|OPENBLAS|NUMBA|CUDA|NVIDIA|NCCL|HIP|HSA|ROCR|ROCM|MIOPEN|MALLOC)_[A-Z0-9_]+"
    "|CUBLAS_WORKSPACE_CONFIG|GPU_DEVICE_ORDINAL"
    "|(TORCH|PYTORCH|TRITON)[A-Z0-9]*_[A-Z0-9_]+|ACCELERATE_[A-Z0-9_]+|CPU_CORES|MEMORY|BDH_COMPILED"
    # the Hub and the way there
    "|HF_HOME|HF_HUB_CACHE|HUGGINGFACE_HUB_CACHE|HF_DATASETS_CACHE|HF_XET_CACHE|HF_ENDPOINT|HF_DATASETS_OFFLINE"
    "|HF_HUB_(DISABLE|ENABLE|ETAG|DOWNLOAD|OFFLINE)[A-Z_]*|(HTTPS?|ALL|NO)_PROXY|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE",
    re.IGNORECASE,
)
"""Names of what a run needs of the environment."""
_SECRET = re.compile("TOKEN|SECRET|PASSW|PASSPHRASE|AUTH|CREDENTIAL|KEY", re.IGNORECASE)
"""In names of what it does not, whatever they begin with."""
_CLOCK_S = 2.0
"""By how much the time a process began at may seem to move when the machine's clock is set."""


def begin(words: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m train` in a folder, a little below this process in the order of who is served first.

    Args:
        words: after `python -m train`.
        log: what it says is added to it.
    """
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "train", *words],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield_to_others(child.pid)
    return child


def needed(environment: Mapping[str, str]) -> dict[str, str]:
    """Of an environment, what a run needs, and no secret of the machine but the login of a proxy or a mirror.

    That one, the `user:password@` in `HTTPS_PROXY` or `HF_ENDPOINT`, stays: a run could fetch nothing without it.
    It is told to no stranger by this, since a run's process executes this project's code alone, whosever text it reads.
    """
    return {name: value for name, value in environment.items() if _NEEDED.fullmatch(name) and not _SECRET.search(name)}


def yield_to_others(pid: int) -> None:
    """Let the process come after others, and go first where memory runs out."""
    with contextlib.suppress(psutil.Error, OSError):
        psutil.Process(pid).nice(_NICENESS if os.name == "posix" else 16384)  # Windows: below normal
    with contextlib.suppress(OSError):  # Linux alone
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def begun_at(pid: int) -> float:
    """When a process began, in seconds since the epoch; 0 if it is gone."""
    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return 0.0


def find(pid: int, began: float, folder: Path) -> psutil.Process | None:
    """The process if it lives; a number that was given to another process since is not it.

    Args:
        began: what `begun_at` said; should the clock have been set since, `folder`, where it works, decides.
    """
    if not pid:
        return None
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if abs(process.create_time() - began) < _CLOCK_S or Path(process.cwd()) == folder.resolve():
            return process
    except (psutil.Error, OSError):
        pass
    return None


def kill(process: psutil.Process) -> None:
    """End a process and what it began, at once; never this one."""
    if process.pid == os.getpid():
        return
    with contextlib.suppress(psutil.Error, OSError):
        if os.name == "posix" and os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
