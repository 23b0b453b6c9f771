"""Packed documents: no token may depend on another document's.

A packed sequence holds several documents, one after the other; positions restart at 0 at each. Three ways to compute it, fastest first:

    together      one run with the positions: transformers then masks by document, in the families that read positions
    padded        documents of similar length side by side, filled up on the right: a causal model cannot look there
    equal         documents of equal length side by side, nothing filled up

`choose_way` compares them with each document alone, on a few tokens, and takes the first that is exact; it knows no family's name.

Shapes: B sequences of T tokens; D documents, the longest of a batch with L tokens; "…" what one token has: nothing (ids) or a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protocols.errors import BadRequestError

Way = Literal["together", "padded", "equal"]
WAYS: tuple[Way, ...] = ("together", "padded", "equal")

Function = Callable[[Tensor, Tensor | None], Tensor]
"""(values [B, T, …], positions [B, T] or None) -> [B, T, …]; without positions each sequence is one document."""

EXACT = 5e-5
"""Largest error of an exact way in float32, relative to the largest value: as of an engine (`node/engines/selftest.py`)."""

ROUGH = 5e-2
"""The same in half precision."""

TEST_LENGTHS = ((9, 5, 1, 12), (3, 16, 8))
"""Tokens of the test's documents, in two sequences of equal length."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Where the documents of B sequences begin, on one axis of all their tokens, and how long they are."""

    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, positions: Tensor) -> Documents:
        """positions [B, T], integers: 0 at the first token of each document and sequence, else one more than before. BadRequestError."""
        rest = positions[:, 1:]
        is_right = (positions[:, 0] == 0).all() and ((rest == 0) | (rest == positions[:, :-1] + 1)).all()
        if not bool(is_right):
            raise BadRequestError("positions start at 0 and count up by 1, or start at 0 again where a document begins")
        starts = (positions == 0).flatten().nonzero().flatten().tolist()
        stops = [*starts[1:], positions.numel()]
        return cls(tuple(starts), tuple(stop - start for start, stop in zip(starts, stops, strict=True)))

    def batches(self, way: Way) -> Iterator[list[int]]:
        """Numbers of documents to run side by side; if they are filled up, at most half of what is run is filling."""
        batches: dict[int, list[int]] = {}
        for number, length in enumerate(self.lengths):
            batches.setdefault(length.bit_length() if way == "padded" else length, []).append(number)
        yield from (batches[key] for key in sorted(batches))


def run(function: Function, values: Tensor, positions: Tensor | None, way: Way) -> Tensor:
    """What `function` gives for the documents in `values` [B, T, …], each alone: [B, T, …], of which gradients can be taken.

    positions [B, T], or None: each sequence is one document. BadRequestError as of `Documents.of`.
    """
    if positions is None:
        return function(values, None)
    documents = Documents.of(positions)
    if len(documents.starts) == len(positions):
        return function(values, None)
    return function(values, positions) if way == "together" else _side_by_side(function, values, documents, way)


def _side_by_side(function: Function, values: Tensor, documents: Documents, way: Way) -> Tensor:
    size = values.shape[:2]
    tokens = values.flatten(0, 1)
    found, places = [], []
    for numbers in documents.batches(way):
        starts = torch.tensor([documents.starts[number] for number in numbers], device=values.device)[:, None]
        lengths = torch.tensor([documents.lengths[number] for number in numbers], device=values.device)[:, None]
        offsets = torch.arange(int(lengths.max()), device=values.device)[None]
        places_DL = starts + offsets.minimum(lengths - 1)  # filled up with the document's last token
        is_token = offsets < lengths
        found.append(function(tokens[places_DL], None)[is_token])
        places.append(places_DL[is_token])
    order = torch.cat(places).argsort()
    ordered: Tensor = torch.cat(found)[order].unflatten(0, size)
    return ordered


def choose_way(function: Function, values: Tensor) -> Way:
    """The fastest way that is exact. values [2, 27, …]: test input; of a floating one, its gradient is compared, too."""
    positions = torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in TEST_LENGTHS]).to(
        values.device
    )
    expected = _measured(lambda given: _alone(function, given), values)
    for way in WAYS[:-1]:
        try:
            got = _measured(lambda given, way=way: run(function, given, positions, way), values)  # type: ignore[misc]
        except (MemoryError, torch.OutOfMemoryError):
            raise  # it says nothing about the way
        except Exception:  # of any class: a family's own code fails as it likes on a path that it does not support
            continue
        if all(_is_close(one, other) for one, other in zip(got, expected, strict=True)):
            return way
    return WAYS[-1]


def test_tokens() -> tuple[int, int]:
    """(B, T) of what `choose_way` takes."""
    return len(TEST_LENGTHS), sum(TEST_LENGTHS[0])


def _alone(function: Function, values: Tensor) -> Tensor:
    sequences = []
    for sequence, lengths in zip(values, TEST_LENGTHS, strict=True):
        sequences.append(torch.cat([function(one[None], None)[0] for one in sequence.split(list(lengths))]))
    return torch.stack(sequences)


def _measured(function: Callable[[Tensor], Tensor], values: Tensor) -> list[Tensor]:
    if not values.is_floating_point():
        return [function(values).detach()]
    given = values.detach().clone().requires_grad_()
    output = function(given)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device, dtype=output.dtype).view_as(output)
    return [output.detach(), torch.autograd.grad(output, given, weights)[0]]


def _is_close(got: Tensor, expected: Tensor) -> bool:
    bound = EXACT if expected.dtype == torch.float32 else ROUGH
    error = (got.float() - expected.float()).abs().max()
    return got.shape == expected.shape and bool(error <= bound * expected.float().abs().max())
