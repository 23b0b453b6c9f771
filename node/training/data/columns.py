"""Reads records of Parquet files and of saved `datasets`, by pyarrow.

pyarrow is optional (the extra `data`), and imported when the first such file is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from node.training.data.faults import bad
from node.training.data.record import Record
from node.training.data.sources import DataFile
from protocols.errors import ConfigError

HOW_TO_INSTALL = "in the checkout, run scripts/setup, or pip install '.[data]'; or give the text as JSONL"
BATCH = 1_024
"""Records of a Parquet file that are in memory at once."""


def records(file: DataFile, name: str) -> Iterator[Record]:
    """Each record with the field `name` alone; one that lists the fields if there is no such field. DataError if the file is damaged."""
    pyarrow = _pyarrow(file.path)
    batches = _parquet if file.format == "parquet" else _arrow
    number = 0
    try:
        for values, share in batches(file.path, name):
            for value in values:
                number += 1
                where = f"record {number} of {file.path}"
                yield Record(where=where, fields={name: value}, done_bytes=int(share * file.size()))
    except _NoSuchField as error:
        yield Record(where=str(file.path), fields=dict.fromkeys(error.names), done_bytes=0)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())[:100]
        raise bad(
            file.path, f"cannot be read as {file.format} after record {number} ({words})", "a whole file", "copy it again"
        ) from None


class _NoSuchField(Exception):
    def __init__(self, names: list[str]) -> None:
        self.names = names


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{path} needs pyarrow, which is not installed: {HOW_TO_INSTALL}") from None
    return pyarrow


def _parquet(path: Path, name: str) -> Iterator[tuple[list[Any], float]]:
    """(values of the field, share of the file that is done)."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as opened:
        _check_name(name, opened.schema_arrow.names)
        done, total = 0, max(opened.metadata.num_rows, 1)
        for batch in opened.iter_batches(batch_size=BATCH, columns=[name]):
            done += batch.num_rows
            yield batch.column(0).to_pylist(), done / total


def _arrow(path: Path, name: str) -> Iterator[tuple[list[Any], float]]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as mapped, pyarrow.ipc.open_stream(mapped) as opened:
        _check_name(name, opened.schema.names)
        for batch in opened:
            yield batch.column(name).to_pylist(), mapped.tell() / max(mapped.size(), 1)


def _check_name(name: str, names: list[str]) -> None:
    if name not in names:
        raise _NoSuchField(names)
