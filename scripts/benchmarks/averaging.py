"""Averaging 100 MB between two peers, against hivemind's stock averager.

Two processes of ours and two with `DecentralizedAverager`, all on this machine, in turn; float32, the same number of values. Ours: from
the call of `close` to the end of `apply` at both (cards, exchange, digest, vote, agreement; the optimizer's step itself does nothing).
Theirs: from the trigger to the end of `step` at both, after matchmaking, which is not counted. Processor seconds are those of all
processes of a side: on a machine with other work, they say more than the times.

A child is `python averaging.py own PLACE` or `stock PLACE`; it reads one command a line and answers with one line.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NUM_VALUES = 25_000_000
ROOT = Path(__file__).resolve().parents[2]
STEP_S = 60.0


class Child:
    """One process."""

    def __init__(self, kind: str, place: int, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HIVEMIND_LOGLEVEL": "CRITICAL"}
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, kind, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, env=environment, start_new_session=True,
            )  # fmt: skip

    def say(self, *words: object) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark has ended; its log says why")
        return json.loads(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """With all that it started (hivemind forks)."""
        import signal

        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Section `averaging`: seconds of both, and how many times faster ours is, by repeat."""
    from benchmarks import timing

    children = {kind: [Child(kind, place, folder / f"{kind}{place}.log") for place in range(2)] for kind in ("own", "stock")}
    try:
        for pair in children.values():
            told = pair[0].hear()
            pair[1].say(told)
            back = pair[1].hear()
            pair[0].say(back)
        runs = timing.interleaved(
            {"own": lambda: _own(children["own"]), "stock": lambda: _stock(children["stock"])}, repeats, "averaging 100 MB"
        )
    finally:
        for pair in children.values():
            for child in pair:
                child.stop()
    (own, own_cpu), (stock, stock_cpu) = (list(zip(*runs[kind], strict=True)) for kind in ("own", "stock"))
    return {
        "megabytes": NUM_VALUES * 4 // 10**6,
        "own_s": timing.spread(own),
        "stock_s": timing.spread(stock),
        "own_cpu_s": timing.spread(own_cpu),
        "stock_cpu_s": timing.spread(stock_cpu),
        "times": timing.spread([theirs / ours for theirs, ours in zip(stock, own, strict=True)], 2, largest=True),
    }


def _own(pair: Sequence[Child]) -> tuple[float, float]:
    """Seconds, and processor seconds of all processes."""
    before_s = _cpu_s(pair)
    pair[0].say("average")
    return float(pair[0].hear()), _cpu_s(pair) - before_s


def _stock(pair: Sequence[Child]) -> tuple[float, float]:
    for child in pair:
        child.say("match")
    for child in pair:
        child.hear()
    before_s, started = _cpu_s(pair), time.perf_counter()
    for child in pair:
        child.say("go")
    for child in pair:
        child.hear()
    took_s = time.perf_counter() - started
    return took_s, _cpu_s(pair) - before_s


def _cpu_s(pair: Sequence[Child]) -> float:
    from benchmarks import process_session

    return process_session.cpu_s(child.pid for child in pair)


# --- in the children


def _replica(place: int) -> Any:
    """Holds index `place` of two, and forgets each step."""
    import torch

    from protocols.cards import Ledger, UnitSum
    from protocols.groups import Group
    from protocols.units import Blocks
    from swarm.averaging.replica import Reduced

    class Replica:
        version, chain = 0, b""
        values = torch.randn(NUM_VALUES, generator=torch.Generator().manual_seed(place))

        def card(self, group: Group) -> Ledger:
            unit = UnitSum(num_values=NUM_VALUES, chain=self.chain, held=(1 << place,))
            return Ledger(version=self.version, units=(unit,), num_targets={place: 1})

        async def sums(self, group: Group) -> torch.Tensor:
            return self.values

        def num_extra(self, group: Group, member: int, num_members: int) -> int:
            return 0

        async def extra(self, group: Group, reduced: Reduced, member: int, num_members: int) -> torch.Tensor:
            return torch.empty(0)

        async def apply(self, group: Group, reduced: Reduced, extras: Sequence[torch.Tensor]) -> None:
            self.version, self.chain = self.version + 1, reduced.chains[Blocks(0, 1)]

        def reopen(self, group: Group, how: str) -> None:
            raise AssertionError(how)

    return Replica()


async def _serve_own(place: int) -> None:
    import torch

    from protocols.groups import Group, GroupId, Member
    from protocols.identity import from_seed
    from protocols.ids import ModelId
    from protocols.units import Blocks
    from swarm.averaging.asking import ask_to_apply
    from swarm.averaging.averager import Averager
    from swarm.rpc import ChannelPool, RpcServer, tls

    torch.set_num_threads(1)
    identities = [from_seed(bytes([number + 1]) * 32) for number in range(2)]
    identity, replica = identities[place], _replica(place)
    certificate, pool, run = tls.make(identity), ChannelPool(identity), ModelId("bench", "ab" * 32)
    averager = Averager(identity, pool, lambda _run: replica)
    port = await RpcServer(identity, certificate, averager.handlers()).start()
    if place:
        json.loads(await asyncio.to_thread(sys.stdin.readline))
    print(json.dumps([port, certificate.der.hex()]), flush=True)
    if place:
        await asyncio.to_thread(sys.stdin.read)
        return
    ((other_port, der),) = json.loads(await asyncio.to_thread(sys.stdin.readline))
    members = (
        Member(peer=identity.peer_id, addresses=(f"127.0.0.1:{port}",), certificate=certificate.der),
        Member(peer=identities[1].peer_id, addresses=(f"127.0.0.1:{other_port}",), certificate=bytes.fromhex(der)),
    )
    while await asyncio.to_thread(sys.stdin.readline):
        group = Group(id=GroupId(secrets.token_bytes(16)), run=run, version=replica.version, units=(Blocks(0, 1),),
                      members=members, num_micro_batches=2, deadline_s=STEP_S)  # fmt: skip
        started = time.perf_counter()
        closed = await averager.close(group)
        assert closed.outcome == "agreed", closed.text
        await asyncio.gather(*(ask_to_apply(pool, member, run, group.version, group.id) for member in members))
        print(json.dumps(time.perf_counter() - started), flush=True)


def _serve_stock(place: int) -> None:
    import torch
    from hivemind import DHT
    from hivemind.averaging import DecentralizedAverager
    from hivemind.averaging.control import AveragingStage

    torch.set_num_threads(1)
    peers = json.loads(sys.stdin.readline())[0] if place else []
    dht = DHT(initial_peers=peers, start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    values = [torch.randn(NUM_VALUES, generator=torch.Generator().manual_seed(place))]
    averager = DecentralizedAverager(
        values, dht, start=True, prefix="bench", target_group_size=2, min_group_size=2, min_matchmaking_time=1.5,
        request_timeout=1.0, sender_timeout=10.0, reducer_timeout=20.0, allreduce_timeout=STEP_S,
    )  # fmt: skip
    print(json.dumps([str(address) for address in dht.get_visible_maddrs()]), flush=True)
    if not place:
        sys.stdin.readline()
    while sys.stdin.readline():
        control = averager.step(wait=False, require_trigger=True, timeout=STEP_S)
        while control.stage != AveragingStage.AWAITING_TRIGGER:
            time.sleep(0.01)
        print(json.dumps("matched"), flush=True)
        sys.stdin.readline()
        control.allow_allreduce()
        assert control.result(STEP_S)
        print(json.dumps("done"), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "own":
        asyncio.run(_serve_own(int(sys.argv[2])))
    else:
        _serve_stock(int(sys.argv[2]))
