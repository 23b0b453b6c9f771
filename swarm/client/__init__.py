"""The model that a program calls.

`generate`, streaming, sampling, beams and speculation over blocks that run in a swarm.

torch and transformers come in with the first use of the class, so that modules that need neither (`loop.py`, `peers.py`) can be
imported without them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm.client.model import SwarmModelForCausalLM

__all__ = ["SwarmModelForCausalLM"]


def __getattr__(name: str) -> Any:
    if name == "SwarmModelForCausalLM":
        from swarm.client.model import SwarmModelForCausalLM

        return SwarmModelForCausalLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
