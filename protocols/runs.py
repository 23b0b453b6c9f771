"""The spec of a training run: what its peers agree on.

A run is a manifest (`weights.py`) whose optional line `run {…}` holds this spec as canonical JSON: sorted keys, no spaces, ASCII. So
the digest of the manifest covers the spec, and two peers that name the same run train in the same way. What the manifest says
already is not repeated here: model config, tokenizer files, and the tensors of version 0.
What only one machine needs (paths, recompute, evaluation) is not part of it: `node/training/spec`.

A *version* is the number of optimizer steps that were made. The batch of each version is the indices 0 … num_micro_batches - 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from typing import Any, Final

from protocols import fields
from protocols.errors import BadRequestError, shown
from protocols.ids import MAX_MODEL_NAME

MAX_RUN_BYTES: Final = 8_192
"""Of the canonical JSON."""

MAX_STEPS: Final = 1 << 32
MAX_SEED: Final = (1 << 63) - 1
MAX_BATCH_TOKENS: Final = 1 << 32
MAX_MICRO_BATCHES: Final = 4_096
"""Micro-batches of one version: what a ledger of a part can count."""

MAX_PASS_TOKENS: Final = 1 << 16
"""Tokens of one micro-batch, padding included."""

MIN_DEADLINE_S: Final = 0.1
MAX_DEADLINE_S: Final = 600.0
"""Of one attempt to average."""

OPTIMIZERS: Final = ("adamw", "muon")
SHAPES: Final = ("cosine", "wsd", "constant")
AVERAGING_CODECS: Final = ("float32", "float16", "int8")
"""How gradient values travel: `swarm/averaging/codec.py`."""
ACTIVATION_CODECS: Final = ("float32", "bfloat16", "int8")

_DIGEST = re.compile(r"[0-9a-f]{64}|")
_BELOW_1: Final = 1 - 2**-53
"""The largest number below 1."""


def _table(prefix: str, part: Any) -> dict[str, Any]:
    return {f"{prefix}.{one.name}": getattr(part, one.name) for one in fields_of(part)}


def _numbers(part: Any, prefix: str, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Check the ranges, and keep whole numbers as floats, so that 1 and 1.0 have one canonical form (and -0.0 that of 0)."""
    table = _table(prefix, part)
    for key, (low, high) in ranges.items():
        object.__setattr__(part, key, fields.number(table, f"{prefix}.{key}", low, high) + 0.0)


def _digest(table: Mapping[str, Any], key: str) -> None:
    if not _DIGEST.fullmatch(fields.text(table, key, 64)):
        raise BadRequestError(f"field {key!r} must be 64 hex letters, or empty, got {shown(table[key])}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRule:
    """Which tokens a micro-batch has: a pure function of these, the run's seed, the version and the index."""

    digest: str = ""
    """SHA-256 (64 hex letters) over the tokens of all sources and their weights; "" = not known on this machine, as on a stage
    without data. A spec with "" can be compared, but has no canonical form."""
    sequence_tokens: int
    """Tokens of each sequence."""
    packing: bool = True
    """Do documents share a sequence? Attention and positions then begin anew at each document."""

    def __post_init__(self) -> None:
        table = _table("data", self)
        _digest(table, "data.digest")
        fields.integer(table, "data.sequence_tokens", 2, MAX_PASS_TOKENS)
        fields.flag(table, "data.packing")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRule:
    """How much is computed: in all, for each version, and in one micro-batch."""

    steps: int
    """Versions of the whole run; the schedule ends there."""
    batch_tokens: int
    """Tokens of one version, padding included; a multiple of those of a micro-batch."""
    micro_batch_sequences: int
    """Sequences of one micro-batch, which travels through the route as one."""

    def __post_init__(self) -> None:
        table = _table("batch", self)
        fields.integer(table, "batch.steps", 1, MAX_STEPS)
        fields.integer(table, "batch.batch_tokens", 2, MAX_BATCH_TOKENS)
        fields.integer(table, "batch.micro_batch_sequences", 1, MAX_PASS_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """How a unit's parameters change with the mean gradient of a version.

    adamw: every parameter by AdamW. muon: matrices of blocks by Muon (Nesterov, 5 Newton-Schulz steps), all others by AdamW.
    """

    name: str = "adamw"
    """One of OPTIMIZERS."""
    lr: float = 1e-3
    """Highest learning rate, of AdamW and of Muon: its updates are scaled to the size of AdamW's."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the first and the second moment, each in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of AdamW's second moment."""
    weight_decay: float = 0.1
    """Decoupled: the parameter shrinks by this times the learning rate."""
    clip: float = 1.0
    """Largest norm of the model's mean gradient. Each unit's is scaled down to this / sqrt(number of units); 0 = no clipping."""
    momentum: float = 0.95
    """Muon's decay of the momentum, in [0, 1)."""

    def __post_init__(self) -> None:
        table = _table("optimizer", self)
        fields.one_of(table, "optimizer.name", OPTIMIZERS)
        if type(self.betas) is not tuple or len(self.betas) != 2:
            raise BadRequestError(f"field 'optimizer.betas' must be two numbers from 0 to below 1, got {shown(self.betas)}")
        _numbers(self, "optimizer", {"lr": (0, 100), "eps": (1e-30, 1), "weight_decay": (0, 100)})
        _numbers(self, "optimizer", {"clip": (0, 1e9), "momentum": (0, _BELOW_1)})
        betas = (fields.number({"optimizer.betas": beta}, "optimizer.betas", 0, _BELOW_1) for beta in self.betas)
        object.__setattr__(self, "betas", tuple(betas))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """The learning rate of a version, as a share of the highest one."""

    shape: str = "cosine"
    """cosine: half a cosine from 1 to `final_share`; wsd: 1, then linearly down to `final_share` in the last `decay_share` of the
    steps; constant: 1."""
    warmup_steps: int = 0
    """Versions in which it first rises linearly from 0."""
    final_share: float = 0.1
    """What is left at the last step, in [0, 1]; of no effect if constant."""
    decay_share: float = 0.2
    """Share of all steps in which wsd falls, in [0, 1]; of no effect for other shapes."""

    def __post_init__(self) -> None:
        table = _table("schedule", self)
        fields.one_of(table, "schedule.shape", SHAPES)
        fields.integer(table, "schedule.warmup_steps", 0, MAX_STEPS)
        _numbers(self, "schedule", {"final_share": (0, 1), "decay_share": (0, 1)})


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragingSpec:
    """How replicas of a unit agree on one gradient."""

    codec: str = "float32"
    """One of AVERAGING_CODECS: how gradients travel between replicas."""
    deadline_s: float = 30.0
    """Seconds of one attempt; then it goes on without the members that are late."""

    def __post_init__(self) -> None:
        fields.one_of(_table("averaging", self), "averaging.codec", AVERAGING_CODECS)
        _numbers(self, "averaging", {"deadline_s": (MIN_DEADLINE_S, MAX_DEADLINE_S)})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """All that peers of a run agree on beside its manifest. BadRequestError names the first field that is out of bounds."""

    name: str
    """The run's name in the swarm, as a model's."""
    seed: int = 0
    """Of version 0, of the order of the data, and of all else that is drawn."""
    base: str = ""
    """Digest (64 hex letters) of the model whose weights are version 0; "" = version 0 is drawn from the seed, unit by unit."""
    data: DataRule
    batch: BatchRule
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    averaging: AveragingSpec = AveragingSpec()
    activations: str = "float32"
    """One of ACTIVATION_CODECS: how hidden states and their gradients travel between hops."""
    checkpoint_every: int = 100
    """Versions between two checkpoints; 0 = none."""
    serve_every: int = 10
    """Versions between two that are published, i.e. served; 0 = none."""

    def __post_init__(self) -> None:
        table = {one.name: getattr(self, one.name) for one in fields_of(self)}
        name = fields.text(table, "name", MAX_MODEL_NAME)
        if not name or "@" in name:
            raise BadRequestError(f"field 'name' must be 1 to {MAX_MODEL_NAME} printable letters without '@', got {shown(name)}")
        fields.integer(table, "seed", 0, MAX_SEED)
        _digest(table, "base")
        fields.one_of(table, "activations", ACTIVATION_CODECS)
        for key in ("checkpoint_every", "serve_every"):
            fields.integer(table, key, 0, MAX_STEPS)
        for key, kind in _PARTS.items():
            if type(table[key]) is not kind:
                raise BadRequestError(f"field {key!r} must be a {kind.__name__}, got {shown(table[key])}")
        self._check_batch()

    def _check_batch(self) -> None:
        tokens = self.micro_batch_tokens
        if tokens > MAX_PASS_TOKENS:
            raise BadRequestError(
                f"field 'batch.micro_batch_sequences' must give a micro-batch of at most {MAX_PASS_TOKENS} tokens, got "
                f"{self.batch.micro_batch_sequences} sequences of {self.data.sequence_tokens}"
            )
        if self.batch.batch_tokens % tokens or self.num_micro_batches > MAX_MICRO_BATCHES:
            raise BadRequestError(
                f"field 'batch.batch_tokens' must be a multiple of a micro-batch ({self.batch.micro_batch_sequences} sequences of "
                f"{self.data.sequence_tokens} = {tokens} tokens), at most {MAX_MICRO_BATCHES} of them, got {self.batch.batch_tokens}"
            )
        if self.schedule.warmup_steps > self.batch.steps:
            raise BadRequestError(
                f"field 'schedule.warmup_steps' must be at most the {self.batch.steps} steps of the run, got "
                f"{self.schedule.warmup_steps}"
            )

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of one micro-batch, padding included."""
        return self.batch.micro_batch_sequences * self.data.sequence_tokens

    @property
    def num_micro_batches(self) -> int:
        """M: the batch of each version is the indices 0 … M - 1."""
        return self.batch.batch_tokens // self.micro_batch_tokens

    def is_served(self, version: int) -> bool:
        """May this version be published? Each `serve_every`-th one, and the run's last."""
        return bool(self.serve_every) and (version % self.serve_every == 0 or version == self.batch.steps)

    def canonical(self) -> bytes:
        """The JSON that a manifest holds. BadRequestError if the digest of the data is not known."""
        if not self.data.digest:
            raise BadRequestError("field 'data.digest' is not known here: a run is begun on a machine that has the data")
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> RunSpec:
        """Read the canonical form; BadRequestError if any byte differs from how `canonical` would write it.

        So a field that is unknown here is refused: what it means would be missing in our training.
        """
        if len(data) > MAX_RUN_BYTES:
            raise BadRequestError(f"a run's spec has at most {MAX_RUN_BYTES} bytes, got {len(data)}")
        try:
            table = fields.table(json.loads(data), "run")
        except (ValueError, RecursionError):
            raise BadRequestError(f"a run's spec is JSON, got {data[:60]!r}") from None
        _check_keys("run", table, cls)
        parts = {key: _part(kind, key, table[key]) for key, kind in _PARTS.items()}
        spec = cls(**{**table, **parts})
        if spec.canonical() != data:
            raise BadRequestError(f"a run's spec is canonical JSON (sorted keys, no spaces, every field once), got {data[:60]!r}")
        return spec


_PARTS: Final[dict[str, type[Any]]] = {
    "data": DataRule,
    "batch": BatchRule,
    "optimizer": OptimizerSpec,
    "schedule": ScheduleSpec,
    "averaging": AveragingSpec,
}


def difference(mine: RunSpec, theirs: RunSpec) -> str | None:
    """The first field in which two specs differ, for people; None if they are the same run.

    The digest of the data is left out if one of the two does not know it.
    """
    ours, others = _flat(asdict(mine)), _flat(asdict(theirs))
    for key in ours:
        unknown = key == "data.digest" and "" in (ours[key], others[key])
        if ours[key] != others[key] and not unknown:
            return f"{key} is {_short(ours[key])} here, {_short(others[key])} there"
    return None


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _short(value: object) -> str:
    text = list(value) if isinstance(value, tuple) else value
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(text)[:60]


def _check_keys(what: str, table: Mapping[str, Any], kind: type[Any]) -> None:
    known = {one.name for one in fields_of(kind)}
    if table.keys() != known:
        odd = min(table.keys() ^ known)
        problem = "is unknown here: upgrade, or leave this run" if odd in table else "is missing"
        raise BadRequestError(f"{what}: field {odd[:40]!r} {problem}")


def _part(kind: type[Any], key: str, value: object) -> Any:
    table = fields.table(value, key)
    _check_keys(key, table, kind)
    return kind(**{name: tuple(one) if isinstance(one, list) else one for name, one in table.items()})
