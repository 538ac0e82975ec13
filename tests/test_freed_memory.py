"""Memory that was freed and is kept by the C library goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ui.memory import trimming

_HOLES = """
from ui.memory import resident_bytes, share_freed_memory, trimming
share_freed_memory()
look = trimming(100_000_000)
before = resident_bytes()
used, freed = [], []
for index in range(3_000):
    freed.append(b"x" * (100_000 + index))
    used.append(b"x" * (1_000 + index))
freed.clear()
print(resident_bytes() - before > 250_000_000)
print(look(), resident_bytes() - before < 80_000_000, look())
"""


@pytest.mark.skipif(trimming() is None, reason="needs glibc on Linux")
def test_what_was_freed_between_blocks_in_use_goes_back_once_the_process_has_grown() -> None:
    done = subprocess.run([sys.executable, "-c", _HOLES], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "True\nTrue True False\n"
