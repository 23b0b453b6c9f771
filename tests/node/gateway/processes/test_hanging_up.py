"""A client that hangs up frees the gateway and every hop."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from node.gateway.answers.gateway import Gateway
from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.toy_gateway import checkpoint_with_long_context, toy_gateway
from tests.swarm.inference.toy import until

FREED_S = 30.0
"""Of a busy machine. An answer is long enough that tokens tell whether it was ended (`computed`)."""

LONG = {"model": "tiny", "prompt": "x" * 20, "max_tokens": 900, "logit_bias": {"2": -100}}
"""900 tokens, and never the end token."""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireSwarm]:
    made = WireSwarm(checkpoint_with_long_context(tmp_path_factory.mktemp("models") / "tiny"), [(0, 3), (3, 6)], with_ends=True)
    yield made
    made.close()


def post(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def with_gateway(swarm: WireSwarm, work: Callable[[Gateway, int], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with toy_gateway(swarm, **settings) as (gateway, port):
            await work(gateway, port)

    swarm.run(run())


async def all_is_free(swarm: WireSwarm, gateway: Gateway) -> None:
    """Within FREED_S: no session and no memory at any hop, no place at the gateway."""

    def held() -> list[tuple[int, int]]:
        return [(node.host.num_sessions, node.engine.used_bytes) for node in swarm.nodes]

    try:
        await until(lambda: held() == [(0, 0)] * len(swarm.nodes), FREED_S)
        await until(lambda: gateway.places.num_taken == 0, FREED_S)
    except TimeoutError:
        raise AssertionError(f"(sessions, bytes) at the hops: {held()}, places: {gateway.places.num_taken}") from None


def computed(swarm: WireSwarm) -> int:
    """Tokens that the first hop has computed for all sessions so far."""
    num_tokens: int = swarm.nodes[0].host.runner.device.tally.num_tokens
    return num_tokens


@pytest.mark.parametrize("more", [{"stream": True}, {"stream": False}, {"stream": True, "n": 3}], ids=str)
def test_a_client_that_hangs_up_in_the_middle_frees_every_hop(swarm: WireSwarm, more: dict[str, Any]) -> None:
    async def work(gateway: Gateway, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        before, num_choices = computed(swarm), more.get("n", 1)
        writer.write(post(LONG | more))
        if more["stream"]:
            assert (await reader.readuntil(b"data: ")).startswith(b"HTTP/1.1 200")
        await until(lambda: all(node.host.num_sessions == num_choices for node in swarm.nodes))
        assert gateway.places.num_taken == 1
        writer.close()
        await all_is_free(swarm, gateway)
        assert computed(swarm) - before < num_choices * LONG["max_tokens"], "it was ended, and not computed to its end"

    with_gateway(swarm, work)


def test_a_client_that_hangs_up_before_the_first_token_frees_every_hop(swarm: WireSwarm) -> None:
    async def work(gateway: Gateway, port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        before = computed(swarm)
        writer.write(post(LONG | {"stream": True, "prompt": "x" * 100}))
        await until(lambda: gateway.places.num_taken == 1)
        writer.close()
        await all_is_free(swarm, gateway)
        assert computed(swarm) - before < LONG["max_tokens"]

    with_gateway(swarm, work)


def test_a_reader_that_pauses_pauses_its_answer(swarm: WireSwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no reason to compute on: what is not read is not computed, but for what buffers hold; then it is cut off."""
    monkeypatch.setattr("node.gateway.http.hanging_up.SEND_S", 1.0)

    async def work(gateway: Gateway, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(post(LONG | {"stream": True, "n": 4, "logprobs": 20}))
            await until(lambda: swarm.nodes[0].host.num_sessions == 4)
            await until(lambda: gateway.places.num_taken == 0, 60.0)
            await all_is_free(swarm, gateway)
            said = await asyncio.to_thread(lambda: b"".join(iter(lambda: client.recv(1 << 20), b"")))
            assert said.startswith(b"HTTP/1.1 200") and b"[DONE]" not in said  # it was cut off, and is not complete

    with_gateway(swarm, work)


def test_requests_beyond_the_places_are_told_to_come_again(swarm: WireSwarm) -> None:
    async def ask(port: int, body: dict[str, Any]) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(body))
        found = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return found

    async def work(gateway: Gateway, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(LONG | {"stream": True}))
        await reader.readuntil(b"data: ")
        refused = await ask(port, LONG)
        assert refused.startswith(b"HTTP/1.1 429") and b"retry-after: 1" in refused
        writer.close()
        await all_is_free(swarm, gateway)
        assert (await ask(port, LONG | {"max_tokens": 2})).startswith(b"HTTP/1.1 200")
        await all_is_free(swarm, gateway)

    with_gateway(swarm, work, max_requests=1, max_waiting=0)


STREAMS: dict[str, tuple[dict[str, Any], bytes, bytes]] = {
    "/v1/completions": ({"prompt": "x", "max_tokens": 200}, b'data: {"error":{"message":"', b"[DONE]"),
    "/v1/responses": ({"input": "x", "max_output_tokens": 200}, b'event: error\ndata: {"type":"error",', b"response.incomplete"),
    "/v1/messages": (
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": 200},
        b'event: error\ndata: {"type":"error","error":{"type":"',
        b"message_stop",
    ),
    "/api/generate": ({"prompt": "x", "options": {"num_predict": 200}}, b'\n{"error":"', b'"done":true'),
}
"""Path -> (a request, how its stream says that it has failed, how it would say that it is complete)."""


@pytest.mark.parametrize("path", STREAMS)
def test_a_node_that_fails_in_a_stream_is_the_last_event(swarm: WireSwarm, path: str) -> None:
    """After the status is sent, an error can only be an event; clients raise it."""
    body, failure, completion = STREAMS[path]

    async def work(gateway: Gateway, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post({"model": "tiny", **body, "stream": True}, path))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and await reader.readline()
        served = gateway.models.opened("tiny")
        assert served is not None
        await served.model._sessions[0].close()
        rest = await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        assert completion not in rest and failure in rest, rest
        await all_is_free(swarm, gateway)

    with_gateway(swarm, work)


@pytest.mark.parametrize("path", STREAMS)
def test_clients_of_every_api_free_every_hop(swarm: WireSwarm, path: str) -> None:
    async def work(gateway: Gateway, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post({"model": "tiny", **STREAMS[path][0], "stream": True}, path))
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: all(node.host.num_sessions == 1 for node in swarm.nodes))
        writer.close()
        await all_is_free(swarm, gateway)

    with_gateway(swarm, work)
