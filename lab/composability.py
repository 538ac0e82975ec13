"""Can trained models be merged into one? Specialists, merges of them and the cheap alternatives, on the same bytes.

Parents, their base, every method asked for, weight average, mixture and a jointly trained model are held against the
best parent for each text, before and after a short healing on a mix of the parents' texts. A ratio to the specialists
under 1.2 supports the claim, under 1.5 partly, else not. What was trained is not trained again.

Texts are shipped corpora by name, or files. Of a shipped corpus, and of a file that anything here learns from, only the
last 5 % is heard; of other files everything is. A method may be given options: concat:align,ties:density=0.3.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bdh import checkpoint
from bdh.cli import guarded, resolved
from bdh.errors import ConfigError, DataError, MergeError
from bdh.load import load
from bdh.merge import METHODS, Merged, Plan, make_plan, merge, write
from bdh.merge import Recipe as Merge
from bdh.merge.parents import look, renamed
from bdh.merge.recipe import CALIBRATION_BYTES, recipe_from_fields
from bdh.models import Model
from bdh.sampling import Sampling
from bdh.stream import Stream
from train.data import Bytes, held_out_start, read_bytes
from train.evaluate.command import trained_on
from train.evaluate.report import table
from train.export import export
from train.folder import environment
from train.loop import Run, fit
from train.plots import shrink
from train.recipe import Recipe, load_recipe
from train.sources import is_shipped
from train.strategy import plain_tensors

from . import claim
from .crossed import Hearing, compare, listen, mean_hearing
from .findings import (
    BARS,
    BASE,
    CROSSED,
    JOINT,
    REPORT,
    STREAMS,
    Contender,
    Experiment,
    Measured,
    Report,
    as_claim,
    contenders_table,
    text_name,
    verdict,
    verdicts,
    write_report,
)
from .heritage import Inherited, inherited

BASELINES = ("average", "mixture")
_CALIBRATION = "calibration.txt"
_HEAL_ROWS = 8
_HERITAGE_BYTES, _PROMPT_BYTES = 16_384, 48

Say = Callable[[str], None]


def main(arguments: list[str]) -> int:
    """Run the command; the exit status as in `bdh.cli`."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _run(options, claim.command("composability", arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab composability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parents", metavar="PARENT", nargs="*", help="two or more checkpoints: shipped names, folders or user/repo")
    add(
        "--data",
        metavar="TEXT",
        nargs="+",
        default=[],
        help="shipped corpora or files (default: as parents learned)",
    )
    add("--methods", metavar="M,M", type=_methods, default=("concat",), help="of python -m bdh merge (default: concat)")
    add("--base", metavar="CHECKPOINT", default="", help="what the parents were cloned from")
    add("--joint", metavar="CHECKPOINT", default="", help="a model trained on all texts at once, to compare with")
    add("--heal-steps", metavar="N", type=int, default=0, help="train each merged model on for so many steps")
    add("--heal-trained", choices=("full", "ends"), default="full", help="all of it, or embedding and read-out only")
    add("--seeds", metavar="N,N", type=_numbers, default=(0, 1, 2), help="of the healings (default: 0,1,2)")
    add("--train-recipes", metavar="R,R", default="", help="train clones of --base first, by these recipes")
    add("--train-steps", metavar="N", type=int, help="steps of each of them (default: as their recipes say)")
    add("--bytes", metavar="N", type=int, default=65_536, help="measure at most so many of each text (default: 65536)")
    add("--sample-bytes", metavar="N", type=int, default=120, help="each model writes so many on each prompt; 0: none")
    add("--out", type=Path, default=Path("runs/composability"), help="folder (default: runs/composability)")
    add("--keep", action="store_true", help="put the report into reports/, which the page shows")
    add("--quiet", action="store_true", help="show no progress")
    return parser


def _methods(text: str) -> tuple[str, ...]:
    # A comma parts methods only before a letter: weights=1,2 is one option.
    return tuple(re.split(r",(?=[a-z])", text))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no list of whole numbers such as 0,1,2") from None


def _run(options: argparse.Namespace, repeat: str) -> int:
    begun = time.monotonic()
    say: Say = (lambda line: None) if options.quiet else partial(print, file=sys.stderr, flush=True)
    parents, texts, base = list(options.parents), list(options.data), resolved(options.base) if options.base else ""
    if options.train_recipes:
        recipes = _clones(options.train_recipes.split(","), base, options.train_steps, options.bytes)
        texts = texts or list(dict.fromkeys(text for recipe in recipes for text in recipe.texts))
        parents += [str(train_clone(recipe, options.out, say)) for recipe in recipes]
    asked = Experiment(
        parents=tuple(map(resolved, parents)),
        texts=tuple(texts or _learned(map(resolved, parents))),
        methods=options.methods,
        base=base,
        joint=resolved(options.joint) if options.joint else "",
        heal_steps=options.heal_steps,
        heal_trained=options.heal_trained,
        seeds=options.seeds,
        bytes=options.bytes,
        sample_bytes=options.sample_bytes,
    )
    found = experiment(asked, options.out, say=say)
    if options.keep:
        _keep(found, asked, options.out, repeat, time.monotonic() - begun)
    print(table(contenders_table(found)))
    print("\n".join(["", *verdicts(found), "", str(options.out / REPORT)]))
    return 0


def _keep(found: Report, asked: Experiment, folder: Path, repeat: str, elapsed_s: float) -> None:
    """Put the report where the page shows it, in the form of a claim."""
    names = [one.name for one in found.contenders if one.what == "parent"]
    checksums = {name: load(place, device="cpu").checksum() for name, place in zip(names, asked.parents, strict=True)}
    told = folder / "claim"
    told.mkdir(exist_ok=True)
    for drawing in (BARS, CROSSED):
        shutil.copyfile(folder / drawing, told / drawing)
        shrink(told / drawing)
    claim.write(as_claim(found, checksums, repeat, elapsed_s), told)
    claim.keep(told, claim.REPORTS)


def _learned(parents: Iterable[str]) -> list[str]:
    """The shipped corpora that parents in folders say they were trained on."""
    told = [checkpoint.read_provenance(parent).get("texts") for parent in parents if Path(parent).is_dir()]
    names = [name for texts in told if isinstance(texts, dict) for name in texts if is_shipped(name)]
    if not names:
        raise ConfigError("the parents do not say what they were trained on; name texts to measure on with --data")
    return list(dict.fromkeys(names))


def _clones(names: Sequence[str], base: str, steps: int | None, test_bytes: int) -> list[Recipe]:
    if not base:
        raise ConfigError("--train-recipes trains clones of a base; name it with --base")
    recipes = []
    for name in names:
        recipe = load_recipe(name, [f"base={json.dumps(base)}", f"test_bytes={test_bytes}"])
        recipes.append(_shortened(recipe, steps) if steps is not None else recipe)
    return recipes


def _shortened(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with its schedule shrunk or stretched to so many steps."""
    part = steps / recipe.steps
    scaled = {name: round(getattr(recipe, name) * part) for name in ("warmup_steps", "decay_steps", "activity_steps")}
    every = max(1, round(recipe.evaluate_every * part))
    return dataclasses.replace(recipe, steps=steps, evaluate_every=every, **scaled)


def train_clone(recipe: Recipe, folder: Path, say: Say) -> Path:
    """Train a specialist from its base, unless it was trained before; the checkpoint of its best weights."""
    place = folder / "specialists" / _key(load(recipe.base, device="cpu").checksum(), recipe)
    out = place / recipe.name
    if not out.is_dir():
        export(_trained(recipe, place / "run", folder / "texts", say), out)
    return out


def experiment(asked: Experiment, folder: Path, *, say: Say = print) -> Report:
    """Merge, heal what is not healed yet, measure all on the same bytes, and write the report to the folder.

    Raises:
        HatcheryError: a parent, a text or a method does not fit; known before anything is trained.
    """
    parents = renamed([look(parent) for parent in asked.parents])
    names = [parent.name for parent in parents]
    if taken := {BASE, JOINT, *asked.methods, *BASELINES} & set(names):
        raise ConfigError(f"a parent is called {taken.pop()}, as another row of the report; rename its folder")
    models = {parent.name: load(source, device="cpu") for parent, source in zip(parents, asked.parents, strict=True)}
    trained = _trained_bytes(models.values())
    for source in filter(None, (asked.base, asked.joint)):
        look(source)
    plans, left_out = _plans(asked, folder)
    learns = bool(asked.heal_steps) or any(plan.recipe.text for plan in plans.values())
    texts, held_out = [], {}
    pieces = []
    for source in asked.texts:
        text, whole = _text(source, models, learns, asked.bytes)
        texts.append(text)
        held_out[text.name] = whole[text.start_bytes :][: asked.bytes]
        pieces.append(whole[: text.start_bytes][: CALIBRATION_BYTES // len(asked.texts)])
    folder.mkdir(parents=True, exist_ok=True)
    if learns:
        (folder / _CALIBRATION).write_bytes(np.concatenate(pieces).tobytes())
    prompts = {name: _prompt(data) for name, data in held_out.items()}
    heard: dict[str, Hearing] = {}
    notes: dict[str, tuple[str, ...]] = {}
    seeds: dict[str, list[Hearing]] = {}
    heritage: dict[str, Inherited] = {}
    samples: dict[str, dict[str, str]] = {name: {} for name in held_out}
    what = dict.fromkeys(names, "parent") | {BASE: "base", JOINT: "joint"}

    def measure(name: str, model: Model[Any], merged: Merged | None = None) -> Hearing:
        say(f"measuring {name}")
        if asked.sample_bytes and name not in next(iter(samples.values())):
            for text, prompt in prompts.items():
                samples[text][name] = _written(model, prompt, asked.sample_bytes)
        if merged and merged.heritage and name not in heritage:
            some = {text: data[:_HERITAGE_BYTES] for text, data in held_out.items()}
            heritage[name] = inherited(model, merged.heritage, names, some, streams=STREAMS)
        return listen(model, held_out, streams=STREAMS)

    for name in names:
        heard[name] = measure(name, models.pop(name))
    for name, source in ((BASE, asked.base), (JOINT, asked.joint)):
        if source:
            heard[name] = measure(name, load(source, device="cpu"))
    for method, plan in plans.items():
        say(f"merging by {method}")
        merged = merge(plan)
        place = write(merged, folder / "merged" / _file(method))
        notes[method], what[method] = tuple(merged.notes), "merged"
        heard[method] = measure(method, merged.model(), merged)
        if not asked.heal_steps or (METHODS[plan.recipe.method].composed and plan.recipe.method != "deep"):
            continue
        name = f"{method}, healed"
        for seed in asked.seeds:
            recipe = heal_recipe(asked, method, place, seed)
            healed = _healed(recipe, merged, folder, texts, say)
            seeds.setdefault(name, []).append(measure(name, healed, merged))
        heard[name], what[name], notes[name] = mean_hearing(seeds[name]), "healed", ()
    table_ = compare(heard, parents=names)
    contenders = []
    for row in table_.rows:
        each = [compare({**heard, row.name: one}, specialists=table_.specialists) for one in seeds.get(row.name, ())]
        ratios = dict(zip(asked.seeds, (one.row(row.name).ratio.mean for one in each), strict=False))
        contenders.append(
            Contender(
                row.name,
                what[row.name],
                row,
                verdict(row.ratio.mean) if what[row.name] in ("merged", "healed") else "",
                ratios,
                statistics.stdev(ratios.values()) if len(ratios) > 1 else 0.0,
                notes.get(row.name, ()),
            )
        )
    healed_bytes = 0
    if asked.heal_steps:
        recipe = heal_recipe(asked, "any", folder, 0)
        healed_bytes = recipe.steps * sum(recipe.texts.values()) * recipe.chunk_bytes
    found = Report(
        asked,
        tuple(texts),
        table_,
        tuple(contenders),
        healed_bytes,
        healed_bytes / trained if trained else None,
        heritage,
        samples,
        prompts,
        tuple(left_out),
    )
    write_report(found, folder)
    return found


def _plans(asked: Experiment, folder: Path) -> tuple[dict[str, Plan], list[str]]:
    """What each method will make, before anything is read; and baselines that cannot be made."""
    plans, left_out = {}, []
    for method in asked.methods:
        plans[method] = make_plan(_merge_recipe(method, asked, folder))
    for method in BASELINES:
        if method in plans:
            continue
        try:
            plans[method] = make_plan(_merge_recipe(method, asked, folder))
        except MergeError as error:
            left_out.append(f"{method}: {error}")
    return plans, left_out


def _merge_recipe(method: str, asked: Experiment, folder: Path) -> Merge:
    """`METHOD:OPTION=VALUE:…` as a recipe; the value of an option may be left out if it is true."""
    name, *options = method.split(":")
    fields: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        try:
            values = json.loads(f"[{value or 'true'}]")
        except json.JSONDecodeError:
            values = [value]
        fields[key.replace("-", "_")] = values if key == "weights" else values[0]
    if name in METHODS and "base" in METHODS[name].options:
        fields["base"] = asked.base
    if fields.get("align") or (fields.get("neurons") and fields.get("by", "activity") == "activity"):
        fields.setdefault("text", str(folder / _CALIBRATION))
    return recipe_from_fields({**fields, "method": name, "parents": asked.parents, "name": _file(method)})


def _file(method: str) -> str:
    return re.sub(r"[^\w.-]+", "_", method)


def _text(source: str, models: dict[str, Model[Any]], learns: bool, most: int) -> tuple[Measured, Bytes]:
    whole = read_bytes(source)
    sha256 = hashlib.sha256(whole.tobytes()).hexdigest()
    known = any(trained_on(model, sha256, 0) for model in models.values())
    start = held_out_start(len(whole)) if is_shipped(source) or learns or known else 0
    heard = min(most, len(whole) - start)
    if heard < 3 * STREAMS:
        raise DataError(f"{source[:200]} has {heard} bytes to measure on; at least {3 * STREAMS} are needed")
    by = {name: trained_on(model, sha256, start) for name, model in models.items()}
    return Measured(text_name(source), Path(source).name, sha256, start, heard, by), whole


def heal_recipe(asked: Experiment, method: str, merged: Path, seed: int) -> Recipe:
    """The shipped recipe `heal` for a merged model: on all texts alike, in so many steps."""
    shipped = load_recipe("heal", [])
    return dataclasses.replace(
        _shortened(shipped, asked.heal_steps),
        name=_file(f"{method}-healed"),
        base=str(merged),
        texts=dict.fromkeys(asked.texts, max(1, _HEAL_ROWS // len(asked.texts))),
        trained=asked.heal_trained,
        evaluate_every=-(-asked.heal_steps // 2),
        patience=0,
        sample_bytes=0,
        seed=seed,
    )


def _healed(recipe: Recipe, merged: Merged, folder: Path, texts: Sequence[Measured], say: Say) -> Model[Any]:
    """The merged model after its healing's last step; trained only if it was not."""
    weights = checkpoint.weights_checksum(merged.tensors)
    place = (
        folder / "healed" / f"{recipe.name}-seed{recipe.seed}-{_key(weights, recipe, *(one.sha256 for one in texts))}"
    )
    out = place / "checkpoint"
    if out.is_dir():
        say(f"{recipe.name}, seed {recipe.seed}: healed before")
    else:
        run = _trained(recipe, place, folder / "texts", say)
        provenance = {
            **merged.provenance(),
            "recipe": dataclasses.asdict(recipe) | {"base": merged.plan.recipe.name},
            "texts": {one.name: {"sha256": one.sha256, "trained_bytes": len(one.train)} for one in run.splits[-1]},
            "steps": run.step,
            "bytes_heard": run.heard_bytes,
            **environment(),
        }
        checkpoint.write(out, run.model.config, plain_tensors(run.model), provenance=provenance)
    return load(out, device="cpu")


def _trained(recipe: Recipe, place: Path, cache: Path, say: Say) -> Run:
    """A run trained to its last step, from where it was stopped if it was."""
    run = Run(recipe, place, cache=cache)
    if run.folder.exists():
        run.resume()
    else:
        run.begin()
    for told in fit(run):
        say(
            f"{recipe.name}, seed {recipe.seed}: step {told.step}/{told.steps}  {told.bits_per_byte:.3f} bits/byte  "
            f"{told.remaining_s / 60:.1f} min left"
        )
    return run


def _key(weights: str, recipe: Recipe, *texts: str) -> str:
    """Differs where weights, recipe or texts do, wherever the folder lies."""
    fields = dataclasses.asdict(recipe) | {
        "base": weights,
        "texts": [*recipe.texts.values(), *map(text_name, recipe.texts)],
    }
    return hashlib.sha256(json.dumps([fields, *texts]).encode()).hexdigest()[:12]


def _trained_bytes(parents: Iterable[Model[Any]]) -> int | None:
    """Bytes that all parents together were trained on after their base, if each says how many."""
    total = 0
    for parent in parents:
        heard = parent.origin.provenance.get("bytes_heard") if parent.origin else None
        if not isinstance(heard, int) or heard < 1:
            return None
        total += heard
    return total


def _prompt(data: Bytes) -> str:
    """The first words of a text's held-out part."""
    some = data[:_PROMPT_BYTES].tobytes()
    cut = max(some.rfind(b" "), some.rfind(b"\n"))
    return (some[:cut] if cut > 0 else some).decode("utf-8", errors="ignore")


def _written(model: Model[Any], prompt: str, count: int) -> str:
    stream = Stream(model)
    stream.feed(prompt.encode() or b"\n")
    options = Sampling(temperature=0.5, seed=0, max_bytes=count, valid_utf8=True)
    return bytes(one.byte for one in stream.generate(options)).decode("utf-8", errors="replace")
