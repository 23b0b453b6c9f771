"""Trains a byte-level BPE tokenizer on text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END, END_ID = "<|end|>", 0
"""The token that ends a document."""


def train_tokenizer(texts: Iterable[str], num_ids: int, folder: Path) -> Path:
    """Write `tokenizer.json` and `tokenizer_config.json` into `folder`, which exists, and return the path of the first.

    Every text can be encoded: all 256 bytes are tokens. num_ids: at most so many, END included; at least 257. The same texts in the same
    order give the same bytes with the same version of `tokenizers`.
    """
    assert num_ids >= 257, num_ids
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=num_ids, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    file = folder / "tokenizer.json"
    file.write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    file.with_name("tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return file
