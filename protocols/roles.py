"""Role: what a peer does in a training run.

    stage      holds a unit with its optimizer state, computes, updates, serves     a unit
    trainer    has the data, sends micro-batches                                    no unit
    keeper     assembles checkpoints                                                no unit

In a record roles stand under the key `g`: a list of maps, one per model, with the model's name under `n`, its digest (32 bytes)
under `d`, and under `r` the roles as texts: the kind, then a blank and the unit's text if there is one. Kinds of roles and of units
that are unknown here are left out. The version of a stage changes every second, so it is not here: ask `run_status`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from protocols import fields
from protocols.errors import BadRequestError, shown
from protocols.ids import MAX_MODEL_NAME, ModelId
from protocols.units import MAX_UNIT_TEXT, Unit, find_unit

KINDS: Final = ("stage", "trainer", "keeper")
MAX_ROLES: Final = 8
"""Of one record."""

_MAX_KIND: Final = 16
"""Letters of a kind, those of newer peers included."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a peer does in one run. BadRequestError for an unknown kind, a stage without a unit, or another kind with one."""

    kind: str
    """One of KINDS."""
    model: ModelId
    """The run: its name, and the digest of its manifest."""
    unit: Unit | None = None
    """Of a stage: what it holds. A stage with several units has a role for each."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or (self.unit is None) is (self.kind == "stage"):
            raise BadRequestError(
                f"a role is a stage with a unit, a trainer or a keeper, got {shown(self.kind)} with {self.unit}"
            )

    def __str__(self) -> str:
        return self.kind if self.unit is None else f"{self.kind} {self.unit}"


def pack(roles: Sequence[Role]) -> list[dict[str, object]]:
    """The list that travels; consecutive roles of one model name it once."""
    grouped = groupby(roles, key=lambda role: role.model)
    return [{"n": model.name, "d": bytes.fromhex(model.digest), "r": list(map(str, found))} for model, found in grouped]


def parse(table: fields.Header, key: str) -> tuple[Role, ...]:
    """What a peer wrote under `key`. BadRequestError out of bounds, and for more than MAX_ROLES roles in all."""
    found: list[Role] = []
    num_roles = 0
    for value in fields.array(table, key, MAX_ROLES):
        group = fields.table(value, "roles")
        digest = fields.raw(group, "d", 32)
        model = ModelId(fields.text(group, "n", MAX_MODEL_NAME), digest.hex())
        texts = fields.texts(group, "r", MAX_ROLES, _MAX_KIND + 1 + MAX_UNIT_TEXT)
        num_roles += len(texts)
        found += _known(model, texts)
    if num_roles > MAX_ROLES:
        raise BadRequestError(f"a record has at most {MAX_ROLES} roles, got {num_roles}")
    return tuple(found)


def _known(model: ModelId, texts: Sequence[str]) -> Iterator[Role]:
    """Those whose kind and unit are known here."""
    for text in texts:
        kind, blank, rest = text.partition(" ")
        unit = find_unit(rest) if blank else None
        if kind in KINDS and (unit is not None or not blank):
            yield Role(kind, model, unit)
