"""What a client asks of a session and of one step.

And what the replies must look like before they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols import tensors
from protocols.defaults import PREFILL_CHUNK_TOKENS, REPLY_BYTES, ROUTE_TIMEOUT_S, SILENCE_S, STALL_S
from protocols.errors import BadRequestError
from protocols.ids import Span
from protocols.inference import StepSpec
from protocols.tensors import WireTensor
from protocols.words import counted
from swarm.timings import StepTime


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """How a session behaves."""

    route_timeout_s: float = ROUTE_TIMEOUT_S
    """How long a step may wait for a route, from the loss that left it without one."""

    stall_s: float = STALL_S
    """Least seconds after which a reply is late: hops are asked how far they are, and others are tried; more on slow routes."""

    line_bytes_s: float = 1e6
    """Least bytes a second at which a step, or the first part of the history, should reach a hop: its reply is late later by that."""

    silence_s: float = SILENCE_S
    """Seconds without a reply before a hop that says it computes is replaced all the same."""

    chunk_tokens: int = PREFILL_CHUNK_TOKENS
    """Tokens of the longest prefill chunk, which travels as one step."""

    dtype: str | None = None
    """Compute dtype of the route; None = whatever the swarm serves, float32 first."""

    priority: int = 0
    """0, or down to -100: where steps wait, others go first."""

    hidden_size: int | None = None
    """Width of the model's hidden states; a thin session has to know it."""

    blocks: Span | None = None
    """Run these blocks only, hidden states in and out; None = the whole model."""

    follow: bool = False
    """Of a model in training: if the session's version is served no more, all that was sent is computed again with the newest one, and the
    session goes on with that; else it ends with VersionGoneError."""

    vocab_size: int | None = None
    """How many token ids, and logits of a token, the model has; a thin session has to know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """The arguments of one `Session.step`."""

    counts: tuple[int, ...]
    tokens: WireTensor
    spec: StepSpec
    positions: Sequence[int] | None

    def check(self, blocks: Span | None) -> None:
        """BadRequestError if it makes no sense, whichever peer is asked. blocks: as `SessionConfig` has it."""
        self.spec.check()
        if self.spec.is_thin and blocks is not None:
            raise BadRequestError(
                f"a session over blocks {blocks} takes hidden states, got {self.spec.kind}; open one over all blocks"
            )
        if self.spec.kind == "ids" and (self.tokens.dtype, len(self.tokens.shape)) != ("int32", 1):
            raise BadRequestError(f"ids are int32 [tokens], got {self.tokens.dtype} {list(self.tokens.shape)}")
        num_tokens = sum(self.counts)
        if self.tokens.shape[:1] != (num_tokens,) or min(self.counts, default=0) < 0:
            raise BadRequestError(f"counts {list(self.counts)[:8]} do not fit tokens of shape {list(self.tokens.shape)}")
        if self.spec.result == "pooled" and len(self.counts) != 1:
            raise BadRequestError(
                f"a sum of hidden states is of one sequence, got {len(self.counts)}: send each in its own session"
            )
        if self.positions is not None and len(self.positions) != num_tokens:
            raise BadRequestError(f"{counted(len(self.positions), 'position')} for {counted(num_tokens, 'token')}")

    def check_values(self, vocab_size: int) -> None:
        """BadRequestError if no node could take these ids or embeddings: it is said here, where it can be believed."""
        if self.spec.kind == "ids" and self.tokens.num_bytes:
            ids = memoryview(self.tokens.data).cast("B").cast("i")
            low, high = min(ids), max(ids)
            if low < 0 or high >= vocab_size:
                wrong = low if low < 0 else high
                raise BadRequestError(f"token id {wrong} is out of range: this model has ids 0 to {vocab_size - 1}")
        elif not tensors.is_finite(self.tokens):
            raise BadRequestError("embeddings must be finite, got NaN or infinity")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyFormat:
    """What the replies to a step hold for each wanted token, or for the sum over them: `width` values of `dtype`, and their token ids if
    `result` is "top" or "scored"."""

    result: str
    width: int
    dtype: str
    vocab_size: int = 0
    num_totals: int = 0
    """Of each token, as `StepSpec.temperature` says."""

    @property
    def has_ids(self) -> bool:
        return self.result in ("top", "scored")

    @property
    def token_bytes(self) -> int:
        """Bytes of one wanted token."""
        return self.width * (tensors.ITEM_BYTES[self.dtype] + (4 if self.has_ids else 0))

    @property
    def limit_wanted(self) -> int | None:
        """How many tokens a prefill chunk may want back. Hidden states have no bound here: the length of the prefill chunk bounds them."""
        if self.result in ("hidden", "pooled"):
            return None
        return max(1, REPLY_BYTES // max(self.token_bytes, 4 * self.vocab_size))  # nodes compute all logits in any case


def reply_format(given: StepInput, config: SessionConfig, dtype: str | None) -> ReplyFormat:
    """What the replies must look like. BadRequestError if this model cannot take the tokens, or give that result.

    dtype: in which the route computes; None = there is no route.
    """
    spec = given.spec
    if not spec.is_thin:
        return ReplyFormat(result=spec.result, width=given.tokens.shape[-1], dtype=given.tokens.dtype)
    hidden_size, vocab_size = config.hidden_size, config.vocab_size
    if hidden_size is None or vocab_size is None or dtype is None:
        raise BadRequestError(
            "a session that sends token ids or embeddings needs hidden_size and vocab_size in its SessionConfig"
        )
    width = {"logits": vocab_size}.get(spec.result) or (spec.num_values if spec.is_top else hidden_size)
    if max(spec.top, spec.own) > vocab_size:
        raise BadRequestError(f"the {max(spec.top, spec.own)} largest logits were asked for, this model has {vocab_size}")
    given.check_values(vocab_size)
    return ReplyFormat(
        result=spec.result, width=width, dtype=dtype if spec.result == "hidden" else "float32", vocab_size=vocab_size,
        num_totals=2 if spec.result == "scored" else int(spec.temperature > 0),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What a step came to: `values` [T', …] of its wanted tokens, and token ids [T', k] if the largest logits were asked for.

    Of a sum of hidden states, `values` are several [n, H], one for each prefill chunk: their sum is wanted.
    """

    values: WireTensor
    ids: WireTensor | None = None
    totals: WireTensor | None = None
    """[T'] or [T', 2] as `StepSpec.temperature` says."""
    time: StepTime | None = None
    """How long it took, if a `Session` made it."""
