"""An attacker in a process of its own.

`python -m attacks.attacker NAME MODEL BLOCKS CHECKPOINT ADDRESS …` runs until its stdin ends.

It says "attacking" when the attack is in place, and at the end what arrived, if anything did. An attack of several processes is forked.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attacks import PROCESSES
from attacks.target import Target

Attack = Callable[[Target], Coroutine[None, None, None]]


async def main(run: Attack, model: str, num_blocks: str, checkpoint: str, *addresses: str) -> None:
    target = Target(
        addresses=tuple(addresses),
        model=model,
        num_blocks=int(num_blocks),
        checkpoint=Path(checkpoint),
        on_attack=lambda: print("attacking", flush=True),
    )
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))  # more than attacks use, whatever the cores
    attack = asyncio.create_task(run(target))
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
    _, name, *about = sys.argv
    run = importlib.import_module(f"attacks.{name}").attack
    others = []
    for _ in range(PROCESSES.get(name, 1) - 1):
        if not (process := os.fork()):
            others.clear()
            break
        others.append(process)
    asyncio.run(main(run, *about))
    for process in others:  # else they were killed before they said what arrived
        os.waitpid(process, 0)
