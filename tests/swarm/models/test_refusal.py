"""Errors of a family's own code are refusals."""

from __future__ import annotations

import pytest
import torch

from protocols.errors import BadRequestError, ModelNotSupportedError
from swarm.models.refusal import refused


@pytest.mark.parametrize("error", [MemoryError(), BadRequestError("of ours")])
def test_our_errors_and_a_lack_of_memory_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, refused("draw a llama"):
        raise error
    assert caught.value is error


def test_any_other_error_says_what_cannot_be_done_and_why() -> None:
    with pytest.raises(ModelNotSupportedError, match="cannot draw a llama: KeyError: 'rope'"), refused("draw a llama"):
        raise KeyError("rope")


LACKS = (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"))


@pytest.mark.parametrize("error", LACKS)
def test_a_lack_of_memory_is_the_same_error_on_every_device(error: Exception) -> None:
    with pytest.raises(MemoryError, match=r"no memory to draw a llama: .*memory"), refused("draw a llama"):
        raise error


def test_torch_says_a_lack_of_memory_as_we_know_it() -> None:
    with pytest.raises(MemoryError), refused("draw a llama"):
        torch.empty(1 << 60, dtype=torch.uint8)
