"""What a checkpoint of a run holds, as its file `training/checkpoint.json` says.

    config.json, tokenizer files, generation_config.json     as of the run's model; `dtype` is float32, as the stored weights are
    model.safetensors.index.json
    block-00003.safetensors, ends.safetensors                weights of one unit, under the names of `save_pretrained`
    training/block-00003.safetensors, training/ends…         optimizer state of one unit, under the names of its snapshot
    training/checkpoint.json                                 this list, written last: without it the folder is no checkpoint

The position in the data follows from the version. Everything in the list is checked when it is read: another process wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocols import fields
from protocols.errors import BadRequestError, CheckpointError, ModelMismatchError
from protocols.ids import MAX_BLOCKS, ModelId
from protocols.runs import RunSpec, difference
from protocols.state import DIGEST_BYTES
from protocols.units import MAX_UNIT_TEXT, Blocks, Ends, parse_unit
from protocols.weights_id import CHAIN_BYTES, MAX_VERSION

TRAINING: Final = "training"
LIST: Final = f"{TRAINING}/checkpoint.json"
FORMAT: Final = 1
MAX_LIST_BYTES: Final = 64 << 20
MAX_FILES: Final = 3 * MAX_BLOCKS
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,200}(/[A-Za-z0-9][\w.-]{0,200})?", re.ASCII)
_HEX = re.compile("[0-9a-f]*")

TrainedUnit = Blocks | Ends
"""The units of a run: each block alone, and `Ends`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunModel:
    """What a run's checkpoints have in common."""

    run: ModelId
    """The run's name, and the digest of its manifest."""
    spec: RunSpec
    num_blocks: int
    config: Mapping[str, Any]
    """The model's `config.json`."""
    files: Mapping[str, bytes]
    """Tokenizer files and generation config, by name (`small_files` of swarm/checkpoints/digest.py)."""

    @property
    def units(self) -> tuple[TrainedUnit, ...]:
        """All units of the run: a checkpoint has each of them."""
        return (*(Blocks(number, number + 1) for number in range(self.num_blocks)), Ends())


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One file, as it was when it was written."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFacts:
    """One unit, as it was given to the writer."""

    chain: bytes
    digest: bytes
    """Of its snapshot: what is loaded again must have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A whole checkpoint."""

    run: ModelId
    spec: RunSpec
    version: int
    units: Mapping[TrainedUnit, UnitFacts]
    files: Mapping[str, FileFacts]
    """All files but the list itself, by their path in the checkpoint."""

    def encode(self) -> bytes:
        units = {str(unit): {"chain": facts.chain.hex(), "digest": facts.digest.hex()} for unit, facts in self.units.items()}
        files = {name: {"bytes": facts.num_bytes, "sha256": facts.sha256} for name, facts in self.files.items()}
        spec = json.loads(self.spec.canonical())
        table = {"format": FORMAT, "run": str(self.run), "version": self.version, "spec": spec, "units": units, "files": files}
        return json.dumps(table, indent=1).encode()

    def check(self, run: ModelId, spec: RunSpec) -> None:
        """ModelMismatchError with the first field that differs, if it is another run's."""
        odd = difference(spec, self.spec)
        if odd is None and run.digest != self.run.digest:
            odd = f"the digest of the model is {run.digest[:12]}… here, {self.run.digest[:12]}… there"
        if odd is not None:
            raise ModelMismatchError(
                f"the checkpoint of version {self.version} is of another run: {odd}; choose another name, or move it away"
            )


def parse(data: bytes, where: Path) -> Contents:
    """Read a list; CheckpointError if it is damaged, or of a newer format."""
    try:
        table = fields.table(json.loads(data), "checkpoint")
        if table.get("format") != FORMAT:
            raise BadRequestError(f"its format is {str(table.get('format'))[:20]}, known is {FORMAT}: upgrade")
        spec = json.dumps(fields.table(table.get("spec"), "spec"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        version = fields.integer(table, "version", 0, MAX_VERSION)
        return Contents(
            run=fields.model(table, "run"),
            spec=RunSpec.parse(spec.encode()),
            version=version,
            units=_units(fields.table(table.get("units"), "units"), CHAIN_BYTES if version else 0),
            files=_files(fields.table(table.get("files"), "files")),
        )
    except (BadRequestError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is no list of a checkpoint: {error}") from error


def read(path: Path) -> Contents:
    """The list of the checkpoint at `path`; CheckpointError if it has none, or a damaged one."""
    where = path / LIST
    try:
        if where.stat().st_size > MAX_LIST_BYTES:
            raise CheckpointError(
                f"{where} has {where.stat().st_size} bytes; a list of a checkpoint has at most {MAX_LIST_BYTES}"
            )
        return parse(where.read_bytes(), where)
    except OSError as error:
        raise CheckpointError(f"cannot read {where}: {error.strerror or error}") from error


def _units(table: Mapping[str, Any], chain_bytes: int) -> dict[TrainedUnit, UnitFacts]:
    if len(table) > MAX_BLOCKS + 1:
        raise BadRequestError(f"a checkpoint has at most {MAX_BLOCKS + 1} units, got {len(table)}")
    found: dict[TrainedUnit, UnitFacts] = {}
    for name, value in table.items():
        unit, facts = parse_unit(name[: MAX_UNIT_TEXT + 1]), fields.table(value, "unit")
        if not isinstance(unit, Blocks | Ends):
            raise BadRequestError(f"a checkpoint holds blocks and ends, got {unit}")
        found[unit] = UnitFacts(chain=_hex(facts, "chain", chain_bytes), digest=_hex(facts, "digest", DIGEST_BYTES))
    return found


def _files(table: Mapping[str, Any]) -> dict[str, FileFacts]:
    if len(table) > MAX_FILES:
        raise BadRequestError(f"a checkpoint has at most {MAX_FILES} files, got {len(table)}")
    odd = next((name for name in table if not _NAME.fullmatch(name)), None)
    if odd is not None:
        raise BadRequestError(f"a file of a checkpoint lies in it or in one folder of it, got {odd[:80]!r}")
    found = {}
    for name, value in table.items():
        facts = fields.table(value, "file")
        sha256 = _hex(facts, "sha256", 32).hex()
        found[name] = FileFacts(num_bytes=fields.integer(facts, "bytes", 0, 1 << 60), sha256=sha256)
    return found


def _hex(table: Mapping[str, Any], key: str, num_bytes: int) -> bytes:
    text = fields.text(table, key, 2 * num_bytes)
    if len(text) != 2 * num_bytes or not _HEX.fullmatch(text):
        raise BadRequestError(f"field {key!r} must be {2 * num_bytes} hex letters, got {text[:80]!r}")
    return bytes.fromhex(text)


def weights_file(unit: TrainedUnit) -> str:
    """The file of a unit's weights; its optimizer state has the same name in `training/`."""
    return "ends.safetensors" if isinstance(unit, Ends) else f"block-{unit.start:05}.safetensors"


def state_file(unit: TrainedUnit) -> str:
    return f"{TRAINING}/{weights_file(unit)}"
