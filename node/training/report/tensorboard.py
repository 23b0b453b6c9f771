"""Metrics as TensorBoard events, beside `metrics.jsonl`.

`tensorboard` (extra `train`) writes the file and has the messages; nothing of torch takes part. Without the package there are no events.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.training.metrics import EvaluationRow, Row, VersionRow

log = logging.getLogger(__name__)

FOLDER = "tensorboard"


class TensorBoard:
    """A listener of rows. `close` it, or use it as a context."""

    def __init__(self, folder: Path, wall_s: float | None = None) -> None:
        """folder: of the run. wall_s: the time of all events, for tests; None = when they are written."""
        self._wall_s, self._writer = wall_s, _writer(folder / FOLDER)

    def row(self, row: Row) -> None:
        """Scalars of a version or an evaluation at its version; samples as text."""
        if self._writer is None:
            return
        if isinstance(row, VersionRow):
            self._write(row.version, {f"train/{key}": getattr(row, key) for key in _OF_VERSIONS})
        elif isinstance(row, EvaluationRow):
            found = {f"validation/{key}": getattr(row, key) for key in _OF_EVALUATIONS if getattr(row, key) is not None}
            self._write(row.evaluation, found, row.samples)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _write(self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None) -> None:
        event_pb2: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
        summary_pb2: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        summary = summary_pb2.Summary()
        for tag, value in scalars.items():
            summary.value.add(tag=tag, simple_value=value)
        for prompt, said in (texts or {}).items():
            value = summary.value.add(tag=f"samples/{prompt[:60]}")
            value.metadata.plugin_data.plugin_name = "text"
            value.tensor.dtype = 7  # DT_STRING
            value.tensor.string_val.append(f"{prompt}{said}".encode())
        assert self._writer is not None
        event = event_pb2.Event(step=step, summary=summary)
        event.wall_time = self._wall_s if self._wall_s is not None else _now_s()
        try:
            self._writer.add_event(event)
            self._writer.flush()
        except OSError as error:
            log.warning("no more events for TensorBoard: %s", error)
            self._writer = None


_OF_VERSIONS = ("loss", "lr", "grad_norm", "tokens_per_s", "peers", "bytes_sent", "waiting_s", "redone")
_OF_EVALUATIONS = ("loss", "perplexity", "bits_per_byte")


def _writer(folder: Path) -> Any:
    """None if tensorboard is not installed, or the folder cannot be written."""
    try:
        module: Any = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        return module.EventFileWriter(str(folder))
    except ImportError:
        return None
    except OSError as error:
        log.warning("no events for TensorBoard: %s", error)
        return None


def _now_s() -> float:
    import time

    return time.time()
