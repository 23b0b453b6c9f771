"""What a browser gives back is a conversation within bounds, or nothing."""

from __future__ import annotations

import json

import pytest
from starlette.datastructures import Headers

from node.dashboard.kept_chat import MAX_KEPT_LETTERS, MAX_KEPT_TURNS, KeptChat, Turn, parse_kept, tag_of
from node.dashboard.login import login_page


def given(**fields: object) -> str:
    return json.dumps(fields)


def test_a_conversation_comes_back_with_its_settings() -> None:
    turns = [["user", "hello", ""], ["assistant", "<b>hi</b>\n", "3 tokens"], ["user", "and?", ""]]
    assert parse_kept(given(model="tiny", system="be short", settings={"temperature": 0.5, "seed": 3}, turns=turns)) == KeptChat(
        model="tiny", system="be short", settings={"temperature": 0.5, "seed": 3.0},
        turns=(Turn("user", "hello"), Turn("assistant", "<b>hi</b>\n", "3 tokens"), Turn("user", "and?")),
    )  # fmt: skip


@pytest.mark.parametrize(
    "odd",
    [None, 7, "", "[", "[]", "null", "[" * 100_000, "x" * 2_000_000,
     given(turns=7), given(turns=[["user"]]), given(turns=[["root", "x", ""]]),
     given(turns=[["user", 7, ""]]), given(turns=[["assistant", "hi", ""]]),
     given(settings=[1]), given(settings={"seed": True}), given(settings={"seed": 10**400}),
     '{"settings": {"seed": NaN, "top_k": 1e999}}', given(model=["tiny"], system=None)],
)  # fmt: skip
def test_anything_else_is_an_empty_one(odd: object) -> None:
    assert parse_kept(odd) == KeptChat()


def test_the_newest_messages_are_kept() -> None:
    many = [turn for number in range(500) for turn in (["user", f"q{number}", ""], ["assistant", f"a{number}", ""])]
    found = parse_kept(given(turns=many)).turns
    assert len(found) == MAX_KEPT_TURNS and found[0] == Turn("user", "q400") and found[-1] == Turn("assistant", "a499")
    long = [["user", "q", ""], ["assistant", "x" * (MAX_KEPT_LETTERS - 5), ""], ["user", "again", ""]]
    assert [turn.text for turn in parse_kept(given(turns=long)).turns] == ["again"], "it begins with a question"


def test_each_key_has_a_tag_that_does_not_tell_it_and_the_form_for_a_key_removes_what_is_kept() -> None:
    tags = [tag_of(Headers({"authorization": f"Bearer {key}"})) for key in ("mm-one", "mm-two", "mm-one")]
    assert tags[0] == tags[2] != tags[1] and "mm-one" not in tags[0] and tag_of(Headers({})) not in tags
    assert "sessionStorage.removeItem" in login_page("/page/")
