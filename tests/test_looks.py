"""Colours of the page's theme: text on what is behind it, by the contrast that WCAG asks for."""

from __future__ import annotations

from typing import Any

import pytest

from ui.page import theme

PAIRS = (
    ("body_text_color", "body_background_fill"),
    ("body_text_color_subdued", "body_background_fill"),
    ("block_info_text_color", "block_background_fill"),
    ("block_title_text_color", "block_background_fill"),
    ("block_label_text_color", "block_background_fill"),
    ("input_placeholder_color", "input_background_fill"),
    ("button_primary_text_color", "button_primary_background_fill"),
    ("button_primary_text_color", "button_primary_background_fill_hover"),
    ("button_cancel_text_color", "button_cancel_background_fill"),
    ("button_secondary_text_color", "button_secondary_background_fill"),
    ("button_secondary_text_color", "button_secondary_background_fill_hover"),
)


def colour(looks: Any, name: str, suffix: str) -> str:
    """What a name of the theme stands for in the end: #rrggbb."""
    value = getattr(looks, name + suffix, None) or getattr(looks, name)
    while value.startswith("*"):
        value = getattr(looks, value[1:] + suffix, None) or getattr(looks, value[1:])
    return {"white": "#ffffff", "black": "#000000"}.get(value, value)


def luminance(hexadecimal: str) -> float:
    parts = [int(hexadecimal[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("suffix", ["", "_dark"], ids=["light", "dark"])
@pytest.mark.parametrize(("text", "behind"), PAIRS)
def test_text_stands_out_from_what_is_behind_it(text: str, behind: str, suffix: str) -> None:
    looks = theme()
    dark, light = sorted(luminance(colour(looks, name, suffix)) for name in (text, behind))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_black_on_white_has_the_contrast_of_the_standard() -> None:
    assert (luminance("#ffffff") + 0.05) / (luminance("#000000") + 0.05) == pytest.approx(21)
