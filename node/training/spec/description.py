"""What a run file means in numbers: parameters, memory, bytes.

Shown by `--dry-run`. Everything follows from the file and the shapes of the model; nothing is measured.

Bytes of a step (one version) between two hops, per token: a hidden state down and its gradient up, by the codec of the activations, and
down the label and, if sequences are packed, the position (4 bytes each). Frames add less than 1 %.
Bytes of averaging a unit of N parameters among n replicas, sent by each: 2 * (n - 1) / n * N values by the codec; with Muon also
the updates that it computes, (n - 1) / n of all matrices, float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from node.training.optimizer.choice import make_optimizer
from node.training.spec.model_plan import ModelPlan, check_frames, state_bytes
from node.training.spec.resolving import spec_of
from node.training.spec.run_file import RunFile
from protocols.runs import RunSpec
from protocols.units import Blocks, Unit
from protocols.words import counted

FLOAT32 = 4
INT32 = 4
VALUE_BYTES: Mapping[str, Fraction] = {
    **{"float32": Fraction(4), "float16": Fraction(2)},
    "int8": Fraction(1) + Fraction(4, 1_024),  # a float32 scale for each block of 1,024 values
}
"""Bytes of one value on the wire, by codec of averaging."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSize:
    """What one training unit takes."""

    unit: Unit
    num_parameters: int
    training_bytes: int
    """Parameters, the optimizer's state and the sum of gradients, float32. What a micro-batch keeps for its backward comes on top."""
    serving_bytes: int
    """A second copy of the parameters, float32, for the published version; half of it in bfloat16."""
    averaging_bytes: int
    """What each of two replicas sends in one averaging."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A run in numbers."""

    run_file: RunFile
    spec: RunSpec
    """Without the digest of the data."""
    config: Mapping[str, Any]
    """Of the model, as a `config.json`."""
    units: tuple[UnitSize, ...]
    """Each block, then embedding and head."""
    first_hop_bytes: int
    """Of one step, from the trainer to the first hop: ids, labels and positions."""
    hop_bytes: int
    """Of one step, between two hops, both directions; over all replicas together."""
    kv_bytes_per_token: int
    """Of a session, per block, while served in float32."""

    @property
    def num_parameters(self) -> int:
        return sum(unit.num_parameters for unit in self.units)

    @property
    def training_bytes(self) -> int:
        """Of all units: what the swarm needs for one replica of each."""
        return sum(unit.training_bytes for unit in self.units)

    @property
    def state_bytes(self) -> int:
        """Parameters and optimizer's state of all units: what a snapshot of them takes."""
        return self.training_bytes - FLOAT32 * self.num_parameters

    @property
    def averaging_bytes(self) -> int:
        """Of one step, by a peer that holds all units, in groups of two."""
        return sum(unit.averaging_bytes for unit in self.units)

    @property
    def num_tokens(self) -> int:
        """Of the whole run, padding included."""
        return self.spec.batch.steps * self.spec.batch.batch_tokens


def describe(run_file: RunFile, plan: ModelPlan, *, base: str = "") -> Description:
    """The numbers of a run. base: the digest of its checkpoint, if it is known. ConfigError as of `check_frames` and `spec_of`."""
    check_frames(run_file, plan)
    spec = spec_of(run_file, num_parameters=plan.num_parameters, base=base)
    inputs = INT32 * (2 if run_file.data.packing else 1)
    hidden = 2 * state_bytes(plan.width, spec.activations)
    return Description(
        run_file=run_file,
        spec=spec,
        config=plan.raw_config,
        units=tuple(_unit_size(unit, plan, spec) for unit in sorted(plan.units)),
        first_hop_bytes=spec.batch.batch_tokens * (inputs + INT32),
        hop_bytes=spec.batch.batch_tokens * (hidden + inputs),
        kv_bytes_per_token=plan.kv_bytes_per_token,
    )


def _unit_size(unit: Unit, plan: ModelPlan, spec: RunSpec) -> UnitSize:
    optimizer = make_optimizer(spec.optimizer)
    state = optimizer.new_state(plan.units[unit], unit)
    num_parameters, num_state = plan.unit_parameters(unit), sum(tensor.numel() for tensor in state.values())
    names = {name for names in optimizer.assignments(state, 1) for name in names}
    matrices = sum(tensor.numel() for name, tensor in plan.units[unit].items() if name in names)
    return UnitSize(
        unit=unit,
        num_parameters=num_parameters,
        training_bytes=FLOAT32 * (2 * num_parameters + num_state),
        serving_bytes=FLOAT32 * num_parameters,
        averaging_bytes=_up(num_parameters * VALUE_BYTES[spec.averaging.codec] + Fraction(matrices * FLOAT32, 2)),
    )


def _up(number: Fraction) -> int:
    return -(-number.numerator // number.denominator)


def lines(description: Description) -> Iterator[str]:
    """The description as plain text, a fact per line."""
    spec, batch = description.spec, description.spec.batch
    yield f"run {spec.name}: {counted(batch.steps, 'step', is_grouped=True)}, {description.num_tokens:,} tokens"
    yield from ("  " + line for line in resolved(description.run_file))
    yield f"model: {description.config.get('model_type')}, {counted(description.num_parameters, 'parameter', is_grouped=True)}"
    yield f"  {'unit':<29} {'parameters':>15} {'training':>9} {'serving':>9} {'averaging':>9}"
    for first, last, size in _alike(description.units):
        name = str(size.unit) if first == last else f"{first} … {last}"
        sizes = (size.training_bytes, size.serving_bytes, size.averaging_bytes)
        yield f"  {name:<29} {size.num_parameters:>15,} " + " ".join(f"{_bytes(number):>9}" for number in sizes)
    yield (
        f"  all units: {_bytes(description.training_bytes)} for training, in float32; what a micro-batch keeps for its backward comes "
        "on top"
    )
    yield (
        f"  copies in case all replicas of a unit die: a stage holds its own state ({_bytes(description.state_bytes)} for all units) and "
        "at most as much of others'; twice that while it is copied"
    )
    yield f"  serving keeps {_bytes(description.kv_bytes_per_token)} for each token of a session, per block"
    micro_batches = f"{spec.num_micro_batches} micro-batch{'es' * (spec.num_micro_batches != 1)}"
    yield f"step: {batch.batch_tokens:,} tokens in {micro_batches} of {spec.micro_batch_tokens:,}"
    yield (
        f"  bytes: {_bytes(description.first_hop_bytes)} to the first hop, {_bytes(description.hop_bytes)} between two hops, "
        f"{_bytes(description.averaging_bytes)} by each of two replicas of all units"
    )


def facts(description: Description) -> dict[str, object]:
    """The description for programs: what `lines` says."""
    spec, batch = description.spec, description.spec.batch
    return {
        "name": spec.name,
        "steps": batch.steps,
        "tokens": description.num_tokens,
        "fields": {name: _plain(value) for name, value in _fields(description.run_file)},
        "model_type": description.config.get("model_type"),
        "parameters": description.num_parameters,
        "units": [{**asdict(size), "unit": str(size.unit)} for size in description.units],
        "training_bytes": description.training_bytes,
        "state_bytes": description.state_bytes,
        "kv_bytes_per_token": description.kv_bytes_per_token,
        "step": {
            "tokens": batch.batch_tokens,
            "micro_batches": spec.num_micro_batches,
            "micro_batch_tokens": spec.micro_batch_tokens,
            "first_hop_bytes": description.first_hop_bytes,
            "hop_bytes": description.hop_bytes,
            "averaging_bytes": description.averaging_bytes,
        },
    }


def _plain(value: object) -> object:
    return float(value) if isinstance(value, Fraction) else value


def resolved(run_file: RunFile) -> list[str]:
    """`section.field = value` for every field, in the order of the classes; what is not set is left out."""
    return [f"{name} = {_value(value)}" for name, value in _fields(run_file)]


def _fields(run_file: RunFile) -> Iterator[tuple[str, object]]:
    for key, value in asdict(run_file).items():
        inner = {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        yield from ((name, one) for name, one in inner.items() if one not in (None, (), ""))


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):  # a source of data
        return "{" + ", ".join(f"{key} = {_value(one)}" for key, one in value.items() if one not in (None, "")) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Fraction):
        return f"{float(value):g}"
    return str(value) if isinstance(value, int | float) else f'"{value}"'


def _alike(units: tuple[UnitSize, ...]) -> Iterator[tuple[Unit, Unit, UnitSize]]:
    """Consecutive blocks of equal size as one: (first, last, size)."""
    found: list[tuple[Unit, Unit, UnitSize]] = []
    for size in units:
        same = found and isinstance(size.unit, Blocks) and _numbers(found[-1][2]) == _numbers(size)
        found[-1:] = [(found[-1][0], size.unit, found[-1][2])] if same else [*found[-1:], (size.unit, size.unit, size)]
    yield from found


def _numbers(size: UnitSize) -> tuple[object, ...]:
    return type(size.unit), size.num_parameters, size.training_bytes, size.averaging_bytes


def _bytes(number: int) -> str:
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1_000:
            break
        value, unit = value / 1_000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
