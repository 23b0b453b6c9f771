"""A thin sequence: what is sent and picked; guesses save trips only."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from protocols.errors import BadRequestError
from protocols.inference import PASS_ON, Crop, Op, StepSpec
from protocols.tensors import WireTensor
from swarm.thin import sampling as thin_sampling
from swarm.thin.generation import Limits, Proposer, TokenSequence, generate
from swarm.thin.sampling import Chooser, TokenSampling
from swarm.timings import Timings
from swarm.tracing import OFF, StepTracer

VOCABULARY = 50


def logits_after(tokens: Sequence[int]) -> list[float]:
    """A model: depends on all tokens, repeats itself often."""
    seed = sum(token * (index % 3 + 1) for index, token in enumerate(tokens[-4:]))
    return [float((seed * 7 + token * token * 13) % 31) for token in range(VOCABULARY)]


@dataclass
class Output:
    values: WireTensor
    ids: WireTensor | None
    totals: WireTensor | None = None


@dataclass
class Hops:
    """Answers a sequence as the hops of a thin session do."""

    tokens: list[int] = field(default_factory=list)
    steps: list[tuple[int, int, str]] = field(default_factory=list)
    tracer: StepTracer = OFF
    timings: Timings = field(default_factory=Timings)

    async def step(
        self, ops: Sequence[Op], counts: Sequence[int], tokens: WireTensor, spec: StepSpec = PASS_ON,
        positions: Sequence[int] | None = None,
    ) -> Output:  # fmt: skip
        want, result, top = spec.want, spec.result, spec.top
        assert spec.kind == "ids" and tokens.dtype == "int32"
        for op in ops:
            assert isinstance(op, Crop)
            del self.tokens[len(self.tokens) - op.tokens :]
        values, ids, totals = b"", b"", b""
        for number, token in enumerate(struct.unpack(f"<{counts[0]}i", tokens.data)):
            self.tokens.append(token)
            if number < counts[0] - want:
                continue
            scores = logits_after(self.tokens)
            scores = [
                score if not spec.mask or spec.mask[token // 8] >> token % 8 & 1 else -3.4e38
                for token, score in enumerate(scores)
            ]
            best = sorted(range(VOCABULARY), key=lambda token: (-scores[token], token))[: top or VOCABULARY]
            chosen = best if result == "top" else range(VOCABULARY)
            values += struct.pack(f"<{len(chosen)}f", *(scores[token] for token in chosen))
            ids += struct.pack(f"<{len(chosen)}i", *chosen)
            if spec.temperature:
                totals += struct.pack("<f", math.log(sum(math.exp(score / spec.temperature) for score in scores)))
        self.steps.append((counts[0], want, result))
        width = top or VOCABULARY
        held = WireTensor("int32", (want, width), "none", ids) if result == "top" else None
        return Output(
            WireTensor("float32", (want, width), "none", values),
            held,
            WireTensor("float32", (want,), "none", totals) if totals else None,
        )


async def answer(
    hops: Hops,
    prompt: Sequence[int],
    sampling: TokenSampling,
    limits: Limits,
    propose: Proposer | None = None,
    sequence: TokenSequence | None = None,
) -> list[int]:
    limits = replace(limits, vocab_size=VOCABULARY)
    return [token async for token in generate(sequence or TokenSequence(hops), prompt, Chooser(sampling), limits, propose)]


def greedily(prompt: Sequence[int], count: int) -> list[int]:
    said = list(prompt)
    for _ in range(count):
        scores = logits_after(said)
        said.append(max(range(VOCABULARY), key=lambda token: (scores[token], -token)))
    return said[len(prompt) :]


async def test_greedy_asks_for_one_logit_a_token_and_feeds_each_token_once() -> None:
    hops = Hops()
    got = await answer(hops, [3, 1, 4], TokenSampling(), Limits(max_new_tokens=6))
    assert got == greedily([3, 1, 4], 6)
    assert hops.steps == [(3, 1, "top"), *[(1, 1, "top")] * 5]
    assert hops.tokens == [3, 1, 4, *got[:-1]]


@pytest.mark.parametrize(
    "sampling",
    [
        TokenSampling(),
        TokenSampling(temperature=1.5, seed=4),
        TokenSampling(temperature=0.8, top_k=5, seed=9),
        TokenSampling(repetition_penalty=1.4),
    ],
    ids=["greedy", "sampled", "top-k", "penalty"],
)
@pytest.mark.parametrize("quality", [0, 1, 2], ids=["always wrong", "half right", "right"])
async def test_guessing_changes_the_trips_and_never_the_text(sampling: TokenSampling, quality: int) -> None:
    limits = Limits(max_new_tokens=24)
    plain = Hops()
    expected = await answer(plain, [3, 1, 4], sampling, limits)
    text = [3, 1, 4, *expected]

    def propose(said: Sequence[int]) -> list[int]:
        right = text[len(said) : len(said) + 4]
        return [token if quality == 2 or (quality == 1 and index < 2) else token + 1 for index, token in enumerate(right)]

    guessed, sequence = Hops(), None
    sequence = TokenSequence(guessed)
    assert await answer(guessed, [3, 1, 4], sampling, limits, propose, sequence) == expected
    assert len(plain.steps) == 24
    assert len(guessed.steps) == {0: 24, 1: 8, 2: 5}[quality]
    more = await answer(guessed, [*text, 7], sampling, Limits(max_new_tokens=3), None, sequence)  # the cache is right afterwards
    assert more == await answer(Hops(), [*text, 7], sampling, Limits(max_new_tokens=3))


@pytest.mark.parametrize("quality", [None, 0, 3])
async def test_a_draw_that_the_largest_do_not_decide_is_asked_again_for_all(
    monkeypatch: pytest.MonkeyPatch, quality: int | None
) -> None:
    sampling, limits = TokenSampling(temperature=6.0, seed=4), Limits(max_new_tokens=60)
    expected = await answer(Hops(), [3, 5], sampling, limits)
    monkeypatch.setattr(thin_sampling, "NUM_LIKELY", 12)

    def propose(said: Sequence[int]) -> list[int]:
        guesses = expected[len(said) - 2 :][:3]
        return guesses if quality else [token + 1 for token in guesses]

    hops = Hops()
    assert await answer(hops, [3, 5], sampling, limits, None if quality is None else propose) == expected
    again = [result for *_, result in hops.steps].count("logits")
    print(again, len(hops.steps))
    assert 0 < again < 40


async def test_an_end_token_ends_it_wherever_it_was_guessed() -> None:
    whole = greedily([3, 1, 4], 20)
    end = whole[6]
    first = whole.index(end)
    limits = Limits(max_new_tokens=20, ends=frozenset([end]))
    hops = Hops()
    sequence = TokenSequence(hops)
    assert (
        await answer(hops, [3, 1, 4], TokenSampling(), limits, lambda said: whole[len(said) - 3 : len(said) + 5], sequence)
        == whole[: first + 1]
    )
    sequence.cut_back([3, 1, 4, *whole[: first + 1], 9])
    assert sequence.held == [3, 1, 4, *whole[:first]]


async def test_a_second_turn_feeds_only_what_is_new_and_forgets_what_changed() -> None:
    hops = Hops()
    sequence = TokenSequence(hops)
    first = await answer(hops, [3, 1, 4], TokenSampling(), Limits(max_new_tokens=4), sequence=sequence)
    hops.steps.clear()
    said = [3, 1, 4, *first[:2], 8, 8]  # the last two of the answer are written differently
    second = await answer(hops, said, TokenSampling(), Limits(max_new_tokens=2), sequence=sequence)
    assert hops.steps[0] == (2, 1, "top") and second == greedily(said, 2)
    hops.steps.clear()
    again = await answer(
        hops, said, TokenSampling(), Limits(max_new_tokens=2), sequence=sequence
    )  # nothing new: the last is fed again
    assert hops.steps[0] == (1, 1, "top") and again == second


async def test_what_does_not_fit_is_said_before_anything_is_sent() -> None:
    hops = Hops()
    limits = Limits(max_new_tokens=6, max_positions=8)
    assert len(await answer(hops, [1, 2, 3], TokenSampling(), limits)) == 6
    hops.steps.clear()
    for prompt, text in (([1] * 4, "at most 5"), ([1] * 9, "too long: 9 tokens"), ([], "is empty")):
        with pytest.raises(BadRequestError, match=text):
            await answer(hops, prompt, TokenSampling(), limits)
    assert not hops.steps


@dataclass
class Rising:
    """Each token is larger than the one before; the answer may end from 10 on."""

    last: int = 0
    asked: list[int] = field(default_factory=list)

    async def mask(self) -> bytes:
        allowed = [token for token in range(self.last + 1, VOCABULARY)] + [0] * (self.last >= 10)
        bits = sum(1 << token for token in allowed)
        return bits.to_bytes((VOCABULARY + 7) // 8, "little")

    def accept(self, token: int) -> None:
        assert token > self.last
        self.last = token
        self.asked.append(token)


@pytest.mark.parametrize(
    "sampling", [TokenSampling(), TokenSampling(temperature=2.0, top_k=3, seed=5), TokenSampling(temperature=2.0, seed=5)]
)
async def test_an_answer_keeps_to_what_its_constraint_allows(sampling: TokenSampling) -> None:
    hops, rising, limits = Hops(), Rising(), Limits(max_new_tokens=40, ends=frozenset({0}), vocab_size=VOCABULARY)
    said = [token async for token in generate(TokenSequence(hops), [3, 5], Chooser(sampling), limits, None, rising)]
    print(said)
    assert said[-1] == 0 and said[:-1] == rising.asked == sorted(set(said[:-1])) and said[-2] >= 10
    asks_few = bool(sampling.top_k or sampling.is_greedy)
    assert {result for _, _, result in hops.steps} == {"top" if asks_few else "logits"}
