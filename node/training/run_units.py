"""The training units of one run at one peer.

It is what averaging calls a replica (`swarm/averaging/replica.py`). Parameters and optimizer state are touched on the device's thread
only, so a step (G9 of a gradient's path) never meets a forward; ledgers have locks of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from node.device.thread import Device
from node.device.training_time import Priority
from node.training.optimizer.interface import State
from node.training.stage import Stage
from node.training.stepping import Stepper, UnitGradient, sum_of_squares
from node.training.unit_state import UnitState, by_unit, flat_sums
from protocols.averaging import next_chain
from protocols.cards import Ledger
from protocols.errors import BadRequestError, SpanNotServedError, VersionMismatchError
from protocols.groups import Group
from protocols.ids import ModelId
from protocols.parts_of_units import parts_of
from protocols.runs import RunSpec
from protocols.state import Form
from protocols.units import Unit
from swarm import measured, trace
from swarm.averaging.replica import Reduced, Reopening
from swarm.models.sharing import check_fit, copy_into
from swarm.training.snapshot import PARAMETER, UnitSnapshot, form_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StepHooks:
    """What the units' owner is asked and told; in the event loop, but for `keeps`, which the device's thread asks."""

    keeps: Callable[[int], bool] = lambda version: False
    """Is a copy of each unit wanted, as it is right after the step to this version?"""
    on_kept: Callable[[UnitSnapshot], None] = lambda snapshot: None
    """Gets each of these copies."""
    on_step: Callable[[int], None] = lambda version: None
    """Gets the new version of a group's units after each step."""
    on_behind: Callable[[int], None] = lambda version: None
    """Gets a group's version if the state must be fetched: other replicas have a later one, or another history that more of them share."""


NO_HOOKS = StepHooks()


class RunUnits:
    """All units of one run that a peer trains. Every unit is at one version; units that catch up may be at different ones."""

    def __init__(
        self,
        run: ModelId,
        spec: RunSpec,
        stage: Stage,
        num_blocks: int,
        device: Device,
        hooks: StepHooks = NO_HOOKS,
    ) -> None:
        """num_blocks: of the whole model."""
        self.run, self.spec, self.stage, self.device = run, spec, stage, device
        self.stepper = Stepper(spec, num_blocks + 1)
        self.states: dict[Unit, UnitState] = {unit: UnitState(unit, stage.parameters(unit)) for unit in stage.units}
        self._memory: dict[Unit, State] = {unit: self.stepper.new_state(stage.parameters(unit), unit) for unit in stage.units}
        """The optimizer's."""
        self._hooks = hooks

    @property
    def version(self) -> int:
        """The lowest of all units."""
        return min(state.version for state in self.states.values())

    # --- a replica, as averaging calls it

    def card(self, group: Group) -> Ledger:
        """As `Replica.card`."""
        states = self._of(group.units)
        version = min(state.version for state in states)
        if version == group.version and any(state.version != version for state in states):
            raise BadRequestError(
                f"units {group.units[0]} … of {self.run.name} have different versions here: they are being fetched"
            )
        if version != group.version:
            sums = (replace(state.unit_sum(), held=(0,) * len(parts_of(state.unit))) for state in states)
            return Ledger(version=version, units=tuple(sums))
        num_targets: dict[int, int] = {}
        for state in states:
            state.close()
            num_targets |= state.num_targets()
        return Ledger(version=version, units=tuple(state.unit_sum() for state in states), num_targets=num_targets)

    async def sums(self, group: Group) -> Tensor:
        """As `Replica.sums`."""
        states = self._of(group.units)

        def copied() -> torch.Tensor:
            _check_at(states, group)
            return flat_sums(states)

        return await self.device.run(copied, Priority.UPDATE)

    def num_extra(self, group: Group, member: int, num_members: int) -> int:
        """As `Replica.num_extra`: the values of the matrices whose updates that member computes."""
        return sum(
            self.stage.parameters(unit)[name].numel()
            for unit in group.units
            for name in self.stepper.names_of(self._memory[unit], member, num_members)
        )

    async def extra(self, group: Group, reduced: Reduced, member: int, num_members: int) -> Tensor:
        """As `Replica.extra`: those updates, one after the other."""

        def compute() -> Tensor:
            updates = [
                update.cpu().flatten()
                for unit, gradient in self._gradients(group, reduced).items()
                for update in self.stepper.compute_updates(
                    self.stepper.names_of(self._memory[unit], member, num_members),
                    self._memory[unit],
                    gradient,
                    reduced.num_targets,
                )
            ]
            return torch.cat(updates) if updates else torch.empty(0)

        return await self.device.run(compute, Priority.UPDATE)

    async def apply(self, group: Group, reduced: Reduced, extras: Sequence[Tensor]) -> None:
        """As `Replica.apply`."""
        states = self._of(group.units)

        def step() -> list[UnitSnapshot]:
            _check_at(states, group)
            updates = self._updates(group, extras)
            for unit, gradient in self._gradients(group, reduced).items():
                self.stepper.step(
                    self.stage.parameters(unit), self._memory[unit], gradient, group.version, reduced.num_targets, updates[unit]
                )
            for state in states:
                state.restore(group.version + 1, reduced.chains[state.unit])
            return [self.snapshot(unit) for unit in group.units] if self._hooks.keeps(group.version + 1) else []

        with measured.timed("G9"):
            kept = await self.device.run(step, Priority.UPDATE)
        trace.mark_gradient("stepped", group.version, trace.VERSION)
        for snapshot in kept:
            self._hooks.on_kept(snapshot)
        self._hooks.on_step(group.version + 1)

    def reopen(self, group: Group, how: Reopening) -> None:
        """As `Replica.reopen`."""
        for state in self._of(group.units):
            if state.version != group.version:
                continue
            state.reopen() if how == "as before" else state.reset()
        if how == "behind":
            self._hooks.on_behind(group.version)

    # --- one machine alone

    def step_alone(self, num_targets: int) -> float:
        """Step with the sums that are here, as a group of one member does without a network; the norm of the mean gradient.

        For a process that trains the whole model by itself. Call it on the device's thread, or if there is no other.
        """
        squares = 0.0
        for unit, state in self.states.items():
            values = state.flat.clone()
            gradient = UnitGradient(sums=state.views(values), sum_of_squares=sum_of_squares(values))
            squares += gradient.sum_of_squares
            self.stepper.step(self.stage.parameters(unit), self._memory[unit], gradient, state.version, num_targets)
            state.restore(state.version + 1, next_chain(state.chain, bytes(32), num_targets))
        return math.sqrt(squares) / max(1, num_targets)

    # --- state

    def snapshot(self, unit: Unit) -> UnitSnapshot:
        """A copy of everything that the unit is made of. On the device's thread."""
        state = self._of([unit])[0]
        return UnitSnapshot.of(unit=unit, version=state.version, chain=state.chain, tensors=self._tensors(unit))

    def form(self, unit: Unit) -> Form:
        """What a snapshot of the unit is made of."""
        return form_of(self._tensors(unit))

    def _tensors(self, unit: Unit) -> dict[str, Tensor]:
        parameters = {f"{PARAMETER}/{name}": tensor for name, tensor in self.stage.tensors(unit).items()}
        return {**parameters, **self._memory[unit]}

    def restore(self, snapshot: UnitSnapshot) -> None:
        """Become what the snapshot says: parameters, optimizer state, version, chain; its sum and ledger are empty then. On the device's
        thread. BadRequestError, with nothing changed, if its tensors are not those of the unit."""
        unit = snapshot.unit
        state = self._of([unit])[0]
        parameters, memory = self.stage.parameters(unit), self._memory[unit]
        given, theirs = snapshot.kind(PARAMETER), snapshot.tensors
        if not (parameters.keys() <= given.keys() and memory.keys() <= theirs.keys()):
            raise BadRequestError(f"the state of {unit} is of another model or optimizer: it lacks tensors")
        check_fit(memory, {key: theirs[key] for key in memory})
        self.stage.write(unit, {name: given[name] for name in parameters})
        for key, own in memory.items():
            copy_into(own, theirs[key])
        state.restore(snapshot.version, snapshot.chain)

    # --- help

    def _of(self, units: Sequence[Unit]) -> list[UnitState]:
        for unit in units:
            if unit not in self.states:
                raise SpanNotServedError(
                    f"{unit} of {self.run.name} is not trained here; there are {', '.join(map(str, self.states)) or 'none'}"
                )
        return [self.states[unit] for unit in units]

    def _gradients(self, group: Group, reduced: Reduced) -> dict[Unit, UnitGradient]:
        values = by_unit(self._of(group.units), reduced.values)
        device = next(iter(self.states.values())).flat.device
        return {
            unit: UnitGradient(
                sums={name: tensor.to(device) for name, tensor in sums.items()}, sum_of_squares=reduced.norms[unit]
            )
            for unit, sums in values.items()
        }

    def _updates(self, group: Group, extras: Sequence[Tensor]) -> dict[Unit, dict[str, Tensor]]:
        """What all members have computed, by unit and name."""
        found: dict[Unit, dict[str, Tensor]] = {unit: {} for unit in group.units}
        for member, values in enumerate(extras):
            at = 0
            for unit in group.units:
                shapes: Mapping[str, Tensor] = self.stage.parameters(unit)
                for name in self.stepper.names_of(self._memory[unit], member, len(extras)):
                    size = shapes[name].numel()
                    found[unit][name] = values[at : at + size].view(shapes[name].shape)
                    at += size
        return found


def _check_at(states: Sequence[UnitState], group: Group) -> None:
    """VersionMismatchError if the state of a unit was fetched from others since the group's card: what it held is gone."""
    for state in states:
        if state.version != group.version or state.is_open:
            raise VersionMismatchError(
                f"{state.unit} has version {state.version} here, and was fetched from others since: it takes no part in the step from "
                f"{group.version}"
            )
