"""From a request to the events of its answers.

Each answer is a session of the thin client: the same decoding, stop texts and sampling as those of `swarm generate --thin`. Several
answers run side by side, and their events come in the order in which they happen. Closing the generator early ends the sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext

from node.gateway.answers.answer import End, Event, Piece, TokenText, Usage, decoded
from node.gateway.answers.calls import Calls, check_tools, marks_of
from node.gateway.answers.models import ServedModel
from node.gateway.answers.prompts import check_length, ids_of, most_new
from node.gateway.answers.request import Request
from node.gateway.answers.traces import NO_TRACE, RequestTrace
from node.gateway.callers.meter import Meter
from node.gateway.tools.calling import Calling, rules_of
from swarm.clock import Clock
from swarm.thin.answer_form import AnswerForm
from swarm.thin.generation import Constraint, TokenSequence, generate
from swarm.thin.sampling import Chooser
from swarm.thin.scoring import ScoringChooser
from swarm.thin.stops import Stops
from swarm.thin.text import TextOut, driven
from swarm.timings import Timings

AHEAD = 4
"""Events of a request that wait for a slow reader; then its answers pause."""

PLAIN_STOP = "\nUser:"
"""Where an answer in a conversation ends, for a model that has no chat template and would go on with our part."""


class Answering:
    """One request at one model, with all that can be refused checked: `Answering.of(...)`, then `events()` once."""

    def __init__(
        self,
        served: ServedModel,
        request: Request,
        prompts: Sequence[list[int]],
        form: AnswerForm | None,
        meter: Meter,
        clock: Clock,
    ) -> None:
        """form: what each answer must look like; None = any text."""
        self.served, self.request, self._prompts, self._meter, self._clock = served, request, prompts, meter, clock
        self._form = form
        self.usage = Usage(num_prompt=sum(map(len, prompts)))
        self._tokenize_s = 0.0
        self._reused: dict[int, int] = {}
        """By prompt with several answers: its tokens that hops had kept of an earlier request."""
        self.trace: RequestTrace = NO_TRACE
        self._marks: dict[int, str] = {}
        """Tokens that are marks of calls and no text; they are needed to find the calls."""

    @classmethod
    async def of(cls, served: ServedModel, request: Request, meter: Meter, clock: Clock) -> Answering:
        """Encode the prompts. RefusedError, or the tokenizer's error, if one of them cannot be answered or paid by the caller's budget."""
        template = served.model.tokenizer.chat_template
        check_tools(request.tools, template)
        form = form_of(request, template)
        began_s = clock.now_s()
        prompts = [await served.aside(ids_of, served, prompt, request.tools) for prompt in request.prompts]
        tokenize_s = clock.now_s() - began_s
        for ids in prompts:
            check_length(served, request, ids)
        meter.prompt(served.name, sum(map(len, prompts)))
        answering = cls(served, request, prompts, form, meter, clock)
        answering._tokenize_s = tokenize_s
        if request.tools and template is not None:
            answering._marks = await served.aside(marks_of, served, template)
        return answering

    async def events(self) -> AsyncGenerator[Event, None]:
        """What happens, until all answers are complete; the first error of any ends all."""
        each = self.request.num_choices
        numbers = [(prompt, number) for prompt in range(len(self._prompts)) for number in range(each)]
        answers = [self._answer(self._prompts[prompt], number, prompt * each + number) for prompt, number in numbers]
        calls = Calls(self.request, self.served.model.tokenizer.chat_template)
        began_s = first_s = self._clock.now_s()
        if each > 1:
            await self._compute_once()
        async with aclosing(merged(answers)) as events:
            async for event in events:
                if first_s == began_s:
                    first_s = self._clock.now_s()
                if isinstance(event, End):
                    self.usage.add(event)
                    self.trace.told(
                        gen_ai__usage__input_tokens=self.usage.num_prompt, gen_ai__usage__output_tokens=self.usage.num_new
                    )
                    self.usage.first_s, self.usage.rest_s = first_s - began_s, self._clock.now_s() - first_s
                for one in calls.events(event):
                    yield one

    async def _compute_once(self) -> None:
        """The prompts, each of which has several answers, side by side."""
        model, owner = self.served.model, self._meter.account.owner
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(model.compute_once(ids, owner)) for ids in self._prompts]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        self._reused = {prompt: task.result() for prompt, task in enumerate(tasks)}

    async def _answer(self, ids: list[int], number: int, choice: int) -> AsyncGenerator[Event, None]:
        model, request, decode_all = self.served.model, self.request, self.served.decode_all
        limits = model.limits(most_new(self.served, request, ids))
        sampling = request.picking.sampling(model.defaults, number)
        wants_scores = request.num_scored is not None
        chooser = ScoringChooser(sampling, request.num_scored or 0, self._form is not None) if wants_scores else Chooser(sampling)
        pieces: list[str] = []
        out = self._text_out(pieces, isinstance(request.prompts[choice // request.num_choices], str | tuple))
        out.put(ids)
        owner, reason, num_new, is_whole = self._meter.account.owner, "length", 0, False
        sequence = await model.begin(ids, owner)
        timings, trace = self._timings_of(choice, sequence), self.trace.answer(choice)
        sequence.session.tracer = trace
        self._meter.session_began(self.served.name)
        try:
            async with (
                self._constraint() as constraint,
                aclosing(generate(sequence, ids, chooser, limits, None, constraint)) as tokens,
            ):
                async for token in tokens:
                    num_new += 1
                    may_go_on = self._meter.token(self.served.name)
                    with timings.picking():
                        scores = await self._scored(chooser, token in limits.ends) if wants_scores else ()
                        if self._form is None or token not in limits.ends:  # an end token may have a text
                            await driven(out.putting([token]), decode_all)
                            out.insert(self._marks.get(token, ""))
                    if pieces or scores:
                        yield Piece(choice=choice, text="".join(pieces), tokens=scores)
                        pieces.clear()
                    if out.is_stopped or token in limits.ends:
                        reason = "stop"
                        break
                    if not may_go_on:
                        break  # with the reason `length`
            is_whole = True
        finally:
            trace.close(timings)
            self._meter.session_ended(self.served.name)
            await model.end(sequence, owner if is_whole else None)
        reused = self._reused.get(choice // request.num_choices, sequence.num_reused)
        num_cached = 0 if number else reused  # a prompt counts once
        self._meter.cached(self.served.name, num_cached)
        await driven(out.ending(), decode_all)
        if pieces:
            yield Piece(choice=choice, text="".join(pieces))
        self._meter.answered(timings)
        stop = out.stopped_by if out.stopped_by in request.stops else None
        replaced = model.num_replaced(sequence)
        yield End(choice=choice, reason=reason, num_new=num_new, num_cached=num_cached, stop=stop, num_replaced=replaced)

    def _timings_of(self, choice: int, sequence: TokenSequence) -> Timings:
        """Where the time of an answer that begins will be found."""
        timings = self.usage.timings[choice] = sequence.timings
        timings.wait_ms, timings.tokenize_ms = self._meter.wait_s * 1e3, self._tokenize_s * 1e3
        return timings

    def _constraint(self) -> AbstractAsyncContextManager[Constraint | None]:
        """What keeps an answer to its form."""
        return nullcontext() if self._form is None else self.served.constraining.constraint(self._form)

    def _text_out(self, pieces: list[str], is_text: bool) -> TextOut:
        """is_text: the prompt is no conversation."""
        tokenizer, own = self.served.model.tokenizer, self.served.model.defaults.settings.stop_strings()
        plain = () if is_text or tokenizer.chat_template is not None else (PLAIN_STOP,)
        ends = Stops(tokenizer, own) if own else None
        return TextOut(tokenizer, pieces.append, (*self.request.stops, *plain), ends)

    async def _scored(self, chooser: Chooser, is_end: bool) -> tuple[TokenText, ...]:
        """The last token with its scores, if they are wanted; an end token is no part of the answer."""
        if is_end or not isinstance(chooser, ScoringChooser) or chooser.last is None:
            return ()
        ids = list(dict.fromkeys([chooser.last.token, *(token for token, _ in chooser.last.top)]))
        texts = await self.served.decode_all([[token] for token in ids], skip_special_tokens=False)
        return (decoded(chooser.last, dict(zip(ids, texts, strict=True))),)


def form_of(request: Request, template: str | None) -> AnswerForm | None:
    """What its answers must look like; None = any text. RefusedError if the model's calls are not known here."""
    both = Calling(param=request.schema_param) if request.schema is not None and request.tools else None
    rules = rules_of(request.calling or both, request.tools, template)
    return None if request.schema is None and rules is None else AnswerForm(schema=request.schema, calls=rules)


async def merged(answers: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """The events of several generators as they come. Each runs in a task of its own, up to `AHEAD` events before the reader."""
    queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue(AHEAD)

    async def pump(answer: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(answer) as events:
                async for event in events:
                    await queue.put(event)
        except Exception as error:  # the reader raises it
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(answer), name="answer") for answer in answers]
    try:
        left = len(tasks)
        while left:
            event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
