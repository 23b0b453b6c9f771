"""The last hop changes logits as its client would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from node.engines import ends
from node.serving.batch import _of_logits
from protocols.compression import pack
from protocols.defaults import MAX_TOP
from protocols.logit_changes import LogitChanges
from protocols.step_spec import StepSpec
from swarm.inference.requests import StepOutput
from swarm.thin.generation import _positions
from swarm.thin.sampling import NUM_LIKELY, SUPPRESSED, Chooser, NotEnoughError, Position, TokenSampling
from swarm.thin.scoring import ScoringChooser

VOCAB = 3000
PROMPT = [7, 7, 2999, 40]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 0.7, "repetition_penalty": 0.6, "presence_penalty": -1.1},
    {"temperature": 1.3, "top_p": 0.8, "frequency_penalty": 0.7, "bias": ((3, 4.5), (7, -100.0))},
    {"temperature": 1.1, "min_p": 0.02, "presence_penalty": 0.3, "frequency_penalty": 0.1, "repetition_penalty": 1.1},
    {"temperature": 1.0, "top_k": 900, "bias": ((2, 9.0),)},
    {"temperature": 1.0, "suppressed": (2, 5), "top_p": 0.9},
    {"temperature": 0.0, "suppressed": (2, 5), "bias": ((2, 100.0),)},
    {"temperature": 0.0, "presence_penalty": -2.0},
    {"temperature": 0.0, "bias": ((11, 3.5),), "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_the_same_tokens_are_picked_as_from_all_logits(settings: dict[str, Any], masked: bool) -> None:
    few, all_ = (Chooser(TokenSampling(seed=5, **settings)) for _ in range(2))
    rng = torch.Generator().manual_seed(1)
    mask = np.packbits(torch.rand(VOCAB, generator=rng).numpy() < 0.7, bitorder="little").tobytes() if masked else b""
    said, num_again = list(PROMPT), 0
    for _ in range(60):
        one = (torch.randn(VOCAB, generator=rng) * 3)[None]
        changes = few.changes(said, len(PROMPT), VOCAB)
        asked, temperature = few.asks(said, len(PROMPT), True), few.temperature_of(True)
        assert changes and asked == (settings.get("top_k") or (NUM_LIKELY if settings["temperature"] else 1))
        found = ends.changed(one, LogitChanges.parse(changes, VOCAB))
        plain = Position(one.numpy().tobytes())
        if not masked:  # to the last bit
            values, ids = all_._candidates(plain, said, len(PROMPT), b"")
            is_free = ~np.isin(ids, settings.get("suppressed", ()))
            assert found.numpy()[0][ids][is_free].tobytes() == values[is_free].tobytes()
            assert (found.numpy()[0][ids][~is_free] < SUPPRESSED).all()
        found = ends.allowed(found, mask) if mask else found
        values, ids = ends.top(found, asked)
        total = float(ends.totals(found, temperature)) if temperature else None
        try:
            token = few.choose(Position(values.numpy().tobytes(), ids.numpy().tobytes(), total, True), said, len(PROMPT), mask)
        except NotEnoughError:
            num_again += 1
            token = few.choose(plain, said, len(PROMPT), mask)
        assert token == all_.choose(plain, said, len(PROMPT), mask)
        said.append(token)
    assert num_again < 60 and len(set(said)) > 3


def test_they_are_sent_only_if_they_save_something() -> None:
    def of(**settings: Any) -> bytes:
        return Chooser(TokenSampling(**{"temperature": 1.0, **settings})).changes(list(range(500)), 400, VOCAB)

    assert len(of(repetition_penalty=1.1)) == 16 + 4 * 500 and of(presence_penalty=1.0)
    assert not of(top_k=500, repetition_penalty=1.1) and of(top_k=600, repetition_penalty=1.1), "more than a step may ask for"
    bias = ((1, 1.0),)
    for settings in (
        {},
        {"top_k": MAX_TOP + 1, "bias": bias},
        {"top_k": 5, "repetition_penalty": 1.1},
    ):
        assert not of(**settings), "all are asked for, or few are enough"
    assert not Chooser(TokenSampling(temperature=1.0, repetition_penalty=1.1)).changes(list(range(1500)), 0, VOCAB), "too many"


class AllScoring(ScoringChooser):
    """Knows all logits."""

    def choose_of(self, logits: torch.Tensor, said: list[int], mask: bytes) -> int:
        return self.choose(Position(logits.numpy().tobytes()), said, len(PROMPT), mask)


def answered(chooser: Chooser, logits: torch.Tensor, said: list[int], mask: bytes) -> Position:
    """What a client gets of these logits, as `generate` asks for it and the last hop answers."""
    changes = chooser.changes(said, len(PROMPT), VOCAB)
    top = chooser.asks(said, len(PROMPT), bool(changes))
    assert top, "few are enough"
    more: Any = {} if chooser.own is None else {"result": "scored", "own": chooser.own}
    asked = {"mask": mask, "changes": changes, "temperature": chooser.temperature_of(bool(changes))}
    spec = StepSpec(kind="ids", want=1, top=top, **{"result": "top", **more}, **asked)  # type: ignore[arg-type]
    spec.check()
    made = _of_logits(spec, logits[None], False)
    ids, totals = (None if one is None else pack(one) for one in (made.ids, made.totals))
    (position,) = _positions(StepOutput(values=pack(made.values), ids=ids, totals=totals), 1, spec)
    return position


SCORED = [*SETTINGS, {"temperature": 0.5}, {"temperature": 0.8, "top_k": 40, "repetition_penalty": 1.4}, {"temperature": 0.0}]


@pytest.mark.parametrize("settings", SCORED, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_top", [0, 5])
def test_scores_are_those_of_all_logits(settings: dict[str, Any], masked: bool, num_top: int) -> None:
    sampling = TokenSampling(seed=5, **settings)
    few, all_ = ScoringChooser(sampling, num_top, masked), AllScoring(sampling, num_top, masked)
    rng = torch.Generator().manual_seed(1)
    mask = np.packbits(torch.rand(VOCAB, generator=rng).numpy() < 0.7, bitorder="little").tobytes() if masked else b""
    said, num_few = list(PROMPT), 0
    for _ in range(40):
        logits = torch.randn(VOCAB, generator=rng) * 3
        position = answered(few, logits, said, mask)
        try:
            token = few.choose(position, said, len(PROMPT), mask)
            num_few += 1
        except NotEnoughError:
            token = few.choose(Position(logits.numpy().tobytes()), said, len(PROMPT), mask)
        assert token == all_.choose_of(logits, said, mask)
        assert few.last is not None and all_.last is not None and few.last.token == token
        assert few.last.logprob == pytest.approx(all_.last.logprob, abs=1e-5)
        assert [one for one, _ in few.last.top] == [one for one, _ in all_.last.top] and len(few.last.top) == num_top
        assert [value for _, value in few.last.top] == pytest.approx([value for _, value in all_.last.top], abs=1e-5)
        said.append(token)
    assert num_few > 20 and len(set(said)) > 3
