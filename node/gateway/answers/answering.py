"""From a request to the events of its answers.

Several answers run side by side (`one_answer.py`), and their events come in the order in which they happen. Closing the generator early
ends the sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from node.gateway.answers.answer import End, Event, Usage
from node.gateway.answers.calls import Calls, check_budget, check_tools, form_in, thought_in
from node.gateway.answers.models import ServedModel
from node.gateway.answers.one_answer import AnswerContext, OneAnswer
from node.gateway.answers.prompts import check_length, ids_of
from node.gateway.answers.request import Request
from node.gateway.answers.thought_budget import ThoughtLimit, limit_of
from node.gateway.answers.traces import NO_TRACE, RequestTrace
from node.gateway.callers.meter import Meter
from node.gateway.tools.calling import Calling, rules_of
from swarm.clock import Clock
from swarm.thin.channels import FINAL, marks_of
from swarm.thin.grammar.answer_form import AnswerForm, ThoughtForm
from swarm.thin.thoughts import MESSAGE, form_behind_ids

AHEAD = 4
"""Events of a request with several answers that wait for a slow reader; then its answers pause. One answer pauses at once."""


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
        """Prompt -> tokens that hops had kept of an earlier request; only of prompts with several answers."""
        self.trace: RequestTrace = NO_TRACE
        self._thought: ThoughtForm | None = None
        """How answers begin with a thought; None = they do not."""
        self._limit: ThoughtLimit | None = None
        """Of the thoughts; None = as the model wants."""
        self._marks: dict[int, str] = {}
        """Tokens that are marks of calls or thoughts and no text; they are needed to find both."""

    @classmethod
    async def of(cls, served: ServedModel, request: Request, meter: Meter, clock: Clock) -> Answering:
        """Encode the prompts. RefusedError, or the tokenizer's error, if one of them cannot be answered or paid by the caller's budget."""
        template = served.model.tokenizer.chat_template
        check_tools(request.tools, template)
        check_budget(request, template)
        form = form_of(request, template)
        began_s = clock.now_s()
        prompts = [await served.aside(ids_of, served, prompt, request.tools, request.effort) for prompt in request.prompts]
        tokenize_s = clock.now_s() - began_s
        for ids in prompts:
            check_length(served, request, ids)
        meter.prompt(served.name, sum(map(len, prompts)))
        answering = cls(served, request, prompts, form, meter, clock)
        answering._tokenize_s = tokenize_s
        await answering._find_marks(template)
        return answering

    async def _find_marks(self, template: str | None) -> None:
        """What has to be known of the template to read the answers."""
        tokenizer, calls, thought = (
            self.served.model.tokenizer,
            form_in(self.request, template),
            thought_in(self.request, template),
        )
        if thought is not None:
            (ids,) = self._prompts
            self._thought = thought = await self.served.aside(form_behind_ids, tokenizer, ids, thought)
            if self._form is not None and not thought.is_over:
                self._form = replace(self._form, thought=thought)
        await self._find_limit(thought or MESSAGE)
        marks = (*(calls.marks if calls else ()), *((thought.begin, thought.end) if thought else ()))
        if marks:
            self._marks = await self.served.aside(marks_of, tokenizer, marks)

    async def _find_limit(self, thought: ThoughtForm) -> None:
        """What the budget of thoughts means for this model."""
        budget, model = self.request.thought_budget, self.served.model
        if budget is not None:
            self._limit = await self.served.aside(limit_of, model.tokenizer, thought, budget, model.defaults.vocab_size)

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events of all answers as they come; the first error of one answer ends all."""
        calls = Calls(self.request, self.served.model.tokenizer.chat_template, self._thought)
        began_s = first_s = self._clock.now_s()
        if self.request.num_choices > 1:
            await self._compute_once()
        async with aclosing(merged(self._answers())) as events:
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
        """Compute each prompt once for all of its answers; all prompts at the same time."""
        model, owner = self.served.model, self._meter.account.owner
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(model.compute_once(ids, owner)) for ids in self._prompts]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        self._reused = {prompt: task.result() for prompt, task in enumerate(tasks)}

    def _answers(self) -> list[AsyncGenerator[Event, None]]:
        """As many for each prompt as the request wants."""
        each, context = self.request.num_choices, self._context()
        return [
            OneAnswer(context, ids, number, prompt * each + number, self._reused.get(prompt)).events()
            for prompt, ids in enumerate(self._prompts)
            for number in range(each)
        ]

    def _context(self) -> AnswerContext:
        return AnswerContext(
            served=self.served, request=self.request, form=self._form, marks=self._marks, meter=self._meter, usage=self.usage,
            trace=self.trace, tokenize_ms=self._tokenize_s * 1e3, thought=self._thought, limit=self._limit,
            calls=form_in(self.request, self.served.model.tokenizer.chat_template),
        )  # fmt: skip


def form_of(request: Request, template: str | None) -> AnswerForm | None:
    """What its answers must look like; None = any text. RefusedError if the model's calls are not known here."""
    both = Calling(param=request.schema_param) if request.schema is not None and request.tools else None
    rules = rules_of(request.calling or both, request.tools, template)
    if request.schema is None and rules is None:
        return None
    found = form_in(request, template)
    if found is None or not found.is_channels:
        thought = thought_in(request, template)
        return AnswerForm(schema=request.schema, calls=rules, lead="".join(thought.around[:1]) if thought else "")
    is_free = request.schema is None and rules is not None and not rules.is_forced  # then a thought may be anywhere
    return AnswerForm(schema=request.schema, calls=rules, lead=FINAL, thought=None if is_free else MESSAGE)


def merged(answers: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """The events of several generators as they come. One alone needs no task."""
    return answers[0] if len(answers) == 1 else _side_by_side(answers)


async def _side_by_side(answers: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """Each runs in a task of its own, up to `AHEAD` events before the reader."""
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
