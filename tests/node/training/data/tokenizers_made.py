"""Makes small tokenizers: byte-level BPE with merges, as a checkpoint's files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from pydoc_data import topics

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = "\n".join(topics.topics[name] for name in sorted(topics.topics))
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 500

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}{{ message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As qwen3's: the last answer begins with its thinking, which later turns drop."""


@functools.cache
def trained() -> str:
    """A tokenizer of 500 ids, trained on Python's documentation, that puts <s> before a text; as JSON."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator([TEXT[:60_000]], trainer)
    begin = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begin])
    return inner.to_str()


def make(folder: Path, template: str | None = None, **config: object) -> Path:
    """The folder, with tokenizer.json and tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(trained())
    named = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(named if template is None else {**named, "chat_template": template}))
    return folder
