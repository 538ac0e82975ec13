"""BDH Hatchery's page: `python app.py`, or the entry of a Hugging Face Space."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

# ZeroGPU asks to be imported before CUDA is touched; elsewhere the package is not needed.
with contextlib.suppress(ImportError):
    import spaces  # noqa: F401

from bdh.errors import HatcheryError
from bdh.ops.step import warm_up
from ui.limits import Limits
from ui.page import build_page, launch_options

HERE = Path(__file__).parent
DATA = Path(os.environ.get("BDH_DATA", HERE / "data"))

try:
    limits = Limits.from_environment()
except HatcheryError as error:
    raise SystemExit(f"error: {error}") from None
demo = build_page(HERE / "checkpoints", DATA, limits)

if __name__ == "__main__":
    demo.launch(**launch_options(limits, DATA), prevent_thread_lock=True)
    warm_up()
    demo.block_thread()
