"""The form of each unit's parameters, from the model's config."""

from __future__ import annotations

from typing import Any

from protocols.state import Form
from protocols.units import Blocks, Ends
from swarm.models.storing import unit_tensors
from swarm.training.snapshot import PARAMETER, form_of


def parameter_form(config: Any, unit: Blocks | Ends) -> Form:
    """Names, dtypes and shapes of the parameters that a unit's snapshot has; float32. Optimizer state stands beside them there."""
    return form_of({f"{PARAMETER}/{name}": tensor for name, tensor in unit_tensors(config, unit).items()})
