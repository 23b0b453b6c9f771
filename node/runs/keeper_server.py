"""What a trainer answers as a keeper: `run_status` and `state`.

Made before the peer listens; `open` once the run is there. A node answers both as a stage, too (`run_part.py`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from node.runs.keeping import Keeping
from node.runs.opening import OpenRun
from node.training.checkpoint.contents import RunModel
from protocols import services
from protocols.errors import ModelNotFoundError
from protocols.ids import ModelId
from protocols.run_status import RunStatus, StatusRequest
from swarm.rpc.call import Call, Handlers
from swarm.training.state_server import StateServer


class KeeperServer:
    """Of one process. All methods belong to one event loop."""

    def __init__(self, upload_turn: Callable[[int], Awaitable[None]]) -> None:
        """upload_turn: waits until this process's upload rate allows so many bytes more."""
        self._states = StateServer(upload_turn)
        self._runs: dict[ModelId, tuple[Keeping, int]] = {}

    def open(self, run: OpenRun, keeping: Keeping) -> None:
        """From now on, give what is kept of this run."""
        self._runs[run.model] = keeping, run.spec.num_micro_batches
        self._states.add(run.model, keeping.take)

    def handlers(self) -> Handlers:
        """By method name, for the peer's server."""
        return {**self._states.handlers(), services.RUN_STATUS.name: self._run_status}

    async def _run_status(self, request: bytes, call: Call) -> bytes:
        run = StatusRequest.parse(request).run
        if run not in self._runs:
            raise ModelNotFoundError(f"no checkpoints of run {run.name} ({run.digest[:12]}) are kept here: ask another peer")
        keeping, num_micro_batches = self._runs[run]
        return RunStatus(num_micro_batches=num_micro_batches, kept=await keeping.kept()).encode()


def model_of(run: OpenRun) -> RunModel:
    """What all checkpoints of a run have in common. Blocks; its small files are on this disk."""
    path = run.checkpoint.path
    return RunModel(
        run=run.model,
        spec=run.spec,
        num_blocks=run.checkpoint.num_blocks,
        config=json.loads((path / "config.json").read_bytes()),
        files={entry.name: (path / entry.name).read_bytes() for entry in run.manifest.files},
    )
