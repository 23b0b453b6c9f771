"""An attacker in a process of its own: `python -m attacks.attacker NAME MODEL BLOCKS CHECKPOINT ADDRESS …` until its stdin ends."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from pathlib import Path

from attacks.target import Target


async def main() -> None:
    name, model, num_blocks, checkpoint, *addresses = sys.argv[1:]
    target = Target(
        addresses=tuple(addresses),
        model=model,
        num_blocks=int(num_blocks),
        checkpoint=Path(checkpoint),
        begun=lambda: print("attacking", flush=True),
    )
    attack = asyncio.create_task(importlib.import_module(f"attacks.{name}").attack(target))
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait([attack, ended], return_when=asyncio.FIRST_COMPLETED)
    if attack.done():
        attack.result()  # an attack that gave up is a fault of ours: let it be seen
    attack.cancel()
    with contextlib.suppress(BaseException):
        await attack


if __name__ == "__main__":
    asyncio.run(main())
