"""The model you can call: `generate`, streaming, sampling, beams and speculation over blocks that run in a swarm."""

from swarm.client.model import SwarmModelForCausalLM

__all__ = ["SwarmModelForCausalLM"]
