"""Streamed text has whole letters only, and no stop text."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from node.cli.text import TextOut


class Bytes:
    """A tokenizer whose tokens are single bytes: the hardest case for letters of several bytes."""

    def decode_all(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        return [bytes(ids).decode("utf-8", errors="replace") for ids in runs]


def stream(text: str, stop: str | None = None) -> list[str]:
    pieces: list[str] = []
    out = TextOut(Bytes(), pieces.append, stop)
    out.put([1, 2, 3])  # the prompt
    for byte in text.encode():
        out.put([byte])
    out.end()
    assert out.num_tokens == len(text.encode())
    assert out.text == "".join(pieces)
    return pieces


@given(st.text(max_size=30))
def test_the_pieces_are_the_text(text: str) -> None:
    assert "".join(stream(text)) == text


def test_letters_of_several_bytes_come_whole() -> None:
    assert stream("aé😀") == ["a", "é", "😀"]


@given(st.text("ab\nUser:", max_size=20), st.text(max_size=10))
def test_the_answer_ends_before_the_stop_text(answer: str, more: str) -> None:
    stop = "\nUser:"
    assert "".join(stream(answer + stop + more, stop)) == (answer + stop).partition(stop)[0]


@given(st.text("\nUser:x", max_size=20))
def test_what_only_looks_like_the_stop_text_is_written(text: str) -> None:
    stop = "\nUser:"
    assert "".join(stream(text, stop)) == text.partition(stop)[0]
