"""How well a model predicts a text: perplexity, bits per byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from node.training import metrics
from node.training.data.batches import joined
from node.training.data.micro_batch import MicroBatch
from node.training.data.packing import sequences_of
from node.training.data.sources import Source
from node.training.data.tokens import TokenSettings, open_tokens
from node.training.stage import Stage
from protocols.errors import BadRequestError
from protocols.ids import Span
from swarm.models.checkpoint import Checkpoint
from swarm.models.checkpoint import open_checkpoint as open_checkpoint
from swarm.models.loading import load_ends, load_parts

BATCH_SEQUENCES = 4
DEFAULT_SEQUENCE_TOKENS = 512

LossOf = Callable[[MicroBatch], float]
"""The loss in nats, summed over the targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Of one model on one text."""

    loss: float
    """Mean over target tokens, nats."""
    perplexity: float
    bits_per_byte: float
    """Of the text's UTF-8 bytes that targets stand for: the first token of each sequence is no target."""
    tokens: int
    """Target tokens."""


def score(
    micro_batches: Iterator[MicroBatch], loss_of: LossOf, on_progress: Callable[[int], None] = lambda tokens: None
) -> Score:
    """Over all micro-batches. BadRequestError if they have no target. on_progress: told the target tokens so far."""
    loss_sum, num_targets, num_bytes = 0.0, 0, 0
    for one in micro_batches:
        loss_sum += loss_of(one)
        num_targets, num_bytes = num_targets + one.num_targets, num_bytes + one.num_bytes
        on_progress(num_targets)
    if not num_targets:
        raise BadRequestError("the text has no token to predict: give at least two tokens")
    loss = loss_sum / num_targets
    return Score(
        loss=loss,
        perplexity=metrics.perplexity(loss),
        bits_per_byte=metrics.bits_per_byte(loss_sum, num_bytes),
        tokens=num_targets,
    )


def text_of(
    sources: Sequence[Source],
    tokenizer: Path,
    vocab_size: int,
    cache: Path,
    sequence_tokens: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_encoding: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[MicroBatch]:
    """The text of these sources, each sequence within one document. Blocks until it is encoded; ConfigError as of `open_tokens`.

    on_progress: told (sequences that were given out before, all of them) with each micro-batch. on_encoding: told (bytes of text, all of
    them) while the text is encoded.
    """
    settings = TokenSettings(tokenizer=tokenizer, vocab_size=vocab_size, cache=cache)
    data = open_tokens(sources, Path.cwd(), settings, "--data", on_encoding)
    cut = [sequences_of(source, sequence_tokens, False, data.pad_id) for source in data.sources]
    sequences = [(one, number) for one in cut for number in range(len(one))]
    for at in range(0, len(sequences), BATCH_SEQUENCES):
        on_progress(at, len(sequences))
        yield joined(data, [one.read(number) for one, number in sequences[at : at + BATCH_SEQUENCES]])


def of_checkpoint(checkpoint: Checkpoint) -> LossOf:
    """A whole model in this process, in float32. Blocks while it is loaded."""
    span = Span(0, checkpoint.num_blocks)
    parts = load_parts(checkpoint, span, dtype=torch.float32)[1]
    ends, limit = load_ends(checkpoint, dtype=torch.float32), checkpoint.max_positions
    stage = Stage(parts, ends, checkpoint.num_blocks, use="frozen", max_positions=limit)

    def loss_of(one: MicroBatch) -> float:
        ids, labels = torch.from_numpy(one.ids), torch.from_numpy(one.labels)
        return stage.forward(span, ids, None, labels, for_backward=False).loss_sum

    return loss_of
