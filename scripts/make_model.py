"""Makes a small language model from real text.

It has ordinary Hugging Face form: what works for it works for any checkpoint.

The text is the English prose that every Python carries (`pydoc_data.topics`, the language reference: 0.25 MB of prose), the
tokenizer a byte-level BPE trained on it, the model a Llama of 1.6 million parameters, trained with plain torch and AdamW
for a given number of seconds. A directory appears whole or not at all, so that a second call can trust what it finds.

Run: .venv/bin/python scripts/make_model.py DIRECTORY [--seconds 75]
Shapes: B sequences, T tokens each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
Progress = Callable[[float, int, float], None]
"""Called after every step with the share of the time that is spent (0 to 1), steps done and the smoothed loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the model is, and how long it is trained."""

    version: int = 1
    """Part of the default directory's name: raise it where a change here should not meet an older model."""

    vocab_size: int = 2_048
    hidden_size: int = 128
    num_blocks: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    context_tokens: int = 512

    train_s: float = 75.0
    """Seconds of training; the learning rate falls to zero over this time."""

    enough_steps: int = 250
    """A busy machine that has done fewer by then goes on, for up to as long again; an idle one does twice as many."""

    batch: int = 8
    sequence_tokens: int = 128
    learning_rate: float = 2e-3
    seed: int = 20


def share_cores() -> None:
    """Call before the first import of torch: its threads then sleep while they wait for each other.

    They spin by default, which costs nothing on an idle machine; on a busy one a step took 12 s instead of 0.9 (docs/log.md).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def default_directory(recipe: Recipe) -> Path:
    """Where the demo keeps its model between runs; the last part is the model's name in the swarm."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "murmuration" / f"demo-{recipe.version}" / "tiny-prose"


def pages() -> list[str]:
    """The pages as prose, a line a paragraph: no markup, headings or indentation; code, grammar and tables are left out."""
    return [text for page in topics.values() if (text := "\n".join(_paragraphs(page)))]


def _paragraphs(page: str) -> Iterator[str]:
    for block in page.split("\n\n"):
        text = " ".join(block.split()).translate({ord(mark): None for mark in '"*`'})
        is_code = block.startswith("    ") or ">>>" in block or "::=" in block
        num_letters = sum(letter.isalpha() or letter in " ,." for letter in text)
        if not is_code and len(text) > 60 and num_letters > 0.95 * len(text):
            yield text


def train_tokenizer(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE: every string can be encoded, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[attr-defined]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[attr-defined]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=recipe.context_tokens
    )


def build_model(recipe: Recipe, end_id: int) -> LlamaForCausalLM:
    """Random weights, the same for the same seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.hidden_size * 8 // 3 // 16 * 16,
        num_hidden_layers=recipe.num_blocks,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=recipe.context_tokens,
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    return LlamaForCausalLM(config)


def share_spent(recipe: Recipe, seconds: float, steps: int) -> float:
    """How much of the training is over; 1 or more = all. With enough_steps = 0 only the time counts."""
    by_time = seconds / recipe.train_s
    by_steps = steps / recipe.enough_steps if recipe.enough_steps else by_time
    return max(by_time / 2, min(by_time, by_steps))


def train(model: LlamaForCausalLM, stream: torch.Tensor, recipe: Recipe, progress: Progress) -> tuple[int, float]:
    """Next-token training on one long stream of ids until `share_spent` says stop. Returns steps and the smoothed loss."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    draw = torch.Generator().manual_seed(recipe.seed)
    started, steps, loss_mean = time.monotonic(), 0, 0.0
    model.train()
    while (spent := share_spent(recipe, time.monotonic() - started, steps)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, (steps + 1) / 40) * (1 - spent)
        starts = torch.randint(len(stream) - recipe.sequence_tokens, (recipe.batch,), generator=draw)
        ids_BT = torch.stack([stream[start : start + recipe.sequence_tokens] for start in starts.tolist()])
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
        loss_mean = loss.item() if steps == 1 else 0.95 * loss_mean + 0.05 * loss.item()
        progress(min(1.0, spent), steps, loss_mean)
    return steps, loss_mean


def make(directory: Path, recipe: Recipe, progress: Progress) -> tuple[int, float]:
    """Tokenizer, training and files; `directory` must not exist, and appears only when all of it is there."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for one file of 9 MB would tear ours
    texts = pages()
    tokenizer = train_tokenizer(texts, recipe)
    end_id = tokenizer.convert_tokens_to_ids(END)
    assert isinstance(end_id, int)
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    stream = torch.tensor([token for text in encoded for token in [*text.ids, end_id]])
    model = build_model(recipe, end_id)
    result = train(model, stream, recipe, progress)
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=directory.parent))
    try:
        model.eval().save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return result


def make_with_bar(directory: Path, recipe: Recipe) -> None:
    """`make`, with a bar that shows time and loss; nothing to do where the directory exists."""
    if (directory / "config.json").exists():
        print(f"model: {directory} (made before)")
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("train", total=1.0, note="reading")

        def show(spent: float, steps: int, loss: float) -> None:
            bar.update(task, completed=spent, note=f"step {steps}, loss {loss:.2f}")

        steps, loss = make(directory, recipe, show)
        bar.update(task, completed=1.0)
    print(f"model: {directory} ({recipe.num_blocks} blocks, {steps} steps, loss {loss:.2f})")


def main() -> int:
    share_cores()
    recipe = Recipe()
    parser = argparse.ArgumentParser(
        description="Make a small Llama checkpoint from the English prose that every Python carries."
    )
    parser.add_argument(
        "directory", type=Path, nargs="?", default=default_directory(recipe), help="where to put it (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=recipe.train_s, help="how long to train (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.directory.exists() and not (arguments.directory / "config.json").exists():
        print(
            f"make_model: {arguments.directory} exists but holds no model: name another directory, or remove it", file=sys.stderr
        )
        return 2
    make_with_bar(arguments.directory, Recipe(train_s=arguments.seconds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
