"""The background loop: waits from threads and from other loops, Ctrl-C, cancellation, and a quiet end of the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading

import pytest

from swarm.client import loop as loop_module
from swarm.client.loop import background_loop

ALONE = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("loop", {loop_module.__file__!r})
loop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loop)
background_loop = loop.background_loop
"""
"""The file alone: the package around it takes seconds to import."""


async def where() -> str:
    return threading.current_thread().name


def test_everything_runs_on_one_daemon_thread() -> None:
    loop = background_loop()
    assert loop is background_loop()
    assert loop.run(where()) == "murmuration"


async def test_other_loops_can_wait_and_cancel() -> None:
    loop = background_loop()
    assert await loop.wait(where()) == "murmuration"
    begun, ended = threading.Event(), threading.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(loop.wait(endless()))
    await asyncio.to_thread(begun.wait, 5)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.to_thread(ended.wait, 5)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", ALONE + textwrap.dedent(code)], capture_output=True, text=True, timeout=60)


def test_ctrl_c_cancels_what_is_waited_for() -> None:
    done = run("""
        import asyncio, os, signal, threading
        ended = threading.Event()
        async def endless():
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        try:
            background_loop().run(endless())
        except KeyboardInterrupt:
            print("interrupted", ended.wait(5))
    """)
    assert done.stdout == "interrupted True\n", done.stderr


def test_what_is_registered_ends_with_the_process() -> None:
    done = run("""
        async def ending():
            print("ended")
        async def broken():
            raise RuntimeError
        background_loop().at_exit(broken)
        background_loop().at_exit(ending)
    """)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


def test_a_forked_child_gets_a_loop_of_its_own() -> None:
    done = run("""
        import os
        async def value(): return 7
        background_loop().run(value())
        if (child := os.fork()) == 0:
            os._exit(background_loop().run(value()))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert done.stdout == "7\n", done.stderr


def test_importing_the_client_brings_no_hivemind_and_no_node() -> None:
    done = run("""
        import sys, swarm.client
        print([name for name in sys.modules if name.split(".")[0] in ("hivemind", "node", "typer", "rich")])
    """)
    assert done.stdout == "[]\n", done.stderr
