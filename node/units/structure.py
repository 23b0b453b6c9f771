"""What a module is made of, to notice that something was exchanged.

A captured graph holds the parameters that it was captured with. It sees numbers that are written in place, but not a parameter that was
replaced (`load_state_dict(assign=True)`) or a module that was put in (an adapter). So code that derives something from a module keeps its
structure, and asks before each use whether it is the same.

The comparison is by identity, in C loops: 1.4 µs of a core for a Llama block (docs/log.md). It does not see a `forward` that was replaced
on an instance, nor a number of Python's own.
"""

from __future__ import annotations

import operator
from itertools import chain
from typing import Any

from torch import Tensor, nn


class Structure:
    """The parameters, buffers, submodules and hooks that a module had when this was made. It keeps them alive."""

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        self.tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
        tables = [table for one in modules for table in (one._parameters, one._buffers, one._modules)]
        self._views = [table.values() for table in tables if table]
        """Live: they show what the tables hold now."""
        self._hooks = [hooks for one in modules for hooks in (one._forward_hooks, one._forward_pre_hooks)]
        self._end = (object(),)
        """Behind the last part on both sides, so that one more or one fewer is a difference."""
        self._parts = list(self._current())
        self._num_hooks = sum(map(len, self._hooks))

    def is_current(self) -> bool:
        """Has the module the very same parts still?"""
        return all(map(operator.is_, self._current(), self._parts)) and sum(map(len, self._hooks)) == self._num_hooks

    def _current(self) -> chain[Any]:
        return chain(chain.from_iterable(self._views), self._end)
