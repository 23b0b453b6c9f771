"""One sequence that grows token by token over a session.

Feed, pick, continue; with as many tokens at once as a proposer guesses.

A step sends what the hops do not hold yet and gets back just what decides the next token: the largest logit for greedy, the
largest few for a draw, all if these do not decide it. A *proposer* may guess how the text goes on: the guesses travel with the step, each
position's own choice decides whether its guess was right, and what was wrong is forgotten by the next step. So guessing changes
how many trips a text takes, never the text.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from protocols.errors import BadRequestError
from protocols.inference import Crop, Op, StepSpec
from protocols.tensors import WireTensor
from protocols.words import counted
from swarm.thin.sampling import Chooser, NotEnoughError, OwnLogits, Position
from swarm.timings import Timings
from swarm.tracing import StepTracer

Proposer = Callable[[Sequence[int]], Sequence[int]]
"""All tokens so far -> guesses of the next ones, likeliest text first; empty = none."""


class Output(Protocol):
    @property
    def values(self) -> WireTensor: ...

    @property
    def ids(self) -> WireTensor | None: ...

    @property
    def totals(self) -> WireTensor | None: ...


class Steps(Protocol):
    """What a `TokenSequence` needs of `swarm.inference.client.session.Session`."""

    tracer: StepTracer
    timings: Timings

    async def step(
        self, ops: Sequence[Op], counts: Sequence[int], tokens: WireTensor, spec: StepSpec = ...,
        positions: Sequence[int] | None = None,
    ) -> Output: ...  # fmt: skip

    @property
    def is_fork_taken(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where an answer ends."""

    max_new_tokens: int
    ends: frozenset[int] = frozenset()
    """Tokens after which it is over; the token itself is given out."""
    max_positions: int | None = None
    """Longest sequence that the model takes; None = not known here."""
    vocab_size: int | None = None
    """Logits of a token; None = more than a chooser asks for."""


class Constraint(Protocol):
    """Says which tokens an answer may go on with, such that it keeps to a form."""

    async def mask(self) -> bytes:
        """Those that may come next, as `StepSpec.mask`; an end token is among them once the answer may end."""
        ...

    def accept(self, token: int) -> None:
        """This one came; the mask allowed it."""
        ...


class TokenSequence:
    """The tokens of one sequence at every hop. After an exception its session is of no use: close it."""

    def __init__(self, session: Steps, held: Sequence[int] = ()) -> None:
        """held: what the session begins with, as a fork of another one."""
        self.session = session
        self.held = list(held)
        """What the hops hold, or are sent with the next step."""
        self._num_begun = len(held)
        self.trips = 0
        """How often something went through the route."""
        self._crop = 0

    @property
    def timings(self) -> Timings:
        """Where its time went so far."""
        return self.session.timings

    def cut_back(self, ids: Sequence[int]) -> None:
        """Forget what does not begin `ids`, and at least the last of them, since something must be fed. Costs no trip of its own."""
        common = 0
        for old, new in zip(self.held, ids, strict=False):
            if old != new:
                break
            common += 1
        self.forget(max(0, len(self.held) - min(common, len(ids) - 1)))

    @property
    def num_reused(self) -> int:
        """Tokens that hops had kept, and did not compute again; known with the first reply."""
        return self._num_begun if self._num_begun and self.session.is_fork_taken else 0

    def num_until(self, tokens: int) -> int:
        """Tokens that the hops must have answered for this session, so that they have its first `tokens`; a fork has asked them by then."""
        return max(1, tokens - self._num_begun)

    def forget(self, tokens: int) -> None:
        """Forget the last tokens, with the next step."""
        self._crop += tokens
        del self.held[len(self.held) - tokens :]

    async def feed(
        self, ids: Sequence[int], want: int, top: int, mask: bytes = b"", temperature: float = 0.0, changes: bytes = b"",
        own: int | None = None,
    ) -> list[Position]:  # fmt: skip
        """Send tokens; the logits after each of the last `want`: the `top` largest of those that `mask` allows (`StepSpec.mask`).

        If `top` is 0: all, also those that it does not, and as the model gives them. temperature, changes: as `StepSpec` has them. own: so
        many of the model's own largest come beside the `top` ones, for scores; None: nothing of them.
        """
        ops = (Crop(self._crop),) if self._crop else ()
        tokens = WireTensor("int32", (len(ids),), "none", struct.pack(f"<{len(ids)}i", *ids))
        spec = StepSpec(kind="ids", want=want, result="top" if top else "logits", top=top)
        if top:
            spec = replace(spec, mask=mask, temperature=temperature, changes=changes)
        if top and own is not None:
            spec = replace(spec, result="scored", own=own)
        output = await self.session.step(ops, (len(ids),), tokens, spec)
        self._crop = 0
        self.trips += 1
        self.held += ids
        return _positions(output, want, spec)

    async def ask_again(self) -> Position:
        """All logits after the last token, which is computed once more."""
        last = self.held[-1]
        self.forget(1)
        return (await self.feed([last], 1, 0))[0]


def _positions(output: Output, want: int, spec: StepSpec) -> list[Position]:
    values = memoryview(output.values.data).cast("B")
    size = len(values) // want
    if output.ids is None:
        return [Position(values[at * size : (at + 1) * size]) for at in range(want)]
    ids = memoryview(output.ids.data).cast("B")
    sums = b"" if output.totals is None else output.totals.data
    totals = [one[0] for one in struct.iter_unpack("<f", sums)] or [None] * want
    cuts = [slice(at * size, (at + 1) * size) for at in range(want)]
    if spec.result == "scored":
        return [_scored(values[cut], ids[cut], totals[2 * at : 2 * at + 2], spec) for at, cut in enumerate(cuts)]
    return [Position(values[cut], ids[cut], total, bool(spec.changes)) for cut, total in zip(cuts, totals, strict=True)]


def _scored(values: memoryview, ids: memoryview, totals: Sequence[float], spec: StepSpec) -> Position:
    """As `StepSpec` lays out what scores need."""
    size = 4 * spec.top
    own = OwnLogits(values[size : 2 * size], values[2 * size :], ids[2 * size :], totals[1])
    return Position(values[:size], ids[:size], totals[0] if spec.temperature else None, bool(spec.changes), own)


async def generate(
    sequence: TokenSequence,
    prompt: Sequence[int],
    chooser: Chooser,
    limits: Limits,
    propose: Proposer | None = None,
    constraint: Constraint | None = None,
) -> AsyncGenerator[int, None]:
    """Continue `prompt`, of which the sequence may hold a beginning already. The last token given out is not fed.

    constraint: what the answer must keep to; nothing is proposed then, since its masks follow the answer.
    """
    assert propose is None or constraint is None
    if not prompt:
        raise BadRequestError("the prompt is empty: 0 tokens, expected at least 1; give some text, or a start token")
    left = _num_allowed(len(prompt), limits)
    sequence.cut_back(prompt)
    answer = _Answer(sequence, len(prompt), chooser, limits, constraint, list(prompt))
    new = list(prompt[len(sequence.held) :])
    while True:
        guesses = list(propose(answer.said))[: left - 1] if propose and left > 1 else []
        for number, position in enumerate(await answer.feed(new, guesses)):
            try:
                token = answer.pick(position)
            except NotEnoughError:
                sequence.forget(len(guesses) - number)
                guesses = guesses[:number]
                token = answer.pick(await sequence.ask_again())
            answer.accept(token)
            left -= 1
            is_right = number < len(guesses) and guesses[number] == token
            if token in limits.ends or not left or not is_right:
                sequence.forget(len(guesses) - number)  # a guess that was right and ends the answer is not kept either
                new = [token]
            yield token
            if token in limits.ends or not left:
                return
            if not is_right:
                break


@dataclass(slots=True)
class _Answer:
    """A text that grows: what is asked for its next token, and how that is picked."""

    sequence: TokenSequence
    num_prompt: int
    chooser: Chooser
    limits: Limits
    constraint: Constraint | None
    said: list[int]
    """The prompt, and the tokens of the answer so far."""
    mask: bytes = b""
    """Of the positions that were asked for last."""

    async def feed(self, new: Sequence[int], guesses: Sequence[int]) -> list[Position]:
        """Send tokens that are certain, and guesses after them: the positions after the last certain one, and after each guess."""
        vocab_size = self.limits.vocab_size
        changes = b"" if guesses else self.chooser.changes(self.said, self.num_prompt, vocab_size or 0)
        top = self.chooser.asks([*self.said, *guesses], self.num_prompt, bool(changes))
        top = 0 if vocab_size is not None and _costs_more(top, self.chooser.own, vocab_size) else top
        self.mask = b"" if self.constraint is None else await self.constraint.mask()
        temperature = self.chooser.temperature_of(bool(changes))
        own = self.chooser.own
        return await self.sequence.feed([*new, *guesses], 1 + len(guesses), top, self.mask, temperature, changes, own)

    def pick(self, position: Position) -> int:
        """The token at a position; NotEnoughError if more of its logits are needed."""
        with self.sequence.timings.picking():
            return self.chooser.choose(position, self.said, self.num_prompt, self.mask)

    def accept(self, token: int) -> None:
        """It is the next one."""
        if self.constraint is not None and token not in self.limits.ends:
            self.constraint.accept(token)
        self.said.append(token)


def _costs_more(top: int, own: int | None, vocab_size: int) -> bool:
    """Do the largest logits take as many bytes as all of them? Each comes with its id. own: as `Chooser.own`."""
    num_values = top if own is None else 2 * top + own
    return 2 * num_values >= vocab_size


def _num_allowed(length: int, limits: Limits) -> int:
    """New tokens, of which the last is never fed; BadRequestError if they do not fit."""
    most = limits.max_positions
    if most is not None and length > most:
        raise BadRequestError(
            f"the prompt is too long: {counted(length, 'token')}, this model's limit is {most}; shorten it by {length - most}"
        )
    if most is not None and length + limits.max_new_tokens - 1 > most:
        raise BadRequestError(
            f"{counted(length, 'token')} of prompt and {limits.max_new_tokens} new ones exceed this model's limit of {most}; "
            f"ask for at most {most - length + 1} (max_new_tokens)"
        )
    return limits.max_new_tokens
