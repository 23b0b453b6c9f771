"""What each token of a tokenizer stands for.

In bytes of text, as bits per byte are counted. Exact for byte-level BPE; of other tokenizers, a token's piece of text is counted, and not
spaces that the tokenizer drops or adds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""How a piece is spelled that stands for one byte (`byte_fallback`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """V ids, from 0 to the highest; those that no token has count as special."""

    byte_lengths: list[int]
    """[V]: UTF-8 bytes; 0 for special tokens."""

    special: frozenset[int]
    """Ids of special tokens, as the end of a text or of a turn."""


def of(inner: Any) -> Vocabulary:
    """The vocabulary of a `tokenizers.Tokenizer`."""
    added = inner.get_added_tokens_decoder()
    by_id = {number: piece for piece, number in inner.get_vocab(with_added_tokens=True).items()}
    document = json.loads(inner.to_str())
    is_byte_level = '"ByteLevel"' in json.dumps(document["decoder"])
    lengths = [0] * (max(by_id, default=-1) + 1)
    for number, piece in by_id.items():
        if number in added:
            lengths[number] = 0 if added[number].special else len(piece.encode())
        else:
            lengths[number] = len(piece) if is_byte_level else _length(piece, document["model"])  # a letter stands for one byte
    return Vocabulary(byte_lengths=lengths, special=frozenset(number for number, token in added.items() if token.special))


def _length(piece: str, model: Mapping[str, Any]) -> int:
    if model.get("byte_fallback") and _BYTE.fullmatch(piece):
        return 1
    text = piece.removeprefix(model.get("continuing_subword_prefix") or "").removesuffix(model.get("end_of_word_suffix") or "")
    return len(text.replace("▁", " ").encode())
