"""`swarm invite`, `swarm whoami`, and errors of --join and lists."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from node.cli.app import main
from protocols.errors import ConfigError
from protocols.identity import from_seed
from swarm.access_lists import Lists
from swarm.client import SwarmModelForCausalLM
from swarm.dht.address import PeerAddress
from swarm.meeting import keyring, known_peers, running_nodes
from swarm.meeting.entering import enter
from swarm.meeting.invitation import MAX_PEERS, Invitation

ONE, TWO = (from_seed(bytes([number]) * 32).peer_id for number in (1, 2))
PUBLIC, LOCAL = f"/ip4/203.0.113.5/tcp/4000/p2p/{ONE}", f"/ip4/127.0.0.1/tcp/4000/p2p/{TWO}"


def swarm(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a command."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert ended.value.code == code, said.err
    return said.out.strip(), said.err


def test_a_private_swarm_is_made_once_and_invites_as_often_as_one_likes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data-dir", str(tmp_path))
    word, said = swarm(capsys, "invite", "--private", "--swarm", "attic", "--peer", PUBLIC, *data)
    first = Invitation.parse(word)
    assert (first.swarm, first.peers, first.key) == ("attic", (PUBLIC,), keyring.kept(tmp_path, "attic"))
    assert abs((first.expires_s or 0) - time.time() - 7 * 86_400) < 60
    assert "made the key of private swarm `attic`" in said and "as you would a password" in said
    word, said = swarm(capsys, "invite", "--swarm", "attic", "--days", "1", *data)
    assert Invitation.parse(word).key == first.key and "it names no address" in said and "made the key" not in said
    word, said = swarm(capsys, "invite", "--swarm", "attic", "--new-key", *data)
    assert Invitation.parse(word).key == keyring.kept(tmp_path, "attic") != first.key
    assert "another key" in said and "those elsewhere need a new invitation" in said


def test_a_refused_invitation_leaves_the_kept_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = keyring.made()
    keyring.keep(tmp_path, "attic", kept)
    for peers in (["--peer", PUBLIC] * (MAX_PEERS + 1), ["--peer", "/ip4/nowhere"]):
        swarm(capsys, "invite", "--private", "--swarm", "attic", "--new-key", *peers, "--data-dir", str(tmp_path), code=2)
        assert keyring.kept(tmp_path, "attic") == kept


def test_it_names_the_nodes_that_run_here_and_the_peers_that_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data-dir", str(tmp_path))
    with running_nodes.told(tmp_path, "public", TWO, (LOCAL,)):
        word, said = swarm(capsys, "invite", *data)
        assert Invitation.parse(word) == Invitation(swarm="public", peers=(LOCAL,), expires_s=Invitation.parse(word).expires_s)
        assert "of this machine only" in said and "password" not in said
        known_peers.update(known_peers.file_of(tmp_path, "public"), [PeerAddress.parse(PUBLIC)], [], time.time())
        assert Invitation.parse(swarm(capsys, "invite", *data)[0]).peers == (PUBLIC,), "what others cannot reach is left out"
    _, said = swarm(capsys, "invite", "--swarm", "other", *data, code=2)
    assert "no address of swarm `other` is known here" in said and "--private" in said


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data-dir", str(tmp_path))
    assert "needs a name of its own: add --swarm NAME" in swarm(capsys, "invite", "--private", *data, code=2)[1]
    many = [word for _ in range(MAX_PEERS + 1) for word in ("--peer", PUBLIC)]
    assert "holds at most 8 addresses, got 9" in swarm(capsys, "invite", *many, *data, code=2)[1]
    assert "--days is more than 0" in swarm(capsys, "invite", "--days", "0", *data, code=2)[1]
    said = swarm(capsys, "status", "--join", "swarm1" + "a" * 40, *data, code=2)[1]
    assert said.startswith("error: the invitation was changed or cut") and "a" * 20 not in said
    old = Invitation(swarm="attic", peers=(PUBLIC,), expires_s=1_700_000_000).text()
    for command in (["status"], ["node", "m"], ["generate", "m", "x"], ["generate", "m", "x", "--thin"], ["chat", "m"]):
        assert "expired on 2023-11-14" in swarm(capsys, *command, "--join", old, *data, code=2)[1], command


def test_whoami_is_the_same_each_time_and_makes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine" / "me.key"
    first = swarm(capsys, "whoami", "--identity", str(file))[0]
    assert first.startswith("12D3KooW") and file.stat().st_mode & 0o777 == 0o600
    assert swarm(capsys, "whoami", "--identity", str(file))[0] == first
    file.write_bytes(b"what is this")
    assert f"{file}: not an Ed25519" in swarm(capsys, "whoami", "--identity", str(file), code=2)[1]


def test_the_configuration_shows_no_invitation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    word = Invitation(swarm="attic", key=keyring.made()).text()
    monkeypatch.setenv("SWARM_JOIN", word)
    said = "".join(swarm(capsys, "config", "node"))
    assert "SWARM_JOIN" not in os.environ, "child processes do not inherit the key"
    assert word not in said and "(an invitation, not shown)" in said and "SWARM_JOIN" in said


@pytest.mark.parametrize(
    ("lists", "why"),
    [
        (Lists(deny=frozenset({ONE})), "--deny refuses every peer that is named"),
        (Lists(allow=frozenset({TWO})), "--allow leaves out every peer that is named"),
    ],
)
def test_lists_that_leave_no_way_in_are_refused(tmp_path: Path, lists: Lists, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        enter(swarm="public", peers=(PUBLIC,), data_dir=tmp_path, lists=lists, warn=pytest.fail)
    name = "deny" if lists.deny else "allow"
    with pytest.raises(ConfigError, match=why):  # in Python, too
        SwarmModelForCausalLM.from_pretrained("m", peers=PUBLIC, cache_dir=tmp_path, **{name: getattr(lists, name)})


@pytest.mark.parametrize(
    ("lists", "why"),
    [
        (Lists(allow=frozenset({ONE}), trust=frozenset({TWO})), "--allow leaves out"),
        (Lists(deny=frozenset({TWO}), trust=frozenset({TWO})), "--deny refuses"),
    ],
)
def test_trust_that_another_list_takes_back_is_said(tmp_path: Path, lists: Lists, why: str) -> None:
    said: list[str] = []
    enter(swarm="public", peers=(PUBLIC,), data_dir=tmp_path, lists=lists, warn=said.append)
    assert said == [f"warning: --trust names 1 peer that {why}: …{TWO[-6:]}; they stay refused"]
