"""requirements.lock: what a Space is known to work with, each file with its checksum."""

from __future__ import annotations

import re
from importlib.metadata import requires
from itertools import product
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
ENTRY = re.compile(
    r"^(?P<pin>[a-z0-9][^\\]*==[^\\]*) \\\n(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)
PLACES = [
    {"python_version": version, "python_full_version": f"{version}.1", "sys_platform": system, "platform_system": name}
    for version, (system, name) in product(("3.10", "3.11", "3.12"), (("linux", "Linux"), ("darwin", "Darwin")))
]


def locked() -> list[Requirement]:
    return [Requirement(match["pin"]) for match in ENTRY.finditer((ROOT / "requirements.lock").read_text())]


def asked() -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def at(place: dict[str, str]) -> dict[str, Version]:
    """The versions that are installed in a place."""
    environment = {**{k: str(v) for k, v in default_environment().items()}, **place}
    found: dict[str, Version] = {}
    for pin in locked():
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice for {place}"
            found[name] = Version(str(pin.specifier).removeprefix("=="))
    return found


def test_every_line_is_a_pin_with_checksums_and_names_no_place_to_fetch_from() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not ENTRY.sub("", re.sub(r"^#.*\n", "", text, flags=re.M)).strip()
    assert len(locked()) > 80 and "://" not in text and "--index" not in text


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place['python_version']}-{place['sys_platform']}")
def test_it_satisfies_the_requirements_and_is_complete(place: dict[str, str]) -> None:
    versions = at(place)
    environment = {**{k: str(v) for k, v in default_environment().items()}, **place, "extra": ""}
    for requirement in asked():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)], prereleases=True)
    for name in ("accelerate", "datasets", "gradio", "huggingface-hub", "matplotlib", "altair"):
        for line in requires(name) or ():  # as the installed ones say
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate(environment):
                assert canonicalize_name(needed.name) in versions, f"{name} needs {needed.name}"


def test_it_fits_what_a_space_brings_along() -> None:
    versions = at(PLACES[-2])
    card = SpaceCard((ROOT / "README.md").read_text()).data.to_dict()
    assert versions["gradio"] == Version(card["sdk_version"])
    assert (versions["torch"].major, versions["torch"].minor) in {(2, 8), (2, 9), (2, 10), (2, 11)}  # ZeroGPU's
