"""Places: how many requests are answered at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from node.gateway.refusal import RefusedError

AGAIN_S = 1


class Places:
    """All methods belong to one event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.num_taken = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """One of them; RefusedError (429) if none is free."""
        if self.num_taken >= self.most:
            raise RefusedError(
                f"this gateway is answering {self.most} requests, as many as it may; try again in a moment",
                code="too_many_requests", status=429, retry_after_s=AGAIN_S,
            )  # fmt: skip
        self.num_taken += 1
        try:
            yield
        finally:
            self.num_taken -= 1
