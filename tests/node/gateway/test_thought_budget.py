"""Random thoughts are ended by their budget, also beside a grammar.

Marks are tokens, or spelled out.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from node.gateway.answers.thought_budget import ThoughtBudget, limit_of
from node.gateway.anthropic.messages import MessagesBody
from node.gateway.tools.thoughts import ThoughtTokens
from swarm.thin.channels import Thought
from swarm.thin.grammar.answer_form import AnswerForm
from swarm.thin.thoughts import FORMS, ThoughtReader
from tests.node.gateway.test_call_grammar import Speaker, add_tokens

BUDGET, FORM = 20, FORMS[0]
OPEN = replace(FORM, is_open=True)
MOST = 400
"""Tokens of an answer."""


class Kept:
    """A grammar as a constraint."""

    def __init__(self, speaker: Speaker) -> None:
        speaker.grammar.begin(AnswerForm(schema='{"enum": [[1]]}', thought=OPEN))
        self._grammar, self._last = speaker.grammar, None

    async def mask(self) -> bytes:
        return self._grammar.allowed(self._last)

    def accept(self, token: int) -> None:
        self._last = token


async def said(speaker: Speaker, has_form: bool, draw: random.Random) -> tuple[str, int]:
    """The text of an answer that is drawn from all tokens that may come, but ends no thought by itself; and its tokens of thoughts."""
    thoughts, ids, text = ThoughtTokens(ThoughtReader(OPEN)), list[int](), ""
    limit = limit_of(speaker.tokenizer, OPEN, BUDGET, len(speaker.tokenizer))
    budget = ThoughtBudget(limit, thoughts, Kept(speaker) if has_form else None)
    ends = speaker.tokenizer.convert_tokens_to_ids(["<end>", "<"]) + limit.ends[-1:]
    while len(ids) < MOST:
        mask = await budget.mask()
        allowed = [one for one in range(len(speaker.tokenizer)) if not mask or mask[one // 8] >> one % 8 & 1]
        token = draw.choice([one for one in allowed if one not in ends or not thoughts.is_thinking] or allowed)
        if token == speaker.end:
            break
        budget.accept(token)
        ids.append(token)
        whole = speaker.tokenizer.decode(ids)
        fresh = "" if whole.endswith("\ufffd") else whole[len(text) :]
        text += fresh
        thoughts.add(fresh)
    return speaker.tokenizer.decode(ids), thoughts.num


@pytest.mark.parametrize("words", [(), ("<think>", "</think>")], ids=["spelled", "tokens"])
@pytest.mark.parametrize("has_form", [False, True], ids=["free", "json"])
def test_a_thought_has_at_most_its_budget(tmp_path: Path, words: tuple[str, ...], has_form: bool) -> None:
    add_tokens(tmp_path, words)
    speaker = Speaker(tmp_path, seed=0)
    for seed in range(5):
        text, num_thoughts = asyncio.run(said(speaker, has_form, random.Random(seed)))
        reader = ThoughtReader(OPEN)
        parts = [*reader.feed(text), *reader.rest()]
        answer = "".join(part for part in parts if not isinstance(part, Thought))
        assert "</think>" in text and answer, (seed, text)
        letters = 3 if has_form else 0
        """A grammar lets a letter of four bytes be completed first."""
        assert BUDGET <= num_thoughts <= BUDGET + letters, seed
        assert not has_form or json.loads(answer) == [1]


@pytest.mark.parametrize(
    ("thinking", "budget"), [({"type": "enabled", "budget_tokens": 1024}, 1024), ({"type": "adaptive"}, None)]
)
def test_anthropics_budget_is_one(thinking: dict[str, object], budget: int | None) -> None:
    talk = [{"role": "user", "content": "a"}]
    body = MessagesBody.model_validate({"model": "a", "max_tokens": 2000, "messages": talk, "thinking": thinking})
    assert body.request().thought_budget == budget
