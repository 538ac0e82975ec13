"""The command line of `python -m lab features`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bdh.cli import guarded, resolved
from train.evaluate.report import table

from ..claim import progress
from .experiment import Experiment, experiment
from .findings import REPORT, codes_table, purity_table, tasks_table, verdicts
from .training import Training

OUT = Path("runs/features")
"""Where reports are put, in a folder of the checkpoint's name."""
_DESCRIPTION = """\
What are a model's activations made of? Sparse autoencoders (standard, and one that composes the features of a sample by
attention), PCA and NMF on them, and the model's own neurons beside: what each keeps, costs, recovers and is about.

Of a shipped corpus the part that no checkpoint trained on is measured on, and what stands before it is learned from;
of a file its end is. The same command goes on where it was stopped."""
_EXAMPLES = """\
examples:
  python -m lab features english
  python -m lab features chat --point layer.2.x_sparse --head 1
  python -m lab features user/repo --data book.txt --steps 2000 --out runs/features/book
"""


def main(arguments: list[str]) -> int:
    """Run the command; the exit status as in `bdh.cli`."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab features",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own, how = Experiment(checkpoint=""), Training()

    def add(name: str, default: int | float, told: str) -> None:
        kind = type(default)
        parser.add_argument(name, metavar="N", type=kind, default=default, help=f"{told} (default: {default:,})")

    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a shipped name, a folder or user/repo")
    parser.add_argument(
        "--data", metavar="TEXT", default="", help="a shipped corpus or a file (default: as it learned)"
    )
    parser.add_argument("--point", metavar="NAME", default="", help="such as layer.1.residual or layer.2.x_sparse")
    parser.add_argument("--head", metavar="N", type=int, help="of a point that has heads")
    add("--bytes", own.bytes, "learn from so many")
    add("--measured-bytes", own.measured_bytes, "measure on so many")
    add("--put-back-bytes", own.put_back_bytes, "hear so many with reconstructions put back")
    add("--features", own.features, "of an autoencoder")
    add("--composed", own.composed, "composed features, and components of NMF")
    add("--attention-heads", own.heads, "of the composing attention")
    add("--k", own.k, "features that may be active in a place")
    add("--steps", how.steps, "of each autoencoder on the text")
    add("--task-steps", own.task_steps, "of each on a task")
    add("--batch", how.batch, "samples of a step")
    add("--learning-rate", how.learning_rate, "of Adam")
    add("--seed", how.seed, "of everything that is drawn")
    add("--most-active", own.most_active, "compare so many features of each kind")
    parser.add_argument("--out", type=Path, help=f"folder (default: {OUT}/ and the checkpoint's name)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def _run(options: argparse.Namespace) -> int:
    source = resolved(options.checkpoint)
    asked = Experiment(
        checkpoint=source,
        text=options.data,
        point=options.point,
        head=options.head,
        bytes=options.bytes,
        measured_bytes=options.measured_bytes,
        put_back_bytes=options.put_back_bytes,
        features=options.features,
        composed=options.composed,
        heads=options.attention_heads,
        k=options.k,
        training=Training(options.steps, options.batch, options.learning_rate, options.seed),
        task_steps=options.task_steps,
        most_active=options.most_active,
    )
    folder = options.out or OUT / Path(source).name
    found = experiment(asked, folder, say=progress(options))
    for rows in (codes_table(found), purity_table(found), tasks_table(found)):
        print(f"{table(rows)}\n")
    for one in verdicts(found):
        print(f"{one.verdict}: {one.question} {one.measured}")
    print(f"\n{folder / REPORT}")
    return 0
