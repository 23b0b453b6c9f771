"""Metrics as TensorBoard events, beside `metrics.jsonl`.

`tensorboard` (extra `train`) writes the file and has the messages; nothing of torch takes part. Without the package there are no events.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.training.metrics import EvaluationRow, Row, VersionRow

log = logging.getLogger(__name__)

FOLDER = "tensorboard"


class TensorBoard:
    """Told each line of the metrics. `close` it, or use it as a context."""

    def __init__(self, folder: Path) -> None:
        """folder: of the run. The file is made with the first line."""
        self._folder, self._is_closed = folder / FOLDER, False
        self._writer: Any = None

    def write(self, row: Row) -> None:
        """Scalars of a version or an evaluation at its version; samples as text."""
        if self._writer is None and not self._is_closed:
            self._writer = _writer(self._folder)
            self._is_closed = self._writer is None
        if self._is_closed:
            return
        if isinstance(row, VersionRow):
            self._write(row.version, {f"train/{key}": getattr(row, key) for key in _OF_VERSIONS if getattr(row, key) is not None})
        elif isinstance(row, EvaluationRow):
            found = {f"validation/{key}": getattr(row, key) for key in _OF_EVALUATIONS if getattr(row, key) is not None}
            self._write(row.evaluation, found, row.samples)

    def close(self) -> None:
        """Later lines are ignored."""
        writer, self._writer, self._is_closed = self._writer, None, True
        if writer is not None:
            writer.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _write(self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

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
        event.wall_time = time.time()
        try:
            self._writer.add_event(event)
            self._writer.flush()
        except OSError as error:
            log.warning("no more events for TensorBoard: %s", error)
            self._writer, self._is_closed = None, True


_OF_VERSIONS = ("loss", "lr", "grad_norm", "tokens_per_s", "peers", "bytes_sent", "waiting_s", "redone")
_OF_EVALUATIONS = ("loss", "perplexity", "bits_per_byte")


def _writer(folder: Path) -> Any:
    """None if tensorboard is not installed, or the folder cannot be written."""
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        return EventFileWriter(str(folder))
    except (ImportError, OSError) as error:
        if importlib.util.find_spec("tensorboard") is None:
            return None
        log.warning("no events for TensorBoard: %s", error)
        return None
