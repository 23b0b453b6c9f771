"""The background loop: waits, Ctrl-C, cancellation, and a quiet exit.

The waits come from threads and from other loops.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from swarm.client import loop as loop_module
from swarm.client.loop import background_loop

ALONE = f"""
import importlib.util, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the suite behind itself ignores it
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
    started, ended = threading.Event(), threading.Event()

    async def endless() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(loop.wait(endless()))
    await asyncio.to_thread(started.wait, 5)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.to_thread(ended.wait, 5)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", ALONE + textwrap.dedent(code)], capture_output=True, text=True, timeout=120)


def test_ctrl_c_cancels_what_is_waited_for_and_the_loop_goes_on() -> None:
    done = run("""
        import asyncio, os, signal, threading
        ended = threading.Event()
        async def endless():
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        async def value(): return 7
        for _ in range(2):
            try:
                background_loop().run(endless())
            except KeyboardInterrupt:
                print("interrupted", ended.wait(30), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
            ended.clear()
        print(background_loop().run(value()))
    """)
    assert done.stdout == "interrupted True True\n" * 2 + "7\n", done.stderr


def test_what_a_signal_s_handler_raises_ends_the_wait_and_cancels() -> None:
    done = run("""
        import asyncio, signal, threading
        ended = threading.Event()
        def alarm(*_): raise TimeoutError("too long")
        signal.signal(signal.SIGALRM, alarm)
        async def endless():
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        try:
            background_loop().run(endless())
        except TimeoutError as error:
            print(error, ended.wait(30))
    """)
    assert done.stdout == "too long True\n", done.stderr


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


def test_a_call_after_the_loop_has_ended_is_refused_and_the_process_ends() -> None:
    done = run("""
        import asyncio, atexit
        async def value(): return 7
        @atexit.register
        def late():
            for call in (lambda: background_loop().run(value()), lambda: asyncio.run(background_loop().wait(value()))):
                try:
                    call()
                except Exception as error:
                    print(type(error).__name__, error)
        print(background_loop().run(value()))
    """)
    refusal = "BadRequestError this process ends, and its background loop has ended: call the model earlier\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n" + refusal * 2, "")


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


def test_a_daemon_thread_that_waits_while_the_process_ends_prints_nothing() -> None:
    done = run("""
        import asyncio, threading
        started = threading.Event()
        async def endless():
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                print("ended")
        threading.Thread(target=lambda: background_loop().run(endless()), daemon=True).start()
        print(started.wait(30))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\nended\n", "")


def test_what_the_coroutine_raises_reaches_the_thread_that_waits() -> None:
    loop = background_loop()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            loop.run(failing())
    with pytest.raises(CancelledError):
        loop.run(cancelled())
    assert loop.run(where()) == "murmuration"


async def failing() -> None:
    raise ZeroDivisionError


async def cancelled() -> None:
    raise asyncio.CancelledError


async def test_a_thread_with_a_loop_of_its_own_can_wait() -> None:
    assert background_loop().run(where()) == "murmuration"


def test_between_two_calls_the_loop_goes_on_by_itself() -> None:
    loop, ticked = background_loop(), threading.Event()

    async def begin() -> None:
        asyncio.get_running_loop().call_later(0.1, ticked.set)

    loop.run(begin())
    assert ticked.wait(60)


def test_two_threads_that_wait_for_each_other_s_call_both_go_on() -> None:
    loop = background_loop()
    flags = [asyncio.Event(), asyncio.Event()]

    async def ping(mine: int, turn: int) -> int:
        flags[mine].set()
        await flags[1 - mine].wait()
        return turn

    def play(mine: int) -> list[int]:
        return [loop.run(ping(mine, turn)) for turn in range(50)]

    with ThreadPoolExecutor(2) as pool:
        games = [pool.submit(play, mine) for mine in (0, 1)]
        assert [game.result(60) for game in games] == [list(range(50))] * 2


def test_many_threads_in_any_order() -> None:
    loop = background_loop()

    async def nap(number: int) -> int:
        await asyncio.sleep(0.001 * (number % 3))
        return number

    def one(number: int) -> int:
        return loop.run(nap(number)) if number % 2 else loop.submit(nap(number)).result(60)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(400), timeout=60)) == list(range(400))
