"""The model of a run: config, and parameters of each unit.

All without memory for weights. Training units are each block alone, and embedding and head together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from node.training.spec.model_size import llama_config, shape_of
from node.training.spec.run_file import Place, RunFile, parse_size
from node.training.spec.tokenizer_training import END_ID
from node.training.spec.vocabulary import Vocabulary, read_vocabulary
from protocols.defaults import MAX_FRAME_BYTES, MAX_HEADER_BYTES
from protocols.errors import CheckpointError, ConfigError
from protocols.runs import MAX_PASS_TOKENS
from protocols.tensors import ITEM_BYTES, num_scales
from protocols.units import Blocks, Ends, Unit
from swarm.checkpoints.bounds import read_config
from swarm.models.checkpoint import max_positions_of
from swarm.models.config import config_from_json
from swarm.models.sizes import kv_bytes_per_token
from swarm.models.skeleton import locate, whole_model
from swarm.places import expanded

MIN_CONTEXT_TOKENS = 512
"""Longest sequence of a computed Llama, unless the run's sequences are longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """Shapes of a model, unit by unit."""

    raw_config: Mapping[str, Any]
    """As a `config.json`."""
    units: Mapping[Unit, Mapping[str, Tensor]]
    """The parameters of each unit by name, on the meta device, float32; a tied head is counted with the embedding."""
    width: int
    """Values of a hidden state, as it goes from one block to the next."""
    vocabulary: int
    max_positions: int | None
    """Tokens of the longest sequence that it takes; None: no limit."""
    kv_bytes_per_token: int
    """What one more token of one session takes while served, in each block on average, float32."""

    @property
    def num_parameters(self) -> int:
        return sum(map(self.unit_parameters, self.units))

    def unit_parameters(self, unit: Unit) -> int:
        """How many numbers a unit has."""
        return sum(tensor.numel() for tensor in self.units[unit].values())


def plan_model(run_file: RunFile, raw_config: Mapping[str, Any] | None = None) -> ModelPlan:
    """The plan of a run's model. raw_config: of a checkpoint that is not on this disk, else it is read here.

    ConfigError: a checkpoint that is not on this disk, a tokenizer or sequences that do not fit; CheckpointError,
    ModelNotSupportedError: a config that no model can be made of.
    """
    model = run_file.model
    vocabulary = None if model.tokenizer is None else read_vocabulary(model.tokenizer)
    where = str(model.config or model.checkpoint or f"model.size {model.size}")
    raw = raw_config if raw_config is not None else _raw_config(run_file, vocabulary)
    plan = _plan(raw, where)
    if vocabulary is not None and vocabulary.num_ids > plan.vocabulary:
        raise ConfigError(
            f"model.tokenizer has ids up to {vocabulary.num_ids - 1}, but {where} has a vocabulary of {plan.vocabulary}; "
            f"give the tokenizer of this model, or a config with vocab_size of at least {vocabulary.num_ids}"
        )
    if plan.max_positions is not None and run_file.data.sequence_tokens > plan.max_positions:
        raise ConfigError(
            f"data.sequence_tokens is {run_file.data.sequence_tokens}, but {where} has positions for at most {plan.max_positions}; shorten "
            "the sequences, or take a model with more positions (max_position_embeddings)"
        )
    return plan


def check_frames(run_file: RunFile, plan: ModelPlan) -> None:
    """ConfigError if a micro-batch does not fit a message between two peers."""
    tokens, token_bytes = run_file.micro_batch_tokens, state_bytes(plan.width, run_file.training.activations)
    most = min(MAX_PASS_TOKENS, (MAX_FRAME_BYTES - MAX_HEADER_BYTES) // (token_bytes + 2 * ITEM_BYTES["int32"]))
    if tokens > most:
        raise ConfigError(
            f"a micro-batch of {tokens} tokens does not fit a message: with {token_bytes} bytes for a token's hidden state, at most {most} "
            "do; lower training.micro_batch_sequences or data.sequence_tokens, or set training.activations to bfloat16 or int8"
        )


def state_bytes(width: int, activations: str) -> int:
    """Of one token's hidden state as it travels: int8 has scales for blocks of values (`protocols/tensors.py`)."""
    return width + 4 * num_scales(width) if activations == "int8" else width * ITEM_BYTES[activations]


def _raw_config(run_file: RunFile, vocabulary: Vocabulary | None) -> Mapping[str, Any]:
    model = run_file.model
    if model.size is not None:
        shape = shape_of(parse_size(model.size), None if vocabulary is None else vocabulary.num_ids)
        end_id = END_ID if vocabulary is None else vocabulary.end_id  # without a tokenizer, one is trained
        return llama_config(shape, context_tokens=max(MIN_CONTEXT_TOKENS, run_file.data.sequence_tokens), end_id=end_id)
    try:
        return read_config(
            model.config if model.config is not None else _directory(model.checkpoint, run_file.name) / "config.json"
        )
    except CheckpointError as error:
        raise ConfigError(f"model.{'config' if model.config is not None else 'checkpoint'}: {error}") from None


def _directory(checkpoint: Place | None, name: str) -> Any:
    assert checkpoint is not None
    directory = expanded(checkpoint)
    if not directory.is_dir():
        raise ConfigError(
            f"model.checkpoint: {str(checkpoint)!r} is no directory here; give one in Hugging Face form, or take part in a run that is "
            f"under way by its name: swarm node --run {name}"
        )
    return directory


def _plan(raw: Mapping[str, Any], where: str) -> ModelPlan:
    config = config_from_json(raw, where)
    try:
        model = whole_model(config)
        location = locate(model)
    except (
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        AttributeError,
        ZeroDivisionError,
    ) as error:  # of the model's constructor
        raise ConfigError(f"{where}: no model can be made of it: {' '.join(str(error).split())[:200]}") from error
    units: dict[Unit, Mapping[str, Tensor]] = {
        Blocks(number, number + 1): _parameters(block, set()) for number, block in enumerate(location.blocks)
    }
    inside = {id(tensor) for block in location.blocks for tensor in block.parameters()}
    units[Ends()] = _parameters(model, inside)
    span, text = Blocks(0, location.num_blocks).span, config.get_text_config(decoder=True)
    return ModelPlan(
        raw_config=json.loads(json.dumps(dict(raw))),
        units=units,
        width=location.embed_width,
        vocabulary=text.vocab_size,
        max_positions=max_positions_of(text),
        kv_bytes_per_token=kv_bytes_per_token(config, span, torch.float32) // location.num_blocks,
    )


def _parameters(module: nn.Module, left_out: set[int]) -> dict[str, Tensor]:
    """By name, each once; float32, also if the config says another dtype, since training's copies are."""
    return {name: tensor.float() for name, tensor in module.named_parameters() if id(tensor) not in left_out}
