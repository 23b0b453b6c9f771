"""What a family's own code raises, as our refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from protocols.errors import ModelNotSupportedError, SwarmError
from protocols.words import described


@contextmanager
def refused(what: str) -> Iterator[None]:
    """ModelNotSupportedError "cannot WHAT: …" for any error within: a config from elsewhere, or a path that a family does not support, can
    raise any. Our own errors pass. A lack of memory says nothing about the family: it is a MemoryError, on every device."""
    try:
        yield
    except (SwarmError, MemoryError):
        raise
    except Exception as error:
        if is_lack_of_memory(error):
            raise MemoryError(f"no memory to {what}: {described(error)}") from error
        raise ModelNotSupportedError(f"cannot {what}: {described(error)}") from error


def is_lack_of_memory(error: Exception) -> bool:
    """torch has a class for it on accelerators; on a CPU it raises RuntimeError with the allocator's name."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
