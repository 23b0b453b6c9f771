"""A causal model's config from JSON, without a checkpoint beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers

from protocols.errors import CheckpointError, ModelNotSupportedError
from protocols.words import described
from swarm.checkpoints import bounds
from swarm.checkpoints.quirks import refuse_known
from swarm.models.skeleton import causal_config


def check_type(raw: Mapping[str, Any], where: str) -> str:
    """The model type; CheckpointError if there is none, ModelNotSupportedError if this transformers does not know it."""
    kind = raw.get("model_type")
    if kind is None:
        raise CheckpointError(f"{where} names no model_type, as the config of every model does; download it again")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise ModelNotSupportedError(
            f"{where}: model type {str(kind)[:60]!r} is unknown to transformers {transformers.__version__}; "
            "upgrade transformers, or use another model"
        )
    return kind


def config_from_json(raw: Mapping[str, Any], where: str) -> Any:
    """What the causal model class is made from. raw: of a `config.json`, from anywhere; where: for messages.

    CheckpointError: absurd numbers, or values that the config class refuses; ModelNotSupportedError: code, quantized weights, an unknown
    type, no causal model, or an architecture that cannot be served.
    """
    bounds.check_config(dict(raw), where)
    kind = check_type(raw, where)
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(dict(raw))
    except Exception as error:  # a config class may raise anything on values that it does not like
        raise CheckpointError(f"{where} is no valid {kind} config: {described(error)}") from error
    refuse_known(config.model_type, config.get_text_config(decoder=True))
    return causal_config(config)
