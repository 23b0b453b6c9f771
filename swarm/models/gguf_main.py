"""The converter process: from a GGUF file to a checkpoint.

transformers' own loader does the work. `gguf.py` starts the process and reads lines of JSON: `done` and `total` now and then, at last
`is_whole`, or `code` and `error`. What the file claims is bounded before a model is built from it, and the checkpoint is opened as any
other before it counts.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
import tqdm.auto

from protocols.errors import CheckpointError, DiskFullError, ModelNotSupportedError, SwarmError, to_wire
from protocols.words import described
from swarm import files, helper_process

Tell = Callable[..., None]
"""Writes one line of JSON: the keyword arguments."""

PHASES = ("Converting", "Loading", "Writing")
"""How the names of transformers' progress bars begin, in the order in which they come: each counts for a third."""

HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}

SPARE_BYTES = 64 << 20
"""Of the disk, beside the tensors: tokenizer and config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a GGUF file holds, known from its header."""

    architecture: str
    num_tensors: int
    num_values: int
    dtype: torch.dtype
    """What the checkpoint is saved in."""


def main(file: str, target: str) -> None:
    """Convert `file` into the directory `target`, which is empty. Removes that and ends if the process that started it ends."""
    answers = helper_process.answers()

    def tell(**answer: Any) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    helper_process.end_with_owner(lambda: shutil.rmtree(Path(target).parent, ignore_errors=True))
    _show_bars(tell)
    _read_once()
    tell(**outcome(Path(file), Path(target)))


def _show_bars(tell: Tell) -> None:
    """Tell of transformers' progress bars instead of drawing them. Before transformers is imported."""

    class Told(tqdm.auto.tqdm):  # type: ignore[misc]
        def display(self, *_args: Any, **_kwargs: Any) -> None:
            phase = next((number for number, name in enumerate(PHASES) if str(self.desc).startswith(name)), None)
            if phase is not None and self.total:
                tell(done=phase * self.total + self.n, total=len(PHASES) * self.total)

    tqdm.auto.tqdm = Told


def _read_once() -> None:
    """transformers parses the header six times, and makes the same table of names for each module: 30 s of processor time for a small
    model with 49,152 tokens, 10 s with this."""
    gguf.GGUFReader = functools.cache(gguf.GGUFReader)
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)


def outcome(file: Path, target: Path) -> dict[str, object]:
    """Convert, and return the last line: that the checkpoint is whole, or why there is none."""
    try:
        convert(file, target)
    except Exception as error:
        fault = error if isinstance(error, SwarmError) else CheckpointError(f"{file} could not be converted ({described(error)})")
        code, text = to_wire(fault)
        return {"code": code, "error": text}
    return {"is_whole": True}


def convert(file: Path, target: Path) -> None:
    """Write the checkpoint of `file`; errors as `gguf.checkpoint_of` says."""
    from swarm.models.checkpoint import open_checkpoint

    contents = read_contents(file)
    with _loading(file, contents.architecture, target):
        num_values = check_model(file, contents)
    needed = num_values * contents.dtype.itemsize + SPARE_BYTES
    free = shutil.disk_usage(target).free
    if needed > free:
        raise DiskFullError(
            f"too little disk for {file.name} as safetensors at {target.parent.parent}: {needed / 1e6:.0f} MB are needed, "
            f"{free / 1e6:.0f} MB are free; free some, or choose another --data-dir"
        )
    with _loading(file, contents.architecture, target):
        save_tokenizer(file, target)
        save_model(file, contents, target)
    open_checkpoint(target)


def read_contents(file: Path) -> Contents:
    """CheckpointError if the file is damaged, or ends before its last tensor does."""
    try:
        reader = gguf.GGUFReader(str(file))
        matrices = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
        return Contents(
            architecture=str(reader.fields["general.architecture"].contents()),
            num_tensors=len(reader.tensors),
            num_values=sum(int(tensor.n_elements) for tensor in reader.tensors),
            dtype=saved_dtype(matrices),
        )
    except Exception as error:  # the reader believes the file, and may stumble over anything in it
        raise CheckpointError(
            f"{file} has {file.stat().st_size} bytes and is no whole GGUF file: cut off or damaged ({described(error)}); download it again"
        ) from error


def saved_dtype(matrices: set[str]) -> torch.dtype:
    """The smallest dtype that holds the matrices as exactly as the file does. matrices: GGUF's names of their types.

    A quantized value is a small integer times a scale of 16 bits: only float32 has enough bits for the result. (A file of halves keeps
    its norms in float32, but they were halves before.)
    """
    return HALVES.get(next(iter(matrices)), torch.float32) if len(matrices) == 1 else torch.float32


def check_model(file: Path, contents: Contents) -> int:
    """How many values the model has; refuses what cannot be served, and what the file's tensors do not fill."""
    import transformers

    from swarm.checkpoints import bounds
    from swarm.checkpoints.quirks import refuse_known
    from swarm.models.skeleton import model_class, whole_model

    raw, _ = transformers.PreTrainedConfig.get_config_dict(file.parent, gguf_file=file.name, local_files_only=True)
    bounds.check_config(raw, str(file))
    if int(raw.get("num_hidden_layers", 0)) > contents.num_tensors:
        raise CheckpointError(
            f"{file} says {raw['num_hidden_layers']} blocks, and holds {contents.num_tensors} tensors; download it again"
        )
    config = transformers.AutoConfig.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False, local_files_only=True
    )
    refuse_known(config.model_type, config.get_text_config(decoder=True))
    model_class(config)
    num_values: int = sum(parameter.numel() for parameter in whole_model(config).parameters())
    if num_values > contents.num_values:
        raise CheckpointError(
            f"{file} describes a model of {num_values} values, and holds {contents.num_values}; it is damaged: download it again"
        )
    return num_values


def save_tokenizer(file: Path, target: Path) -> None:
    """Tokenizer and chat template; nothing if the file holds none."""
    from transformers import AutoTokenizer

    if "tokenizer.ggml.tokens" in gguf.GGUFReader(str(file)).fields:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        tokenizer.init_kwargs["local_files_only"] = False  # how it was loaded; saved, it would change the digest of the model
        tokenizer.save_pretrained(target)


def save_model(file: Path, contents: Contents, target: Path) -> None:
    """Weights, config and generation config. CheckpointError if the file lacks a tensor."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=contents.dtype,
        output_loading_info=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    if info["missing_keys"]:
        raise CheckpointError(
            f"{file} lacks {len(info['missing_keys'])} tensors, as {min(info['missing_keys'])}; download it again"
        )
    model.hf_quantizer = None  # transformers saves nothing that was quantized, which these weights are no more
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)


@contextmanager
def _loading(file: Path, architecture: str, target: Path) -> Iterator[None]:
    """What transformers raises becomes one line."""
    try:
        yield
    except SwarmError:
        raise
    except Exception as error:  # its loader raises whatever it stumbles over
        if files.is_full(error):
            raise DiskFullError(
                f"the disk of {target.parent.parent} became full while {file.name} was converted; free some, or choose another --data-dir"
            ) from error
        import transformers

        raise ModelNotSupportedError(
            f"transformers {transformers.__version__} does not load {file}, of architecture {architecture[:60]!r} ({described(error)}); "
            "use the model's safetensors checkpoint, or another transformers"
        ) from error
