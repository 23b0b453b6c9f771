"""One request of any API, from its parsed body to the response."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from node.gateway.answers.answer import Called, End, Event, Thinking
from node.gateway.answers.answering import Answering
from node.gateway.answers.gateway import Gateway
from node.gateway.answers.request import Request
from node.gateway.answers.writer import Made, Writer
from node.gateway.callers.admission import admitted
from node.gateway.callers.meter import Meter
from node.gateway.http.hanging_up import EventStream, while_listening
from node.gateway.http.refusal import of_error


async def respond(
    gateway: Gateway, http: HttpRequest, request: Request, writer_of: Callable[[Answering], Writer], is_stream: bool
) -> Response:
    """The response to a request. HungUpError if the client hangs up before there is one.

    Returns when the whole answer is there, or the first event of a stream, so an earlier failure still gets its own HTTP status.
    """
    async with AsyncExitStack() as held:
        trace = held.enter_context(gateway.config.traces.request(f"{http.method} {http.scope['route'].path}", http.headers))
        trace.told(gen_ai__operation__name="chat", gen_ai__request__model=request.model)
        meter = await held.enter_async_context(admitted(gateway.places, http))
        answering = await while_listening(http, _answering(gateway, request, meter))
        answering.trace = trace
        writer = writer_of(answering)
        if not is_stream:
            body = await while_listening(http, _whole(answering, writer))
            return Response(body, 200, {**writer.headers, **_times(answering)}, "application/json")
        events = await held.enter_async_context(aclosing(answering.events()))
        first = await while_listening(http, anext(events))
        parts = _parts(answering, events, first, writer)
        headers = {**writer.headers, **_times(answering), "content-type": writer.stream_type}
        return EventStream(parts, headers, held.pop_all().aclose)


def _times(answering: Answering) -> dict[str, str]:
    """The header `Server-Timing`: what the first answer has taken so far; of a stream, until its first event."""
    timings = answering.usage.timings
    return {"server-timing": timings[min(timings)].server_timing()} if timings else {}


async def _answering(gateway: Gateway, request: Request, meter: Meter) -> Answering:
    began_s = gateway.clock.now_s()
    answering = await Answering.of(await gateway.models.get(request.model), request, meter, gateway.clock)
    answering.usage.load_s = gateway.clock.now_s() - began_s
    return answering


async def _whole(answering: Answering, writer: Writer) -> bytes:
    found = [Made(choice) for choice in range(answering.request.num_answers)]
    async with aclosing(answering.events()) as events:
        async for one in events:
            made = found[one.choice]
            if isinstance(one, End):
                made.reason, made.stop = one.reason, one.stop
            elif isinstance(one, Called):
                made.calls.append(one.call)
            elif isinstance(one, Thinking):
                made.thoughts += one.text
            else:
                made.text += one.text
                made.tokens += one.tokens
    return writer.whole(found, answering.usage)


async def _parts(
    answering: Answering, events: AsyncGenerator[Event, None], first: Event, writer: Writer
) -> AsyncGenerator[bytes, None]:
    """What goes wrong is the last part."""
    for part in writer.opening():
        yield part
    try:
        if part := writer.event(first):
            yield part
        async for one in events:
            if part := writer.event(one):
                yield part
    except Exception as error:
        yield writer.failure(of_error(error))
        return
    for part in writer.ending(answering.usage):
        yield part
