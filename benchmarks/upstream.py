"""The released code, to be timed beside ours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from bdh.models import Model


def load_upstream(path: Path, model: Model[Any]) -> Any:
    """The released model, from its bdh.py, with the weights of ours."""
    spec = importlib.util.spec_from_file_location("upstream_bdh", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["upstream_bdh"] = module
    spec.loader.exec_module(module)
    fields = ("n_layer", "n_embd", "dropout", "n_head", "mlp_internal_dim_multiplier", "vocab_size")
    if getattr(model.config, "decay", ()):
        raise SystemExit("the released code has no damping: time a preset, such as flat-5m, beside it")
    released = module.BDH(module.BDHConfig(**{name: getattr(model.config, name) for name in fields}))
    released.load_state_dict(model.state_dict())
    return released
