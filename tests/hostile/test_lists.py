"""`--allow`, `--deny`, `--trust` hold on every way into a node.

They also hold after a list has changed while the node runs.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID

from protocols import services
from protocols.errors import BadRequestError, ConfigError, NotAllowedError, SwarmError
from protocols.identity import Identity, from_seed
from protocols.ids import PeerId
from protocols.inference import Open
from protocols.orders import MAX_BANS
from swarm.access import EVERYBODY, Access, Gate
from swarm.access_lists import Lists, changes, keep_reading, of_argument, parse
from swarm.bans import Bans
from swarm.client.connection import Settings, entered
from swarm.clock import Clock
from swarm.dht.address import PeerAddress
from swarm.meeting.entering import Entry
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer
from swarm.peer.thin_peer import ThinPeer
from swarm.routing.regard import Regard, regard_of
from swarm.rpc import Call, ChannelPool, RpcServer, Stream, tls
from tests.hostile.test_private import MODEL, address_of, attempts, member, record_of, untrusted_node
from tests.swarm.inference.probe import Probe, absent_hop, grant_of, hop_of
from tests.swarm.inference.toy import ToySwarm, ask, random_tokens, until
from tests.swarm.rpc.parts import METHODS, TALK, Handlers

ONE, TWO, THREE = (from_seed(bytes([number]) * 32) for number in (11, 12, 13))


def ids(*identities: Identity) -> frozenset[PeerId]:
    return frozenset(identity.peer_id for identity in identities)


def test_deny_wins_and_trust_gives_no_right_of_its_own() -> None:
    access = Access(allow=ids(ONE, TWO), deny=ids(TWO), trust=ids(ONE, TWO, THREE))
    one, two, three = ONE.peer_id, TWO.peer_id, THREE.peer_id
    for question in (access.may_call, access.may_be_dialled, access.may_be_seen, access.may_open_session, access.is_trusted):
        assert [question(peer) for peer in (one, two, three)] == [True, False, False], question
    assert EVERYBODY.may_call(three) and not EVERYBODY.is_trusted(three)


# --- at the server, in the pool, in the DHT and for sessions


async def test_a_refused_caller_reaches_no_handler_and_a_running_stream_is_cut_when_it_is_denied() -> None:
    handlers, gate, certificate = Handlers(), Gate(access=Access(allow=ids(ONE))), tls.make(THREE)
    server = RpcServer(THREE, certificate, handlers.table(), methods=METHODS, gate=gate)
    address = f"127.0.0.1:{await server.start()}"
    allowed, other = ChannelPool(ONE), ChannelPool(TWO)
    try:
        for method in METHODS:
            channel = await other.channel(THREE.peer_id, (address,), certificate.der)
            with pytest.raises(NotAllowedError, match=r"it is not among the allowed ones \(--allow\); ask another peer"):
                await (channel.stream(method) if method.streaming else channel.unary(method, b"1"))
        assert handlers.num_calls == 0 and handlers.seen.empty()

        stream = await (await allowed.channel(THREE.peer_id, (address,), certificate.der)).stream(TALK)
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        gate.renew(Access(deny=ids(ONE)))
        with pytest.raises(SwarmError):
            async with asyncio.timeout(60):
                await stream.receive()
        again = await allowed.channel(THREE.peer_id, (address,), certificate.der)
        with pytest.raises(NotAllowedError, match=r"it is denied \(--deny\)"):
            await again.stream(TALK)
    finally:
        await allowed.close()
        await other.close()
        await server.stop()


async def test_a_session_of_a_denied_client_is_refused_also_behind_an_allowed_hop(swarm: ToySwarm) -> None:
    node, client, hop = await swarm.serve(2, 4), Probe(), Probe()
    gate = node.host.hops._gate
    try:
        gate.renew(Access(deny=ids(client.identity)))
        grant = grant_of(client.identity, [absent_hop(0, 2, hop.identity), hop_of(node)])
        line = await hop.line(node, services.SESSION)
        await line.say(Open(grant=grant, index=1, dtype="float32"))
        with pytest.raises(
            NotAllowedError, match=r"does not compute for client ….{6}: it is denied \(--deny\); ask another peer"
        ):
            await line.hear_nothing_more()
        gate.renew(EVERYBODY)
        line = await hop.line(node, services.SESSION)
        await line.say(Open(grant=grant, index=1, dtype="float32"))
        await until(lambda: node.host.num_sessions == 1)  # the same words are taken: it was the list
    finally:
        await client.close()
        await hop.close()


async def test_denying_a_client_gives_its_memory_back_and_leaves_others_alone(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    session = swarm.session()
    await ask(session, (), (3,), random_tokens(3))
    assert node.host.num_sessions == 1
    node.host.hops._gate.renew(Access(deny=ids(ONE)))
    await ask(session, (), (1,), random_tokens(1))
    assert node.host.num_sessions == 1
    node.host.hops._gate.renew(Access(deny=ids(swarm.identity)))
    await until(lambda: node.host.num_sessions == 0 and node.engine.used_bytes == 0)
    await session.close()


async def test_whole_peers_keep_to_their_lists(tmp_path: Path) -> None:
    """Not dialled, not believed, not answered, in the DHT neither; a thin client and a full one alike."""

    def config(name: str, lists: Lists, *bootstrap: str) -> PeerConfig:
        return PeerConfig(data_dir=tmp_path, identity_path=tmp_path / name, bootstrap=bootstrap, entry=Entry(lists=lists))

    deny = tmp_path / "deny.txt"
    deny.write_text("# none yet\n")
    async with Peer(config("host", Lists(deny=deny))) as host, Peer(config("guest", Lists(), *host.multiaddrs)) as guest:
        await guest.joined()
        await guest.directory.announce(lambda: record_of(guest), [MODEL.name])
        await host.hello(guest.peer_id, guest.addresses)
        assert [one.peer for one in (await host.directory.snapshot(MODEL.name)).peers] == [guest.peer_id]

        mine = tmp_path / "mine.key"
        entry = Entry(lists=Lists(allow=frozenset({host.peer_id})), identity=mine)
        async with ThinPeer(host.multiaddrs, entry=entry) as thin:
            assert (await thin.directory.snapshot(MODEL.name)).peers == (), "what others announce is not believed"
            with pytest.raises(NotAllowedError, match="is not dialled"):
                await thin.hello(guest.peer_id, guest.addresses)
            me = thin.peer_id

        deny.write_text(f"{guest.peer_id}  # spams\n{me}\n")
        await until(lambda: not host.gate.access.may_call(guest.peer_id))
        assert (await host.directory.snapshot(MODEL.name)).peers == ()
        with pytest.raises(NotAllowedError, match="is not dialled: it is denied"):
            await host.hello(guest.peer_id, guest.addresses)
        with pytest.raises(NotAllowedError, match="does not serve"):
            await guest.hello(host.peer_id, host.addresses)
        with pytest.raises(NotAllowedError, match="does not serve"):
            async with ThinPeer(host.multiaddrs, entry=entry):  # the identity file makes it the same peer again
                pass


async def test_a_denied_dht_node_is_refused_ping_store_and_find_and_is_not_asked() -> None:
    async with member(None) as ours, untrusted_node() as outsider:
        answered = {"ping": True, "store": True, "find": True}
        assert await attempts(outsider, ours, "said") == answered
        ours._guard._gate.renew(Access(deny=frozenset({PeerId(outsider.peer_id.to_base58())})))
        assert await attempts(outsider, ours, "said") == dict.fromkeys(answered, False)
        ours._guard._gate.renew(EVERYBODY)
        assert await attempts(outsider, ours, "said") == answered

        async with member(None) as theirs:
            await ours.join(address_of(theirs))
            peer, keys = PeerID.from_base58(address_of(theirs).peer), [DHTID.generate("said")]
            assert await ours._running.ask(peer, keys) is not None
            ours._guard._gate.renew(Access(deny=frozenset({address_of(theirs).peer})))
            assert await ours._running.ask(peer, keys) is None


async def hold(stream: Stream, call: Call) -> None:
    """Answer one frame, and then nothing for as long as the caller is there."""
    await stream.send(await stream.receive() or b"")
    await stream.receive()


@pytest.mark.parametrize("is_thin", [False, True], ids=["full", "thin"])
async def test_a_stream_to_a_peer_that_comes_to_be_denied_ends(tmp_path: Path, is_thin: bool) -> None:
    """Also what was opened before: the connections to refused peers are closed when a list has changed."""
    deny = tmp_path / "deny.txt"
    deny.write_text("")
    asking = Entry(lists=Lists(deny=deny))

    def client(*bootstrap: str) -> Peer | ThinPeer:
        if is_thin:
            return ThinPeer(bootstrap, entry=asking)
        return Peer(PeerConfig(client_mode=True, listen=None, bootstrap=bootstrap, entry=asking))

    config, handlers = PeerConfig(data_dir=tmp_path), {services.SESSION.name: hold}
    async with (
        Peer(config, handlers) as first,
        Peer(config, handlers) as second,
        client(*first.multiaddrs, *second.multiaddrs) as us,
    ):
        streams = []
        for peer in (first, second):
            streams.append(await (await us.pool.channel(peer.peer_id, peer.addresses)).stream(services.SESSION))
            await streams[-1].send(b"hello")
            assert await streams[-1].receive() == b"hello"
        deny.write_text(f"{first.peer_id}\n")
        async with asyncio.timeout(60):
            with pytest.raises(SwarmError):
                await streams[0].receive()
        assert us.pool.is_connected(second.peer_id) and not us.pool.is_connected(first.peer_id)
        streams[1].cancel()


async def test_a_trusted_peer_counts_as_met_and_as_proven(tmp_path: Path) -> None:
    lists = Lists(trust=ids(ONE))
    async with Peer(PeerConfig(data_dir=tmp_path)) as host:
        asking = PeerConfig(client_mode=True, listen=None, bootstrap=host.multiaddrs, entry=Entry(lists=lists))
        async with Peer(asking) as full, ThinPeer(host.multiaddrs, entry=Entry(lists=lists)) as thin:
            for us in (full, thin):
                await us.hello(host.peer_id, host.addresses)
                regard = regard_of(us)

                def judged(peer: PeerId, us: Peer | ThinPeer = us, regard: Regard = regard) -> list[bool]:
                    return [us.has_met(peer), regard.has_met(peer), regard.is_trusted(peer)]

                assert judged(ONE.peer_id) == [True, True, True]
                assert judged(TWO.peer_id) == [False, False, False]
                assert judged(host.peer_id) == [True, True, False], "met, and not trusted by any list"
                us.gate.renew(Access(trust=ids(ONE), deny=ids(ONE)))
                assert judged(ONE.peer_id) == [False, False, False]


async def test_a_given_peer_that_our_own_lists_exclude_is_named_as_such(tmp_path: Path) -> None:
    async with Peer(PeerConfig(data_dir=tmp_path)) as host:
        denying = Entry(lists=Lists(deny=frozenset({host.peer_id})))
        async with Peer(PeerConfig(data_dir=tmp_path, entry=denying)) as guest:
            with pytest.raises(NotAllowedError, match=r"is not dialled: it is denied \(--deny\) here"):
                await guest._dht.join(PeerAddress.parse(host.multiaddrs[0]))


# --- the files


def test_a_wrong_line_is_named_with_what_was_expected() -> None:
    good = f"\n# friends\n{ONE.peer_id} # Ann\n  {TWO.peer_id}\n"
    assert parse(good, "f.txt", "allow") == ids(ONE, TWO)
    with pytest.raises(ConfigError, match=r"f\.txt \(--deny\), line 5: expected a PeerID .*got 'Bob'"):
        parse(good + "Bob\n", "f.txt", "deny")
    with pytest.raises(ConfigError, match="only what follows /p2p/"):
        parse(f"/ip4/127.0.0.1/tcp/1/p2p/{ONE.peer_id}", "f.txt", "deny")


def test_files_that_cannot_be_lists_are_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("# none\n")
    binary.write_bytes(os.urandom(100) + b"\xff")
    with pytest.raises(ConfigError, match="is empty, so every peer would be refused"):
        Lists(allow=empty).read()
    assert Lists(deny=empty, trust=empty).read() == EVERYBODY
    with pytest.raises(ConfigError, match="is no text"):
        Lists(deny=binary).read()
    with pytest.raises(ConfigError, match=r"nowhere \(--trust\) cannot be read: No such file"):
        Lists(trust=tmp_path / "nowhere").read()
    assert Lists(allow=of_argument("allow", [str(ONE.peer_id)])).read().allow == ids(ONE)


def test_a_home_that_is_not_there_is_no_traceback(tmp_path: Path) -> None:
    """`~user` of no such user, or `~` in a container without one."""
    with pytest.raises(ConfigError, match=r"~no-such-user/friends \(--allow\) cannot be read: No such file"):
        Lists(allow=of_argument("allow", "~no-such-user/friends")).read()
    settings = entered(Settings(cache_dir=tmp_path), None, {}, "~no-such-user/me.key")
    assert settings.entry.identity == Path("~no-such-user/me.key")


async def test_lists_are_read_again_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    file, said, renewed = tmp_path / "deny", [], asyncio.Event()
    file.write_text("")
    lists = Lists(deny=file)
    gate = Gate(access=lists.read())

    async def on_change() -> None:
        renewed.set()

    reading = asyncio.create_task(keep_reading(lists, gate, on_change, said.append, 0.02))
    try:
        file.write_text(f"{ONE.peer_id}\n")
        async with asyncio.timeout(60):
            await renewed.wait()
        assert not gate.access.may_call(ONE.peer_id) and "deny: 1 more" in said[-1]
        for broken in (f"{ONE.peer_id}\nnonsense\n", None):
            before = len(said)
            file.unlink() if broken is None else file.write_text(broken)
            await until(lambda before=before: len(said) > before)  # type: ignore[misc]
            assert said[-1].endswith("the lists stay as they were") and not gate.access.may_call(ONE.peer_id)
        renewed.clear()
        file.write_text(f"{TWO.peer_id}\n")
        async with asyncio.timeout(60):
            await renewed.wait()
        assert gate.access.may_call(ONE.peer_id) and not gate.access.may_call(TWO.peer_id)
        assert changes(EVERYBODY, gate.access).startswith("deny: 1 more (…")
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


# --- bans of an operator


def banning(tmp_path: Path, now_s: list[float]) -> Bans:
    return Bans(tmp_path / "bans.json", Clock(unix_s=lambda: now_s[0]))


async def test_a_ban_holds_at_once_and_not_with_the_next_look() -> None:
    """The page says that no answer goes over the peer any more: that was true a second later."""
    bans, renewed = Bans(), asyncio.Queue[bool]()
    gate = Gate(bans=bans)

    async def on_change() -> None:
        renewed.put_nowait(gate.access.may_be_dialled(ONE.peer_id))

    reading = asyncio.create_task(keep_reading(Lists(), gate, on_change, print, 3600.0))
    try:
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            bans.add(ONE.peer_id, 60)
            assert await renewed.get() is False
            assert bans.lift(ONE.peer_id) and await renewed.get() is True
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def test_a_ban_is_as_good_as_deny_ends_by_itself_and_survives_a_restart(tmp_path: Path) -> None:
    now_s = [1_000.0]
    bans = banning(tmp_path, now_s)
    gate = Gate(access=Access(trust=ids(ONE), operators=ids(ONE)), bans=bans)
    bans.add(ONE.peer_id, 60)
    assert gate.renew_bans() and not gate.renew_bans()
    access = gate.access
    questions = (
        access.may_call,
        access.may_be_dialled,
        access.may_be_seen,
        access.may_open_session,
        access.is_trusted,
        access.may_order,
    )
    assert not any(question(ONE.peer_id) for question in questions) and access.may_call(TWO.peer_id) and access.is_limited
    with pytest.raises(NotAllowedError, match="an operator has banned it; ask another peer"):
        gate.check_caller(ONE.peer_id)
    gate.renew(Access(trust=ids(TWO)))
    assert not gate.access.may_call(ONE.peer_id), "new lists forgive nothing"
    again = banning(tmp_path, now_s)
    assert again.now() == ids(ONE) and [(ban.peer, ban.seconds) for ban in again.listed()] == [(ONE.peer_id, 60)]
    now_s[0] += 60.5
    assert gate.renew_bans() and gate.access.may_call(ONE.peer_id) and again.listed() == ()


def test_bans_are_bounded_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    now_s = [1_000.0]
    bans = banning(tmp_path, now_s)
    many = [from_seed(number.to_bytes(32, "big")).peer_id for number in range(MAX_BANS)]
    (tmp_path / "bans.json").write_text(json.dumps({"bans": dict.fromkeys(many, 2_000.0)}))
    bans.keep_in(tmp_path / "bans.json")
    with pytest.raises(BadRequestError, match="256 peers are banned here"):
        bans.add(ONE.peer_id, 60)
    bans.add(many[0], 5_000)  # a longer one of the same peer takes no place
    assert bans.lift(many[0]) and not bans.lift(many[0])
    bans.add(ONE.peer_id, 60)
    for damaged in (
        "[]",
        '{"bans": {"bob": 1}}',
        '{"bans": [1]}',
        json.dumps({"bans": {many[0]: 1e400}}),
        "{" * 5_000,
        "x" * 70_000,
    ):
        (tmp_path / "bans.json").write_text(damaged)
        with pytest.raises(ConfigError, match="are damaged"):
            banning(tmp_path, now_s)


def test_two_gateways_with_one_file_forgive_none_of_each_other_s_bans(tmp_path: Path) -> None:
    """The later one wrote what it knew, so that a restart of the first forgave its bans."""
    now_s = [1_000.0]
    first, second = banning(tmp_path, now_s), banning(tmp_path, now_s)
    first.add(ONE.peer_id, 60)
    second.add(TWO.peer_id, 60)
    assert banning(tmp_path, now_s).now() == ids(ONE, TWO) == second.now()
    assert second.lift(ONE.peer_id) and banning(tmp_path, now_s).now() == ids(TWO)
    first.add(THREE.peer_id, 60)
    assert first.now() == ids(TWO, THREE), "what the other has lifted stays lifted"


def test_a_ban_that_cannot_be_kept_is_none(tmp_path: Path) -> None:
    bans = Bans(tmp_path / "folder" / "bans.json")
    (tmp_path / "folder").write_text("no folder")
    with pytest.raises(ConfigError, match="bans cannot be kept"):
        bans.add(ONE.peer_id, 60)
    assert bans.now() == frozenset()
