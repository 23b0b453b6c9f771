"""RunFile: the content of a `RUN.toml`, a dataclass for each section.

Which fields belong to the signed spec (`protocols/runs.py`), and so must be the same for all peers, and which to one machine:

    signed   name, seed; data.sequence_tokens, data.packing; training: steps (or what they are computed from), batch_tokens,
             micro_batch_sequences, activations; optimizer.*, schedule.*, averaging.*; checkpoint.every_steps; serving.every_versions
    signed by digest   model.* (config, tokenizer and version 0 are the manifest's), data.train (the digest of its tokens)
    local    data.validation, training.recompute and compute, evaluation.*, and every path: each machine may keep its files elsewhere

`reading.py` makes it from TOML, `resolving.py` makes the signed spec of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NewType

from node.training.data.sources import Source
from protocols import fields
from protocols.errors import ConfigError
from protocols.ids import MAX_MODEL_NAME
from protocols.runs import (
    ACTIVATION_CODECS,
    MAX_BATCH_TOKENS,
    MAX_MICRO_BATCHES,
    MAX_PASS_TOKENS,
    MAX_SEED,
    MAX_STEPS,
    AveragingSpec,
    OptimizerSpec,
    ScheduleSpec,
)

Place = NewType("Place", str)
"""A directory (absolute), or what was written if there is no such directory."""

RECOMPUTE: Final = ("auto", "always", "never")
COMPUTE: Final = ("float32", "bfloat16")
MAX_TOKENS: Final = 1 << 60
MAX_SAMPLES: Final = 64
MIN_PARAMETERS, MAX_PARAMETERS = 100_000, 10**12

_SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([kKMB])")
_FACTORS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    """What is trained: exactly one of config, checkpoint and size."""

    config: Path | None = None
    """A Hugging Face config (JSON file): weights are drawn unit by unit from the seed. Default: none."""
    checkpoint: Place | None = None
    """Weights to begin with: a directory. Default: none."""
    size: str | None = None
    """Parameters of a Llama that is computed (`model_size.py`), as 300k, 3M or 1.5B. Default: none."""
    tokenizer: Path | None = None
    """A tokenizer.json, or a directory with one. Default: the checkpoint's; with `size`: one that is trained on the data."""

    def __post_init__(self) -> None:
        table = {"model.config": self.config, "model.checkpoint": self.checkpoint, "model.size": self.size}
        _check_one(table, "the model")
        if self.config is not None and self.tokenizer is None:
            raise ConfigError("model.tokenizer is missing: a config says nothing of it; give a tokenizer.json")
        if self.size is not None:
            parse_size(self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    """Text to train and to judge by."""

    train: tuple[Source, ...]
    """Sources of the training text, patterns of files or tables (`data/sources.py`); a trainer needs them, a stage does not."""
    validation: tuple[Source, ...] = ()
    """Sources of text that is not trained on. Default: none, so no evaluation."""
    sequence_tokens: int = 512
    """Tokens of each sequence; at most as many as the model has positions."""
    packing: bool = True
    """Put several documents into a sequence; none sees another."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("data.train names no source: give at least one path")
        if len({source.weight is None for source in self.train}) > 1:
            raise ConfigError("data.train: some sources have a weight and some have none; give all of them one, or none")
        fields.integer({"data.sequence_tokens": self.sequence_tokens}, "data.sequence_tokens", 2, MAX_PASS_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSection:
    """How long, in which batches, and how memory and network are used. Exactly one of steps, tokens and ratio."""

    steps: int | None = None
    """Optimizer steps (versions) of the run. Default: none."""
    tokens: int | None = None
    """Tokens of the run, padding included; rounded up to whole steps. Default: none."""
    ratio: float | None = None
    """Tokens of the run for each parameter; rounded up to whole steps. About 20 is usual for a model from scratch. Default: none."""
    batch_tokens: int = 32_768
    """Tokens of one step, padding included; a multiple of micro_batch_sequences * data.sequence_tokens."""
    micro_batch_sequences: int = 8
    """Sequences that pass through the swarm as one: at most 65,536 tokens, whose hidden states fit a message of 64 MiB."""
    recompute: str = "auto"
    """auto: keep the graph of the forward while memory allows; always, never: compute the forward again in the backward, or keep it."""
    compute: str = "float32"
    """In which format matrices are multiplied here: float32, or bfloat16 (faster on GPUs); parameters and sums are float32 always."""
    activations: str = "float32"
    """How hidden states and their gradients travel between peers: float32, bfloat16 or int8."""

    def __post_init__(self) -> None:
        table = {f"training.{name}": getattr(self, name) for name in self.__slots__}
        horizon = {f"training.{name}": getattr(self, name) for name in ("steps", "tokens", "ratio")}
        _check_one(horizon, "how long the run is")
        if self.steps is not None:
            fields.integer(table, "training.steps", 1, MAX_STEPS)
        if self.tokens is not None:
            fields.integer(table, "training.tokens", 1, MAX_TOKENS)
        if self.ratio is not None:
            fields.number(table, "training.ratio", 1e-6, 1e6)
        fields.integer(table, "training.batch_tokens", 2, MAX_BATCH_TOKENS)
        fields.integer(table, "training.micro_batch_sequences", 1, MAX_PASS_TOKENS)
        fields.one_of(table, "training.recompute", RECOMPUTE)
        fields.one_of(table, "training.compute", COMPUTE)
        fields.one_of(table, "training.activations", ACTIVATION_CODECS)

    def num_steps(self, num_parameters: int) -> int:
        """The steps of the run. num_parameters: of the model, a tied head counted once. ConfigError above MAX_STEPS."""
        if self.steps is not None:
            return self.steps
        tokens = self.tokens if self.tokens is not None else math.ceil((self.ratio or 0) * num_parameters)
        steps = max(1, -(-tokens // self.batch_tokens))
        if steps > MAX_STEPS:
            raise ConfigError(
                f"training: {tokens} tokens are {steps} steps of {self.batch_tokens}; at most {MAX_STEPS} are possible"
            )
        return steps


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSection:
    """What the trainer looks at now and then."""

    every_steps: int = 50
    """Steps between two evaluations on data.validation; 0 = none."""
    samples: tuple[str, ...] = ()
    """Prompts that the run's own nodes answer at each evaluation. Default: none."""

    def __post_init__(self) -> None:
        fields.integer({"evaluation.every_steps": self.every_steps}, "evaluation.every_steps", 0, MAX_STEPS)
        if len(self.samples) > MAX_SAMPLES:
            raise ConfigError(f"evaluation.samples has at most {MAX_SAMPLES} prompts, got {len(self.samples)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSection:
    """When the state of the run is written to disk."""

    every_steps: int = 100
    """Steps between two checkpoints; 0 = none."""

    def __post_init__(self) -> None:
        fields.integer({"checkpoint.every_steps": self.every_steps}, "checkpoint.every_steps", 0, MAX_STEPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSection:
    """Which versions answer prompts while the run goes on."""

    every_versions: int = 10
    """Versions between two that are served; 0 = none but version 0."""

    def __post_init__(self) -> None:
        fields.integer({"serving.every_versions": self.every_versions}, "serving.every_versions", 0, MAX_STEPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """A run as a person describes it. ConfigError, or BadRequestError with the field's name, for what cannot be."""

    name: str
    """The run's name in the swarm."""
    seed: int = 0
    """Of the weights (if they are drawn) and of the order of the data."""
    model: ModelSection
    data: DataSection
    training: TrainingSection
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    averaging: AveragingSpec = field(default_factory=AveragingSpec)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    serving: ServingSection = field(default_factory=ServingSection)

    def __post_init__(self) -> None:
        if not fields.text({"name": self.name}, "name", MAX_MODEL_NAME) or "@" in self.name:
            raise ConfigError(f"name is 1 to {MAX_MODEL_NAME} printable letters without '@', got {self.name!r}")
        fields.integer({"seed": self.seed}, "seed", 0, MAX_SEED)
        self._check_batch()

    def _check_batch(self) -> None:
        tokens, batch = self.micro_batch_tokens, self.training.batch_tokens
        if batch % tokens or batch // tokens > MAX_MICRO_BATCHES:
            nearest = min(max(1, round(batch / tokens)), MAX_MICRO_BATCHES) * tokens
            raise ConfigError(
                f"training.batch_tokens is a multiple of training.micro_batch_sequences * data.sequence_tokens "
                f"({self.training.micro_batch_sequences} * {self.data.sequence_tokens} = {tokens}), at most {MAX_MICRO_BATCHES} times "
                f"it, got {batch}; {nearest} would do"
            )

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of one micro-batch, padding included."""
        return self.training.micro_batch_sequences * self.data.sequence_tokens

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one version."""
        return self.training.batch_tokens // self.micro_batch_tokens


def parse_size(text: str) -> int:
    """Read `300k`, `3M` or `1.5B`: a number of parameters. ConfigError for anything else."""
    match = _SIZE.fullmatch(text)
    size = round(float(match[1]) * _FACTORS[match[2]]) if match else 0
    if not MIN_PARAMETERS <= size <= MAX_PARAMETERS:
        raise ConfigError(f"model.size is a number of parameters from 100k to 1000B, as 300k, 3M or 1.5B, got {text[:40]!r}")
    return size


def _check_one(table: Mapping[str, object], what: str) -> None:
    given = [name for name, value in table.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) if given else "none"
        raise ConfigError(f"exactly one of {', '.join(table)} says {what}, got {got}")
