"""The page's colours have the contrast that WCAG AA asks for."""

from __future__ import annotations

import re

import pytest

from node.dashboard import pages

LEAST = 4.5
"""Of text and its ground. Source: WCAG 2.2, 1.4.3, https://www.w3.org/TR/WCAG22/"""

STYLE = pages.__path__[0] + "/style.css"
ON_BARS = ("load-0", "load-1", "load-2", "load-3", "joining", "draining", "silent")
PAIRS = [
    *((text, ground) for text in ("ink", "quiet", "link", "bad", "good") for ground in ("ground", "card", "track")),
    ("on-accent", "accent"),
    ("on-bad", "bad"),
    *(("on-load", bar) for bar in ON_BARS),
]
"""Text, and what it stands on."""


def colours(scheme: str) -> dict[str, str]:
    with open(STYLE) as file:
        block = re.search(rf"body\.body--{scheme} {{(.*?)}}", file.read(), re.DOTALL)
    assert block is not None
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", block[1]))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(scheme: str) -> None:
    assert round(contrast("#ffffff", "#767676"), 2) == 4.54, "a known pair"
    found = colours(scheme)
    low = {(text, ground): round(value, 2) for text, ground in PAIRS if (value := contrast(found[text], found[ground])) < LEAST}
    assert not low
