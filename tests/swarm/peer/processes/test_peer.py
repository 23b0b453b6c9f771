"""A peer's lifetime: identity, joining, being dialled back, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from protocols import services
from protocols.defaults import RECORD_RENEW_S
from protocols.errors import BadRequestError, ConfigError, NotAllowedError, PeerUnreachableError, ProtocolVersionError
from protocols.hello import DialBack, DialBackReply, Hello
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from swarm.access_lists import Lists
from swarm.dht import sockets
from swarm.dht.address import PeerAddress, transport
from swarm.meeting import known_peers
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.entering import Entry
from swarm.peer import keys, ports
from swarm.peer import peer as module
from swarm.peer.config import PeerConfig
from swarm.peer.contacts import Contacts
from swarm.peer.dht_keeper import DhtKeeper
from swarm.peer.peer import Peer
from swarm.rpc import tls
from tests.forked import PIPE, Child, ForkServer
from tests.hosting import hosted


def record(peer: Peer) -> PeerRecord:
    span = hosted(ModelId("tiny", "a" * 64), Span(0, 4), 4)
    return PeerRecord(
        peer=peer.peer_id,
        addresses=peer.addresses,
        certificate=peer.certificate,
        p2p_addresses=peer.multiaddrs,
        reachable=peer.reachable,
        hosted=span,
    )


async def eventually(condition: object, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def client(*bootstrap: str, swarm: str = "public") -> Peer:
    return Peer(PeerConfig(client_mode=True, listen=None, bootstrap=bootstrap, swarm=swarm))


# --- identity


async def test_two_nodes_of_one_folder_are_two_peers_and_each_comes_back_as_itself(tmp_path: Path) -> None:
    config = PeerConfig(data_dir=tmp_path)
    async with Peer(config) as first, Peer(config) as second:
        before = [(peer.peer_id, peer.certificate) for peer in (first, second)]
        assert before[0][0] != before[1][0]
        assert tls.owner(first.certificate) == first.peer_id
    async with Peer(config) as first, Peer(config) as second:
        assert [(peer.peer_id, peer.certificate) for peer in (first, second)] == before
    assert {oct(os.stat(path).st_mode & 0o777) for path in os.scandir(tmp_path)} == {"0o600"}


def test_the_first_identity_that_no_process_holds_is_taken(tmp_path: Path) -> None:
    with keys.held(None, tmp_path) as one:
        with keys.held(None, tmp_path) as two, keys.held(None, tmp_path) as three:
            names = [found.path.name for found in (one, two, three) if found.path]
            assert names == ["identity.key", "identity-2.key", "identity-3.key"]
        with keys.held(None, tmp_path) as again:
            assert again.identity.peer_id == two.identity.peer_id


def test_a_named_identity_in_use_or_spoilt_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.key"
    with keys.held(path, tmp_path), pytest.raises(ConfigError, match="in use by another process"), keys.held(path, tmp_path):
        pass
    path.write_bytes(b"something else")
    with pytest.raises(ConfigError, match=r"mine\.key: not an Ed25519"), keys.held(path, tmp_path):
        pass
    with pytest.raises(ConfigError, match="cannot be opened"), keys.held(tmp_path, tmp_path):
        pass


def test_a_spoilt_or_foreign_certificate_is_made_anew(tmp_path: Path) -> None:
    with keys.held(None, tmp_path) as one, keys.held(None, tmp_path) as two:
        theirs = two.certificate
    assert one.certificate and theirs
    for spoilt in (b"", b"nonsense", theirs.key_pem + theirs.cert_pem):
        (tmp_path / "identity.tls.pem").write_bytes(spoilt)
        with keys.held(None, tmp_path) as again:
            assert again.certificate and tls.owner(again.certificate.der) == one.identity.peer_id
            assert again.certificate != one.certificate


# --- ports


def test_a_free_pair_is_two_neighbours_and_a_taken_port_is_one_line() -> None:
    port = ports.pair("127.0.0.1", 0)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as `pair` asks: a connection that has ended takes no port
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        with pytest.raises(ConfigError, match=rf"port {port + 1} at 127\.0\.0\.1 \(for gRPC\) is taken"):
            ports.pair("127.0.0.1", port)
    assert ports.pair("127.0.0.1", port) == port
    for host, number in (("256.1.1.1", 0), ("127.0.0.1", 65_535)):
        with pytest.raises((ConfigError, OSError)):
            ports.pair(host, number)
    for number in (0, port):
        with pytest.raises(ConfigError, match=rf"address of this machine, got 198\.51\.100\.7; listen on 0\.0\.0\.0:{number}"):
            ports.pair("198.51.100.7", number)


async def test_a_peer_whose_port_is_taken_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    async with Peer(PeerConfig(data_dir=tmp_path)) as first:
        port = int(first.multiaddrs[0].split("/")[4])
        with pytest.raises(ConfigError, match="is taken") as caught:
            async with Peer(PeerConfig(data_dir=tmp_path, listen=("127.0.0.1", port))):
                pass
        assert "\n" not in str(caught.value)
        async with Peer(PeerConfig(data_dir=tmp_path)) as second:  # the identity is free again
            assert second._keys.path and second._keys.path.name == "identity-2.key"


# --- meeting


async def test_a_node_with_dead_bootstraps_serves_says_so_and_joins_when_one_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with keys.held(tmp_path / "late.key", tmp_path) as late:
        pass
    port = ports.pair("127.0.0.1", 0)
    address = f"{transport('127.0.0.1', port)}/p2p/{late.identity.peer_id}"
    said: list[bool] = []
    config = PeerConfig(data_dir=tmp_path, bootstrap=(address,), on_join=lambda is_joined, _text: said.append(is_joined))
    async with Peer(config) as early:
        await eventually(lambda: said)
        assert not any(said) and "no given peer answers" in caplog.text
        with pytest.raises(PeerUnreachableError, match="check --peer"):
            await early.joined(0.01)
        await early.directory.announce(lambda: record(early), ["tiny"])
        assert len((await early.directory.snapshot("tiny")).peers) == 1  # alone, it serves
        assert early.reachable is None  # no peer has tried
        late_config = PeerConfig(data_dir=tmp_path, identity_path=tmp_path / "late.key", listen=("127.0.0.1", port))
        async with Peer(late_config) as first:
            await early.joined()
            assert said[-1] and said.count(True) == 1
            await eventually(lambda: first.num_neighbours == early.num_neighbours == 1)
            assert [peer.peer for peer in (await first.directory.snapshot("tiny")).peers] == [early.peer_id]


async def test_a_client_without_a_live_peer_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JOIN_S", 4.0)
    with pytest.raises(PeerUnreachableError, match="/tcp/1/p2p/") as caught:
        async with client(f"/ip4/127.0.0.1/tcp/1/p2p/{keys.fresh().identity.peer_id}"):
            pass
    assert "\n" not in str(caught.value)


async def test_a_client_asks_by_grpc_and_measures_the_round_trip(tmp_path: Path) -> None:
    async with Peer(PeerConfig(data_dir=tmp_path, name="attic")) as node:
        await node.directory.announce(lambda: record(node), ["tiny"])
        async with client(*node.multiaddrs) as asking:
            (found,) = (await asking.directory.snapshot("tiny")).peers
            assert found.addresses == node.addresses and found.certificate == node.certificate
            assert (await asking.hello(found.peer, found.addresses, found.certificate)).name == "attic"
            assert 0 < asking.round_trips_ms[node.peer_id] < 60_000
            assert (asking.multiaddrs, asking.addresses, asking.certificate) == ((), (), b"")


async def test_another_swarm_or_version_is_refused_and_typed(tmp_path: Path) -> None:
    async with Peer(PeerConfig(data_dir=tmp_path, swarm="blue")) as node:
        with pytest.raises(BadRequestError, match="'blue'"):
            async with client(*node.multiaddrs, swarm="red"):
                pass
        async with client(*node.multiaddrs, swarm="blue") as asking:
            channel = await asking.pool.channel(node.peer_id, node.addresses)
            for versions, who in (((90, 99), "we"), ((1, 1), "they")):  # as the asked node says it
                theirs = Hello(oldest=versions[0], newest=versions[1], software="of another time", swarm="blue")
                with pytest.raises(ProtocolVersionError, match=f"{who} must upgrade"):
                    await channel.unary(services.HELLO, theirs.encode())


def test_a_config_that_makes_no_sense_is_refused() -> None:
    for wrong in ({"swarm": ""}, {"swarm": "a\nb"}, {"bootstrap": ("localhost:1",)}, {"listen": None}):
        with pytest.raises(ConfigError):
            PeerConfig(**wrong)  # type: ignore[arg-type]


# --- being dialled back


async def test_an_address_counts_when_another_peer_has_reached_it(tmp_path: Path) -> None:
    quick = functools.partial(PeerConfig, data_dir=tmp_path, dial_back_s=2.0)  # how long each of the two tries the closed port
    async with Peer(quick()) as first:
        await first.directory.announce(lambda: record(first), ["tiny"])
        assert await first.verify() is None and record(first).reachable is None
        async with Peer(quick(bootstrap=first.multiaddrs)) as second:
            await second.directory.announce(lambda: record(second), ["tiny"])
            await eventually(lambda: first.reachable and second.reachable)
            async with asyncio.timeout(RECORD_RENEW_S - 5):  # pushed, not renewed
                while [one.reachable for one in (await second.directory.snapshot("tiny")).peers] != [True, True]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            closed = PeerConfig(data_dir=tmp_path, bootstrap=first.multiaddrs, announce=("127.0.0.1", 1))
            async with Peer(closed) as hidden:
                await eventually(lambda: hidden.reachable is False)
                assert hidden.multiaddrs == (f"/ip4/127.0.0.1/tcp/1/p2p/{hidden.peer_id}",)


async def test_nobody_is_dialled_back_in_anothers_name(tmp_path: Path) -> None:
    async with Peer(PeerConfig(data_dir=tmp_path)) as first, client(*first.multiaddrs) as asking:
        channel = await asking.pool.channel(first.peer_id, first.addresses)
        request = DialBack(addresses=(*first.addresses, "127.0.0.1:1"))
        reply = DialBackReply.parse(await channel.unary(services.DIAL_BACK, request.encode()))
        assert reply.reachable == () and reply.reason


# --- leaving


@pytest.mark.parametrize("task", [Contacts.keep_joined, DhtKeeper.keep_alive])
async def test_a_task_that_fails_by_a_fault_of_ours_begins_again(
    task: Callable[..., Awaitable[None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BEGIN_AGAIN_S", 0.01)
    failures = [RuntimeError("a fault")]

    async def fails_once(*own: object) -> None:
        if failures:
            raise failures.pop()
        await task(*own)

    async with Peer(PeerConfig(data_dir=tmp_path)) as first:
        monkeypatch.setattr(Contacts if task is Contacts.keep_joined else DhtKeeper, task.__name__, fails_once)
        async with client(*first.multiaddrs) as second:  # it has joined
            before = second._dht._running
            before.p2p._child.kill()
            await eventually(lambda: second._dht._node not in (None, before) and second.num_neighbours > 0)
    assert "a fault" in caplog.text and not failures


async def test_a_daemon_that_dies_is_started_again_and_the_record_said_again(tmp_path: Path) -> None:
    async with (
        Peer(PeerConfig(data_dir=tmp_path)) as first,
        Peer(PeerConfig(data_dir=tmp_path, bootstrap=first.multiaddrs)) as second,
    ):
        await second.joined()
        await second.directory.announce(lambda: record(second), ["tiny"])
        before = second._dht._running
        before.p2p._child.kill()
        await eventually(lambda: second._dht._node not in (None, before) and second.num_neighbours > 0)
        assert [peer.peer for peer in (await first.directory.snapshot("tiny")).peers] == [second.peer_id]


async def test_a_daemon_that_dies_twice_is_started_twice_though_a_remembered_peer_denies_us(tmp_path: Path) -> None:
    with keys.held(tmp_path / "mine.key", tmp_path) as mine:
        pass
    denies = Entry(lists=Lists(deny=frozenset({mine.identity.peer_id})))
    file = known_peers.file_of(tmp_path, "public")
    mine_config = PeerConfig(data_dir=tmp_path, identity_path=tmp_path / "mine.key", find=FindConfig(known_peers=file))
    async with Peer(PeerConfig(data_dir=tmp_path)) as first, Peer(PeerConfig(data_dir=tmp_path, entry=denies)) as denying:

        def remember() -> None:
            """Anew each time: the one that denies us is asked first."""
            file.unlink(missing_ok=True)
            for age_s, peer in ((60.0, denying), (0.0, first)):
                known_peers.update(file, [PeerAddress.parse(peer.multiaddrs[0])], [], time.time() - age_s)

        remember()
        async with Peer(mine_config) as second:
            await eventually(lambda: second.num_neighbours)
            with pytest.raises(NotAllowedError):
                await second._dht.join(PeerAddress.parse(denying.multiaddrs[0]))
            for _ in range(2):
                remember()
                before = second._dht._running
                before.p2p._child.kill()
                await eventually(lambda before=before: second._dht._node not in (None, before) and second.num_neighbours)  # type: ignore[misc]


async def test_a_start_that_is_given_up_leaves_no_daemon(tmp_path: Path) -> None:
    for pause_s in (0.0, 0.05, 0.3):
        peer = Peer(PeerConfig(data_dir=tmp_path))
        starting = asyncio.create_task(peer.__aenter__())
        await asyncio.sleep(pause_s)  # somewhere in the middle
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        if not starting.cancelled():
            await peer.__aexit__()
        assert [name for name in children() if name == "p2pd"] == []


def children() -> list[str]:
    """Names of the processes whose parent is this one."""
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids]


@pytest.mark.parametrize(("host", "expected"), [("localhost", "127.0.0.1"), ("::1", "::1")])
async def test_a_name_to_listen_at_is_one_address_for_p2p_and_grpc(host: str, expected: str, tmp_path: Path) -> None:
    async with Peer(PeerConfig(data_dir=tmp_path, listen=(host, 0))) as node:
        (multiaddr,), (grpc,) = node.multiaddrs, node.addresses
        assert multiaddr.startswith(f"{transport(expected, 0).removesuffix('/0')}/") and expected in grpc
        async with client(multiaddr) as other:
            await other.hello(node.peer_id, node.addresses, node.certificate)


async def test_a_name_that_stands_for_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--listen takes an address or a name of this machine.*'no\.such\.invalid' stands for none"
    ):
        async with Peer(PeerConfig(data_dir=tmp_path, listen=("no.such.invalid", 0))):
            pass


async def test_sockets_of_every_kind_of_listening_are_told(tmp_path: Path) -> None:
    async with Peer(PeerConfig(data_dir=tmp_path, listen=("0.0.0.0", 0))) as node:
        assert node.multiaddrs and node.addresses and not any("/0.0.0.0/" in address for address in node.multiaddrs)
        async with client(node.multiaddrs[0]) as asking:
            assert (await asking.hello(node.peer_id, node.addresses)).swarm == "public"


PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from swarm.peer.config import PeerConfig
from swarm.peer.contacts import Contacts
from swarm.peer.dht_keeper import DhtKeeper
from swarm.peer.peer import Peer
from tests.hosting import hosted

async def main():
    async with Peer(PeerConfig(data_dir=Path(sys.argv[1]))) as node:
        async with Peer(PeerConfig(client_mode=True, listen=None, bootstrap=node.multiaddrs)) as client:
            for peer in (node, client):
                p2p = peer._dht._running.p2p
                print(p2p._child.pid, p2p._daemon_listen_maddr["unix"], p2p._client_listen_maddr["unix"], flush=True)
            await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.fixture
def process(tmp_path: Path, fork_server: ForkServer) -> Iterator[tuple[Child, list[int], list[Path]]]:
    """A process with a node and a client in it; (process, pids of its daemons, its socket files)."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    started = fork_server.popen([PROGRAM, tmp_path / "data"], kind="code", stdin=PIPE, environment=environment)
    assert started.stdout
    try:
        lines = [started.stdout.readline().split() for _ in range(2)]
        yield started, [int(line[0]) for line in lines], [Path(name) for line in lines for name in line[1:]]
    finally:
        started.kill()
        started.communicate()


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_peer_that_leaves_leaves_nothing_behind(process: tuple[Child, list[int], list[Path]], tmp_path: Path) -> None:
    started, pids, files = process
    assert all(map(is_running, pids)) and any(file.exists() for file in files)
    assert os.getpgid(started.pid) not in map(os.getpgid, pids)  # so Ctrl-C does not reach them before us
    started.communicate("\n", timeout=60)
    assert started.returncode == 0
    assert not any(map(is_running, pids))
    assert not any(file.exists() for file in files)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["identity.key", "identity.tls.pem"]


async def test_kill_9_leaves_no_orphan_and_no_file_that_a_start_does_not_sweep(
    process: tuple[Child, list[int], list[Path]],
) -> None:
    started, pids, files = process
    started.kill()
    started.wait(60)
    await eventually(lambda: not any(map(is_running, pids)))
    sockets.sweep(min_age_s=0.0)
    assert not any(file.exists() for file in files)


def test_only_dead_sockets_of_p2pd_that_are_not_brand_new_are_swept() -> None:
    names = [sockets.DIRECTORY / f"hivemind-p2pd-test{os.getpid()}-{kind}.sock" for kind in ("alive", "dead")]
    alive, dead = (socket.socket(socket.AF_UNIX) for _ in names)
    try:
        for open_socket, name in zip((alive, dead), names, strict=True):
            open_socket.bind(str(name))
        alive.listen()
        dead.close()
        sockets.sweep()
        assert all(name.exists() for name in names)  # a process may be about to listen
        sockets.sweep(min_age_s=0.0)
        assert [name.exists() for name in names] == [True, False]
    finally:
        alive.close()
        for name in names:
            name.unlink(missing_ok=True)


async def test_a_record_is_announced_anew_when_a_peer_that_may_have_kept_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next renewal, up to 20 s later: until then no peer would find a node that lives."""
    told: list[PeerRecord] = []
    looks = 0
    async with Peer(PeerConfig(data_dir=tmp_path, watch_s=0.1)) as first:
        connected = first._dht.connected

        def make() -> PeerRecord:
            told.append(record(first))
            return told[-1]

        async def counted() -> frozenset[str]:
            nonlocal looks
            found = await connected()
            looks += bool(found)
            return found

        monkeypatch.setattr(first._dht, "connected", counted)
        await first.directory.announce(make, ["tiny"])
        async with Peer(PeerConfig(data_dir=tmp_path, bootstrap=first.multiaddrs)):
            await eventually(lambda: looks)  # only who was seen can be missed
            before = len(told)
        await eventually(lambda: len(told) > before, RECORD_RENEW_S / 2)
