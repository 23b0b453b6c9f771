"""About: a peer's machine, and what it has done since its start.

    about    AboutRequest -> About      any peer -> node or trainer

It is a claim like everything that a peer says of itself, and decides nothing: it is for people who look at the peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocols import fields, frame
from protocols.errors import BadRequestError
from protocols.ids import MAX_MODEL_TEXT, ModelId

MAX_TEXT: Final = 80
"""Letters of a device's name, and of the system."""

MAX_TRAINED: Final = 8
"""Runs that one peer lists."""

MAX_CORES: Final = 1 << 16
MAX_AMOUNT: Final = 1 << 60
"""Bytes, tokens, steps: more is a mistake."""

MAX_SECONDS: Final = 1e10


@dataclass(frozen=True, slots=True)
class AboutRequest:
    """What machine are you, and what have you done?"""

    def encode(self) -> bytes:
        return frame.encode({"t": "about?"})

    @classmethod
    def parse(cls, data: bytes) -> AboutRequest:
        frame.decode_kind(data, "about?")
        return cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a peer computes on."""

    device: str
    """As `cpu` or `cuda:0`."""
    name: str = ""
    """Of the card or processor, as its maker says it; may be empty."""
    system: str = ""
    """Operating system, Python and torch, for people."""
    cores: int = 0
    """That this process may use; 0 = not known, as of the two below."""
    memory_bytes: int = 0
    """Of the machine, or of the container that the peer is in."""
    device_bytes: int = 0
    """Of a card with memory of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a peer has given to one run since its start."""

    run: ModelId
    role: str
    """`stage`: micro-batches that are in its sums; `trainer`: those that it has sent through the stages."""
    num_micro_batches: int
    num_tokens: int
    num_versions: int
    """Of a stage: steps of its optimizer; of a trainer: versions that were finished meanwhile."""
    seconds: float
    """In which it took micro-batches."""


TRAINED_ROLES: Final = ("stage", "trainer")


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """One peer's word on itself."""

    machine: Machine
    uptime_s: float
    """Since its process began to take part."""
    free_bytes: int = 0
    """That weights, keys and values may still take on the device."""
    num_sessions: int = 0
    """That it has computed for, as `num_steps` and `num_tokens`: through any of its blocks, prompts included."""
    num_steps: int = 0
    num_tokens: int = 0
    trained: tuple[Trained, ...] = ()

    def encode(self) -> bytes:
        one = self.machine
        trained = [[str(row.run), row.role, row.num_micro_batches, row.num_tokens, row.num_versions, float(row.seconds)]
                   for row in self.trained]  # fmt: skip
        return frame.encode({"t": "about", "device": one.device, "name": one.name, "system": one.system, "cores": one.cores,
                             "memory": one.memory_bytes, "device_memory": one.device_bytes, "free": self.free_bytes,
                             "uptime": float(self.uptime_s), "sessions": self.num_sessions, "steps": self.num_steps,
                             "tokens": self.num_tokens, "trained": trained})  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> About:
        header = frame.decode_kind(data, "about").header
        return cls(
            machine=Machine(
                device=fields.text(header, "device", MAX_TEXT),
                name=fields.text(header, "name", MAX_TEXT),
                system=fields.text(header, "system", MAX_TEXT),
                cores=fields.integer(header, "cores", 0, MAX_CORES),
                memory_bytes=fields.integer(header, "memory", 0, MAX_AMOUNT),
                device_bytes=fields.integer(header, "device_memory", 0, MAX_AMOUNT),
            ),
            uptime_s=fields.number(header, "uptime", 0, MAX_SECONDS),
            free_bytes=fields.integer(header, "free", 0, MAX_AMOUNT),
            num_sessions=fields.integer(header, "sessions", 0, MAX_AMOUNT),
            num_steps=fields.integer(header, "steps", 0, MAX_AMOUNT),
            num_tokens=fields.integer(header, "tokens", 0, MAX_AMOUNT),
            trained=tuple(_trained(item) for item in fields.array(header, "trained", MAX_TRAINED)),
        )


def _trained(item: object) -> Trained:
    names = ("run", "role", "micro_batches", "tokens", "versions", "seconds")
    if not isinstance(item, list) or len(item) != len(names):
        raise BadRequestError(f"expected the list [{', '.join(names)}]")
    row = dict(zip(names, item, strict=True))
    return Trained(
        run=ModelId.parse(fields.text(row, "run", MAX_MODEL_TEXT)),
        role=fields.one_of(row, "role", TRAINED_ROLES),
        num_micro_batches=fields.integer(row, "micro_batches", 0, MAX_AMOUNT),
        num_tokens=fields.integer(row, "tokens", 0, MAX_AMOUNT),
        num_versions=fields.integer(row, "versions", 0, MAX_AMOUNT),
        seconds=fields.number(row, "seconds", 0, MAX_SECONDS),
    )
