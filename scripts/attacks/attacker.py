"""An attacker in a process of its own: `python -m attacks.attacker NAME MODEL BLOCKS CHECKPOINT ADDRESS …` until its stdin ends.

It says "attacking" when the attack is in place, and at the end what arrived, if anything did.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
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
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))  # more than attacks use, whatever the cores
    attack = asyncio.create_task(importlib.import_module(f"attacks.{name}").attack(target))
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait([attack, ended], return_when=asyncio.FIRST_COMPLETED)
    if attack.done():
        attack.result()  # an attack that gave up is a fault of ours: let it be seen
    if target.arrived.total():
        print("arrived", dict(target.arrived), flush=True)
    attack.cancel()
    with contextlib.suppress(BaseException):
        await attack


if __name__ == "__main__":
    asyncio.run(main())
