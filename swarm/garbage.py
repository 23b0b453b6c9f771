"""Keeps the collector of reference cycles away from what imports make.

The imports of a node make 700,000 objects that live as long as its process. While they are made, Python's collector looks at all of them
again and again: 1.0 of 3.7 s of processor time. Later, each full collection stops every step for 0.15 s. This is for commands, which own
their process; a program that imports our library decides by itself.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """No collection while the block imports, and none later looks at what it has imported.

    What is alive at its end is never collected, so nothing belongs into the block that is given up later, as weights are.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
