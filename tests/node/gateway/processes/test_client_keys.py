"""Every API's own client sends a key, and knows a refusal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anthropic
import httpx
import ollama
import openai

from node import api_keys
from node.gateway.answers.gateway import Gateway
from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.test_callers import NOW_S, bearer, serving
from tests.node.gateway.processes.test_callers import keys as keys
from tests.node.gateway.processes.test_hanging_up import swarm as swarm

USER = {"role": "user", "content": "hi"}


def test_each_client_is_answered_with_a_key_and_refused_in_its_own_form_without(swarm: WireSwarm, keys: Path) -> None:
    tight = api_keys.add(keys, "tight", NOW_S, requests_per_minute=3)

    def ask_all(address: str, key: str) -> list[int]:
        with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
            try:
                client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=2)
                statuses = [200]
            except openai.APIStatusError as refused:
                statuses = [refused.status_code]
                assert isinstance(refused, openai.AuthenticationError | openai.RateLimitError)
        with anthropic.Anthropic(base_url=address, api_key=key, max_retries=0) as client:
            try:
                client.messages.create(model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=2)
                statuses += [200]
            except anthropic.APIStatusError as refused:
                statuses += [refused.status_code]
                assert isinstance(refused, anthropic.AuthenticationError | anthropic.RateLimitError)
        try:
            ollama.Client(host=address, headers=bearer(key)).chat("tiny", [USER], options={"num_predict": 2})
            statuses += [200]
        except ollama.ResponseError as refused:
            statuses += [refused.status_code]
            assert "key" in refused.error
        return statuses

    async def work(gateway: Gateway, client: httpx.AsyncClient) -> None:
        address = str(client.base_url).rstrip("/")
        assert await asyncio.to_thread(ask_all, address, "none") == [401] * 3
        assert await asyncio.to_thread(ask_all, address, tight) == [200] * 3
        assert await asyncio.to_thread(ask_all, address, tight) == [429] * 3

    serving(swarm, work, keys=keys)
