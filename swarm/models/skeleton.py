"""Model classes that build only some of their blocks.

They are made from any Hugging Face class; no architecture is named here.

`pruned(cls, start, stop)` is a subclass with the same name whose constructor throws away every other block. `from_pretrained`
of such a class then does the rest (dtype, renames, fused experts, buffers) as for any model. With `start == stop` it keeps the
ends and no block.

Why each odd-looking step (measured in research/blocks.md section 1):
- same `__name__`, `__module__`, `__qualname__`: transformers' rename rules and `generate` look at them;
- prune in the constructor: afterwards, every block would have been allocated and initialised first;
- cache indices are moved down by `start`: caches, masks and `layer_types[i]` are indexed by them;
- config lists are shortened only after loading: constructors and buffers read the full ones.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from protocols.errors import ModelNotSupportedError
from swarm.models.default_dtype import building

_INDEX_NAMES = ("layer_idx", "layer_id", "layer_number", "block_idx")
_PER_BLOCK_WORDS = ("layer", "mode", "attention", "types")


class Hole(nn.Module):
    """Stands where a module that this peer does not host was; hands its first input on."""

    weight = torch.empty(0)  # tying, initialisers and some decoders look at the weight of an embedding or a head

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


@dataclass(frozen=True, slots=True)
class Location:
    """Where a pruned model keeps its blocks, and how many the whole model has."""

    decoder: Any
    owner: nn.Module
    attribute: str
    num_blocks: int
    embed_width: int
    """Last dimension of `inputs_embeds`; not always the hidden size (opt-350m projects)."""

    @property
    def blocks(self) -> nn.ModuleList:
        blocks: nn.ModuleList = getattr(self.owner, self.attribute)
        return blocks


def model_class(config: Any) -> type[Any]:
    """The causal language model class of a config; ModelNotSupportedError if transformers has none."""
    try:
        cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise ModelNotSupportedError(f"model type {config.model_type!r} is no causal language model in transformers") from None
    found: type[Any] = cls[0] if isinstance(cls, list | tuple) else cls
    return found


def causal_config(config: Any) -> Any:
    """What the causal model class is made from: the text part of a multimodal config if that class is for text alone."""
    cls = model_class(config)
    return config.get_text_config(decoder=True) if cls.config_class is config.sub_configs.get("text_config") else config


def pruned(cls: type[Any], start: int, stop: int) -> type[Any]:
    """A subclass of `cls` that builds blocks [start, stop) only, or embedding and head only if start == stop."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        location = locate(self)
        blocks = location.blocks[start:stop]
        setattr(location.owner, location.attribute, blocks)
        renumber_caches(blocks, start)
        if len(blocks):
            _drop_ends(self, location.decoder)
        self.__dict__["swarm_location"] = location  # not through nn.Module: no module is registered twice

    def get_init_context(own: type[Any], *args: Any, **kwargs: Any) -> list[Any]:
        return [building(), *super(made, own).get_init_context(*args, **kwargs)]  # entered first, left last

    body = {"__init__": __init__, "get_init_context": classmethod(get_init_context), "__module__": cls.__module__,
            "__qualname__": cls.__qualname__}  # fmt: skip
    made: Any = type(cls.__name__, (cls,), body)
    return cast("type[Any]", made)


def meta_model(config: Any, start: int, stop: int, dtype: torch.dtype) -> Any:
    """The pruned model without memory: names, shapes and dtypes."""
    cls = pruned(model_class(config), start, stop)
    with building(), torch.device("meta"):
        return cls._from_config(copy.deepcopy(causal_config(config)), dtype=dtype)


def whole_model(config: Any) -> Any:
    """Every block, embedding and head without memory, from the config of a causal model: something to count."""
    own = copy.deepcopy(config)
    own._attn_implementation_internal = None  # that of a model without blocks suits no constructor
    with building(), torch.device("meta"):
        return model_class(own)._from_config(own)


def shorten(model: Any, start: int, stop: int) -> None:
    """Make the configs inside a loaded, pruned model describe a model of blocks [start, stop) (or any single block), so that
    transformers' caches, masks and loops count as many as there are. A second call changes nothing."""
    location: Location = model.swarm_location
    configs = {id(module.config): module.config for module in location.decoder.modules() if hasattr(module, "config")}
    for config in configs.values():
        name = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
        if getattr(config, name, None) != location.num_blocks or location.num_blocks == stop - start:
            continue
        for key, value in list(config.__dict__.items()):
            if (
                isinstance(value, list | tuple)
                and len(value) == location.num_blocks
                and any(word in key for word in _PER_BLOCK_WORDS)
            ):
                config.__dict__[key] = value[start:stop]
        object.__setattr__(config, name, stop - start)
        _shorten_overrides(config, start, stop)


def _shorten_overrides(config: Any, start: int, stop: int) -> None:
    """Keep the entries of `per_layer_config` (blocks that differ in head size, as in gemma4) of our blocks, numbered from 0."""
    if not getattr(config, "is_heterogeneous", False):
        return
    overrides = {int(key): value for key, value in config._heterogeneity_spec.per_layer_overrides.items()}
    config.per_layer_config = None
    config.per_layer_config = {key - start: value for key, value in overrides.items() if start <= key < stop} or None


def blocks_prefix(model: nn.Module, blocks: nn.Module) -> str:
    """What the names of all tensors in a model's block list begin with, the last dot included."""
    return next(f"{name}." for name, module in model.named_modules() if module is blocks)


def locate(model: Any) -> Location:
    """Find the block list: below the decoder, the heaviest ModuleList with one entry per block."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if not hasattr(decoder, "config"):
        decoder = model.base_model
    counts = [getattr(decoder.config, key, None) for key in ("num_hidden_layers", "decoder_layers", "num_decoder_layers")]
    for count in counts:
        lists = {
            name: module for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
        }
        if lists:
            break
    else:
        raise ModelNotSupportedError(f"{type(decoder).__name__} has no list with one entry per block ({counts[0]} blocks)")
    name = max(lists, key=lambda key: sum(parameter.numel() for parameter in lists[key].parameters()))
    owner, _, attribute = name.rpartition(".")
    embedding = model.get_input_embeddings()
    width = getattr(embedding, "embedding_dim", None) or decoder.config.hidden_size
    return Location(decoder, decoder.get_submodule(owner), attribute, len(lists[name]), width)


def renumber_caches(blocks: nn.ModuleList, start: int) -> None:
    """Blocks that were number `start` and on are number 0 and on now."""
    for module in blocks.modules():
        for name in _INDEX_NAMES:
            if isinstance(module.__dict__.get(name), int):
                module.__dict__[name] -= start


def _drop_ends(model: Any, decoder: nn.Module) -> None:
    """Put holes where embedding and head were, and where anything with weights stood outside the decoder (image towers)."""
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    inside = set(decoder.modules())
    for name, module in list(model.named_modules()):
        if module is not model and hasattr(module, "all_tied_weights_keys"):
            module.all_tied_weights_keys = {}
        is_end = any(module is end for end in ends)
        holds_decoder = module is model or decoder in set(module.modules())
        if is_end or (module not in inside and not holds_decoder):
            owner, _, attribute = name.rpartition(".")
            if name and not isinstance(_submodule(model, owner), Hole | None):
                setattr(model.get_submodule(owner), attribute, Hole())
    model.all_tied_weights_keys = {}


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None  # below a hole that was made a moment ago
