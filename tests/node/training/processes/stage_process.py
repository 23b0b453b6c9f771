"""A stage of the exact toy run, in its own process.

python -m tests.node.training.processes.stage_process FOLDER START STOP STEPS; prints its PeerID, and ends with stdin. It dies where a file
in the folder SWARM_FAULTS says (`swarm/faults.py`).
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import signal
import sys
from pathlib import Path

import torch

from protocols.ids import Span
from protocols.services import Method
from swarm.rpc import Call
from tests.node.training.exact_stage import NUM_BLOCKS, RUN, ExactStage, bits, forms, spec_of
from tests.node.training.run_nodes import Folder, RunNode

STATE = Method(name="toy_state")


async def serve(folder: Path, span: Span, steps: int) -> None:
    torch.set_num_threads(1)
    node = RunNode(RUN, spec_of(steps), ExactStage(span, NUM_BLOCKS), NUM_BLOCKS, Folder(folder), forms=forms)

    async def state(request: bytes, call: Call) -> bytes:
        found = {str(unit): await node.take(unit, None) for unit in node.units.states}
        return json.dumps({unit: [one.version, bits(one), one.chain.hex()] for unit, one in found.items()}).encode()

    await node.start({STATE: state})
    print(node.identity.peer_id, flush=True)
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s")
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    folder, start, stop, steps = sys.argv[1:]
    asyncio.run(serve(Path(folder), Span(int(start), int(stop)), int(steps)))


if __name__ == "__main__":
    main()
