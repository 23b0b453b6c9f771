"""`swarm eval`: perplexity and bits per byte on a text.

The model is a directory of this machine, which is computed here, or a name in the swarm, whose blocks nodes compute. A run file stands for
its run, and for its validation data. Of the folder of a run (`runs/NAME`), the newest checkpoint is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.flags import threads
from node.cli.flags.asking import open_model
from node.cli.flags.command_options import EvaluationOptions
from node.cli.terminal import as_json
from node.cli.terminal.waiting import shown
from node.training import metrics
from protocols.errors import ConfigError
from swarm import places, waiting
from swarm.places import is_place
from swarm.waiting import OnWait, Wait

if TYPE_CHECKING:
    from node.training.data.sources import Source
    from node.training.scoring import Score
    from node.training.spec.run_file import RunFile

ENCODING = Wait(kind="encoding", text="encoding the text")
EVALUATING = Wait(kind="evaluating", text="evaluating the text")

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,12})")


def run(model: str, data: Sequence[Path], sequence_tokens: int | None, is_json: bool, asked: EvaluationOptions) -> None:
    """Print one line, or JSON. ConfigError: no text is named, or it cannot be read; else what keeps the model from answering."""
    file = _run_file(model)
    sources = _sources(data, file)
    length = sequence_tokens or (file.data.sequence_tokens if file else None)
    cache = (asked.data_dir or places.data_dir()) / "tokens"
    if file is None and is_place(model) and not asked.peer:
        with shown() as on_wait:
            name, found = _of_directory(_checkpoint(Path(model).expanduser()), sources, cache, length, on_wait)
    else:
        name, found = _of_swarm(file.name if file else model, sources, cache, length, asked)
    if is_json:
        as_json.show({"model": name, **asdict(found)})
    else:
        print(
            f"{name}: loss {found.loss:.4f}, perplexity {found.perplexity:.3f}, {found.bits_per_byte:.4f} bits per byte, over "
            f"{found.tokens:,} tokens",
            flush=True,
        )


def _run_file(model: str) -> RunFile | None:
    if not model.endswith(".toml"):
        return None
    from node.training.spec.reading import read

    return read(Path(model))


def _sources(data: Sequence[Path], file: RunFile | None) -> Sequence[Source]:
    from node.training.data.sources import Source

    if data:
        return [Source(files=(str(path.expanduser().resolve()),)) for path in data]
    if file is not None and file.data.validation:
        return file.data.validation
    raise ConfigError(
        "no text to evaluate on: give --data FILE (text, JSONL, CSV or Parquet), or a run file with data.validation"
    )


def _checkpoint(folder: Path) -> Path:
    """The folder itself, or the newest checkpoint of a run's folder. ConfigError if the run has none yet."""
    found = [(int(match[1]), one) for one in folder.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(one.name))]
    if found and not (folder / "config.json").exists():
        return max(found)[1]
    if (folder / metrics.FILE).exists():
        raise ConfigError(
            f"the run in {folder} has no checkpoint: expected checkpoint-N, which `swarm train` (not --local) and `swarm node --keep` "
            "write every checkpoint.every_steps versions"
        )
    return folder


def _of_directory(folder: Path, sources: Sequence[Source], cache: Path, length: int | None, on_wait: OnWait) -> tuple[str, Score]:
    on_wait(waiting.loading(str(folder)))
    threads.wait_quietly()
    from node.training import scoring

    checkpoint = scoring.open_checkpoint(folder)
    length = length or _length(checkpoint.max_positions)
    text = scoring.text_of(sources, folder, checkpoint.vocab_size, cache, length, *_telling(on_wait))
    return str(folder), scoring.score(text, scoring.of_checkpoint(checkpoint))


def _telling(on_wait: OnWait) -> tuple[Callable[[int, int], None], Callable[[int, int], None]]:
    """What says how much of the text is evaluated, and encoded."""
    return (lambda done, total: on_wait(EVALUATING.at(done, total))), (lambda done, total: on_wait(ENCODING.at(done, total)))


def _of_swarm(
    name: str, sources: Sequence[Source], cache: Path, length: int | None, asked: EvaluationOptions
) -> tuple[str, Score]:
    with open_model(asked.asking(name)) as model:
        from node.training import scoring

        length = length or _length(model.remote.max_positions)
        vocab_size = model.config.get_text_config().vocab_size
        with shown() as on_wait:
            text = scoring.text_of(sources, model.remote.path, vocab_size, cache, length, *_telling(on_wait))
            return name, scoring.score(text, _loss_of(model))


def _loss_of(model: object) -> Callable[..., float]:
    import torch
    from torch.nn.functional import cross_entropy

    def loss_of(one: object) -> float:
        ids, labels = (torch.from_numpy(getattr(one, key)).long() for key in ("ids", "labels"))
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits  # type: ignore[operator]
        return float(cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum"))

    return loss_of


def _length(most: int | None) -> int:
    from node.training.scoring import DEFAULT_SEQUENCE_TOKENS

    return min(most or DEFAULT_SEQUENCE_TOKENS, DEFAULT_SEQUENCE_TOKENS)
