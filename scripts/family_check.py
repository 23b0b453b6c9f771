"""Compares one tiny configuration over two nodes with transformers.

The result is an `Outcome`.

The way is the one of a real node and client: `open_checkpoint`, `load_span`, `choose_engine` for each of two spans, `load_ends`, and
the client's model over both; only the network between them is left out. Compared in float32: the logits of a prompt, and the tokens
of a greedy `generate` for one prompt and for two of different lengths in one batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from protocols.errors import ModelNotSupportedError
from swarm.models.skeleton import causal_config, model_class
from tests.families import draw_weights
from tests.swarm.client.local_backend import LocalBackend, local_model

EXACT_LOGITS = 1e-4
"""Largest error of a logit, relative to the largest logit."""
NEW_TOKENS = 24
FEW_TOKENS = 5
"""A reference that says at most so many different tokens proves nothing."""
DEVIATIONS = (0.2, 0.1, 0.4, 0.06, 1.0)
"""Standard deviations of the weights, in the order in which they are tried until the reference says different tokens."""
GENTLE = {"nemotron_h": 0.06}
"""Types whose recurrence loses digits with larger weights, in transformers as well: they begin with this deviation."""
MAX_VALUES = 20_000_000
"""Weights of a tiny model; more means that the configuration was not shrunk."""

PROMPT = torch.randint(3, 200, (1, 11), generator=torch.Generator().manual_seed(3))
PAD_COLUMNS = 4

EXACT = ("packed", "paged", "serial")
"""Verdicts that are exact, best first."""


@dataclass(kw_only=True)
class Outcome:
    """What came of one configuration."""

    name: str
    verdict: str
    """packed, paged or serial: exact, and served so by the slower of the two spans; refused: by us, before anything was computed;
    differs, fails: our fault; incomparable: transformers alone cannot run it, or gives no reference."""
    reason: str = ""
    architecture: str = ""
    remark: str = ""
    seconds: float = 0.0


class NoReferenceError(Exception):
    """transformers alone does not run this configuration, or gives nothing to compare with."""


def check(name: str, make: Callable[[], Any]) -> Outcome:
    """Run one configuration; every exception becomes a verdict."""
    started = time.monotonic()
    outcome = Outcome(name=name, verdict="fails")
    try:
        with tempfile.TemporaryDirectory() as folder:
            _check(outcome, make, Path(folder))
    except NoReferenceError as error:
        outcome.verdict, outcome.reason = "incomparable", str(error)
    except ModelNotSupportedError as error:
        outcome.verdict, outcome.reason = "refused", _line(error)
    except Exception as error:
        outcome.verdict, outcome.reason = "fails", _line(error)
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def _check(outcome: Outcome, make: Callable[[], Any], folder: Path) -> None:
    theirs, expected = _reference(outcome, make, folder)
    with torch.no_grad():
        logits = theirs(PROMPT, use_cache=False).logits
    ours, backend = local_model(folder, middle(theirs))
    error = float((ours(PROMPT, use_cache=False).logits - logits).abs().max() / logits.abs().max())
    if not error <= EXACT_LOGITS:
        outcome.verdict, outcome.reason = "differs", f"logits of a prompt are off by {error:.1e}, relative"
        return
    backend.calls.clear()
    tokens = greedy(ours, PROMPT)
    if not torch.equal(tokens, expected):
        if torch.equal(tokens, greedy(theirs, PROMPT, use_cache=False)):
            raise NoReferenceError("transformers alone answers otherwise with its cache than without; ours is the answer without")
        same = int((tokens == expected).long().cumprod(1).sum()) - PROMPT.shape[1]
        outcome.verdict, outcome.reason = "differs", f"greedy tokens from number {same + 1} on"
        return
    fault = _batch_fault(theirs, ours, outcome)
    modes = {engine.mode for engine in backend.engines}
    outcome.verdict = "differs" if fault else max(modes, key=EXACT.index)
    outcome.reason = fault or _effort(backend)
    outcome.remark = outcome.remark or _uncaptured(backend)


def _reference(outcome: Outcome, make: Callable[[], Any], folder: Path) -> tuple[Any, torch.Tensor]:
    """transformers' own model of the checkpoint that it leaves in `folder`, and its greedy tokens."""
    try:
        config = make()
        cls = model_class(config)
        outcome.architecture = cls.__name__
        for deviation in (GENTLE.get(config.model_type, DEVIATIONS[0]), *DEVIATIONS[1:]):
            _write(cls, make(), deviation, folder)
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            tokens = greedy(theirs, PROMPT)
            if len(set(tokens[0, PROMPT.shape[1] :].tolist())) > FEW_TOKENS:
                return theirs, tokens
    except Exception as error:
        raise NoReferenceError(f"transformers alone: {_line(error)}") from error
    raise NoReferenceError("transformers alone repeats a few tokens, whatever the weights")


def _write(cls: type[Any], config: Any, deviation: float, folder: Path) -> None:
    made_from = causal_config(config)
    with torch.device("meta"):
        values = sum(parameter.numel() for parameter in cls(made_from).parameters())
    if values > MAX_VALUES:
        raise NoReferenceError(f"not shrunk: {values} weights")
    torch.manual_seed(0)
    model = cls._from_config(made_from, dtype=torch.float32)
    draw_weights(model, deviation)
    model.save_pretrained(folder)
    if made_from is not config:
        config.save_pretrained(folder)  # as checkpoints of multimodal models say it


def middle(theirs: Any) -> int:
    """Where the blocks are cut in two."""
    return max(1, int(theirs.config.get_text_config(decoder=True).num_hidden_layers) // 2)


def greedy(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """Greedy tokens, prompt included; no end token stops them."""
    settings = {
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    with torch.no_grad():
        tokens: torch.Tensor = model.generate(ids, **settings, **options)
    return tokens


def _batch_fault(theirs: Any, ours: Any, outcome: Outcome) -> str:
    """Two prompts in one batch, one of them padded on the left; "" where ours is right."""
    ids = torch.cat([PROMPT, PROMPT.flip(1)])
    mask = torch.ones_like(ids)
    mask[0, :PAD_COLUMNS] = 0
    try:
        expected = greedy(theirs, ids, attention_mask=mask)
    except Exception as error:
        outcome.remark = f"transformers cannot batch prompts of different lengths ({type(error).__name__})"
        return ""
    tokens = greedy(ours, ids, attention_mask=mask)
    if torch.equal(tokens, expected):
        return ""
    alone = torch.cat([greedy(theirs, ids[:1, PAD_COLUMNS:])[:, -NEW_TOKENS:], greedy(theirs, ids[1:])[:, -NEW_TOKENS:]])
    if torch.equal(tokens[:, -NEW_TOKENS:], alone):
        outcome.remark = "transformers' batch of prompts of different lengths differs from each prompt alone; ours does not"
        return ""
    return "greedy tokens of a padded batch"


def _effort(backend: LocalBackend) -> str:
    """Said where a step costs more than its new tokens."""
    kinds = {type(engine).__name__ for engine in backend.engines}
    return "recomputes every step from the first token" if "RecomputeEngine" in kinds else ""


def _uncaptured(backend: LocalBackend) -> str:
    """The reason if a packed engine runs its decodes instead of replaying captured graphs."""
    refusals = [engine.refusal for engine in backend.engines if engine.mode == "packed" and engine.refusal]
    return f"forwards are not captured ({refusals[0]})" if refusals else ""


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
