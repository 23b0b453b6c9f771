"""`swarm generate --thin` and `swarm chat --thin`: no checkpoint, no torch, no hivemind; the same lines in and out as without it.

One loop lives as long as the command and runs while something is asked; between the turns of a chat the connections rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator

from node.cli.asking import Asking, Sampling, summary
from node.cli.chat import HELP, PLAIN_STOP, lines
from node.cli.console import remark, write_piece
from node.cli.text import TextOut
from node.config import default_data_dir
from protocols.errors import BadRequestError, SwarmError
from swarm.models.resolve import name_in_swarm
from swarm.thin.choosing import Chooser, Choosing
from swarm.thin.generation import Row, generate
from swarm.thin.model import ThinModel, open_model
from swarm.thin.templates import Message, conversation_ids


class Journey:
    """What `summary` says of a session."""

    def __init__(self, row: Row) -> None:
        self.journey = row.session


@contextlib.contextmanager
def _opened(asking: Asking) -> Iterator[tuple[asyncio.Runner, ThinModel]]:
    """A loop, and the model on it; closed again whatever happens."""
    root = (asking.data_dir or default_data_dir()) / "weights"
    with asyncio.Runner() as runner:
        opening = open_model(
            asking.model_name or name_in_swarm(asking.model), peers=asking.peers, root=root, swarm=asking.swarm,
            dtype=asking.dtype, patience_s=asking.patience_s, priority=asking.priority, find=asking.find,
        )  # fmt: skip
        model = runner.run(opening.__aenter__())
        try:
            yield runner, model
        finally:
            runner.run(opening.__aexit__(None, None, None))


def _choosing(model: ThinModel, sampling: Sampling) -> Choosing:
    return model.defaults.choosing(sampling.given(), sampling.seed)


async def _answer(model: ThinModel, row: Row, ids: list[int], out: TextOut, chooser: Chooser, sampling: Sampling) -> int | None:
    """Stream the continuation of `ids` to `out`; the number of trips it took, where that may not be one for each token."""
    propose, before = sampling.speculation.proposer(), row.trips
    out.put(ids)
    async for token in generate(row, ids, chooser, model.limits(sampling.max_new_tokens), propose):
        out.put([token])
        if out.is_stopped:
            break
    out.end()
    return None if propose is None else row.trips - before


def run_generate(asking: Asking, sampling: Sampling, prompt: str, with_stats: bool) -> None:
    """As `node.cli.generate.run`."""
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    sampling.speculation.proposer()  # refuses a draft before anybody is asked
    with _opened(asking) as (runner, model):
        ids = model.tokenizer.encode(text)
        if not ids:
            raise BadRequestError("the prompt is empty; expected some text to go on with")
        out, row, chooser = TextOut(model.tokenizer, write_piece), model.start(), Chooser(_choosing(model, sampling))
        started_s = time.monotonic()
        try:
            trips = runner.run(_answer(model, row, ids, out, chooser, sampling))
        finally:
            if out.text:
                print(flush=True)
        if with_stats or sys.stderr.isatty():
            remark(summary(out, started_s, Journey(row), trips))


class Conversation:
    """What was said, and the row that holds it at the nodes."""

    def __init__(self, runner: asyncio.Runner, model: ThinModel, system: str | None) -> None:
        self._runner, self._model, self._system = runner, model, system
        self.row: Row | None = None
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system's words; the session at the nodes ends."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []
        self.drop()

    def drop(self) -> None:
        """End the session: the next turn sends the whole conversation in a new one."""
        row, self.row = self.row, None
        if row is not None:
            self._runner.run(self._model.end(row))

    def held(self) -> Row:
        """The row to go on with."""
        self.row = self.row or self._model.start()
        return self.row


def run_chat(asking: Asking, sampling: Sampling, system: str | None, with_stats: bool) -> None:
    """As `node.cli.chat.run`."""
    sampling.speculation.proposer()
    with _opened(asking) as (runner, model):
        conversation, chooser = Conversation(runner, model, system), Chooser(_choosing(model, sampling))
        if sys.stdin.isatty():
            remark(f"chatting with {asking.model}; {HELP}")
        for line in lines():
            if line == "/reset":
                conversation.reset()
            elif line == "/help":
                remark(HELP)
            else:
                _ask(runner, model, conversation, chooser, sampling, line, with_stats)


def _ask(
    runner: asyncio.Runner,
    model: ThinModel,
    conversation: Conversation,
    chooser: Chooser,
    sampling: Sampling,
    line: str,
    with_stats: bool,
) -> None:
    """One turn. On a terminal, one that fails is reported and forgotten; a script wants the exit code."""
    try:
        cost = runner.run(_turn(model, conversation, chooser, sampling, line))
    except SwarmError as error:
        conversation.drop()
        if not sys.stdin.isatty():
            raise
        remark(f"error: {error} (/reset starts over)")
        return
    if with_stats or sys.stderr.isatty():
        remark(cost)


async def _turn(model: ThinModel, conversation: Conversation, chooser: Chooser, sampling: Sampling, line: str) -> str:
    """One question and its answer; the line that says what it cost."""
    messages = [*conversation.messages, {"role": "user", "content": line}]
    ids = await conversation_ids(model.tokenizer, messages)
    stop = None if model.tokenizer.chat_template is not None else PLAIN_STOP
    out, row, started_s = TextOut(model.tokenizer, write_piece, stop), conversation.held(), time.monotonic()
    try:
        trips = await _answer(model, row, ids, out, chooser, sampling)
    finally:
        if out.text:
            print(flush=True)
    conversation.messages = [*messages, {"role": "assistant", "content": out.text.strip()}]
    return summary(out, started_s, Journey(row), trips)
