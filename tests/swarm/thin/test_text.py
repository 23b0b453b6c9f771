"""Streamed text has whole letters only, and no stop text."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from swarm.thin.channels import MARKS, ChannelReader
from swarm.thin.text import TextOut
from swarm.thin.thoughts import FORMS, Reading, ThoughtReader, form_behind


class Bytes:
    """A tokenizer whose tokens are single bytes: the hardest case for letters of several bytes."""

    def decode_all(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        return [bytes(ids).decode("utf-8", errors="replace") for ids in runs]


def stream(text: str, *stops: str) -> list[str]:
    pieces: list[str] = []
    out = TextOut(Bytes(), pieces.append, stops)
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


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=4), max_size=4))
def test_of_several_stop_texts_the_first_that_is_complete_ends_the_answer(text: str, stops: list[str]) -> None:
    """Letter by letter: which of them is seen first; of several that end with one letter, the one that begins first."""
    expected = text
    for end in range(1, len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            expected = text[: min(begins)]
            break
    assert "".join(stream(text, *stops)) == expected


class WithMarks(Bytes):
    """Tokens from 256 on are no text."""

    def decode_all(self, runs: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        return super().decode_all([[token for token in ids if token < 256] for ids in runs])


def test_only_what_is_said_in_messages_is_written() -> None:
    marks = dict(enumerate(MARKS, 256))
    ids = {mark: token for token, mark in marks.items()}
    pieces: list[str] = []
    thoughts: list[str] = []
    out = TextOut(WithMarks(), pieces.append, ("stop",), reading=Reading(marks, lambda _: ChannelReader()), think=thoughts.append)
    out.put([1])
    said = [
        "<|channel|>",
        "analysis",
        "<|message|>",
        "Hm é.",
        "<|end|>",
        "<|start|>",
        "assistant",
        "<|channel|>",
        "final",
        "<|message|>",
    ]
    for part in [*said, "Yes é", "stop", "no"]:
        for token in [ids[part]] if part in ids else part.encode():
            out.put([token])
    out.end()
    assert "".join(pieces) == out.text == "Yes é" and out.stopped_by == "stop" and "".join(thoughts) == "Hm é."


@given(st.booleans())
def test_an_answer_begins_in_the_thought_that_its_prompt_has_begun(has_begun: bool) -> None:
    reading = Reading({}, lambda prompt: ThoughtReader(form_behind(prompt, FORMS[0])))
    pieces, thoughts = list[str](), list[str]()
    out = TextOut(Bytes(), pieces.append, reading=reading, think=thoughts.append)
    out.put(list(b"Hi<think>\n" if has_begun else b"Hi"))
    for byte in ("" if has_begun else "<think>").encode() + "Hé.</think>\n\nYes.".encode():
        out.put([byte])
    out.end()
    assert ("".join(thoughts), "".join(pieces), out.text) == ("Hé.", "Yes.", "Yes.")
