"""Weights: which numbers a unit holds.

A model's, a version of them in training, or with an adapter.

    tiny@<64 hex>                                   as the checkpoint has them: version 0
    tiny@<64 hex>/7/<64 hex>                        after 7 optimizer steps, with the chain that says which ones
    tiny@<64 hex>/adapter/<64 hex>                  with an adapter: the digest of its files
    tiny@<64 hex>/7/<64 hex>/adapter/<64 hex>

The text is canonical, as a unit's is, and of static weights it is the text of the `ModelId`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from protocols.errors import BadRequestError, shown
from protocols.ids import MAX_MODEL_NAME, ModelId

MAX_VERSION: Final = 1 << 40
"""Optimizer steps of one run."""

CHAIN_BYTES: Final = 32
MAX_WEIGHTS_TEXT: Final = MAX_MODEL_NAME + 1 + 64 + 1 + 13 + 1 + 64 + len("/adapter/") + 64
"""Letters of the text: name, digest, version, chain and adapter."""

_ADAPTER = re.compile("[0-9a-f]{64}")
_REST = re.compile(
    r"(?P<digest>[0-9a-f]{64})(/(?P<version>[1-9][0-9]{0,12})/(?P<chain>[0-9a-f]{64}))?(/adapter/(?P<adapter>[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class Weights:
    """Two peers compute with the same numbers if, and only if, these are equal. BadRequestError out of bounds."""

    model: ModelId
    version: int = 0
    """Optimizer steps that were applied to the model's own weights; 0 = static."""
    chain: bytes = b""
    """Of version 0 nothing; else 32 bytes: the hash over the parent's chain and the step's gradient, which tells apart two runs
    that have made as many steps."""
    adapter: str | None = None
    """SHA-256 of the adapter's manifest, 64 hex letters; None = no adapter."""

    def __post_init__(self) -> None:
        if not 0 <= self.version <= MAX_VERSION:
            raise BadRequestError(f"a version of weights is from 0 to {MAX_VERSION}, got {shown(self.version)}")
        expected = CHAIN_BYTES if self.version else 0
        if len(self.chain) != expected:
            raise BadRequestError(f"the chain of version {self.version} has {expected} bytes, got {len(self.chain)}")
        if self.adapter is not None and not _ADAPTER.fullmatch(self.adapter):
            raise BadRequestError(f"an adapter is named by a digest of 64 hex letters, got {shown(self.adapter)}")

    @property
    def is_static(self) -> bool:
        """Are these the numbers of the model's own files?"""
        return self.version == 0 and self.adapter is None

    @classmethod
    def parse(cls, text: object) -> Weights:
        """Read the canonical text; BadRequestError for anything else."""
        name, at, rest = text.rpartition("@") if isinstance(text, str) and len(text) <= MAX_WEIGHTS_TEXT else ("", "", "")
        match = _REST.fullmatch(rest) if at else None
        if match is None:
            raise BadRequestError(
                f"not the name of weights: {shown(text)}; expected name@digest, then /version/chain and /adapter/digest if there are any"
            )
        chain = bytes.fromhex(match["chain"] or "")
        return cls(ModelId(name, match["digest"]), int(match["version"] or 0), chain, match["adapter"])

    def __str__(self) -> str:
        trained = f"/{self.version}/{self.chain.hex()}" if self.version else ""
        return f"{self.model}{trained}" + (f"/adapter/{self.adapter}" if self.adapter is not None else "")


def difference(ours: Weights, theirs: Weights) -> str:
    """What tells two weights apart: the digest of the model, the version or the adapter; "" = the same numbers.

    The name says nothing: two volunteers may call the same files differently.
    """
    if ours.model.digest != theirs.model.digest:
        return "the model's digest"
    if (ours.version, ours.chain) != (theirs.version, theirs.chain):
        return "the version" if ours.version != theirs.version else "the chain of the version"
    return "" if ours.adapter == theirs.adapter else "the adapter"


def short(weights: Weights) -> str:
    """For messages: the digests' first letters."""
    version = f"/{weights.version}" if weights.version else ""
    adapter = f"/adapter/{weights.adapter[:12]}" if weights.adapter else ""
    return f"{weights.model.name}@{weights.model.digest[:12]}{version}{adapter}"
