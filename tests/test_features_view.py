"""The view of reports on features: what it says of a report, and how it keeps markup out."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import zoo

from lab.features import made
from lab.features.findings import Example, Feature
from ui.inspect import features as view
from ui.limits import Limits
from ui.registry import Registry


@pytest.fixture
def report() -> made.Report:
    return made.opened(made.made(None)["shipped/english"])


def test_the_model_s_own_neurons_are_shown_first_and_every_set_with_features_can_be_chosen(report: made.Report) -> None:
    shown = view.show(report)
    assert shown.kind == report.headline
    assert {"standard", "compositional", "extracted features"} < {key for _, key in shown.kinds}
    assert all(view.feature_list(report, key) for _, key in shown.kinds)
    told = view.html.unescape(shown.told)
    assert all(view.in_words(report, one.question) in told for one in view.verdicts(report))
    assert "Are the neurons of layer 3, x more" in told and "layer." not in told
    assert view.feature_list(report, shown.kind)[0][0].startswith("head 1, neuron 88 ·")


def test_what_a_report_quotes_is_text_and_never_markup(report: made.Report) -> None:
    evil = "<img src=x onerror=hurt()>"
    one = Feature(evil, 0.1, 0.5, evil, [Example(evil, evil, evil, 1.0)])
    kind = report.headline
    sets = report.sets | {kind: dataclasses.replace(report.sets[kind], features=[one]), evil: report.sets[kind]}
    told = dataclasses.replace(report, checkpoint=evil, place=evil, text=evil, headline=evil, sets=sets)
    for markup in (
        view.examples_markup(told, kind, 0),
        view.summary(told),
        view.numbers_markup(told),
        view.attention_markup(told, 0),
    ):
        assert "<img" not in markup


def test_a_report_is_on_the_shipped_model_of_its_name_and_on_no_other_that_is_called_so(tmp_path: Path) -> None:
    zoo.fresh("flat").save_pretrained(tmp_path / "checkpoints" / "english")
    zoo.fresh("flat").save_pretrained(tmp_path / "english")
    registry = Registry(tmp_path / "checkpoints", tmp_path / "data", Limits(), "cpu")
    mine = registry.load_trained(tmp_path / "english", "english", "me")
    names = view.choices(None)
    assert registry.title(mine, "me") == registry.title("english", "me") == "english"
    assert view._report_on(registry, "english", "me", names) == "shipped/english"
    assert view._missing(registry, "english", "me", names, Limits()) == ""
    assert view._report_on(registry, mine, "me", names) is None
    assert "There is no report on english yet" in view._missing(registry, mine, "me", names, Limits())


def test_every_field_of_attention_says_its_number_to_those_who_do_not_see_it(report: made.Report) -> None:
    markup = view.attention_markup(report, 0)
    fields = re.findall(r'<td [^>]*role="gridcell"[^>]*aria-label="[^"]* attends to [^"]*: ([0-9.]+)">', markup)
    assert fields == [f"{value:.2f}" for row in report.attention[0] for value in row]
    assert markup.count('tabindex="0"') == 1 and "\\n" not in markup


@pytest.mark.parametrize("place", [None, -1, 10**6, "0", True, 0.5])
def test_a_feature_or_head_that_is_not_there_shows_nothing(report: made.Report, place: object) -> None:
    assert "<table" not in view.examples_markup(report, report.headline, place)
    assert "<table" not in view.attention_markup(report, place)
    assert view.feature_list(report, place) == []


def test_a_report_that_cannot_be_read_is_not_offered(tmp_path: Path) -> None:
    for name in ("broken", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "report.json").write_text("{")
    shutil.copyfile(made.made(None)["shipped/english"], tmp_path / "good" / "report.json")
    names = [name for _, name in view.choices(tmp_path)]
    assert "runs/good" in names and "runs/broken" not in names and "shipped/english" in names
