"""Events of the answers to one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from node.gateway.answers.answer import Event, Piece
from node.gateway.answers.answering import merged
from node.gateway.answers.calls import check_budget
from node.gateway.answers.request import Picking, Request
from node.gateway.http.refusal import RefusedError


async def answer(choice: int, tasks: list[str]) -> AsyncGenerator[Event, None]:
    """Two pieces; notes the task that asks for each."""
    for text in ("a", "b"):
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task.get_name())
        yield Piece(choice=choice, text=text)


async def test_one_answer_runs_in_the_task_of_its_reader_and_several_in_tasks_of_their_own() -> None:
    me = asyncio.current_task()
    assert me is not None
    for number in (1, 3):
        tasks = list[str]()
        events = [event async for event in merged([answer(choice, tasks) for choice in range(number)])]
        pieces = [(event.choice, event.text) for event in events if isinstance(event, Piece)]
        assert sorted(pieces) == [(choice, text) for choice in range(number) for text in "ab"]
        assert set(tasks) == {me.get_name() if number == 1 else "answer"}


def test_a_budget_of_thoughts_is_refused_by_the_template_alone() -> None:
    """So it is before a prompt is encoded, and counted."""
    request = Request(
        model="m", prompts=([{"role": "user", "content": "?"}],), prompt_param="messages", picking=Picking(), thought_budget=9
    )
    for template in (None, "{{ messages }}"):
        with pytest.raises(RefusedError, match="thinking_token_budget"):
            check_budget(request, template)
        check_budget(replace(request, thought_budget=None), template)
    check_budget(request, QWEN)


QWEN = "{% if '</think>' in content %}{{ content.split('</think>')[-1] }}{% endif %}<think>"
