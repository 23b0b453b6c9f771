"""One answer: a session of the thin client, from tokens to events.

The same decoding, stop texts and sampling as those of `swarm generate --thin`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass

from node.gateway.answers.answer import End, Event, Piece, TokenText, Usage, decoded
from node.gateway.answers.models import ServedModel
from node.gateway.answers.prompts import most_new
from node.gateway.answers.request import Request
from node.gateway.answers.thought_budget import ThoughtBudget, ThoughtLimit
from node.gateway.answers.traces import RequestTrace
from node.gateway.callers.meter import Meter
from node.gateway.tools.thoughts import ThoughtTokens, reader_of
from swarm.thin.generation import Constraint, TokenSequence, generate
from swarm.thin.grammar.answer_form import AnswerForm, CallForm, ThoughtForm
from swarm.thin.sampling import Chooser
from swarm.thin.scoring import ScoringChooser
from swarm.thin.stops import Stops
from swarm.thin.text import TextOut, driven

PLAIN_STOP = "\nUser:"
"""Where an answer in a conversation ends, for a model that has no chat template and would go on with our part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerContext:
    """What the answers to one request share."""

    served: ServedModel
    request: Request
    form: AnswerForm | None
    """What each answer must look like; None = any text."""

    calls: CallForm | None
    """How each answer writes calls; None = it has none."""

    marks: Mapping[int, str]
    """Tokens that are marks of calls or thoughts and no text; they are needed to find both."""

    thought: ThoughtForm | None
    """How each answer begins with a thought; None = it does not, or in a channel."""

    limit: ThoughtLimit | None
    """Of each answer's thoughts."""

    meter: Meter
    usage: Usage
    trace: RequestTrace
    tokenize_ms: float


class OneAnswer:
    """`events()` once. Closing it early ends the session, and its sequences are not kept."""

    def __init__(self, context: AnswerContext, ids: list[int], number: int, choice: int, num_reused: int | None) -> None:
        """number: of the answers to this prompt; choice: of all answers. num_reused: tokens of the prompt that hops had kept, if it was
        computed before; None = as the session says."""
        self._context, self._ids, self._number, self._choice, self._num_reused = context, ids, number, choice, num_reused
        self._model, self._limits = (
            context.served.model,
            context.served.model.limits(most_new(context.served, context.request, ids)),
        )
        self._chooser = self._new_chooser()
        self._pieces: list[str] = []
        """Text that is certain, and not part of an event yet."""
        self._out = self._text_out()
        reader = reader_of(context.calls, context.thought)
        self._thoughts = None if reader is None else ThoughtTokens(reader)
        self._num_new, self._is_whole = 0, False

    async def events(self) -> AsyncGenerator[Event, None]:
        """Pieces as they come, then the end. A form is ready before the session begins, since other prompts may wait for this one."""
        reason = "length"
        async with self._constraint() as constraint, self._sequence() as sequence:
            async with aclosing(generate(sequence, self._ids, self._chooser, self._limits, None, constraint)) as tokens:
                async for token in tokens:
                    self._num_new += 1
                    may_go_on = self._context.meter.token(self._context.served.name)
                    with sequence.timings.picking():
                        scores = await self._take(token)
                    if self._pieces or scores:
                        yield self._piece(scores)
                    if self._out.is_stopped or token in self._limits.ends:
                        reason = "stop"
                        break
                    if not may_go_on:
                        break
            self._is_whole = True
        await driven(self._out.ending(), self._context.served.decode_all)
        if self._pieces:
            yield self._piece()
        yield self._end(sequence, reason)

    @asynccontextmanager
    async def _sequence(self) -> AsyncIterator[TokenSequence]:
        """The session's sequence, counted, timed and traced; hops may keep it if the answer is whole."""
        context, model, owner = self._context, self._model, self._context.meter.account.owner
        sequence = await model.begin(self._ids, owner)
        timings = context.usage.timings[self._choice] = sequence.timings
        timings.wait_ms, timings.tokenize_ms = context.meter.wait_s * 1e3, context.tokenize_ms
        trace = sequence.session.tracer = context.trace.answer(self._choice)
        context.meter.session_began(context.served.name)
        try:
            yield sequence
        finally:
            trace.close(timings)
            context.meter.session_ended(context.served.name)
            await model.end(sequence, owner if self._is_whole else None)

    async def _take(self, token: int) -> tuple[TokenText, ...]:
        """Make text of a token; its scores, if they are wanted."""
        context, is_end = self._context, token in self._limits.ends
        scores = () if is_end else await self._scores()
        if context.form is None or not is_end:  # an end token may have a text
            await driven(self._out.putting([token]), context.served.decode_all)
            self._out.insert(mark := context.marks.get(token, ""))
            if self._thoughts is not None and not is_end:
                self._thoughts.add(self._out.newest + mark)
        return scores

    async def _scores(self) -> tuple[TokenText, ...]:
        chooser = self._chooser
        if not isinstance(chooser, ScoringChooser) or chooser.last is None:
            return ()
        ids = list(dict.fromkeys([chooser.last.token, *(token for token, _ in chooser.last.top)]))
        texts = await self._context.served.decode_all([[token] for token in ids], skip_special_tokens=False)
        return (decoded(chooser.last, dict(zip(ids, texts, strict=True))),)

    def _piece(self, scores: tuple[TokenText, ...] = ()) -> Piece:
        text = "".join(self._pieces)
        self._pieces.clear()
        return Piece(choice=self._choice, text=text, tokens=scores)

    def _end(self, sequence: TokenSequence, reason: str) -> End:
        meter, request, out = self._context.meter, self._context.request, self._out
        reused = sequence.num_reused if self._num_reused is None else self._num_reused
        num_cached = 0 if self._number else reused  # a prompt counts once
        meter.cached(self._context.served.name, num_cached)
        meter.answered(sequence.timings)
        stop = out.stopped_by if out.stopped_by in request.stops else None
        replaced = self._model.num_replaced(sequence)
        return End(
            choice=self._choice, reason=reason, num_new=self._num_new, num_cached=num_cached, stop=stop, num_replaced=replaced,
            num_thought=0 if self._thoughts is None else self._thoughts.num,
        )  # fmt: skip

    @asynccontextmanager
    async def _constraint(self) -> AsyncIterator[Constraint | None]:
        """What keeps the answer to its form, and its thoughts to their budget."""
        context = self._context
        async with nullcontext() if context.form is None else context.served.constraining.constraint(context.form) as form:
            if context.limit is None:
                yield form
            else:
                assert self._thoughts is not None
                yield ThoughtBudget(context.limit, self._thoughts, form)

    def _new_chooser(self) -> Chooser:
        request = self._context.request
        sampling = request.picking.sampling(self._model.defaults, self._number)
        if request.num_scored is None:
            return Chooser(sampling)
        return ScoringChooser(sampling, request.num_scored, self._context.form is not None or self._context.limit is not None)

    def _text_out(self) -> TextOut:
        request, tokenizer, own = self._context.request, self._model.tokenizer, self._model.defaults.settings.stop_strings()
        is_text = isinstance(request.prompts[self._choice // request.num_choices], str | tuple)
        plain = () if is_text or tokenizer.chat_template is not None else (PLAIN_STOP,)
        out = TextOut(tokenizer, self._pieces.append, (*request.stops, *plain), Stops(tokenizer, own) if own else None)
        out.put(self._ids)
        return out
