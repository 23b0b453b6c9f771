"""A node obeys whom its owner has listed, and no other peer.

Two real nodes host the same blocks, so that whatever ends at one goes on at the other with the same tokens.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch

from node.cli.host import operating
from protocols import services
from protocols.errors import BadRequestError, ConfigError, FrameError, NotAllowedError, PeerUnreachableError, SwarmError
from protocols.identity import Identity, from_seed
from protocols.ids import Span, parse_peer_id
from protocols.orders import ACTIONS, Order, OrderReply
from swarm.client import SwarmModelForCausalLM
from swarm.peer import operator
from swarm.rpc import ChannelPool, status
from tests.end_to_end.local_swarm import Watcher, greedy
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer
from tests.node.cli.test_commands import eventually, run
from tests.node.dashboard.made_swarm import made_record

OPERATOR, STRANGER, BANNED, CLIENT = (from_seed(bytes([number]) * 32) for number in (21, 22, 23, 24))
WITHIN_S = 60.0
OnToken = Callable[[int, Any], None]


def grpc_address(node: NodeProcess) -> str:
    return f"127.0.0.1:{int(node.said['multiaddr'].split('/')[4]) + 1}"


def order(node: NodeProcess, action: str, by: Identity = OPERATOR, **about: Any) -> OrderReply:
    """Give it, and what the node answers."""

    async def give() -> OrderReply:
        pool = ChannelPool(by)
        try:
            return await operator.give(pool, Order(action=action, **about), node.said["peer"], (grpc_address(node),))
        finally:
            await pool.close()

    return asyncio.run(give())


def call(node: NodeProcess, request: bytes, by: Identity = OPERATOR, method: services.Method = services.ORDER) -> bytes:
    async def unary() -> bytes:
        pool = ChannelPool(by)
        try:
            return await (await pool.channel(node.said["peer"], (grpc_address(node),))).unary(method, request)
        finally:
            await pool.close()

    return asyncio.run(unary())


class Pair:
    """Two nodes with the same blocks, a client, and what transformers says. The first one is of a test swarm."""

    def __init__(self, pool: ProcessPool, checkpoint: Path, alone: Any) -> None:
        self._pool, self._checkpoint, self._alone, self.folder = pool, checkpoint, alone, pool.folder
        self.operators = pool.folder / "operators.txt"
        self.operators.write_text(f"{OPERATOR.peer_id}  # Olga\n")
        self.first = self.start("first", "--test-swarm")
        self.second = self.start("second", "--peer", self.first.said["multiaddr"])
        (pool.folder / "client.key").write_bytes(CLIENT.private_bytes)
        peers = [node.said["multiaddr"] for node in self.nodes]
        self.model: Any = SwarmModelForCausalLM.from_pretrained(
            checkpoint, peers=peers, patience_s=120.0, identity=pool.folder / "client.key"
        )

    def start(self, name: str, *arguments: str) -> NodeProcess:
        """A node that obeys the operator, with a data directory of its own, ready."""
        command = [
            "node",
            str(self._checkpoint),
            "--name",
            name,
            "--blocks",
            "0:6",
            "--listen",
            "127.0.0.1:0",
            "--dtype",
            "float32",
        ]
        command += ["--data-dir", str(self._pool.folder / name), "--operators", str(self.operators), "--quiet", *arguments]
        node = self._pool.start(name, command)
        node.wait_for("ready")
        return node

    @property
    def nodes(self) -> tuple[NodeProcess, NodeProcess]:
        return self.first, self.second

    def answer(self, seed: int, on_token: OnToken = lambda number, journey: None) -> Any:
        """An answer of 24 tokens that is what one machine says; the session's journey."""
        ids = torch.randint(3, 256, (1, 20), generator=torch.Generator().manual_seed(seed))
        cache = self.model.new_cache()
        settings = greedy({"past_key_values": cache, "streamer": Watcher(lambda number: on_token(number, cache.journey))})
        try:
            output = self.model.generate(ids, **settings)
        finally:
            journey = cache.journey
            cache.close()
        with torch.no_grad():
            assert output.tolist() == self._alone.generate(ids, **greedy({})).tolist()
        return journey

    def used(self, journey: Any) -> NodeProcess:
        """The node of a route of one hop."""
        return next(node for node in self.nodes if node.said["peer"] == journey.route[0].peer)

    def other(self, node: NodeProcess) -> NodeProcess:
        return self.second if node is self.first else self.first


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer, checkpoint: Path, alone: Any) -> Iterator[Pair]:
    torch.set_num_threads(1)
    with ProcessPool(tmp_path_factory.mktemp("orders"), fork_server) as pool:
        made = Pair(pool, checkpoint, alone)
        yield made
        made.model.close()


def why_refused(node: NodeProcess, by: Identity) -> str:
    """Why it may not even ask; "" = it may."""
    try:
        order(node, "ask", by)
    except NotAllowedError as error:
        return (
            "banned"
            if "an operator has banned it" in str(error)
            else "no operator"
            if "takes no orders" in str(error)
            else str(error)
        )
    return ""


def said_after(node: NodeProcess, kind: str) -> list[str]:
    node.hear()
    return [line for line in node.lines if line.startswith(f"{kind}: ")]


@pytest.mark.parametrize("action", ACTIONS)
def test_no_peer_but_the_operator_is_obeyed(pair: Pair, action: str) -> None:
    about = {"peer": BANNED.peer_id} if action in ("ban", "unban") else {}
    about |= {"seconds": 60} if action == "ban" else {}
    for by in (STRANGER, BANNED):
        with pytest.raises(NotAllowedError, match=rf"takes no orders from {by.peer_id}.*swarm node --operators FILE"):
            order(pair.first, action, by, **about)
    assert order(pair.first, "ask") == OrderReply(may=ACTIONS, state="serving"), "nothing has changed"
    assert not pair.first.has_ended() and not said_after(pair.first, "order")


def test_an_order_for_one_node_is_worth_nothing_at_another(pair: Pair) -> None:
    """What the first node hears of its operator, and sends to the second one."""

    async def replay() -> str:
        pool = ChannelPool(OPERATOR)
        try:
            first = await pool.channel(pair.first.said["peer"], (grpc_address(pair.first),))
            heard = first._connection.metadata()  # type: ignore[union-attr]
            second = await pool.channel(pair.second.said["peer"], (grpc_address(pair.second),))
            ask = second._connection.channel.unary_unary(services.ORDER.path)  # type: ignore[union-attr]
            try:
                await ask(Order(action="drain").encode(), timeout=60, metadata=heard)
            except grpc.aio.AioRpcError as error:
                return str(status.from_grpc(error, pair.second.said["peer"]))  # type: ignore[arg-type]
        finally:
            await pool.close()
        return "obeyed"

    assert "made for another server" in asyncio.run(replay())
    assert order(pair.second, "ask").state == "serving"


@pytest.mark.parametrize("request_", [b"", b"MU\x01", bytes(60_000), Order(action="drain").encode()[:-9]])
def test_bytes_that_are_no_order_change_nothing(pair: Pair, request_: bytes) -> None:
    with pytest.raises((BadRequestError, FrameError)):
        call(pair.first, request_)
    with pytest.raises(NotAllowedError):  # of another peer, they are not even read
        call(pair.first, request_, STRANGER)
    assert order(pair.first, "ask").state == "serving"


def test_whom_an_operator_cannot_ban(pair: Pair) -> None:
    for peer, why in ((OPERATOR.peer_id, "an operator of this node"), (pair.first.said["peer"], "this node itself")):
        with pytest.raises(BadRequestError, match=why):
            order(pair.first, "ban", peer=peer, seconds=60)


def test_a_paused_node_finishes_its_session_and_gets_no_new_one(pair: Pair) -> None:
    paused: list[NodeProcess] = []

    def pause(number: int, journey: Any) -> None:
        if number == 5:
            paused.append(pair.used(journey))
            reply = order(paused[0], "pause")
            assert reply.done == "paused: no new session begins, 1 open session is served to the end" and reply.state == "paused"

    assert pair.answer(1, pause).replaced == 0, "an open session goes on where it is"
    (node,) = paused
    for seed in range(2, 5):
        assert pair.used(pair.answer(seed)) is pair.other(node)
    assert any("pause, by operator" in line and OPERATOR.peer_id in line for line in said_after(node, "order"))
    assert order(node, "pause").state == "paused", "twice is as good as once"
    assert order(node, "resume").state == "serving"
    order(pair.other(node), "pause")
    assert pair.used(pair.answer(6)) is node
    order(pair.other(node), "resume")


def test_a_ban_ends_the_sessions_of_a_client_and_it_and_a_pause_survive_kill_9(pair: Pair) -> None:
    banning: list[NodeProcess] = []

    def ban(number: int, journey: Any) -> None:
        if number == 5:
            banning.append(pair.used(journey))
            order(banning[0], "ban", peer=CLIENT.peer_id, seconds=3_600)

    journey = pair.answer(7, ban)
    assert journey.replaced == 1 and pair.used(journey) is pair.other(banning[0])
    assert order(banning[0], "unban", peer=CLIENT.peer_id).done.endswith("is banned no more")

    node = pair.second
    reply = order(node, "ban", peer=BANNED.peer_id, seconds=3_600)
    assert [(ban.peer, 3_500 < ban.seconds <= 3_600) for ban in reply.bans] == [(BANNED.peer_id, True)]
    assert why_refused(node, BANNED) == "banned"
    order(node, "pause")
    assert node.end(signal.SIGKILL) == -signal.SIGKILL
    node.close()
    pair.second = node = pair.start("second", "--peer", pair.first.said["multiaddr"])
    assert why_refused(node, BANNED) == "banned"
    assert order(node, "ask").state == "paused" and any(
        "still paused by an operator" in line for line in said_after(node, "order")
    )
    assert order(node, "resume").state == "serving" and not list((pair.folder / "second").glob("paused-*"))
    order(node, "ban", peer=BANNED.peer_id, seconds=1)  # a shorter one, which ends soon
    assert eventually(lambda: not order(node, "ask").bans and why_refused(node, BANNED) == "no operator", WITHIN_S)


def test_the_command_line_finds_a_node_by_name_end_or_address_and_says_what_it_did(pair: Pair, tmp_path: Path) -> None:
    key, peer, address = tmp_path / "operator.key", pair.first.said["peer"], pair.first.said["multiaddr"]
    key.touch(mode=0o600)
    key.write_bytes(OPERATOR.private_bytes)
    way = ("--peer", address, "--no-lan", "--operator-key", str(key), "--data-dir", str(tmp_path))
    code, out, err = run("operator", "ask", "first", *way, "--json")
    said = json.loads(out)
    assert (code, said["node"], said["name"], said["state"], said["may"]) == (0, peer, "first", "serving", list(ACTIONS)), err
    code, out, err = run("operator", "pause", peer[-6:], *way)
    assert code == 0 and out.startswith(f"first {peer}: paused: no new session begins"), err
    by_address = ("--no-lan", "--operator-key", str(key), "--data-dir", str(tmp_path))
    code, out, err = run("operator", "ban", address, BANNED.peer_id, "--seconds", "60", *by_address)
    assert code == 0 and "is refused and not called for 60 seconds" in out, err
    code, out, err = run("operator", "ask", address, *by_address)
    assert (
        code == 0 and f"paused\nyou may order: drain, pause, resume, ban, unban, kill\nbans …{BANNED.peer_id[-6:]} for " in out
    ), err
    assert run("operator", "unban", address, BANNED.peer_id, *by_address)[0] == run("operator", "resume", peer, *way)[0] == 0
    code, out, err = run("operator", "drain", "third", *way)
    assert (code, out) == (2, "") and "no node of the swarm is called 'third': expected a PeerID" in err
    code, out, err = run("operator", "ban", "first", "bob", *way)
    assert (code, out) == (2, "") and "not an Ed25519 PeerID" in err


def test_a_node_that_calls_itself_like_another_gets_none_of_its_orders() -> None:
    real, thief = (made_record(number, Span(0, 3), 6, f"node{number}") for number in (1, 2))
    named = replace(thief, name=real.peer)
    assert operating._one_of(real.peer, [named, real]).peer == real.peer
    with pytest.raises(BadRequestError, match="no node of the swarm is called"):
        operating._one_of(real.peer, [named])
    for name in (real.name, real.peer[-6:]):
        with pytest.raises(ConfigError, match=f"2 nodes are called '{name}': name one by its PeerID"):
            operating._one_of(name, [replace(thief, name=name), real])


def test_a_key_that_is_new_or_that_others_may_read_orders_nothing(pair: Pair, tmp_path: Path) -> None:
    key, rest = tmp_path / "operator.key", ("--no-lan", "--data-dir", str(tmp_path))
    address = pair.first.said["multiaddr"]
    code, out, err = run("operator", "drain", address, *rest)
    assert (code, out) == (2, "") and "make one: swarm operator new" in err
    code, out, err = run("operator", "new", "--data-dir", str(tmp_path))
    assert code == 0 and parse_peer_id(out.strip()) and key.stat().st_mode & 0o777 == 0o600, err
    assert run("operator", "new", "--data-dir", str(tmp_path))[0] == 2, "nodes may know the first one"
    code, said, err = run("operator", "drain", address, *rest)
    assert (code, said) == (3, "") and f"takes no orders from {out.strip()}" in err and "--operators FILE" in err
    key.chmod(0o640)
    code, said, err = run("operator", "drain", address, *rest)
    assert (code, said) == (2, "") and "chmod 600" in err
    assert not pair.first.has_ended()


def test_an_operator_that_is_taken_off_the_list_orders_no_more(pair: Pair) -> None:
    pair.operators.write_text(f"{STRANGER.peer_id}\n")
    assert eventually(lambda: why_refused(pair.first, OPERATOR) == "no operator" == why_refused(pair.second, OPERATOR), WITHIN_S)
    assert order(pair.first, "ask", STRANGER).may == ACTIONS
    pair.operators.write_text(f"{OPERATOR.peer_id}\n")
    assert eventually(lambda: not why_refused(pair.first, OPERATOR) and not why_refused(pair.second, OPERATOR), WITHIN_S)


def test_kill_is_for_test_swarms_and_a_drained_node_hands_its_session_over(pair: Pair) -> None:
    with pytest.raises(NotAllowedError, match="was started without --test-swarm; `drain` ends it in order"):
        order(pair.second, "kill")
    assert "kill" not in order(pair.second, "ask").may and not pair.second.has_ended()
    order(pair.first, "pause")
    drained: list[NodeProcess] = []

    def drain(number: int, journey: Any) -> None:
        if number == 5:
            assert pair.used(journey) is pair.second
            order(pair.first, "resume")
            drained.append(pair.second)
            reply = order(pair.second, "drain")
            assert reply.state == "leaving" and "1 open session" in reply.done
            with pytest.raises(SwarmError, match="is leaving already"):
                order(pair.second, "resume")

    pair.answer(8, drain)
    (node,) = drained
    assert node.has_ended(60) and node.code == 0, node.last_words()
    node.wait_for("left")
    assert order(pair.first, "kill").done == "its process ends now, as by kill -9"
    assert pair.first.has_ended(60) and pair.first.code == -signal.SIGKILL
    with pytest.raises(PeerUnreachableError):
        order(pair.first, "ask")
