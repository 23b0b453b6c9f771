"""Takes back what a forward leaves in modules, so each is alone.

Some families keep things: a dynamic rope its frequencies for the longest sequence so far, a recurrent block its last state with the graph
behind it. In training, a forward that is computed again must give the same numbers, also if others ran in between.
"""

from __future__ import annotations

from operator import is_
from typing import Any

from torch import nn


class ModuleState:
    """The buffers and plain attributes that a module and those below it had when this was made; parameters are left alone."""

    def __init__(self, module: nn.Module) -> None:
        self._kept = [(one, dict(one.__dict__), dict(one._buffers)) for one in module.modules()]

    def restore(self) -> None:
        """Put them back: replaced ones, and those that were deleted or are new. What was written into a tensor in place stays."""
        for module, attributes, buffers in self._kept:
            _put_back(module.__dict__, attributes)
            _put_back(module._buffers, buffers)


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    if now.keys() != before.keys() or not all(map(is_, now.values(), before.values())):  # another order is put back, too
        now.clear()
        now.update(before)
