"""Names of peers are untrusted: none becomes a part of the page."""

from __future__ import annotations

import pytest

from protocols.ids import Span
from tests.browser import Browser
from tests.node.dashboard.made_swarm import MadeSource, made_record, serving

NAMES = (
    "<img src=x onerror=window.hit=1>",
    "</script><script>window.hit=2</script>",
    "{{constructor.constructor('window.hit=3')()}}",
    "`;window.hit=4;`",
    "${window.hit=5}",
    "\x1b]0;title\x07\x1b[31mred",
    "a\u202eb\u2066c\u200bd",
    "' onclick='window.hit=6",
    "javascript:window.hit=7",
)


@pytest.fixture
def source() -> MadeSource:
    return MadeSource([made_record(at + 1, Span(0, 3), 6, name[:64]) for at, name in enumerate(NAMES)])


def test_no_name_becomes_html_a_script_or_a_control_character(browser: Browser, source: MadeSource) -> None:
    with serving(source) as url:
        browser.open(url)
        browser.until_text("window.hit=1", ".mm-grid")
        browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
        for name in NAMES[:5]:
            assert name[:64] in browser.text(".mm-grid"), "it is shown as it is, as text"
        source.silent.update(record.peer for record in source.records[:5])
        browser.until_text("does not answer any more", ".mm-events")
        shown = browser.run("return document.documentElement.outerHTML")
        assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in shown)
        assert not set("\x1b\x07\x7f\u202e\u2066\u200b") & set(shown)
        assert browser.run("return window.hit") is None and not browser.run("return document.querySelectorAll('main img').length")
        assert browser.faults() == []
