"""BDH Hatchery's page: `python app.py`, or the entry of a Hugging Face Space."""

from __future__ import annotations

import contextlib
import gc
import os
from importlib import import_module
from pathlib import Path

# What is made until the page stands lasts: looking through it for what could go takes a second of the start, and later
# a third of a second each time, in which nobody is served.
gc.disable()
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Gradio asks for the backend with the first request; looking for one takes seconds in which nobody is served.
os.environ.setdefault("MPLBACKEND", "agg")

# ZeroGPU asks to be imported before CUDA is touched; elsewhere the package is not needed.
with contextlib.suppress(ImportError):
    import spaces  # noqa: F401

from bdh.errors import HatcheryError
from bdh.ops.step import warm_up
from ui.data_folder import take
from ui.limits import Limits
from ui.memory import return_freed_memory, share_freed_memory
from ui.page import build_page, launch_options, open_registry

HERE = Path(__file__).parent
DATA = Path(os.environ.get("BDH_DATA", HERE / "data"))

share_freed_memory()
try:
    limits = Limits.from_environment()
    take(DATA)
    registry = open_registry(HERE / "checkpoints", DATA, limits)
    options = launch_options(limits, DATA, registry)
except HatcheryError as error:
    raise SystemExit(f"error: {error}") from None
demo = build_page(HERE / "checkpoints", DATA, limits, registry=registry)
gc.freeze()
gc.enable()

if __name__ == "__main__":
    demo.launch(**options, prevent_thread_lock=True)
    import_module("matplotlib")  # Gradio would with the first request
    warm_up()
    return_freed_memory()
    demo.block_thread()
