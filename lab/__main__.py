"""python -m lab EXPERIMENT …: experiments that answer a question with a table and a plot; --help of each says how."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from train.__main__ import keep_freed_memory

EXPERIMENTS = {
    "composability": "composability",
    "unlimited-context": "unlimited_context",
    "sparsity": "sparsity",
    "scaling": "scaling",
    "hierarchy": "hierarchy",
    "causality": "causality",
    "concept": "concept_experiment",
    "network": "network_experiment",
    "features": "features",
    "activity-price": "activity_price",
}
"""By name, the module of each, imported when it is run."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status as in `bdh.cli`, and 2 for an experiment that there is not."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in EXPERIMENTS:
        keep_freed_memory()
        return int(_module(name).main(rest))
    if name in ("-h", "--help", "--list"):
        print(f"{__doc__}\n")
        for known in EXPERIMENTS:
            print(f"{known:<19}{(_module(known).__doc__ or '').splitlines()[0]}")
        return 0
    print(f"error: there is no experiment {name[:100]!r}; there is {', '.join(EXPERIMENTS)}", file=sys.stderr)
    return 2


def _module(name: str) -> Any:
    return importlib.import_module(f".{EXPERIMENTS[name]}", __package__)


if __name__ == "__main__":
    sys.exit(main())
