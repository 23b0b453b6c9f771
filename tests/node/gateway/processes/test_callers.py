"""Keys, budgets, the queue and metrics, by HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from node import api_keys
from node.gateway.answers.gateway import Gateway
from swarm import files
from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.conftest import LIMIT_S
from tests.node.gateway.processes.test_hanging_up import LONG, all_is_free, post
from tests.node.gateway.processes.test_hanging_up import swarm as swarm
from tests.node.gateway.processes.toy_gateway import toy_gateway
from tests.swarm.inference.toy import until
from tests.virtual_time import Shifted

NOW_S = 1_800_000_000.0
ASK = {"model": "tiny", "prompt": "x" * 20, "max_tokens": 3, "logit_bias": {"2": -100}}
PROMPT_TOKENS = 20


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / api_keys.FILE


def serving(swarm: WireSwarm, work: Callable[[Gateway, httpx.AsyncClient], Awaitable[None]], **settings: Any) -> None:
    """Run `work` at a gateway."""

    async def run() -> None:
        async with toy_gateway(swarm, **settings) as (gateway, port), client_of(port) as client:
            await work(gateway, client)

    swarm.run(run())


@contextlib.asynccontextmanager
async def client_of(port: int) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def ask(client: httpx.AsyncClient, secret: str, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json=ASK | fields, headers=bearer(secret))


async def counted(client: httpx.AsyncClient, secret: str | None = None) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, values of labels) -> value."""
    response = await client.get("/metrics", headers={} if secret is None else bearer(secret))
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {(one.name, tuple(one.labels.values())): one.value for family in families for one in family.samples}


def test_without_keys_anything_may_ask_and_with_one_only_it(swarm: WireSwarm, keys: Path) -> None:
    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        assert (await ask(client, "none")).status_code == 200
        secret = api_keys.add(keys, "alice", NOW_S)
        for headers in (
            {},
            {"authorization": "Bearer"},
            bearer("none"),
            bearer(secret + "x"),
            bearer(secret.upper()),
            {"x-api-key": "none"},
        ):
            for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/no")):
                refused = await client.request(method, path, json=ASK, headers=headers)
                error = refused.json()["error"]
                assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
                assert secret not in refused.text
        for headers in (bearer(secret), {"authorization": f"bearer  {secret}"}, {"x-api-key": secret}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await ask(client, secret)).json()["usage"]["completion_tokens"] == 3
        assert (await client.get("/health")).status_code == 200

    serving(swarm, work, keys=keys)


def test_who_is_refused_while_still_sending_hears_why(swarm: WireSwarm, keys: Path) -> None:
    """The answer came before the body, and the connection was closed: a client that then sent the body got a reset instead."""
    api_keys.add(keys, "alice", NOW_S)

    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        for origin in ("", "origin: http://evil.example\r\n"):
            writer.write(
                f"POST /v1/completions HTTP/1.1\r\nhost: {client.base_url.host}\r\n{origin}content-length: 2\r\n\r\n".encode()
            )
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.2)  # it waits for the body
            writer.write(b"{}")
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert head.startswith(f"http/1.1 {403 if origin else 401}"), head
            length = next(line for line in head.splitlines() if line.startswith("content-length:"))
            assert b"error" in await reader.readexactly(int(length.partition(":")[2]))
        writer.close()

    serving(swarm, work, keys=keys)


def test_keys_count_and_end_while_the_gateway_runs(swarm: WireSwarm, keys: Path) -> None:
    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        first, second = api_keys.add(keys, "alice", NOW_S), api_keys.add(keys, "bob", NOW_S)
        assert [(await ask(client, key)).status_code for key in (first, second)] == [200, 200]
        async with client.stream("POST", "/v1/completions", json=ASK | {"stream": True}, headers=bearer(first)) as response:
            lines = response.aiter_lines()
            assert "text_completion" in await anext(lines)
            api_keys.revoke(keys, "alice")
            assert (await ask(client, first)).status_code == 401
            assert [line async for line in lines][-2] == "data: [DONE]", "an answer that has begun is finished"
        assert (await ask(client, second)).status_code == 200
        spare = keys.with_suffix(".spare")
        os.rename(keys, spare)
        files.replace(keys, b"{")
        assert [(await ask(client, key)).status_code for key in (first, second)] == [401, 200], "a damaged file changes nothing"
        os.rename(spare, keys)
        api_keys.revoke(keys, "bob")
        for gone in (lambda: None, lambda: os.unlink(keys)):
            gone()
            assert [(await ask(client, key)).status_code for key in ("none", first, second)] == [401] * 3, (
                "the last key opens nothing"
            )

    serving(swarm, work, keys=keys)


def test_requests_per_minute_are_refused_with_the_time_to_come_again(swarm: WireSwarm, keys: Path) -> None:
    time = Shifted()
    tight, free = api_keys.add(keys, "tight", NOW_S, requests_per_minute=2), api_keys.add(keys, "free", NOW_S)

    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        said = [await ask(client, tight), await ask(client, tight, model="no such model"), await ask(client, tight)]
        assert [one.status_code for one in said] == [200, 404, 429]
        assert [one.headers["x-ratelimit-limit-requests"] for one in said] == ["2"] * 3
        assert [one.headers["x-ratelimit-remaining-requests"] for one in said] == ["1", "0", "0"]
        assert 0 < int(said[2].headers["retry-after"]) <= 60 and re.fullmatch(
            r"\d\ds|1m0s", said[2].headers["x-ratelimit-reset-requests"]
        )
        error = said[2].json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "requests_exhausted")
        assert not [name for name in said[2].headers if name.endswith("-tokens")]
        assert (await client.get("/v1/models", headers=bearer(tight))).status_code == 200, "only what generates counts"
        response = await ask(client, free)
        assert response.status_code == 200 and not [name for name in response.headers if name.startswith("x-ratelimit")]
        time.ahead_s += float(said[2].headers["retry-after"])
        assert (await ask(client, tight)).status_code == 200

    serving(swarm, work, keys=keys, clock=time.clock())


def test_an_answer_that_takes_too_long_ends_as_at_its_length(swarm: WireSwarm) -> None:
    time = Shifted()

    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            lines = response.aiter_lines()
            assert "text_completion" in await anext(lines)
            time.ahead_s += 99.0
            left = [json.loads(line[6:]) async for line in lines if line.startswith("data: {")]
        assert left[-1]["choices"][0]["finish_reason"] == "length" and len(left) < 800
        assert (await ask(client, "none")).json()["choices"][0]["finish_reason"] == "length", "of its own three tokens"

    serving(swarm, work, clock=time.clock(), max_seconds=60.0)


def test_tokens_per_day_are_counted_as_they_come_and_end_an_answer(swarm: WireSwarm, keys: Path) -> None:
    time = Shifted()
    secret = api_keys.add(keys, "alice", NOW_S, tokens_per_day=50)

    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        first = await ask(client, secret)
        used = PROMPT_TOKENS + 3
        assert first.json()["usage"]["total_tokens"] == used
        assert first.headers["x-ratelimit-limit-tokens"] == "50"
        assert first.headers["x-ratelimit-remaining-tokens"] == str(50 - used)
        assert first.headers["x-ratelimit-reset-tokens"][-1] == "s"
        second = (await ask(client, secret, max_tokens=500)).json()
        assert second["usage"]["completion_tokens"] == 50 - used - PROMPT_TOKENS
        assert second["choices"][0]["finish_reason"] == "length"
        third = await ask(client, secret)
        assert third.status_code == 429 and third.json()["error"]["code"] == "tokens_exhausted"
        assert third.headers["x-ratelimit-remaining-tokens"] == "0" and 0 < int(third.headers["retry-after"]) <= 86_400
        time.ahead_s += float(third.headers["retry-after"])
        assert (await ask(client, secret)).status_code == 200, "a new day"
        await ask(client, secret, max_tokens=4)
        late = await ask(client, secret)
        assert (
            late.status_code == 429
            and "the prompt has 20 tokens, and this key has 3 of 50 left" in late.json()["error"]["message"]
        )
        assert (await ask(client, secret, prompt="xx", max_tokens=1)).status_code == 200, "a prompt that is refused costs nothing"

    serving(swarm, work, keys=keys, clock=time.clock())


def test_tokens_that_were_used_count_after_a_restart(swarm: WireSwarm, keys: Path) -> None:
    time = Shifted()
    secret, other = (api_keys.add(keys, name, NOW_S, tokens_per_day=50) for name in ("alice", "bob"))
    used = PROMPT_TOKENS + 3

    async def first(gateway: Gateway, client: httpx.AsyncClient) -> None:
        await ask(client, secret)

    async def second(gateway: Gateway, client: httpx.AsyncClient) -> None:
        assert (await ask(client, secret)).headers["x-ratelimit-remaining-tokens"] == str(50 - 2 * used)
        assert (await ask(client, other)).headers["x-ratelimit-remaining-tokens"] == str(50 - used)

    async def next_day(gateway: Gateway, client: httpx.AsyncClient) -> None:
        assert (await ask(client, secret)).headers["x-ratelimit-remaining-tokens"] == str(50 - used)

    serving(swarm, first, keys=keys, clock=time.clock())
    kept = json.loads((keys.with_name("gateway_spent.json")).read_text())["spent"]
    assert [used for _, used in kept.values()] == [used] and (keys.with_name("gateway_spent.json")).stat().st_mode & 0o77 == 0
    serving(swarm, second, keys=keys, clock=time.clock())
    time.ahead_s += 86_400
    serving(swarm, next_day, keys=keys, clock=time.clock())
    (keys.with_name("gateway_spent.json")).write_text("damaged")
    serving(swarm, next_day, keys=keys, clock=time.clock())


def test_tokens_of_a_client_that_hangs_up_are_counted(swarm: WireSwarm, keys: Path) -> None:
    secret = api_keys.add(keys, "alice", NOW_S, tokens_per_day=500)

    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        body = LONG | {"stream": True}
        async with client.stream("POST", "/v1/completions", json=body, headers=bearer(secret)) as response:
            lines = response.aiter_lines()
            got = [await anext(lines) for _ in range(20)]
        await all_is_free(swarm, gateway)
        models = await client.get("/v1/models", headers=bearer(secret))
        used = 500 - int(models.headers["x-ratelimit-remaining-tokens"])
        assert PROMPT_TOKENS + sum(line.startswith("data") for line in got) <= used < PROMPT_TOKENS + 400

    serving(swarm, work, keys=keys)


def test_what_happens_is_counted(swarm: WireSwarm, keys: Path) -> None:
    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        await ask(client, "none", n=2)
        await ask(client, "none", model="no")
        await client.get("/../../etc/passwd")
        await client.get("/v1/models/tiny")
        await client.post("/v1/completions", json=ASK, headers={"origin": "http://evil.example"})
        async with client.stream("POST", "/v1/completions", json=LONG | {"stream": True, "n": 2}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            now = await counted(client)
            assert now["murmuration_open_sessions", ("tiny",)] == 2
            assert now["murmuration_running_requests", ()] == 1 and now["murmuration_open_models", ()] == 1
        await all_is_free(swarm, gateway)
        now = await counted(client)
        assert now["murmuration_open_sessions", ("tiny",)] == now["murmuration_running_requests", ()] == 0
        requests = {labels: value for (name, labels), value in now.items() if name == "murmuration_requests_total"}
        assert requests == {
            ("/v1/completions", "200"): 2,
            ("/v1/completions", "404"): 1,
            ("/v1/completions", "403"): 1,
            ("/v1/models/{name:path}", "200"): 1,
            ("other", "404"): 1,
            ("/metrics", "200"): 1,
        }
        assert now["murmuration_prompt_tokens_total", ("tiny",)] == 2 * PROMPT_TOKENS
        assert now["murmuration_answer_tokens_total", ("tiny",)] >= 2 * 3 + 1
        assert now["murmuration_first_token_seconds_count", ("tiny",)] == 2
        assert 0 < now["murmuration_first_token_seconds_sum", ("tiny",)] < 30
        assert now["murmuration_queue_seconds_count", ()] == 3

    serving(swarm, work)


def test_a_caller_that_floods_lets_others_through(swarm: WireSwarm, keys: Path) -> None:
    """One place: the second request of `flood` came long before that of `calm`, and is answered after it."""
    flood, calm = api_keys.add(keys, "flood", NOW_S), api_keys.add(keys, "calm", NOW_S)

    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        answered = list[str]()

        async def asking(secret: str, name: str) -> None:
            assert (await ask(client, secret)).status_code == 200
            answered.append(name)

        body = LONG | {"stream": True}
        async with (
            asyncio.TaskGroup() as tasks,
            client.stream("POST", "/v1/completions", json=body, headers=bearer(flood)) as response,
        ):
            lines = response.aiter_lines()  # kept, or its end would close the stream
            await anext(lines)
            for number, (secret, name) in enumerate([(flood, "flood")] * 3 + [(calm, "calm")], 1):
                tasks.create_task(asking(secret, name))
                await until(lambda number=number: gateway.places.num_waiting == number)
        assert answered == ["calm", "flood", "flood", "flood"]
        assert (await counted(client, calm))["murmuration_queue_seconds_sum", ()] > 0

    serving(swarm, work, keys=keys, max_requests=1)


def test_a_client_that_hangs_up_leaves_the_queue(swarm: WireSwarm, keys: Path) -> None:
    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port or 0)
            writer.write(post(ASK))
            await until(lambda: gateway.places.num_waiting == 1)
            writer.close()
            await until(lambda: gateway.places.num_waiting == 0)
            assert gateway.places.num_taken == 1
        await all_is_free(swarm, gateway)

    serving(swarm, work, max_requests=1)


def test_a_request_without_a_key_is_refused_before_its_body_is_read(swarm: WireSwarm, keys: Path) -> None:
    api_keys.add(keys, "alice", NOW_S)

    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port or 0)
        writer.write(post(ASK).partition(b"\r\n\r\n")[0] + b"\r\n\r\n{")  # the rest never comes
        async with asyncio.timeout(60):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401")
        writer.close()

    serving(swarm, work, keys=keys)


@pytest.fixture(autouse=True)
def free_again(swarm: WireSwarm) -> Iterator[None]:
    yield
    assert all(node.host.num_sessions == 0 for node in swarm.nodes)
