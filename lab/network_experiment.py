"""Are a model's weights a scale-free, modular network? Degrees, power laws and communities, against fresh weights.

The graph of a head is G = decoder · encoder from neuron to neuron, of which the strongest positive weights are kept, so
many that the mean degree is --mean-degree; `lab/network.py` says why. A power law is not ruled out if the tail has 50
neurons and spans a factor of 10, if an exponential is significantly worse (p under 0.1), no alternative significantly
better, and degrees drawn from the fit are as far from their own fits in at least 10 % of the draws. A graph is modular
if Louvain's modularity is 0.05 above that of every random graph of the same degrees; because width alone makes some of
that, it is held against fresh weights too. What was measured before is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bdh.cli import guarded, resolved
from bdh.errors import ConfigError, DataError
from bdh.load import load
from bdh.models import Model
from train.folder import environment
from train.plots import as_drawn, figure

from .claim import Table, Work, identity, listed, short_name, write_json
from .network import (
    ALL_HEADS,
    ALTERNATIVES,
    DRAWS,
    LEAST_TAIL,
    MEAN_DEGREE,
    MODULAR,
    MOST_DEGREE,
    MOST_NEURONS,
    RANDOM_GRAPHS,
    Graph,
    Network,
    Place,
    Surroundings,
    communities,
    graph,
    measure,
    places,
    surroundings,
)

REPORT, RESULT, DEGREES, PICTURE = "report.md", "report.json", "degrees.png", "surroundings.png"


def main(arguments: list[str]) -> int:
    """Run the command; the exit status as in `bdh.cli`."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab network", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a shipped name, a folder or user/repo")
    add("--places", metavar="PLACE", nargs="+", help="such as 'head 0' or 'all heads' (default: every head apart)")
    add("--mean-degree", metavar="X", type=float, default=MEAN_DEGREE, help=f"1 to {MOST_DEGREE:g} (default: 8)")
    add(
        "--random", metavar="N", type=int, default=RANDOM_GRAPHS, help="random graphs of the same degrees (default: 10)"
    )
    add("--seed", metavar="N", type=int, default=0, help="of fresh weights, draws and Louvain (default: 0)")
    add("--out", type=Path, default=Path("runs/network"), help="folder (default: runs/network)")
    add("--quiet", action="store_true", help="show no progress")
    return parser


def _run(options: argparse.Namespace) -> int:
    say: Callable[[str], None] = (lambda line: None) if options.quiet else partial(print, file=sys.stderr, flush=True)
    if options.random < 1:
        raise ConfigError(f"--random is {options.random}; at least 1 random graph is needed to compare with")
    model = load(resolved(options.checkpoint), device="cpu")
    known = places(model.config)
    names = options.places or [name for name in known if not name.endswith(ALL_HEADS)]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no place {name!r:.60}; there are {', '.join(known)}")
    settings = {
        "mean_degree": options.mean_degree,
        "random_graphs": options.random,
        "seed": options.seed,
    }
    found = experiment(model, short_name(options.checkpoint), names, settings, options.out, say=say)
    print("\n".join(verdict_line(one) for one in found))
    print(f"\n{options.out / REPORT}, {options.out / RESULT}, {options.out / DEGREES}, {options.out / PICTURE}")
    return 0


def experiment(
    model: Model[Any],
    name: str,
    names: Sequence[str],
    settings: Mapping[str, Any],
    folder: Path,
    *,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measure the graph of each place that is not measured yet, and write the report.

    Args:
        name: of the checkpoint, for the report.
        names: of places.
        settings: as the command's options.

    Raises:
        ConfigError: the folder holds another model or other settings.
    """
    known = places(model.config)
    parts = {place: place.replace(",", "").replace(" ", "-") for place in names}
    expected = {part: 1e-2 * min(known[place].neurons, MOST_NEURONS) for place, part in parts.items()}
    work = Work(folder, {"model": identity(model), **settings}, expected, say)
    found = []
    for place, part in parts.items():
        found.append(work.part(part, partial(_measured, model, known[place], settings)))
        say(verdict_line(found[-1]))
    result = {"checkpoint": name, **identity(model), **settings, **environment(), "places": found}
    write_json(folder / RESULT, {**result, "tables": [dataclasses.asdict(table) for table in tables(found)]})
    (folder / REPORT).write_text("\n\n".join(_markdown(name, found)) + "\n", encoding="utf-8")
    draw_degrees(found, folder / DEGREES)
    drawn = graph(model, known[names[0]], mean_degree=settings["mean_degree"], seed=settings["seed"])
    member, _ = communities(drawn, settings["seed"])
    draw_surroundings(surroundings(drawn, member, hub(drawn)), folder / PICTURE)
    return found


def _measured(
    model: Model[Any], place: Place, settings: Mapping[str, Any], tell: Callable[[float], None]
) -> dict[str, Any]:
    made = measure(
        model,
        place,
        mean_degree=settings["mean_degree"],
        random_graphs=settings["random_graphs"],
        seed=settings["seed"],
        tell=lambda part, note: tell(part),
    )
    return fields(made)


def hub(found: Graph) -> int:
    """The node that most neurons excite."""
    return int(np.bincount(found.target, minlength=found.count).argmax())


def fields(found: Network) -> dict[str, Any]:
    """A network as JSON takes it, with its verdicts."""
    told = dataclasses.asdict(found) | {"verdict": found.verdict}
    for which, one in (("trained", found.trained), ("untrained", found.untrained)):
        told[which]["verdict"] = one.verdict
        told[which]["in_fit"]["verdict"] = one.in_fit.verdict
        told[which]["out_fit"]["verdict"] = one.out_fit.verdict
    return told


def as_csv(found: Graph) -> str:
    """The edges of a graph as a table: from which neuron to which, and how strong."""
    into = io.StringIO()
    writer = csv.writer(into, lineterminator="\n")
    writer.writerow(["from_neuron", "to_neuron", "weight"])
    for source, target, weight in zip(found.source.tolist(), found.target.tolist(), found.weight.tolist(), strict=True):
        writer.writerow([found.neuron(source), found.neuron(target), f"{weight:.6g}"])
    return into.getvalue()


def verdict_line(found: Mapping[str, Any]) -> str:
    """One line on what was found."""
    own = found["trained"]
    return (
        f"{found['place']}: in-degree {own['in_fit']['verdict']} (alpha {own['in_fit']['alpha']:.2f}), out-degree "
        f"{own['out_fit']['verdict']} (alpha {own['out_fit']['alpha']:.2f}); {found['verdict']}, "
        f"{own['modularity']:.3f} against {max(own['random']):.3f} at random and "
        f"{found['untrained']['modularity']:.3f} untrained"
    )


def draw_degrees(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """How many neurons have at least so high a degree, in and out, trained and untrained, with the fitted tail.

    Raises:
        DataError: the file cannot be written.
    """
    with figure(path, len(found), 2, inches=(4.0, 2.9)) as panels:
        for row, one in zip(panels, found, strict=True):
            for axes, side in zip(row, ("in", "out"), strict=True):
                for index, which in enumerate(("trained", "untrained")):
                    own = one[which]
                    points = tail_points(own[f"{side}_degree"])
                    axes.plot(
                        [x for x, _ in points], [y for _, y in points], "os"[index], color=f"C{1 - index}",
                        markersize=3.5, label=which,
                    )  # fmt: skip
                    line = fit_line(own[f"{side}_fit"], own[f"{side}_degree"])
                    axes.plot([x for x, _ in line], [y for _, y in line], color=f"C{1 - index}", linewidth=1)
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.set_xlabel(f"{side}-degree")
                axes.set_ylabel("part with as many or more")
                axes.set_title(
                    f"{as_drawn(one['place'])}: {one['trained'][f'{side}_fit']['verdict']}", loc="left", fontsize=8
                )
                axes.grid(True, color="0.9", linewidth=0.6)
                axes.legend(frameon=False)


def tail_points(degrees: Sequence[int]) -> list[tuple[int, float]]:
    """For each degree above 0 that occurs, the part of neurons that have as many or more."""
    counted = np.bincount(np.asarray(degrees))
    above = counted[::-1].cumsum()[::-1] / max(1, len(degrees))
    return [(degree, float(above[degree])) for degree in np.flatnonzero(counted).tolist() if degree > 0]


def fit_line(fit: Mapping[str, Any], degrees: Sequence[int]) -> list[tuple[float, float]]:
    """Two points of the fitted tail, in the scale of `tail_points`."""
    share = fit["tail"] / max(1, len(degrees))
    slope = fit["alpha"] - 1
    ends = (fit["least_degree"], fit["largest_degree"])
    return [(float(end), share * (end / fit["least_degree"]) ** -slope) for end in ends]


def draw_surroundings(found: Surroundings, path: Path, *, of: str = "") -> None:
    """A neuron and what is around it, coloured by community.

    Args:
        of: names the model and the place in the title.

    Raises:
        DataError: the file cannot be written.
    """
    with figure(path, 1, inches=(6.4, 5.2)) as panels:
        axes = panels[0, 0]
        nodes = found.nodes
        arrow = {"arrowstyle": "->,head_width=0.12,head_length=0.25", "color": "0.6", "linewidth": 0.4, "alpha": 0.6}
        for edge in found.edges:
            one, other = nodes[edge["source"]], nodes[edge["target"]]
            axes.annotate(
                "", (other["x"], other["y"]), (one["x"], one["y"]),
                arrowprops=arrow, zorder=1,
            )  # fmt: skip
        named: set[int] = set()
        shown = {member: i for i, member in enumerate(dict.fromkeys(node["community"] for node in nodes))}
        for index, node in enumerate(nodes):
            if node["community"] not in named:
                axes.plot(
                    [], [], "o", color=f"C{shown[node['community']] % 7}", label=f"community {node['community'] + 1}"
                )
            named.add(node["community"])
            axes.plot(
                node["x"], node["y"], "s" if node["layer"] else "o", color=f"C{shown[node['community']] % 7}",
                markersize=13 if index == 0 else 8, markeredgecolor="black" if index == 0 else "white", zorder=3,
            )  # fmt: skip
            axes.annotate(
                str(node["neuron"]), (node["x"], node["y"]), xytext=(0, 7), textcoords="offset points", ha="center",
                fontsize=6.5,
            )  # fmt: skip
        axes.set_axis_off()
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        title = f"neuron {nodes[0]['neuron']} and its strongest neighbours"
        axes.set_title(as_drawn(f"{of}: {title}" if of else title), loc="left")


def _markdown(name: str, found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"# {name}: the network of its weights"
    yield "\n".join(f"- {verdict_line(one)}" for one in found)
    yield (
        f"Edges are the strongest positive weights of G = decoder · encoder, {found[0]['mean_degree']:g} a neuron on "
        "average in every graph. A power law is fitted to the tail that it fits best; the ratios are normalised "
        "log-likelihood ratios against an alternative, above 0 where the power law is likelier, and p tells how often "
        "a ratio so far from 0 comes of two that are as good. The tail begins where it is nearest to its fit, with "
        f"{LEAST_TAIL} neurons at least; the distance is Kolmogorov and Smirnov's, and its p the part of {DRAWS} sets "
        "of degrees drawn from the fit, each with a start and an alpha fitted to it anew, that are as far from their "
        f"own fit. A graph is modular if it is {MODULAR} above all {len(found[0]['trained']['random'])} random graphs "
        f"of the same degrees, and clearly more so than fresh weights if it is {MODULAR} further above their mean than "
        "the graph of these is."
    )
    yield f"![degrees]({DEGREES})\n\n![the neuron that most others excite]({PICTURE})"
    for table in tables(found):
        yield f"## {table.title}"
        if table.note:
            yield table.note
        yield listed(table.rows)


def tables(found: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Of each place what was found of its communities, and of its degrees, from what `fields` gives."""
    made = []
    for one in found:
        drawn = f", {one['neurons']:,} of {one['of']:,} drawn by the seed" if one["neurons"] < one["of"] else ""
        groups = [["weights", "modularity", "at random", "communities", "least weight, deviations", "verdict"]]
        names = [name.replace("_power_law", "") for name in ALTERNATIVES]
        degrees = [["degree", "alpha", "tail", "neurons in it", "distance", *names, "verdict"]]
        for which in ("trained", "untrained"):
            own = one[which]
            random = f"{min(own['random']):.3f} to {max(own['random']):.3f}"
            measures = f"{own['modularity']:.3f}", random, str(own["communities"]), f"{own['least_weight']:.2f}"
            groups.append([which, *measures, own["verdict"]])
            degrees += [_fit_row(f"{which}, {side}", own[f"{side}_fit"]) for side in ("in", "out")]
        note = f"{one['neurons']:,} neurons{drawn}, {one['edges']:,} edges."
        made += [
            Table(f"{one['place']}: communities", groups, note),
            Table(f"{one['place']}: degrees", degrees),
        ]
    return made


def _fit_row(name: str, fit: Mapping[str, Any]) -> list[str]:
    ratios = [
        f"{fit['against'][other]['ratio']:+.1f} ({_p(fit['against'][other]['p'])})"
        if other in fit["against"]
        else "not fitted"
        for other in ALTERNATIVES
    ]
    return [
        name,
        f"{fit['alpha']:.2f} ± {fit['sigma']:.2f}",
        f"{fit['least_degree']} to {fit['largest_degree']}",
        str(fit["tail"]),
        f"{fit['distance']:.3f} ({_p(fit['p'])})",
        *ratios,
        fit["verdict"],
    ]


def tables_of(folder: Path) -> list[Table]:
    """The tables of a report that this command wrote, with the checkpoint's name in their titles.

    Raises:
        DataError: the folder holds none.
    """
    path = folder / RESULT
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not fields["places"]:
            raise ValueError("it has no places")
        found = [Table(f"{fields['checkpoint']}, {one['title']}", one["rows"], one["note"]) for one in fields["tables"]]
        if not all(isinstance(cell, str) for table in found for row in table.rows for cell in row):
            raise ValueError("its tables have cells that are no text")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no report on a network ({type(error).__name__}: {str(error)[:120]}); give the folder that "
            "python -m lab network CHECKPOINT --out FOLDER wrote, and let that command measure an old one again"
        ) from error


def _p(value: float) -> str:
    return "p < 1e-16" if value < 1e-16 else f"p {value:.2g}"
