"""What hops have kept is not computed again, and changes no token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from openai import AsyncOpenAI
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from swarm.thin.model import ThinModel
from tests.end_to_end.wire import WireSwarm
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.node.gateway.processes.conftest import LIMIT_S
from tests.node.gateway.processes.toy_gateway import ToyConfig, toy_gateway
from tests.swarm.inference.toy import until

NEW = 6
FIRST = [3 + number * number % 97 for number in range(150)]


class Counting:
    """How many tokens each node has computed."""

    def __init__(self, swarm: WireSwarm) -> None:
        self.tokens = [0] * len(swarm.nodes)
        for at, node in enumerate(swarm.nodes):
            self._count(node.engine, at)

    def _count(self, engine: Any, at: int) -> None:
        step = engine.step

        def counted(items: Any, hidden: Any, positions: Any = None) -> Any:
            self.tokens[at] += hidden.shape[1]
            return step(items, hidden, positions)

        engine.step = counted

    def since(self, before: list[int]) -> list[int]:
        return [now - then for now, then in zip(self.tokens, before, strict=True)]


@dataclass(frozen=True)
class Counted:
    """A swarm of two nodes, and what each of them computes."""

    toys: WireSwarm
    counting: Counting
    mode: str

    @property
    def can_crop(self) -> bool:
        can_crop = all(node.engine.can_crop for node in self.toys.nodes)
        assert can_crop is (self.mode in ("llama", "falcon_alibi"))
        return can_crop

    async def ask(self, client: AsyncOpenAI, prompt: list[int]) -> tuple[str, int, list[int]]:
        """The answer, the tokens that were not computed again as the usage says, and those that each node has computed."""
        before = list(self.counting.tokens)
        made = await client.completions.create(model="tiny", prompt=prompt, max_tokens=NEW, logit_bias={"2": -100})
        await until(lambda: all(node.host.num_sessions == 0 for node in self.toys.nodes))
        return made.choices[0].text, made.usage.prompt_tokens_details.cached_tokens, self.counting.since(before)

    def answer(self, prompt: list[int]) -> tuple[list[int], str]:
        """What transformers says on one machine, without any cache."""
        model = AutoModelForCausalLM.from_pretrained(self.toys.path, dtype=torch.float32).eval()
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            for _ in range(NEW):
                logits = model(ids, use_cache=False).logits[:, -1:]
                logits[..., 2] = -100
                ids = torch.cat([ids, logits.argmax(-1)], 1)
        new = ids[0, len(prompt) :].tolist()
        return new, PreTrainedTokenizerFast.from_pretrained(self.toys.path).decode(new)

    def run(self, work: Callable[[AsyncOpenAI], Awaitable[None]], **settings: Any) -> None:
        """`work` with a client of a new gateway, which has kept nothing yet."""

        async def run() -> None:
            async with (
                toy_gateway(self.toys, has_cache=True, **settings) as (_, port),
                AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=LIMIT_S) as client,
            ):
                await work(client)

        self.toys.run(run())

    def with_model(self, work: Callable[[ThinModel], Awaitable[None]]) -> None:
        """`work` with a thin client of its own."""

        async def run() -> None:
            async with ToyConfig(models=("tiny",), toys=self.toys, has_cache=True).open("tiny") as model:
                await work(model)

        self.toys.run(run())


@pytest.fixture(scope="module", params=["llama", "falcon_alibi", "mamba2", "mamba"])
def swarm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    """Of each kind of engine; those of mamba keep a running state, and cannot forget tokens."""
    path = make_checkpoint(request.param, tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(path)
    made = WireSwarm(path, [(0, 2), (2, 5)], with_ends=True)
    yield Counted(made, Counting(made), request.param)
    made.close()


def test_the_next_turn_computes_only_what_is_new(swarm: Counted) -> None:
    async def work(client: AsyncOpenAI) -> None:
        new, text = swarm.answer(FIRST)
        assert await swarm.ask(client, FIRST) == (text, 0, [len(FIRST) + NEW - 1] * 2)
        turn = [*FIRST, *new, 77, 78, 79]
        held = len(FIRST) + NEW - 1
        assert await swarm.ask(client, turn) == (swarm.answer(turn)[1], held, [len(turn) - held + NEW - 1] * 2)

    swarm.run(work)


def test_several_answers_compute_their_prompt_once(swarm: Counted) -> None:
    async def work(client: AsyncOpenAI) -> None:
        before = list(swarm.counting.tokens)
        made = await client.completions.create(model="tiny", prompt=FIRST, max_tokens=NEW, n=3, logit_bias={"2": -100})
        assert [choice.text for choice in made.choices] == [swarm.answer(FIRST)[1]] * 3
        assert made.usage.prompt_tokens_details.cached_tokens == 0
        assert swarm.counting.since(before) == [len(FIRST) - 1 + 3 * NEW] * 2

    swarm.run(work)


def test_requests_at_the_same_time_compute_their_common_beginning_once(swarm: Counted) -> None:
    """An engine that cannot forget tokens has no beginnings: it computes all, and the next requests do not wait in vain."""
    prompts = [[*FIRST, 5 + number, 6 + number, 7] for number in range(8)]

    async def work(client: AsyncOpenAI) -> None:
        before = list(swarm.counting.tokens)
        made = await asyncio.gather(
            *[
                client.completions.create(model="tiny", prompt=prompt, max_tokens=NEW, logit_bias={"2": -100})
                for prompt in prompts
            ]
        )
        assert [one.choices[0].text for one in made] == [swarm.answer(prompt)[1] for prompt in prompts]
        shared = len(FIRST) if swarm.can_crop else 0
        cached = [one.usage.prompt_tokens_details.cached_tokens for one in made]
        assert sorted(cached) == [0] + [shared] * 7
        assert swarm.counting.since(before) == [8 * (len(FIRST) + 3 + NEW - 1) - 7 * shared] * 2

    swarm.run(work)


def test_owners_share_nothing_and_those_who_wait_for_a_failed_one_go_on(swarm: Counted) -> None:
    async def work(model: ThinModel) -> None:
        first = await model.begin(FIRST, "a")
        others = [asyncio.create_task(model.begin([*FIRST, number], "a")) for number in range(3)]
        other = await model.begin(FIRST, "b")
        assert not other.held and not any(task.done() for task in others)
        await model.end(first)  # it was not asked to compute anything
        second = (await asyncio.wait(others, return_when="FIRST_COMPLETED"))[0].pop().result()
        assert not second.held and sum(task.done() for task in others) == 1
        await second.feed(FIRST, 1, 1)
        held = [await task for task in others]
        assert [len(one.held) for one in held] == [len(FIRST)] * 3
        for sequence in (other, *held):
            await model.end(sequence)
        assert not model.sessions and not len(model._prefixes.open)

    swarm.with_model(work)


def test_another_question_after_the_same_instructions(swarm: Counted) -> None:
    """It forgets the end of the earlier request; an engine that cannot is sent the whole prompt."""
    other = [*FIRST[:120], 5, 6, 7, 8, 9]

    async def work(client: AsyncOpenAI) -> None:
        await swarm.ask(client, FIRST)
        text, cached, computed = await swarm.ask(client, other)
        assert text == swarm.answer(other)[1]
        left = 5 if swarm.can_crop else len(other)
        assert (cached, computed) == (120 if swarm.can_crop else 0, [left + NEW - 1] * 2)
        assert await swarm.ask(client, FIRST) == (swarm.answer(FIRST)[1], len(FIRST) - 1 if swarm.can_crop else 0, ANY)

    swarm.run(work)
