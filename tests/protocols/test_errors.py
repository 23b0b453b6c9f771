"""Errors are one tree, cross the wire, and carry untrusted text safely."""

from __future__ import annotations

import re

import pytest

from protocols import errors
from protocols.errors import BY_CODE, SwarmError, from_wire, to_wire

CLASSES = sorted(BY_CODE.values(), key=lambda error: error.__name__)


def test_the_drawn_tree_is_the_tree() -> None:
    drawn, above = {}, [""]
    for indent, name in re.findall(r"^( *)- (\w+)", str(errors.__doc__), re.MULTILINE):
        depth = len(indent) // 2
        above[depth + 1 :] = [name]
        drawn[name] = above[depth]
    actual = {
        error.__name__: (error.__base__.__name__ if error.__base__ and error is not SwarmError else "") for error in CLASSES
    }
    assert drawn == actual


def test_every_class_has_its_own_code_and_a_contract() -> None:
    everything = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, SwarmError)]
    assert len(everything) == len(BY_CODE) == len({error.code for error in everything})
    for error in everything:
        assert re.fullmatch(r"[a-z_]{1,64}", error.code) and error.__doc__ and 1 <= error.exit_code <= 125


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_an_error_crosses_the_wire_as_itself(error: type[SwarmError]) -> None:
    again = from_wire(*to_wire(error("what; expected; next step")))
    assert type(again) is error and str(again) == "what; expected; next step"


@pytest.mark.parametrize("code", ["", "nonsense", "SwarmError", None, 7, [], {}, b"internal", ["internal"]])
def test_an_unknown_code_is_still_an_error(code: object) -> None:
    again = from_wire(code, "text")
    assert type(again) is SwarmError and str(again) == "text" and not again.try_another_peer


def test_a_strangers_text_cannot_play_with_the_terminal() -> None:
    text = str(from_wire("internal", "a\x1b[31mb\r\nc\0\u202ed\x9b" + "x" * 9_999))
    assert text.startswith("a [31mb  c  d x") and text.isprintable() and len(text) == errors.MAX_MESSAGE


@pytest.mark.parametrize("message", [None, 7, b"bytes", ["deep", [[]]], {}])
def test_a_message_that_is_no_text_is_shown(message: object) -> None:
    assert str(from_wire("internal", message)).isprintable()


def test_what_we_send_is_short_and_utf8() -> None:
    code, text = to_wire(errors.CheckpointError("no file \udcff" + "x" * 9_999))
    assert code == "bad_checkpoint" and len(text) == errors.MAX_MESSAGE and text.encode()
