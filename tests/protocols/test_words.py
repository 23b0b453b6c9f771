"""Words of messages: texts of peers and errors become one line."""

from __future__ import annotations

import pytest

from protocols.words import described, few, one_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, Grüße, 世界 🙂", "plain text, Grüße, 世界 🙂"),
        ("two\nlines\tand\u00a0spaces\u2028", "two lines and spaces "),
        ("\x1b[2J\x07\x9b1m\x00", r"\x1b[2J\x07\x9b1m\x00"),
        ("right\u202eleft", r"right\u202eleft"),
        ("half a letter \udcff", r"half a letter \udcff"),
    ],
)
def test_what_a_terminal_obeys_is_an_escape(text: str, expected: str) -> None:
    assert one_line(text) == expected and expected.isprintable()


def test_an_error_of_a_library_is_one_line_with_its_class() -> None:
    assert described(ValueError("two\n  lines")) == "ValueError: two lines"
    assert len(described(ValueError("x" * 1_000))) == 400


@pytest.mark.parametrize(
    ("reasons", "expected"), [([], ""), (["a"], "a"), (["a", "b"], "a; b"), (["a", "b", "c", "d"], "a; b; and 2 more")]
)
def test_a_message_tells_few_of_many_reasons(reasons: list[str], expected: str) -> None:
    assert few(reasons) == expected
