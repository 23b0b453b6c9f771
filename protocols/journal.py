"""The journal of a run: what its trainers note, for watchers.

    journal    JournalRequest -> JournalPart      any peer -> trainer: what have you noted since?

Who asks takes no part in the run: `lease` would count it as a trainer. Notes have numbers from 1 on, of which some are missing: a trainer
thins out what is old. A trainer that has started anew counts anew, under another `journal`. Everything here is a claim of that trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocols import fields, frame
from protocols.errors import BadRequestError
from protocols.ids import ModelId, PeerId, parse_peer_id
from protocols.training import MAX_LOSS
from protocols.weights_id import MAX_VERSION

JOURNAL_ID_BYTES: Final = 8
MAX_NOTES: Final = 64
"""Of one answer."""

MAX_BYTES: Final = 24_000
"""Of an answer's notes."""

MAX_NUMBER: Final = 1 << 40
"""Of a note."""

MAX_SAMPLES: Final = 4
"""Of one evaluation."""

MAX_TEXT: Final = 300
"""Letters of a prompt, of its continuation, and of an event."""

MAX_EVENT: Final = 32
"""Letters of the kind of an event."""

MAX_TOKENS: Final = 1 << 60
MAX_SECONDS: Final = 1e10
MAX_SPEED: Final = 1e15
MAX_BITS: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedVersion:
    """One step of the run's optimizer."""

    version: int
    """After the step."""
    loss: float | None
    """Nats per target token; None: not known, or not finite."""
    tokens: int
    """Of all versions so far, padding included."""
    tokens_per_s: float
    grad_norm: float
    """Of the mean gradient of the whole model, before clipping."""
    time_s: float
    """Since the run began at that trainer."""
    num_stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedEvaluation:
    """Loss on the validation text, and what the model says."""

    version: int
    loss: float | None
    bits_per_byte: float | None
    num_tokens: int
    time_s: float
    samples: tuple[tuple[str, str], ...] = ()
    """Prompts, and what follows them: each one line, cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedEvent:
    """Something that happened to the run: a stage joined, was left out, …"""

    event: str
    version: int
    time_s: float
    text: str = ""


Noted = NotedVersion | NotedEvaluation | NotedEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRequest:
    """What have you noted of this run, after the note `after` of the journal with this id?"""

    run: ModelId
    journal: bytes = b""
    """b"" = the asker has nothing yet."""
    after: int = 0

    def encode(self) -> bytes:
        return frame.encode({"t": "journal?", "run": str(self.run), "journal": self.journal, "after": self.after})

    @classmethod
    def parse(cls, data: bytes) -> JournalRequest:
        header = frame.decode_kind(data, "journal?").header
        return cls(
            run=fields.model(header, "run"),
            journal=fields.exactly(header, "journal", 0, JOURNAL_ID_BYTES),
            after=fields.integer(header, "after", 0, MAX_NUMBER),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalPart:
    """Some notes, in the order in which they were noted."""

    journal: bytes
    """Another one than was asked for: what the asker has is of an earlier start, and the notes begin anew."""
    last: int
    """Number of the last note here; the next question is for what comes after it."""
    newest: int
    """Number of the newest note that there is."""
    notes: tuple[Noted, ...] = ()
    coordinator: PeerId | None = None
    """The trainer that coordinates the run, as the answerer knows it: only that one evaluates."""

    def encode(self) -> bytes:
        notes = [pack(note) for note in self.notes]
        return frame.encode({"t": "journal", "journal": self.journal, "last": self.last, "newest": self.newest, "notes": notes,
                             "peer": self.coordinator or ""})  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> JournalPart:
        header = frame.decode_kind(data, "journal").header
        last = fields.integer(header, "last", 0, MAX_NUMBER)
        return cls(
            journal=fields.exactly(header, "journal", JOURNAL_ID_BYTES),
            last=last,
            newest=fields.integer(header, "newest", last, MAX_NUMBER),
            notes=tuple(_note(item) for item in fields.array(header, "notes", MAX_NOTES)),
            coordinator=None if header.get("peer") == "" else parse_peer_id(header.get("peer")),
        )


def pack(note: Noted) -> list[Any]:
    """As it travels."""
    match note:
        case NotedVersion():
            return ["version", note.version, _float(note.loss), note.tokens, float(note.tokens_per_s), float(note.grad_norm),
                    float(note.time_s), note.num_stages]  # fmt: skip
        case NotedEvaluation():
            return ["evaluation", note.version, _float(note.loss), _float(note.bits_per_byte), note.num_tokens, float(note.time_s),
                    [list(one) for one in note.samples]]  # fmt: skip
        case NotedEvent():
            return ["event", note.version, note.event, float(note.time_s), note.text]


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _note(item: object) -> Noted:
    kind = item[0] if isinstance(item, list) and item else None
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise BadRequestError(f"a note of a journal begins with one of {', '.join(_READERS)}")
    names, read = reader
    assert isinstance(item, list)
    if len(item) != 1 + len(names):
        raise BadRequestError(f"expected the list [{kind!r}, {', '.join(names)}]")
    return read(dict(zip(names, item[1:], strict=True)))


def _version(note: fields.Header) -> Noted:
    return NotedVersion(
        version=fields.integer(note, "version", 0, MAX_VERSION),
        loss=_number(note, "loss", MAX_LOSS),
        tokens=fields.integer(note, "tokens", 0, MAX_TOKENS),
        tokens_per_s=fields.number(note, "speed", 0, MAX_SPEED),
        grad_norm=fields.number(note, "norm", 0, MAX_LOSS),
        time_s=fields.number(note, "time", 0, MAX_SECONDS),
        num_stages=fields.integer(note, "stages", 0, 1 << 16),
    )


def _evaluation(note: fields.Header) -> Noted:
    return NotedEvaluation(
        version=fields.integer(note, "version", 0, MAX_VERSION),
        loss=_number(note, "loss", MAX_LOSS),
        bits_per_byte=_number(note, "bits", MAX_BITS),
        num_tokens=fields.integer(note, "tokens", 0, MAX_TOKENS),
        time_s=fields.number(note, "time", 0, MAX_SECONDS),
        samples=tuple(_sample(one) for one in fields.array(note, "samples", MAX_SAMPLES)),
    )


def _event(note: fields.Header) -> Noted:
    return NotedEvent(
        version=fields.integer(note, "version", 0, MAX_VERSION),
        event=fields.text(note, "event", MAX_EVENT),
        time_s=fields.number(note, "time", 0, MAX_SECONDS),
        text=fields.text(note, "text", MAX_TEXT),
    )


_READERS: Final[Mapping[str, tuple[tuple[str, ...], Callable[[fields.Header], Noted]]]] = {
    "version": (("version", "loss", "tokens", "speed", "norm", "time", "stages"), _version),
    "evaluation": (("version", "loss", "bits", "tokens", "time", "samples"), _evaluation),
    "event": (("version", "event", "time", "text"), _event),
}


def _number(note: fields.Header, key: str, most: float) -> float | None:
    return None if note.get(key) is None else fields.number(note, key, -most, most)


def _sample(item: object) -> tuple[str, str]:
    if not isinstance(item, list) or len(item) != 2:
        raise BadRequestError("expected the list [prompt, text]")
    note = dict(zip(("prompt", "text"), item, strict=True))
    return fields.text(note, "prompt", MAX_TEXT), fields.text(note, "text", MAX_TEXT)


def fitting(notes: Sequence[Noted]) -> Sequence[Noted]:
    """As many of the first as one answer takes."""
    num_bytes = 0
    for number, note in enumerate(notes[:MAX_NOTES]):
        num_bytes += _most_bytes(note)
        if num_bytes > MAX_BYTES:
            return notes[:number]
    return notes[:MAX_NOTES]


def _most_bytes(note: Noted) -> int:
    """An upper bound of what it takes."""
    texts: tuple[str, ...] = ()
    if isinstance(note, NotedEvent):
        texts = note.event, note.text
    elif isinstance(note, NotedEvaluation):
        texts = tuple(text for sample in note.samples for text in sample)
    return 96 + sum(len(text.encode()) + 4 for text in texts)
