"""Fresh weights of a model, drawn from a seed unit by unit.

A unit (one block; or embedding, final norm and head) is drawn from (seed, unit) alone, so a node makes its own units without the
rest, and whatever was drawn before does not matter. What is drawn is what transformers would draw for the whole model: the unit's
modules are made by their own constructors, and initialised by the model's `_init_weights` with the config of the whole model, whose
number of blocks some families scale by. The rest is on the meta device, without memory. The tensors have the names and shapes in
which `save_pretrained` of the whole model would store them: fused experts are split, tied heads left out.

The same on one machine. Another CPU may draw other bits: `torch.randn` differs between instruction sets (research/training.md section 4).
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from protocols.errors import ModelNotSupportedError
from protocols.units import Blocks, Ends
from swarm.models.default_dtype import building, computing
from swarm.models.dtypes import SPELLED
from swarm.models.refusal import refused
from swarm.models.skeleton import blocks_prefix, causal_config, locate, model_class

Constructor = Callable[..., None]

_DRAWING = threading.Lock()
"""torch's random state and the constructors of a class are the process's."""


class StoredShape(NamedTuple):
    """What is known of a tensor before it is drawn."""

    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]


class FreshModel:
    """A model of a config whose units can be drawn; until then it takes no memory for weights.

    ModelNotSupportedError: transformers has no such causal model, or its units cannot be drawn apart, since blocks share weights.
    """

    def __init__(self, config: Any) -> None:
        """config: of transformers, for the whole model; it stays the caller's."""
        self._class, self._config = model_class(config), copy.deepcopy(causal_config(config))
        with refused(f"draw a {config.model_type}"):
            self._constructors = {type(block) for block in locate(self._on_meta()).blocks}
            made: dict[int, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}

            def remember(constructor: Constructor, block: nn.Module, *args: Any, **kwargs: Any) -> None:
                made.setdefault(id(block), (block, args, kwargs))  # the outermost of a chain of constructors
                constructor(block, *args, **kwargs)

            with _DRAWING, _around(self._constructors, remember):
                self._rest = self._on_meta()
            self._blocks = locate(self._rest).blocks
            self._arguments = [made[id(block)][1:] for block in self._blocks]
            self._prefix = blocks_prefix(self._rest, self._blocks)
            self.tensors: Mapping[Blocks | Ends, Mapping[str, StoredShape]] = self._shapes_by_unit()
            """Of each unit (blocks one by one): the tensors that are stored, by name."""

    @property
    def units(self) -> tuple[Blocks | Ends, ...]:
        """Each block alone, then embedding and head."""
        return tuple(self.tensors)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """What `save_pretrained` writes into `config.json`: of a float32 model of this class."""
        own = copy.deepcopy(self._rest.config)
        own.dtype, own.architectures = "float32", [self._class.__name__]
        found: dict[str, Any] = json.loads(own.to_json_string())
        return found

    def draw(self, unit: Blocks | Ends, seed: int) -> dict[str, Tensor]:
        """The tensors of one of `units`, by their stored names: float32 where they are floating-point, contiguous, on the CPU.

        About 1 s for 100 million values, and their memory once. From any thread, but not within `computing`: it is entered here.
        """
        what = f"draw unit {unit} of a {self._config.model_type}"
        with refused(what), _DRAWING, computing(), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(unit_seed(seed, unit))
            model, state = self._ends() if isinstance(unit, Ends) else self._block(unit.start)
            drawn = {name: tensor.detach().contiguous() for name, tensor in _stored(model, state).items()}
        assert _shapes(drawn) == self.tensors[unit] and not any(tensor.is_meta for tensor in drawn.values())
        return drawn

    def _on_meta(self) -> Any:
        with building(), torch.device("meta"):
            return self._class._from_config(copy.deepcopy(self._config), dtype=torch.float32)

    def _shapes_by_unit(self) -> dict[Blocks | Ends, dict[str, StoredShape]]:
        whole = self._rest.state_dict()
        parts: dict[Blocks | Ends, dict[str, Tensor]] = {
            Blocks(number, number + 1): self._of_block(whole, number) for number in range(len(self._blocks))
        }
        parts[Ends()] = self._of_ends(whole)
        found = {unit: _shapes(_stored(self._rest, part)) for unit, part in parts.items()}
        if {name: shape for part in found.values() for name, shape in part.items()} != _shapes(_stored(self._rest, whole)):
            raise ModelNotSupportedError(f"the blocks of a {self._config.model_type} share weights, so none can be drawn apart")
        return found

    def _of_block(self, state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if name.startswith(f"{self._prefix}{number}.")}

    def _of_ends(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if not name.startswith(self._prefix)}

    def _block(self, number: int) -> tuple[Any, dict[str, Tensor]]:
        args, kwargs = self._arguments[number]
        without = self._blocks[number]
        fresh = self._blocks[number] = type(without)(*args, **kwargs)
        try:
            _adopt_buffers(fresh, without)
            _mark(self._rest.modules(), True)
            _mark(fresh.modules(), False)
            _mark(
                (module for module in self._rest.modules() if isinstance(module, PreTrainedModel)), False
            )  # they reach into blocks
            self._rest.initialize_weights()
            return self._rest, self._of_block(self._rest.state_dict(), number)
        finally:
            self._blocks[number] = without

    def _ends(self) -> tuple[Any, dict[str, Tensor]]:
        def on_meta(constructor: Constructor, block: nn.Module, *args: Any, **kwargs: Any) -> None:
            with torch.device("meta"):
                constructor(block, *args, **kwargs)
            _mark(block.modules(), True)

        with _around(self._constructors, on_meta):
            model = self._class._from_config(copy.deepcopy(self._config), dtype=torch.float32)
        return model, self._of_ends(model.state_dict())


def unit_seed(seed: int, unit: Blocks | Ends) -> int:
    """What torch's generator starts from, for one unit of a run: 63 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(f"murmuration draw {seed} {unit}".encode()).digest()[:8]) >> 1


def _stored(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `save_pretrained` stores these tensors of a model."""
    kept = {name: tensor for name, tensor in state.items() if name not in (model._keys_to_ignore_on_save or ())}
    found: dict[str, Tensor] = revert_weight_conversion(model, remove_tied_weights_from_state_dict(kept, model))
    return found


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, StoredShape]:
    return {name: StoredShape(SPELLED[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


def _mark(modules: Iterable[nn.Module], is_initialized: bool) -> None:
    """What is marked, transformers leaves alone when it initialises."""
    for module in modules:
        module._is_hf_initialized = is_initialized  # type: ignore[assignment]


def _adopt_buffers(fresh: nn.Module, without: nn.Module) -> None:
    """Buffers that the model put into its block after making it (falcon_h1), not initialised yet."""
    known = dict(fresh.named_buffers())
    for name, buffer in without.named_buffers():
        if name not in known:
            owner, _, attribute = name.rpartition(".")
            fresh.get_submodule(owner).register_buffer(attribute, torch.empty_like(buffer, device="cpu"), persistent=False)


@contextmanager
def _around(classes: Iterable[type[nn.Module]], call: Constructor) -> Iterator[None]:
    """Within, `call(constructor, module, ...)` stands for the constructor of each of these classes. Other threads see it: hold a lock."""
    with ExitStack() as stack:
        for cls in classes:
            own, original = cls.__dict__.get("__init__"), cls.__init__
            setattr(cls, "__init__", _calling(call, original))  # noqa: B010
            stack.callback(_restore, cls, own)
        yield


def _calling(call: Constructor, original: Constructor) -> Constructor:
    @functools.wraps(original)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        call(original, self, *args, **kwargs)

    return __init__


def _restore(cls: type[nn.Module], own: Any) -> None:
    if own is None:
        del cls.__init__
    else:
        setattr(cls, "__init__", own)  # noqa: B010
