"""A unit's sum has each micro-batch whole and once, or not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from node.training.accumulate import accumulate
from node.training.flight import Gradients
from node.training.unit_state import UnitState, by_unit, flat_sums
from protocols.errors import BadRequestError, LedgerClosedError, NonFiniteGradientError, SwarmError, VersionMismatchError
from protocols.parts_of_units import EMBED, HEAD, Part, parts_of
from protocols.run_status import RunStatus
from protocols.units import Blocks, Ends, Unit

SHAPES = {"b.weight": (2, 3), "a.weight": (4,), "c": ()}
INDICES = st.integers(0, 9)


def gradients(value: float, *names: str) -> dict[str, Tensor]:
    return {name: torch.full(SHAPES[name], float(value)) for name in names or SHAPES}


def state_of(unit: Unit) -> UnitState:
    return UnitState(unit, {name: torch.zeros(shape) for name, shape in SHAPES.items()})


class UnitStates(RuleBasedStateMachine):
    """Against plain Python: a set of what was added. Gradients are whole numbers, so that float32 sums are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.state = state_of(Ends())
        self.added: dict[tuple[Part, int], int] = {}
        self.version, self.is_open = 0, True

    @rule(part=st.sampled_from([EMBED, HEAD]), index=INDICES, value=st.integers(-5, 5))
    def add(self, part: Part, index: int, value: int) -> None:
        is_right = self.is_open and (part, index) not in self.added
        try:
            self.state.add(part, index, gradients(value), index + 1, version=self.version)
            assert is_right
            self.added[part, index] = value
        except (LedgerClosedError, BadRequestError):
            assert not is_right

    @rule(
        part=st.sampled_from([EMBED, HEAD, Part.block(0)]),
        bad=st.sampled_from([math.nan, math.inf, -math.inf, 1e30, "name", "shape", "version", "targets", "index"]),
        at=st.sampled_from(sorted(SHAPES)),
    )
    def add_what_is_wrong(self, part: Part, bad: float | str, at: str) -> None:
        wrong, version, targets, index = gradients(1), self.version, 3, 11
        if isinstance(bad, float):
            wrong[at] = wrong[at].clone().fill_(bad)
        elif bad in ("name", "shape"):
            wrong["x" if bad == "name" else at] = torch.zeros(9)
        version, targets, index = (
            version + (bad == "version"),
            -1 if bad == "targets" else targets,
            4096 if bad == "index" else index,
        )
        with pytest.raises(SwarmError):
            self.state.add(part, index, wrong, targets, version=version)

    @rule()
    def close(self) -> None:
        self.state.close()
        self.is_open = False

    @rule()
    def reopen(self) -> None:
        self.state.reopen()
        self.is_open = True

    @rule(is_step=st.booleans())
    @precondition(lambda self: self.added)
    def reset_or_step(self, is_step: bool) -> None:
        if is_step:
            self.version += 1
            self.state.restore(self.version, bytes(32))
        else:
            self.state.reset()
        self.added, self.is_open = {}, True

    @invariant()
    def sum_and_ledger_are_those_of_the_set(self) -> None:
        assert torch.equal(self.state.flat, torch.full((11,), float(sum(self.added.values()))))
        masks = tuple(sum(1 << index for part, index in self.added if part == one) for one in (EMBED, HEAD))
        assert self.state.unit_sum().held == masks and self.state.unit_sum().num_values == 11
        assert self.state.num_targets() == {index: index + 1 for index in sorted({index for _, index in self.added})}
        assert (self.state.version, self.state.is_open) == (self.version, self.is_open)
        status = RunStatus(num_micro_batches=10, units=(self.state.status(),))
        assert RunStatus.parse(status.encode()) == status


TestUnitStates = UnitStates.TestCase
TestUnitStates.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_the_flat_sum_is_in_the_order_of_names_and_comes_apart_again() -> None:
    states = [state_of(Blocks(1, 2)), state_of(Ends())]
    states[0].add(Part.block(1), 0, {**gradients(1, "a.weight"), **gradients(2, "b.weight"), **gradients(3, "c")}, 1, version=0)
    flat = flat_sums(states)
    assert flat.tolist() == [1] * 4 + [2] * 6 + [3] + [0] * 11
    apart = by_unit(states, flat)
    assert [*apart[Blocks(1, 2)]] == sorted(SHAPES) and apart[Blocks(1, 2)]["b.weight"].shape == (2, 3)
    apart[Ends()]["c"].fill_(7)
    assert flat[-1] == 7, "views: nothing is copied"
    with pytest.raises(BadRequestError, match="22 trainable values"):
        by_unit(states, flat[1:])


def test_an_absent_name_adds_nothing_and_half_precision_is_added_in_float32() -> None:
    state = state_of(Blocks(0, 1))
    for index in range(3):
        state.add(Part.block(0), index, {"a.weight": torch.full((4,), 2.0**-7 + 1, dtype=torch.bfloat16)}, 1, version=0)
    assert state.flat[:4].tolist() == [3 * (2.0**-7 + 1)] * 4 and state.flat[4:].abs().sum() == 0


def batch(value: float) -> Gradients:
    return Gradients(input=None, by_part={part: gradients(value) for unit in (Blocks(0, 1), Ends()) for part in parts_of(unit)})


def test_a_micro_batch_is_added_to_all_its_units_or_to_none() -> None:
    states: dict[Unit, UnitState] = {unit: state_of(unit) for unit in (Blocks(0, 1), Ends())}
    poisoned = batch(1)
    poisoned.by_part[HEAD]["c"].fill_(math.nan)
    with pytest.raises(NonFiniteGradientError, match=r"micro-batch 4 of decoder/ends/head .* most in c"):
        accumulate(states, poisoned, 4, 9, version=0)
    with pytest.raises(VersionMismatchError, match="version 0 here"):
        accumulate(states, batch(1), 4, 9, version=1)
    states[Ends()].close()
    with pytest.raises(LedgerClosedError):
        accumulate(states, batch(1), 4, 9, version=0)
    assert not any(state.flat.abs().sum() or any(state.unit_sum().held) for state in states.values())


def test_what_is_held_or_skipped_is_not_added_again() -> None:
    states: dict[Unit, UnitState] = {unit: state_of(unit) for unit in (Blocks(0, 1), Ends())}
    states[Ends()].add(EMBED, 4, gradients(8), 9, version=0)
    done = accumulate(states, batch(1), 4, 9, version=0, skip=[Part.block(0)])
    assert (done.added, done.held) == ((HEAD,), (EMBED,))
    assert states[Blocks(0, 1)].flat.sum() == 0 and states[Ends()].flat.tolist() == [9.0] * 11, "tied: both sides in one sum"
    again = accumulate(states, batch(1), 4, 9, version=0)
    assert (again.added, again.held) == ((Part.block(0),), (EMBED, HEAD))


def test_two_parts_of_one_micro_batch_have_the_same_target_tokens() -> None:
    state = state_of(Ends())
    state.add(EMBED, 4, gradients(1), 9, version=0)
    with pytest.raises(BadRequestError, match="9 target tokens in another part, now 8"):
        state.add(HEAD, 4, gradients(1), 8, version=0)
