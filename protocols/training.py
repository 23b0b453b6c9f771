"""The messages of a training pass: one micro-batch through a route.

    towards the last hop     Pass, Gradient                       on a `train` stream: caller -> hop 1 -> hop 2 …, nested calls
    towards the caller       Output, Result, PassFailed           on the same streams, back

**Training** (`index` is a number): Pass goes down with ids and labels; the last hop computes the loss; each hop runs its backward, and
answers with Result: the gradient of its input, and a receipt. Gradients of weights stay at the hops, in sums that the ledgers count.
**A client's autograd** (`weights` says which numbers): Pass goes down, Output comes up, Gradient goes down, Result comes up; nothing is
added anywhere.
**Evaluation** (neither `index` nor `weights`): Pass goes down with ids and labels, Result comes up with the loss on the weights in
training. There is no backward, and nothing is kept.
A hop that fails, or whose next hop fails, answers with PassFailed, which names the hop. Design: docs/architecture.md, "Training".

Shapes: B sequences of T tokens, hidden size H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from protocols import fields, frame, tensors
from protocols.defaults import MAX_HOPS
from protocols.errors import MAX_MESSAGE, BadRequestError, shown
from protocols.ids import ModelId
from protocols.parts_of_units import Part
from protocols.receipts import MAX_PARTS, Receipt, part_texts, read_parts
from protocols.route import Grant, Hop, Route, parse_route
from protocols.runs import MAX_MICRO_BATCHES, MAX_PASS_TOKENS
from protocols.tensors import CODECS, WireTensor
from protocols.weights_id import MAX_VERSION, Weights

NO_TARGET: Final = -100
"""Label of a position without a target, as in `torch.nn.functional.cross_entropy`."""

MAX_BUDGET_MS: Final = 3_600_000
MAX_LOSS: Final = 1e30

WANTS: Final = ("loss", "hidden")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One micro-batch on its way down. BadRequestError if the fields do not fit each other."""

    run: ModelId
    version: int
    """Of the weights that every hop must compute with."""
    index: int | None
    """Which micro-batch of the version's batch; None: no hop adds anything."""
    weights: Weights | None = None
    """Of a client's autograd: which numbers, the chain included. None: the weights in training, at this version."""
    grant: Grant | None = None
    """Of a client's autograd: its signed word for these weights and this route (peers and blocks, without addresses)."""
    route: Route
    hop: int = 0
    """The receiver's place in the route."""
    skip: tuple[Part, ...] = ()
    """Parts that must not add this index: another replica holds it, by its receipt."""
    payload: WireTensor
    """At the first hop ids int32 [B, T]; else, and for a client that embeds by itself, hidden states [B, T, H]."""
    is_embeds: bool = False
    """The payload is a client's own embeddings [B, T, E], which the first hop puts through the rest of the embedding stage."""
    labels: WireTensor | None = None
    """int32 [B, T]: the target of each position (already shifted), or NO_TARGET; with `want` of "loss" only."""
    positions: WireTensor | None = None
    """int32 [B, T]; None = 0 … T-1 in each sequence."""
    num_targets: int = 0
    """Labels that are targets."""
    want: str = "loss"
    """What the last hop computes: "loss", or "hidden" (the states [B, T, H] after its last block, sent up as Output)."""
    codec: str = "none"
    """How hidden states and gradients of this pass travel, one of `tensors.CODECS`."""
    budget_ms: int = 60_000
    """Until when the caller waits, from the moment that it sends."""

    def __post_init__(self) -> None:
        _check_payload(self.payload)
        num_tokens = self.payload.shape[0] * self.payload.shape[1]
        if not 0 <= self.hop < len(self.route) or not 0 <= self.num_targets <= num_tokens:
            raise BadRequestError(
                f"hop {self.hop} of {len(self.route)} with {self.num_targets} targets in {num_tokens} tokens: "
                "the hop is below the route's length, the targets at most the tokens"
            )
        for name, wire in (("labels", self.labels), ("positions", self.positions)):
            if wire is not None and (wire.dtype, wire.shape, wire.codec) != ("int32", self.payload.shape[:2], "none"):
                raise BadRequestError(
                    f"{name} are int32 {list(self.payload.shape[:2])}, got {wire.dtype} {list(wire.shape)} by codec {wire.codec}"
                )
        if self.want not in WANTS or (self.labels is None) is (self.want == "loss"):
            raise BadRequestError(f"labels come with a wanted loss, and only then; got {shown(self.want)}")
        self._check_kind()

    def _check_kind(self) -> None:
        if self.index is not None and (self.want != "loss" or self.weights is not None):
            raise BadRequestError("a pass with an index is training: it wants the loss, and names run and version only")
        if self.index is None and self.skip:
            raise BadRequestError("a pass without an index is added nowhere: it names no parts to skip")
        if self.is_evaluation and self.want != "loss":
            raise BadRequestError("a pass without an index and weights is an evaluation: it wants the loss")
        if self.is_embeds and (self.weights is None or self.hop or self.payload.dtype == "int32"):
            raise BadRequestError("embeddings are floats that a client's autograd brings to the first hop")
        if self.weights is not None and (self.weights.model, self.weights.version) != (self.run, self.version):
            raise BadRequestError(f"the weights of a pass are of its run and version, got {self.weights}")
        if self.grant is not None and (self.grant.weights, self.grant.route) != (self.weights, named(self.route)):
            raise BadRequestError("the grant of a client's pass is for its weights, and for its route without addresses")

    @property
    def is_training(self) -> bool:
        return self.index is not None

    @property
    def is_evaluation(self) -> bool:
        """Only the loss is wanted: no hop runs a backward."""
        return self.index is None and self.weights is None

    @property
    def is_of_run(self) -> bool:
        """On the weights in training: not a client's autograd."""
        return self.weights is None

    @property
    def here(self) -> Hop:
        """The receiver's hop."""
        return self.route[self.hop]

    @property
    def is_last(self) -> bool:
        return self.hop == len(self.route) - 1

    def below(self, payload: WireTensor, budget_ms: int) -> Pass:
        """What the next hop gets: our output. Addresses and certificates of the hops above are left out: it never dials them."""
        return replace(
            self,
            route=named(self.route[: self.hop + 1]) + self.route[self.hop + 1 :],
            hop=self.hop + 1,
            payload=payload,
            is_embeds=False,
            budget_ms=max(0, budget_ms),
        )

    def encode(self) -> bytes:
        header: dict[str, object] = {
            "t": "pass", "run": str(self.run), "version": self.version, "route": [hop.pack() for hop in self.route],
            "hop": self.hop, "payload": self.payload.header(), "targets": self.num_targets, "want": self.want,
            "codec": self.codec, "budget": self.budget_ms,
        }  # fmt: skip
        optional = {
            "embeds": self.is_embeds or None, "index": self.index, "weights": str(self.weights) if self.weights else None,
            "skip": part_texts(self.skip) or None, "labels": self.labels and self.labels.header(),
            "positions": self.positions and self.positions.header(), "grant": self.grant and _pack_grant(self.grant),
        }  # fmt: skip
        header |= {key: value for key, value in optional.items() if value is not None}
        return frame.encode(header, [wire.data for wire in (self.payload, self.labels, self.positions) if wire is not None])

    @classmethod
    def parse(cls, received: frame.Frame) -> Pass:
        header = received.header
        wires = _wires(received, "payload", "labels", "positions")
        if (payload := wires["payload"]) is None:
            raise BadRequestError("a pass brings ids or hidden states, got no payload")
        route = parse_route(header.get("route"))
        return cls(
            run=fields.model(header, "run"),
            version=fields.integer(header, "version", 0, MAX_VERSION),
            index=None if header.get("index") is None else fields.integer(header, "index", 0, MAX_MICRO_BATCHES - 1),
            weights=None if header.get("weights") is None else Weights.parse(header["weights"]),
            grant=None if header.get("grant") is None else _parse_grant(header, route),
            route=route,
            hop=fields.integer(header, "hop", 0, MAX_HOPS - 1),
            skip=read_parts(header, "skip") if "skip" in header else (),
            payload=payload,
            is_embeds="embeds" in header and fields.flag(header, "embeds"),
            labels=wires["labels"],
            positions=wires["positions"],
            num_targets=fields.integer(header, "targets", 0, MAX_PASS_TOKENS),
            want=fields.one_of(header, "want", WANTS),
            codec=fields.one_of(header, "codec", CODECS),
            budget_ms=fields.integer(header, "budget", 0, MAX_BUDGET_MS),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Up, of a pass that wants "hidden": the states [B, T, H] after the route's last block."""

    hidden: WireTensor

    def encode(self) -> bytes:
        return frame.encode({"t": "output", "hidden": self.hidden.header()}, [self.hidden.data])

    @classmethod
    def parse(cls, received: frame.Frame) -> Output:
        return cls(hidden=_states(received, "hidden"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """Down, in answer to Output: the gradient [B, T, H] of it."""

    gradient: WireTensor

    def encode(self) -> bytes:
        return frame.encode({"t": "gradient", "gradient": self.gradient.header()}, [self.gradient.data])

    @classmethod
    def parse(cls, received: frame.Frame) -> Gradient:
        return cls(gradient=_states(received, "gradient"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Up, once a hop has run its backward; in an evaluation, once the loss is known."""

    gradient: WireTensor | None = None
    """Of the hop's input [B, T, H]; None for ids, and in an evaluation."""
    loss_sum: float = 0.0
    """Sum of the loss over the targets; 0 for a client's autograd of hidden states."""
    receipts: tuple[Receipt, ...] = ()
    """Of this hop and all below it, in the order of the route. The peers' own words."""

    def encode(self) -> bytes:
        header: dict[str, object] = {
            "t": "result",
            "loss": float(self.loss_sum),
            "receipts": [one.pack() for one in self.receipts],
        }
        if self.gradient is None:
            return frame.encode(header)
        return frame.encode({**header, "gradient": self.gradient.header()}, [self.gradient.data])

    @classmethod
    def parse(cls, received: frame.Frame) -> Result:
        header = received.header
        receipts = tuple(Receipt.parse(item) for item in fields.array(header, "receipts", MAX_HOPS))
        num_parts = sum(len(one.added) + len(one.held) for one in receipts)
        if num_parts > MAX_PARTS:
            raise BadRequestError(f"the receipts of one pass name at most {MAX_PARTS} parts, got {num_parts}")
        return cls(
            gradient=None if header.get("gradient") is None else _states(received, "gradient"),
            loss_sum=fields.number(header, "loss", -MAX_LOSS, MAX_LOSS),
            receipts=receipts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PassFailed:
    """Up, instead of Result: hop `hop` of the route failed or cannot be reached. Parts below it may hold the index."""

    hop: int
    code: str
    message: str

    def encode(self) -> bytes:
        return frame.encode({"t": "pass_failed", "hop": self.hop, "code": self.code, "message": self.message[:MAX_MESSAGE]})

    @classmethod
    def parse(cls, received: frame.Frame) -> PassFailed:
        header = received.header
        hop, code = fields.integer(header, "hop", 0, MAX_HOPS - 1), fields.text(header, "code", 64)
        return cls(hop=hop, code=code, message=fields.message(header, "message"))


Message = Pass | Output | Gradient | Result | PassFailed
_KINDS: dict[str, Callable[[frame.Frame], Message]] = {
    "pass": Pass.parse, "output": Output.parse, "gradient": Gradient.parse, "result": Result.parse, "pass_failed": PassFailed.parse,
}  # fmt: skip


def parse(data: bytes) -> Message:
    """The message in a frame of a `train` stream; FrameError, TensorFormatError or BadRequestError says what is wrong with it."""
    return frame.parse_one_of(data, _KINDS)


def named(route: Route) -> Route:
    """Peers and blocks, without addresses and certificates."""
    return tuple(Hop(hop.peer, (), b"", hop.unit) for hop in route)


def _pack_grant(grant: Grant) -> dict[str, object]:
    """Without what the pass itself says."""
    return {key: value for key, value in grant.pack().items() if key not in ("weights", "route")}


def _parse_grant(header: fields.Header, route: Route) -> Grant:
    own = fields.table(header["grant"], "grant")
    return Grant.parse({**own, "weights": header.get("weights"), "route": [hop.pack() for hop in named(route)]})


def _check_payload(wire: WireTensor) -> None:
    is_ids = wire.dtype == "int32" and len(wire.shape) == 2
    is_hidden = _is_float(wire) and len(wire.shape) == 3
    if not (is_ids or is_hidden) or not 0 < wire.shape[0] * wire.shape[1] <= MAX_PASS_TOKENS:
        raise BadRequestError(
            f"a pass brings ids int32 [B, T] or hidden states [B, T, H] of 1 to {MAX_PASS_TOKENS} tokens, "
            f"got {wire.dtype} {list(wire.shape)}"
        )


def _is_float(wire: WireTensor) -> bool:
    return wire.dtype in tensors.COMPUTE_DTYPES


def _states(received: frame.Frame, key: str) -> WireTensor:
    wire = tensors.parse(received.header.get(key), received.buffers)
    if not _is_float(wire) or len(wire.shape) != 3 or wire.shape[0] * wire.shape[1] > MAX_PASS_TOKENS:
        raise BadRequestError(
            f"{key}: expected floats [B, T, H] of at most {MAX_PASS_TOKENS} tokens, got {wire.dtype} {list(wire.shape)}"
        )
    return wire


def _wires(received: frame.Frame, *keys: str) -> dict[str, WireTensor | None]:
    """By key, the tensors that the header names; their buffers come in this order."""
    found: dict[str, WireTensor | None] = dict.fromkeys(keys)
    for number, key in enumerate(key for key in keys if received.header.get(key) is not None):
        found[key] = tensors.parse(received.header[key], received.buffers, number)
    return found
