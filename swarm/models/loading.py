"""Loads blocks [start, stop) of a checkpoint, or embedding and head.

Only the needed tensors are read from disk.
`load_span` gives a `SpanModule`, `load_ends` the model's own class with no block in it. Both go through `from_pretrained` of a
pruned class (`skeleton.py`) with lazy slices, so an architecture's dtype rules, renames and fused experts are transformers'.
What transformers would only log (a missing tensor gets random values) is refused here.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from protocols.errors import BadRequestError, CheckpointError, ModelNotSupportedError
from protocols.ids import Span
from protocols.units import Blocks, Ends
from protocols.words import counted, described
from swarm.models.chain import check_chain, returns_tuple
from swarm.models.checkpoint import Checkpoint
from swarm.models.parts import SpanParts
from swarm.models.refusal import refused
from swarm.models.sharing import exchange, named_tensors, twin
from swarm.models.skeleton import Location, blocks_prefix, causal_config, meta_model, model_class, pruned, shorten
from swarm.models.span import SpanModule

MAX_OUTER_VALUES = 1 << 28
"""Numbers that a span makes beyond what is stored for it (position tables, mask buffers): an honest model makes some million."""

OnRead = Callable[[int, int], None]

_LOADING = threading.Lock()  # from_pretrained sets process-wide defaults while it works


@dataclass(frozen=True, slots=True)
class EndsModel:
    """A causal language model with an empty block list, and what a stand-in for the blocks has to know."""

    model: Any
    """The *ForCausalLM instance: embedding, norms, head. Its `config` is the whole model's; the configs of the modules inside say
    one block: put one module into the list."""
    owner: nn.Module
    """The module whose `attribute` is the (empty) block list."""
    attribute: str
    returns_tuple: bool
    """True: a block of this family returns (hidden, ...); False: the hidden state alone."""
    num_blocks: int
    """Blocks of the whole model."""
    template: nn.Module
    """Block 0 on the meta device, for code that reads attributes of a block."""
    trainable: frozenset[str]
    """Names, as in `tensors`, of what transformers trains; all of it is frozen here."""

    def twin(self) -> EndsModel:
        """The same ends with modules of their own: a user of them may put something in."""
        return twin(self, self.model)

    def tensors(self) -> dict[str, Tensor]:
        """What they hold, by the model's names; a tied head has the embedding's."""
        return named_tensors(self.model)

    def with_tensors(self, others: Mapping[str, Tensor]) -> EndsModel:
        """The same ends with copies of these in place of the tensors of those names; they fit (`check_fit`)."""
        return exchange(self, self.model, self.tensors(), others)


def load_span(checkpoint: Checkpoint, span: Span, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> SpanModule:
    """Blocks `span` in `dtype` on `device`, ready to run. CheckpointError: a tensor is missing or has another shape;
    ModelNotSupportedError: the blocks are no chain, so they cannot be hosted apart."""
    return load_parts(checkpoint, span, dtype=dtype, device=device)[0]


def load_parts(
    checkpoint: Checkpoint,
    span: Span,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    on_read: OnRead = lambda done, total: None,
) -> tuple[SpanModule, SpanParts]:
    """As `load_span`, and what cuts parts out of these blocks later. on_read: told (numbers that were read, all of them), by any thread."""
    if span.stop > checkpoint.num_blocks:
        raise BadRequestError(f"blocks {span} of {checkpoint.name}: it has only blocks 0:{checkpoint.num_blocks}")
    with _translated(checkpoint, f"blocks {span}"):
        model = _load(checkpoint, span.start, span.stop, dtype, on_read).to(device).eval()
        parts = SpanParts(model, span, dtype)
        model.requires_grad_(False)
        shorten(model, span.start, span.stop)
        module = SpanModule(model, dtype)
        check_chain(module)
    return module, parts


def load_ends(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    on_read: OnRead = lambda done, total: None,
) -> EndsModel:
    """Embedding, final norm and head, as the model's own class; errors as in `load_span`. on_read: as in `load_parts`."""
    with _translated(checkpoint, "embedding and head"):
        model = _load(checkpoint, 0, 0, dtype, on_read).to(device).eval()
        trainable = frozenset(name for name, tensor in named_tensors(model).items() if tensor.requires_grad)
        model.requires_grad_(False)
        location: Location = model.swarm_location
        whole = copy.deepcopy(model.config)
        shorten(model, 0, 1)
        if location.owner is not model:
            model.config = whole  # people read this one; only the modules inside need the shortened one
        template = meta_model(checkpoint.config, 0, 1, dtype).swarm_location.blocks[0]
        tuples = returns_tuple(model, location, template)
    return EndsModel(model, location.owner, location.attribute, tuples, location.num_blocks, template, trainable)


def stored_names(checkpoint: Checkpoint, unit: Blocks | Ends, dtype: torch.dtype = torch.float32) -> list[str]:
    """Names of the stored tensors that the loaded module of a unit is made of, as in the checkpoint's files."""
    start, stop = (unit.start, unit.stop) if isinstance(unit, Blocks) else (0, 0)
    with _translated(checkpoint, f"unit {unit}"):
        probe = meta_model(checkpoint.config, start, stop, dtype)
        return sorted(_needed(probe, checkpoint, start, stop).values())


def _load(checkpoint: Checkpoint, start: int, stop: int, dtype: torch.dtype, on_read: OnRead = lambda done, total: None) -> Any:
    config = copy.deepcopy(checkpoint.config)
    with _LOADING, _quiet():
        probe = meta_model(config, start, stop, dtype)
        needed = _needed(probe, checkpoint, start, stop)
        _check_size(probe, sum(checkpoint.tensors[name].num_values for name in needed.values()))
        prefix = blocks_prefix(probe, probe.swarm_location.blocks) if start < stop else ""
        with _slices(checkpoint, needed, on_read) as slices:
            cls = pruned(model_class(config), start, stop)
            model, info = cls.from_pretrained(
                None, config=causal_config(config), dtype=dtype, state_dict=slices, output_loading_info=True
            )
    missing = sorted(key for key in info["missing_keys"] if key.startswith(prefix))
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} lacks {counted(len(missing), 'tensor')} of its own architecture, first {missing[0]!r} "
            f"(numbered from block {start}); download it again"
        )
    fixed = {name for name, tensor in probe.named_parameters() if not tensor.requires_grad}
    for name, tensor in model.named_parameters():  # from_pretrained makes all of them trainable
        tensor.requires_grad_(name not in fixed and tensor.is_floating_point())
    return model


def _needed(probe: Any, checkpoint: Checkpoint, start: int, stop: int) -> dict[str, str]:
    """Name in the pruned model's numbering -> name in the checkpoint, for every tensor that ends up in the pruned model."""
    state: dict[str, Any] = dict(probe.state_dict())
    if start < stop:
        prefix = blocks_prefix(probe, probe.swarm_location.blocks)
        state = {key: value for key, value in state.items() if key.startswith(prefix)}
    rules = get_model_conversion_mapping(probe)
    renames = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    needed = {}
    for name in checkpoint.tensors:
        key = _renumbered(name, checkpoint, start, stop)
        if key is not None and rename_source_key(key, renames, converters, probe.base_model_prefix, state)[0] in state:
            needed[key] = name
    return needed


def _renumbered(name: str, checkpoint: Checkpoint, start: int, stop: int) -> str | None:
    """The name that a stored tensor has in the pruned model; None if it belongs to a block that is not ours (or, for a span,
    to no block). The filter is cheap, and it must run before the rename rules: those match against the pruned list."""
    block = checkpoint.block_of(name)
    if start == stop:
        return name if block is None else None
    if block is None or not start <= block < stop:
        return None
    rest = name[len(checkpoint.block_prefix) :].partition(".")[2]
    return f"{checkpoint.block_prefix}{block - start}.{rest}"


def _check_size(probe: Any, stored_values: int) -> None:
    """Refuse a config that makes more than the files justify: what they lack would be made up, at the config's size."""
    made = sum(tensor.numel() for tensor in (*probe.parameters(), *probe.buffers()))
    if made > 2 * stored_values + MAX_OUTER_VALUES:
        raise ModelNotSupportedError(
            f"config.json makes tables of {made} numbers, the files hold {stored_values} for them; "
            "look at its sizes, such as max_position_embeddings"
        )


@contextmanager
def _slices(checkpoint: Checkpoint, needed: Mapping[str, str], on_read: OnRead) -> Iterator[dict[str, Any]]:
    """Lazy slices, by new name; only files that hold a needed tensor are opened."""
    absent = sorted(name for name in needed.values() if not checkpoint.tensors[name].file.exists())
    if absent:
        raise CheckpointError(
            f"{counted(len(absent), 'tensor')} of {checkpoint.name} are not in {checkpoint.path}, first {absent[0]!r}: "
            "they have not been fetched from peers yet"
        )
    with ExitStack() as stack:
        paths = {checkpoint.tensors[name].file for name in needed.values()}
        files: dict[Path, Any] = {path: stack.enter_context(safe_open(str(path), "pt")) for path in paths}
        count = _Count(sum(checkpoint.tensors[old].num_values for old in needed.values()), on_read)
        yield {
            new: _Counted(files[checkpoint.tensors[old].file].get_slice(old), checkpoint.tensors[old].num_values, count)
            for new, old in needed.items()
        }


class _Count:
    """How much of a model was read; from any thread."""

    def __init__(self, total: int, on_read: OnRead) -> None:
        self._lock, self._done, self._total, self._on_read = threading.Lock(), 0, total, on_read

    def add(self, num_values: int) -> None:
        with self._lock:
            self._done = min(self._total, self._done + num_values)
            self._on_read(self._done, self._total)


class _Counted:
    """A lazy slice of a file, which counts what is read of it."""

    def __init__(self, part: Any, num_values: int, count: _Count) -> None:
        self._part, self._num_values, self._count = part, num_values, count

    def __getitem__(self, index: Any) -> Any:
        found = self._part[index]
        self._count.add(self._num_values)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' load report and progress bar off the terminal; what they would say is checked and raised here."""
    verbosity = transformers.logging.get_verbosity()
    had_bar = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if had_bar:
            transformers.logging.enable_progress_bar()


@contextmanager
def _translated(checkpoint: Checkpoint, what: str) -> Iterator[None]:
    """Turn what transformers, safetensors and torch raise on a bad checkpoint into our errors."""
    where = f"{what} of {checkpoint.path}"
    with refused(f"load {where} ({checkpoint.config.model_type})"):
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {where}: {described(error)}") from error
        except (RuntimeError, ValueError) as error:
            if "mismatch" in str(error) or "ignore_mismatched_sizes" in str(error):
                raise CheckpointError(f"cannot load {where} ({checkpoint.config.model_type}): {described(error)}") from error
            raise
