"""Answers the page's chat, under the rules of the API.

A question is checked as a body of `/v1/chat/completions`, counts for its key's budget, and waits in the same queue.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import Headers

from node.dashboard.talk import HopReport, Question, Report, Said, TalkRefusedError
from node.gateway.answers.answer import End, Piece, Thinking, Usage
from node.gateway.answers.answering import Answering
from node.gateway.answers.gateway import Gateway
from node.gateway.answers.request import Request
from node.gateway.callers.meter import Meter
from node.gateway.http.refusal import RefusedError, of_error, of_validation
from node.gateway.openai.chat import ChatBody
from protocols.errors import SwarmError
from protocols.words import one_line
from swarm.timings import STAGES, StepsTime, Timings


class PageTalk:
    """`Talk` over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def names(self) -> Sequence[str]:
        return self._gateway.models.names

    async def answer(self, ask: Question, headers: Headers) -> AsyncGenerator[Said | Report, None]:
        try:
            async with aclosing(self._answer(_request(ask), headers)) as events:
                async for event in events:
                    yield event
        except (RefusedError, SwarmError, OSError) as error:
            raise TalkRefusedError(one_line(of_error(error).message)) from error

    async def _answer(self, request: Request, headers: Headers) -> AsyncGenerator[Said | Report, None]:
        gateway, clock = self._gateway, self._gateway.clock
        account = gateway.accounts.of(headers)
        account.take_request()
        meter, began_s = Meter(account, gateway.metrics, gateway.config.max_seconds), clock.now_s()
        with gateway.places.place(account.name) as place:
            if not place.is_taken:
                await place.granted()
            meter.waited(clock.now_s() - began_s)
            answering = await Answering.of(await gateway.models.get(request.model), request, meter, clock)
            answering.usage.load_s = clock.now_s() - began_s
            async with aclosing(answering.events()) as events:
                async for event in events:
                    if isinstance(event, Piece | Thinking):
                        yield Said(event.text, _num_tokens(answering.usage), isinstance(event, Thinking))
                    elif isinstance(event, End):
                        yield report_of(event, answering.usage)


def _request(ask: Question) -> Request:
    messages = [{"role": role, "content": text} for role, text in ask.messages]
    body: dict[str, Any] = {"model": ask.model, "messages": messages, **ask.settings}
    try:
        return ChatBody.model_validate(body).request()
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        refusal = of_validation(found, body)
        raise RefusedError(refusal.message, refusal.param) from None


def _num_tokens(usage: Usage) -> int:
    return sum(1 + timings.later.num_tokens for timings in usage.timings.values() if timings.prompt.num_steps)


def report_of(end: End, usage: Usage) -> Report:
    """What is known of an answer at its end."""
    timings = usage.timings.get(end.choice) or Timings()
    hops = [
        HopReport(peer=hop.peer, blocks=hop.blocks, num_steps=hop.num_steps, queue_ms=hop.queue_ms, compute_ms=hop.compute_ms)
        for hop in timings.hops.values()
    ]
    return Report(
        reason=end.reason, num_prompt=usage.num_prompt, num_new=end.num_new, first_s=usage.load_s + usage.first_s,
        rest_s=usage.rest_s, stages=tuple(_stages(timings)), hops=tuple(hops), num_replaced=end.num_replaced,
    )  # fmt: skip


def _stages(timings: Timings) -> Sequence[tuple[str, str, float, float]]:
    once = {"T1": timings.wait_ms, "T2": timings.tokenize_ms, "T3": timings.route_ms}
    prompt: Mapping[str, float] = once | timings.prompt.stages()
    later = _each(timings.later)
    return [(name, meaning, prompt[name], later.get(name, 0.0)) for name, meaning in STAGES.items()]


def _each(steps: StepsTime) -> Mapping[str, float]:
    return {name: ms / max(1, steps.num_steps) for name, ms in steps.stages().items()}
