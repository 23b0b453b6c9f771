"""What the model needs of a swarm: sessions that carry steps.

Two small interfaces without an implementation; a step goes through every block.

`connection.py` is the real one, over `swarm.inference.client.session`; the tests have one that runs the engines in this process.

Shapes: T new tokens of all sequences (one flat token axis), T' of them wanted back, H hidden size, E width of the embeddings that callers
may bring, V tokens of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from protocols.ids import ModelId, Span
from protocols.inference import PASS_ON, Op, StepSpec

IDS, EMBEDS = StepSpec(kind="ids", result="logits"), StepSpec(kind="embeds", result="logits")
"""What a client without embedding and head asks for. One that has them asks for blocks only: `PASS_ON`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRequest:
    """One step: operations on the sequences first, then `counts[i]` new tokens of sequence i."""

    ops: tuple[Op, ...] = ()
    counts: tuple[int, ...]
    tokens: Tensor
    """[1, T, …] with T = sum(counts), sequences one after the other, as `spec` says."""
    spec: StepSpec = PASS_ON
    positions: Tensor | None = None
    """[T] if the caller has set some; None = each sequence counts its own tokens from 0."""


class StepSession(Protocol):
    """One session's sequences at every hop. Steps follow each other: the next one starts when the last has returned."""

    def step(self, request: StepRequest) -> Tensor:
        """Run a step through every block; the first one makes the sequences. Returns [1, T', …], sequences one after the other.

        After an exception the sequences are in an unknown state: close the session.
        """
        ...

    async def step_async(self, request: StepRequest) -> Tensor:
        """The same for callers that have a loop of their own (any loop); cancelling it leaves the sequences in an unknown state."""
        ...

    @property
    def version(self) -> int | None:
        """Of a model in training: the version that computed its latest step; None = no step yet, or no such model."""
        ...

    def fork(self) -> StepSession:
        """A second session with the same sequences, independent from here on. From any thread, between two steps."""
        ...

    def close(self) -> None:
        """Give back the sequences' memory at every hop. From any thread, any number of times, without waiting for the network."""
        ...


class OpenPass(Protocol):
    """Hidden states that went through blocks, and whose gradient may be asked for. Letting it go, or `close`, frees what nodes keep.

    It does not hold its output: autograd's graph holds the pass, and the output holds the graph.
    """

    def backward(self, gradient: Tensor) -> Tensor:
        """From the gradient of the output, that of the input, both [B, T, H]; any number of times. Deaths of nodes are survived in here.

        BadRequestError: NaN or infinities in the gradient. Else errors as of `Backend.differentiate`.
        """
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """Where a model's blocks are."""

    @property
    def model(self) -> ModelId: ...

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of every hop, and hence of the hidden states that travel."""
        ...

    @property
    def version(self) -> int | None:
        """Of a model in training: the version that computed the latest step; None = no step yet, or no such model."""
        ...

    def open(self, blocks: Span | None = None) -> StepSession:
        """A new session without sequences, over all blocks or over some. Nothing is sent before its first step."""
        ...

    def differentiate(self, hidden: Tensor, blocks: Span | None = None) -> tuple[Tensor, OpenPass]:
        """Run [B, T, H] through all blocks, or some, from each sequence's first token on, so that a gradient can come back.

        The output [B, T, H] is on the CPU, in the backend's dtype.
        NoRouteError if no live nodes cover the blocks in time, or what nodes refuse.
        """
        ...

    def close(self) -> None:
        """Let go of whatever the backend shares with others; open sessions end."""
        ...
