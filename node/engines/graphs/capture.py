"""Capture of a forward: its torch calls, in segments between attentions.

Two modes of torch watch the forward. One sees every call that Python makes, with its tensors. The other sees the operators below, and
refuses those whose result may steer Python (`item`, `nonzero`, a mask as an index), by torch's own tags. The calls that are left depend on
nothing but the inputs' shapes, so they hold for every input of that shape; `engine_graphs.py` still checks them on other inputs.

A refusal (`NotCapturableError`) changes nothing: the model's own forward runs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from node.engines.graphs.graph import Attention, CapturedGraph, Segment
from node.engines.graphs.linear_kernels import LinearKernel


class NotCapturableError(Exception):
    """This forward's calls may be others for the next input."""


class Attending(Protocol):
    """What computes attention while a step runs: query [1, N, T, D], key and value [1, G, T, D] -> [1, T, N, D]."""

    calls: int
    """Calls of `attend` so far."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Any) -> Tensor: ...


_STEERING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_METADATA = {"__get__", "size", "dim", "ndimension", "stride", "numel", "nelement", "element_size", "__len__", "is_floating_point",
             "is_complex", "is_contiguous", "get_device", "is_inference", "_set_grad_enabled"}  # fmt: skip
"""Calls whose result is not a tensor, and is the same for every tensor of that shape and dtype."""
_PLAIN = (int, float, complex, str, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format)


class _Draft:
    """A segment that is being written: its calls as nodes of a graph, and the slots that it reads and writes."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.nodes: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.inputs: list[int] = []
        self.outputs: dict[int, fx.Node] = {}
        self.attention: Attention | None = None
        self.writes = False
        """A call writes to an existing tensor, so no call may be removed as dead code."""
        self.linears: list[tuple[fx.Node, Tensor]] = []
        """Calls of `F.linear` with a matrix of the model, and that matrix."""

    def end(self) -> None:
        """Complete the segment, and remove dead code if that is safe."""
        self.graph.output(tuple(self.outputs.values()))
        if not self.writes:
            self.graph.eliminate_dead_code()

    def segment(self, compiled: dict[str, Callable[..., Any]]) -> Segment:
        """The segment. Segments that look alike share one function, which so stays in the CPU caches from block to block."""
        source = self.graph.python_code("self").src
        if source not in compiled:
            compiled[source] = fx.GraphModule(torch.nn.Module(), self.graph).forward
        return Segment(compiled[source], tuple(self.inputs), tuple(self.outputs), self.attention)


class Capture:
    """Captures one forward, within `watching`. The calls of `step` are left out: they depend on the sequences, not on the blocks."""

    def __init__(self, inputs: Iterable[Tensor], constants: Iterable[Tensor], step: Attending) -> None:
        """inputs: tensors that change from forward to forward. constants: all other tensors that the forward may read, but not write."""
        self.calls = 0
        self._step = step
        self._constants: WeakIdKeyDictionary = WeakIdKeyDictionary({constant: None for constant in constants})
        self._values: list[Tensor | None] = []
        self._slots: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._makers: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._drafts = [_Draft()]
        self._output = -1
        self._is_paused = self._has_written = False
        self._owned = {constant.untyped_storage().data_ptr() for constant in self._constants}
        for given in inputs:
            self._slots[given] = self._new_slot(None)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note every torch call of this block and thread. Raises NotCapturableError at the call that cannot be captured."""
        with _Watch(self._write), _Calls(self._call):
            yield

    def end(self, output: Tensor) -> None:
        """Complete the capture: the forward returned `output`."""
        self._output = self._slot(output)
        for draft in self._drafts:
            draft.end()

    def graph(self) -> CapturedGraph:
        """The captured graph; call `end` first."""
        compiled: dict[str, Callable[..., Any]] = {}
        return CapturedGraph(tuple(self._values), [draft.segment(compiled) for draft in self._drafts], self._output)

    def choose_kernels(self, choose: Callable[[Sequence[Tensor]], LinearKernel]) -> bool:
        """Graphs made from now on use the kernel that `choose` returns for the matrices of one shape. False if it is always `F.linear`."""
        linears_of: dict[tuple[int, ...], list[tuple[fx.Node, Tensor]]] = {}
        for node, weight in (linear for draft in self._drafts for linear in draft.linears):
            linears_of.setdefault(tuple(weight.shape), []).append((node, weight))
        is_other = False
        for linears in linears_of.values():
            chosen = choose([weight for _, weight in linears])
            is_other |= chosen is not F.linear
            for node, _ in linears:
                node.target = chosen
        return is_other

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Any) -> Tensor:
        self.calls += 1
        self._is_paused = True
        output = self._step.attend(layer, query, key, value, options)
        self._is_paused = False
        self._slots[output] = self._new_slot(None)
        slots = (self._slot(query), self._slot(key), self._slot(value))
        self._drafts[-1].attention = Attention(layer, slots, options, self._slots[output])
        self._drafts.append(_Draft())
        return output

    def _write(self, tensor: Tensor) -> None:
        """Note that the current call writes to `tensor`."""
        if self._is_paused:
            return
        if tensor.untyped_storage().data_ptr() in self._owned:
            raise NotCapturableError("the model writes to what it keeps")
        self._has_written = self._drafts[-1].writes = True

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._has_written = False
        result = func(*args, **kwargs)
        if not self._is_paused:
            self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = getattr(func, "__name__", str(func))
        if not self._has_written:
            if args and result is args[0]:  # `to` or `contiguous` with nothing to do, which depends on shapes and dtypes only
                return
            if next(_tensors(result), None) is None:
                if name not in _METADATA:
                    raise NotCapturableError(f"{name} returns a {type(result).__name__}")
                return
        if name == "__get__":
            func, args = getattr, (args[0], func.__self__.__name__)
        draft = self._drafts[-1]
        node = draft.graph.call_function(func, map_aggregate(args, self._argument), map_aggregate(kwargs, self._argument))
        if func is F.linear and args[1:] and args[1] in self._constants:
            draft.linears.append((node, args[1]))
        self._keep(result, node)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(value)
        if not isinstance(value, _PLAIN):
            raise NotCapturableError(f"a call takes a {type(value).__name__}")
        of_numpy = getattr(value, "item", None)  # a number of numpy, which a graph cannot print as source
        return of_numpy() if of_numpy else value

    def _keep(self, result: Any, node: fx.Node) -> None:
        """Note which call made the tensors of `result`."""
        draft = self._drafts[-1]
        if isinstance(result, Tensor):
            draft.nodes[result] = node
            self._makers[result] = (draft, node)
        elif isinstance(result, tuple | list):
            for index, item in enumerate(result):
                self._keep(item, draft.graph.call_function(operator.getitem, (node, index)))

    def _node(self, tensor: Tensor) -> fx.Node:
        """The tensor's node in the current segment, made there or an input of it."""
        draft = self._drafts[-1]
        if tensor not in draft.nodes:
            draft.inputs.append(self._slot(tensor))
            draft.nodes[tensor] = draft.graph.placeholder(f"given_{len(draft.inputs)}")
        node: fx.Node = draft.nodes[tensor]
        return node

    def _slot(self, tensor: Tensor) -> int:
        """The tensor's slot between segments. NotCapturableError if its creation was not seen."""
        if tensor not in self._slots:
            if tensor in self._makers:
                draft, node = self._makers[tensor]
                self._slots[tensor] = self._new_slot(None)
                draft.outputs[self._slots[tensor]] = node
            elif tensor in self._constants:
                self._slots[tensor] = self._new_slot(tensor)
            else:
                raise NotCapturableError(f"a tensor of {list(tensor.shape)} was made outside of the capture")
        slot: int = self._slots[tensor]
        return slot

    def _new_slot(self, value: Tensor | None) -> int:
        self._values.append(value)
        return len(self._values) - 1


class _Calls(TorchFunctionMode):
    """Passes on every torch call that Python makes."""

    def __init__(self, call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self._call = call

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return self._call(func, args, kwargs or {})


class _Watch(TorchDispatchMode):
    """Refuses operators whose result depends on numbers, and reports the tensors that are written to."""

    def __init__(self, write: Callable[[Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._write = write

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if _STEERING & set(func.tags) and not _is_plain_index(func, args):
            raise NotCapturableError(f"{func} depends on numbers")
        if func._schema.is_mutable:
            for tensor in _written(func, args, kwargs or {}):
                self._write(tensor)
        return func(*args, **(kwargs or {}))


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The arguments that an operator writes to, by its schema."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[index] if index < len(args) else kwargs.get(argument.name))


def _is_plain_index(func: Any, args: tuple[Any, ...]) -> bool:
    """Is it indexing by numbers? The tag is there for masks; with numbers, the result's shape is that of the index."""
    is_index = func is torch.ops.aten.index.Tensor
    return is_index and all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1])


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a call's arguments, or of its result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
