"""Blocks that have served can be trained, and trained blocks can serve.

Serving runs in inference mode: a buffer that a forward replaces there (`inv_freq` of a dynamic or long rope) becomes an inference tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor

from node.engines.engine import Engine, choose_engine
from protocols.ids import Span
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading import load_parts, load_span
from swarm.models.parts import SpanParts
from swarm.models.span import SpanModule
from tests.devices import DEVICE, feed
from tests.families import _BASE, FAMILIES, write_checkpoint

SPAN = Span(1, 3)
LONG, SHORT = 48, 12
"""Tokens of what is served and of what is trained: beyond and within the table of the ropes below."""


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **options}}


CONFIGS: dict[str, Callable[[], Any]] = {
    **{
        name: FAMILIES[name]
        for name in ("llama", "gemma2", "mixtral", "gpt2", "bloom", "gpt_neo", "qwen3_next", "mamba", "falcon_h1")
    },
    "dynamic rope": lambda: T.LlamaConfig(**{**_BASE, "max_position_embeddings": 40}, **_rope("dynamic", factor=2.0)),
    "long rope": lambda: T.Phi3Config(
        **{**_BASE, "max_position_embeddings": 256},
        original_max_position_embeddings=40,
        **_rope("longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8),
    ),
    "recurrent_gemma": lambda: T.RecurrentGemmaConfig(
        **{**_BASE, "num_hidden_layers": 4},
        lru_width=64,
        attention_window_size=16,
        block_types=("recurrent", "recurrent", "attention"),
    ),
}

REPLACING = ("dynamic rope", "long rope", "recurrent_gemma")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def checkpoint_of(root: Path, name: str) -> Checkpoint:
    directory = root / name
    return open_checkpoint(directory if directory.exists() else write_checkpoint(CONFIGS[name](), directory))


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(1, count, 64, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def serve(engine: Engine, hidden: Tensor) -> Tensor:
    """A prompt, single tokens, and the rest."""
    row, total = engine.open(), hidden.shape[1]
    edges = [0, 7, 8, 9, total] if engine.chunking != "never" else [0, 7, total]
    outputs = [feed(engine, [(row, stop - start)], hidden[:, start:stop]) for start, stop in pairwise(edges)]
    engine.close(row)
    return torch.cat(outputs, dim=1)


def gradients(span: SpanModule, hidden: Tensor) -> dict[str, Tensor]:
    """Of the input and of every parameter of the blocks, with the flag on only here."""
    given, span_parameters = hidden.clone().requires_grad_(), dict(span.layers.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in span_parameters.items()}
    try:
        span.layers.requires_grad_(True)
        made = torch.autograd.grad(span(given).square().sum(), [given, *span_parameters.values()], allow_unused=True)
    finally:
        for name, parameter in span_parameters.items():
            parameter.requires_grad_(flags[name])
    return {name: grad for name, grad in zip(["input", *span_parameters], made, strict=True) if grad is not None}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys() and len(got) > 4
    for name, gradient in expected.items():
        assert (got[name] - gradient).abs().max() <= 1e-4 * max(1e-6, float(gradient.abs().max())), name


def inference_tensors(span: SpanModule) -> list[str]:
    """Buffers and plain attributes that a forward of serving has put there."""
    kept = [
        (name, value) for name, module in span.named_modules() for value in (*vars(module).values(), *module._buffers.values())
    ]
    return [name for name, value in kept if isinstance(value, Tensor) and value.is_inference()]


def warm_engine(parts: SpanParts) -> Engine:
    engine = choose_engine(parts.cut(SPAN), 1 << 30)
    engine.warm_up()
    return engine


@pytest.mark.parametrize("name", CONFIGS)
def test_a_module_that_serves_can_be_trained_and_serves_on(root: Path, name: str) -> None:
    checkpoint = checkpoint_of(root, name)
    short, long = noise(SHORT, 1), noise(LONG, 2)
    _, parts = load_parts(checkpoint, SPAN, dtype=torch.float32, device=DEVICE)
    expected = gradients(load_span(checkpoint, SPAN, dtype=torch.float32, device=DEVICE), short)
    engine = warm_engine(parts)
    served = serve(engine, long)
    own: SpanModule = engine._span  # type: ignore[attr-defined]
    assert bool(inference_tensors(own)) is (name in REPLACING) and not inference_tensors(parts.cut(SPAN))
    assert_same(gradients(parts.cut(SPAN), short), expected)
    assert torch.equal(serve(engine, long), served)
    gradients(own, long)  # the same module, with extended tables
    assert torch.equal(serve(engine, long), served)


def inverse_frequencies(span: SpanModule) -> Tensor:
    return next(buffer for name, buffer in span.named_buffers() if name.endswith("rotary_emb.inv_freq"))


def test_a_long_forward_of_training_changes_no_buffer_of_an_engine(root: Path) -> None:
    """The long rope writes its frequencies in place, for the longer one of two tables."""
    _, parts = load_parts(checkpoint_of(root, "long rope"), SPAN, dtype=torch.float32, device=DEVICE)
    engine, trained = warm_engine(parts), parts.cut(SPAN)
    serve(engine, noise(SHORT, 5))
    own = inverse_frequencies(engine._span)  # type: ignore[attr-defined]
    before = own.clone()
    gradients(trained, noise(LONG, 6))
    assert not torch.equal(inverse_frequencies(trained), before), "it was a long one"
    assert torch.equal(own, before)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_module_that_was_trained_can_serve(root: Path, name: str) -> None:
    checkpoint = checkpoint_of(root, name)
    short, long = noise(SHORT, 3), noise(LONG, 4)
    _, parts = load_parts(checkpoint, SPAN, dtype=torch.float32, device=DEVICE)
    module, fresh = parts.cut(SPAN), warm_engine(load_parts(checkpoint, SPAN, dtype=torch.float32, device=DEVICE)[1])
    expected = serve(fresh, long)
    before = gradients(module, short)
    engine = choose_engine(module, 1 << 30)
    assert torch.allclose(serve(engine, long), expected, atol=1e-4 * float(expected.abs().max()))
    assert_same(gradients(parts.cut(SPAN), short), before)
