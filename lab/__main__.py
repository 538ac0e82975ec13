"""python -m lab EXPERIMENT …: experiments that answer a question with a table and a plot; --help of each says how."""

from __future__ import annotations

import sys

from train.__main__ import keep_freed_memory

from . import composability, concept_experiment, features, network_experiment, sparsity

EXPERIMENTS = {
    "composability": composability,
    "concept": concept_experiment,
    "features": features,
    "network": network_experiment,
    "sparsity": sparsity,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status as in `bdh.cli`, and 2 for an experiment that there is not."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in EXPERIMENTS:
        keep_freed_memory()
        return EXPERIMENTS[name].main(rest)
    if name in ("-h", "--help", "--list"):
        print(f"{__doc__}\n")
        for known, module in EXPERIMENTS.items():
            print(f"{known:<15}{(module.__doc__ or '').splitlines()[0]}")
        return 0
    print(f"error: there is no experiment {name[:100]!r}; there is {', '.join(EXPERIMENTS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
