"""Keeps answers to a form: a sandboxed grammar for each answer.

Schemas come from a client, so what they cost is its own answer's: each answer has a process of its own. One whose answer has ended well is
used again, since it has the tokenizer in memory (0.1 to 1 s).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from protocols.errors import ModelNotSupportedError
from swarm.thin.grammar.answer_form import AnswerForm
from swarm.thin.tokenizing.sandbox import Sandbox, SandboxEndedError
from swarm.thin.tokenizing.sandboxed_tokenizer import open_cpu_s

BEGIN_CPU_S, TOKEN_CPU_S = 5.0, 1.0
"""Processor time for a schema, and for a token; llguidance mostly needs milliseconds and microseconds."""

MAX_IDLE = 4
"""Processes that are kept for the next answers."""


class FormConstraint:
    """`generation.Constraint` of one answer."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._last: int | None = None

    async def mask(self) -> bytes:
        """As `Constraint.mask`. ModelNotSupportedError if that costs too much."""
        answer = await _asked(self._sandbox, {"action": "allowed", "token": self._last}, TOKEN_CPU_S)
        self._last = None
        return base64.b64decode(answer["mask"])

    def accept(self, token: int) -> None:
        """As `Constraint.accept`: the next mask follows it."""
        self._last = token


class Constraining:
    """Of one model; all methods belong to one event loop."""

    def __init__(self, model: str, folder: Path, vocab_size: int, ends: Sequence[int]) -> None:
        """folder: of the checkpoint's tokenizer. vocab_size: logits of a token. ends: tokens that end an answer."""
        self._model, self._folder, self._vocab_size, self._ends = model, folder, vocab_size, sorted(ends)
        self._idle: list[Sandbox] = []
        self._used: set[Sandbox] = set()

    @asynccontextmanager
    async def constraint(self, form: AnswerForm) -> AsyncIterator[FormConstraint]:
        """For one answer. ModelNotSupportedError if the form is not supported, or costs too much."""
        sandbox = self._idle.pop() if self._idle else await self._started()
        self._used.add(sandbox)
        is_well = False
        try:
            await _asked(sandbox, {"action": "begin_grammar", "form": form.pack()}, BEGIN_CPU_S)
            yield FormConstraint(sandbox)
            is_well = True
        finally:
            self._used.discard(sandbox)
            if is_well and len(self._idle) < MAX_IDLE:
                self._idle.append(sandbox)
            else:
                sandbox.close()

    def close(self) -> None:
        """End all processes; answers under way fail."""
        for sandbox in (*self._idle, *self._used):
            sandbox.close()
        self._idle.clear()

    async def _started(self) -> Sandbox:
        sandbox = Sandbox(self._model)
        request = {"action": "open_grammar", "folder": str(self._folder.resolve()), "vocab": self._vocab_size, "ends": self._ends}
        try:
            await asyncio.to_thread(sandbox.ask, request, open_cpu_s(self._folder))
        except BaseException:
            sandbox.close()
            raise
        return sandbox


async def _asked(sandbox: Sandbox, request: dict[str, object], cpu_s: float) -> dict[str, Any]:
    try:
        return await sandbox.ask_soon(request, cpu_s)
    except SandboxEndedError as error:
        raise ModelNotSupportedError(f"the JSON schema is too complex: {error.what}; make it simpler") from None
