"""`swarm doctor`: good machines, bad machines, and a look at real peers."""

from __future__ import annotations

import json
import shutil
import socket
from collections import namedtuple
from pathlib import Path

from node.cli.machine import doctor
from node.doctor import machine, network
from node.doctor.check import Check, failed, is_healthy, ok, warning
from protocols.errors import PeerUnreachableError
from protocols.hello import Hello
from swarm.dht.address import PeerAddress
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.entering import Entered
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer
from tests.node.cli.test_commands import NOBODY, run

ADDRESS = PeerAddress.parse(f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}")
Version = namedtuple("Version", "major minor micro")


def verdicts(*checks: Check) -> list[str]:
    for one in checks:
        assert bool(one.fix) or one.verdict in ("ok", "skipped"), f"{one} leaves a person alone"
        assert one.found.isprintable() and one.found
    return [one.verdict for one in checks]


def test_software_that_is_too_old_or_missing_is_named() -> None:
    assert verdicts(machine.python(), machine.packages()) == ["ok", "ok"]
    assert verdicts(machine.python((3, 10, 4)), machine.python((3, 12, 0), "darwin")) == ["failed", "failed"]
    bad = machine.packages(["rich>=99", "no-such-thing-at-all>=1", "pytest>=8; extra == 'test'"])
    assert verdicts(bad) == ["failed"] and "rich is " in bad.found and "no-such-thing-at-all is missing" in bad.found
    assert "pytest" not in bad.found
    lacks = machine.extras(["no-such-thing-at-all>=1; extra == 'lan'", "rich>=1; extra == 'gguf'"])
    assert verdicts(lacks) == ["warning"] and "neighbours" in lacks.found and "[lan]" in lacks.fix


def test_a_device_is_measured_and_a_card_that_torch_does_not_use_is_noticed(tmp_path: Path) -> None:
    *_, found = machine.device("cpu", tmp_path)
    assert verdicts(found) == ["ok"] and "GFLOP/s" in found.found
    assert verdicts(*machine.device("cuda:77", tmp_path)) == ["ok", "failed"]
    (tmp_path / "nvidia0").touch()
    *_, found = machine.device("auto", tmp_path)
    if found.found.startswith("cpu"):
        assert found.verdict == "warning" and "an NVIDIA card is not used" in found.found and "CUDA" in found.fix


def test_memory_disk_and_files_have_limits(tmp_path: Path) -> None:
    assert verdicts(*map(machine.memory, (1 << 20, 1 << 30, 1 << 40))) == ["failed", "warning", "ok"]
    assert verdicts(machine.disk(tmp_path / "new" / "folder", 1 << 20), machine.disk(tmp_path, 1 << 40)) == ["warning", "ok"]
    assert verdicts(machine.disk(Path("/proc/1"))) == ["failed"]
    assert verdicts(machine.files(256), machine.files(65_536)) == ["warning", "ok"]
    assert not (tmp_path / "new").exists()


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = machine.listen("127.0.0.1", taken.getsockname()[1])
    assert verdicts(found, machine.listen("127.0.0.1", 0)) == ["failed", "ok"] and "is taken" in found.found
    assert "--listen" in found.fix


def test_a_proxy_is_a_warning_unless_this_machine_is_spared() -> None:
    environments = ({}, {"HTTPS_PROXY": "http://p"}, {"http_proxy": "http://p", "NO_PROXY": "127.0.0.1, localhost,x"})
    assert verdicts(*map(machine.proxies, environments)) == ["ok", "warning", "ok"]


def test_peers_clock_and_reachability_are_judged_by_what_peers_said() -> None:
    good = network.Greeted(ADDRESS, Hello(software="murmuration 9", swarm="public"), 2.0)
    bad = network.Greeted(ADDRESS, PeerUnreachableError("refused"))
    assert verdicts(*map(network.peers, ([], [bad], [bad, good]))) == ["skipped", "failed", "ok"]
    gone = network.peers([bad], is_named=False)
    assert gone.verdict == "warning" and "known from before" in gone.found and "give --peer" in gone.fix, (
        "it may have left, and that is no fault"
    )
    assert "1 of 2 peers answer, the nearest in 2.0 ms (murmuration 9)" in network.peers([bad, good]).found
    fault = "this machine's clock is 120 s behind that of peer …abc123: set it, e.g. by `timedatectl set-ntp true`"
    assert verdicts(network.clock("", 0), network.clock("", 2), network.clock(fault, 2)) == ["skipped", "ok", "failed"]
    place = network.Place(listen=("0.0.0.0", 0), announce=None, is_given=False)
    given = network.Place(listen=("0.0.0.0", 4000), announce=None, is_given=True)
    tried = [(None, place), (True, place), (False, place), (False, given)]
    assert verdicts(*(network.reachable(one, ("1.2.3.4:5",), at) for one, at in tried)) == ["skipped", "ok", "warning", "failed"]


def test_lines_fit_a_terminal_and_a_peer_cannot_speak_to_it() -> None:
    long = warning("peers", "silent \x1b]0;x\x07 " + "words " * 30, "do " * 40)
    lines = list(doctor.lines(long, 80))
    assert max(map(len, lines)) <= 80 and "\x1b" not in "".join(lines)
    assert any(line.lstrip().startswith("fix: do") for line in lines)
    assert not is_healthy([ok("a", "b"), failed("c", "d", "e")])


async def test_a_whole_look_greets_a_peer_and_is_dialled_back(tmp_path: Path) -> None:
    async with Peer(PeerConfig(data_dir=tmp_path)) as other:
        into = Entered(peers=(*other.multiaddrs, str(ADDRESS)))
        place = network.Place(listen=("127.0.0.1", 0), announce=None, is_given=True)
        checks = [await network.neighbours(FindConfig()), *await network.look(into, FindConfig(), place)]
    found = {one.name: one for one in checks}
    assert verdicts(*found.values()) == ["skipped", "ok", "ok", "ok"], found
    assert "1 of 2 peers answer" in found["peers"].found and "silent: 127.0.0.1:10" in found["peers"].found
    assert "has dialled 127.0.0.1:" in found["reachable"].found


def test_the_command_says_what_failed_by_its_exit_code(tmp_path: Path) -> None:
    arguments = ["doctor", "--no-lan", "--data-dir", str(tmp_path), "--device", "cpu"]
    code, said, _ = run(*arguments, "--json")
    checks = {one["name"]: one for one in json.loads(said)["checks"]}
    assert code == 0 and json.loads(said)["is_healthy"] is True, checks
    assert {"python", "packages", "torch", "device", "disk", "ports", "peers", "clock", "reachable", "proxies"} <= checks.keys()
    code, said, _ = run(*arguments, "--peer", str(ADDRESS))
    assert code == 1 and "failed   peers" in said and "fix: check the address" in said
    assert said.splitlines()[-1].startswith(f"{len(checks)} checks: ") and "1 failed" in said
    assert shutil.disk_usage(tmp_path).free and not list(tmp_path.glob("*.key"))
