"""Events of the answers to one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from node.gateway.answers.answer import Event, Piece
from node.gateway.answers.answering import merged


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
