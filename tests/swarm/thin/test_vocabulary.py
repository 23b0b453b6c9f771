"""Bytes that tokens stand for: exact for byte-level BPE."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from swarm.thin.tokenizing import vocabulary
from tests.node.training.data.tokenizers_made import SPECIAL, trained

BYTE_LEVEL = Tokenizer.from_str(trained())
LENGTHS = vocabulary.of(BYTE_LEVEL).byte_lengths


@given(text=st.text(max_size=60))
def test_lengths_of_byte_level_tokens_add_up_to_the_bytes_of_the_text(text: str) -> None:
    assert sum(LENGTHS[number] for number in BYTE_LEVEL.encode(text, add_special_tokens=False).ids) == len(text.encode())


def test_special_tokens_stand_for_no_byte_and_other_added_ones_for_their_text() -> None:
    inner = Tokenizer.from_str(trained())
    inner.add_tokens([AddedToken("Größe", special=False)])
    found = vocabulary.of(inner)
    assert found.special == set(range(len(SPECIAL))) and [found.byte_lengths[number] for number in range(4)] == [0] * 4
    assert found.byte_lengths[inner.encode("Größe", add_special_tokens=False).ids[0]] == 7


def test_pieces_of_sentencepiece_count_spaces_and_single_bytes() -> None:
    pieces = ["<unk>", "<0xE4>", "▁the", "世"]
    inner = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert vocabulary.of(inner).byte_lengths == [5, 1, 4, 3]
