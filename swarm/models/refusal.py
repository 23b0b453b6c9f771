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
    raise any. Our own errors pass, and so does a lack of memory, which says nothing about the family."""
    try:
        yield
    except (SwarmError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelNotSupportedError(f"cannot {what}: {described(error)}") from error
