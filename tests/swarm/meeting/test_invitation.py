"""Invitations come back as made; damage and age are named.

No message repeats the secret.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.identity import from_seed
from protocols.swarm_key import KEY_BYTES, SwarmKey
from swarm.meeting import invitation, keyring
from swarm.meeting.entering import Entered, Entry, enter
from swarm.meeting.invitation import CLOCK_TOLERANCE_S, MAX_PEERS, PREFIX, Invitation

PEER = f"/ip4/203.0.113.5/tcp/4000/p2p/{from_seed(b'p' * 32).peer_id}"
KEY, OTHER = SwarmKey(b"k" * KEY_BYTES), SwarmKey(b"o" * KEY_BYTES)
PRIVATE = Invitation(swarm="attic", peers=(PEER,), key=KEY, expires_s=1_800_000_000)

names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=64)
invitations = st.builds(
    Invitation,
    swarm=names,
    peers=st.lists(st.just(PEER), max_size=MAX_PEERS).map(tuple),
    key=st.none() | st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).map(SwarmKey),
    expires_s=st.none() | st.integers(0, 2**40).map(float),
)


def word(body: bytes) -> str:
    """A well-formed word with any content."""
    checked = hashlib.sha256(PREFIX.encode() + body).digest()[:4] + body
    return PREFIX + base64.b32encode(checked).decode().rstrip("=").lower()


@given(invitations, st.integers(0, 400), st.sampled_from(["\n", " ", "\r\n", "\t"]), st.booleans())
def test_an_invitation_survives_copying(made: Invitation, at: int, gap: str, is_upper: bool) -> None:
    text = made.text()
    wrapped = text[:at] + gap + text[at:]
    assert Invitation.parse(wrapped.upper() if is_upper else wrapped) == made
    assert text.isalnum() and text.startswith(PREFIX)


@given(invitations, st.data())
def test_a_changed_or_cut_one_is_refused(made: Invitation, data: st.DataObject) -> None:
    text = made.text()
    at = data.draw(st.integers(len(PREFIX), len(text) - 2))  # the last letter may hold unused bits
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(lambda letter: letter != text[at]))
    for damaged in (text[:at] + other + text[at + 1 :], text[:at]):
        with pytest.raises(ConfigError, match=r"copy it again|ask a member"):
            Invitation.parse(damaged)


@given(st.text(max_size=300) | st.binary(max_size=200).map(word))
def test_any_text_is_an_invitation_or_refused(text: str) -> None:
    try:
        Invitation.parse(text)
    except ConfigError:
        return


def test_what_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(ConfigError, match="at most 8192 letters"):
        Invitation.parse(PREFIX + "a" * 10_000_000)


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"swarm": "", "peers": []}, "printable letters"),
        ({"swarm": "x", "peers": ["/unix/tmp"]}, "address looks like"),
        ({"swarm": "x", "peers": [PEER] * 9}, "a list of at most 8"),
        ({"swarm": "x", "peers": [], "key": "c2hvcnQ="}, "has 32 bytes, got 5"),
        ({"swarm": "x", "peers": [], "expires": "soon"}, "a number"),
        ([], "a map"),
    ],
)
def test_content_that_makes_no_sense_is_named(held: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Invitation.parse(word(json.dumps(held).encode()))


def test_a_later_version_may_say_more() -> None:
    held = {"swarm": "x", "peers": [], "motto": "hello"}
    assert Invitation.parse(word(json.dumps(held).encode())) == Invitation(swarm="x")


def test_an_invitation_ends_but_a_clock_that_is_ahead_is_forgiven() -> None:
    PRIVATE.check_expiry(1_800_000_000 + CLOCK_TOLERANCE_S)
    with pytest.raises(ConfigError, match=r"to swarm `attic` expired on 2027-01-15 08:00 UTC .*ask a member for a new one"):
        PRIVATE.check_expiry(1_800_000_000 + CLOCK_TOLERANCE_S + 1)


def test_neither_reprs_nor_errors_hold_the_secret() -> None:
    forms = [KEY.secret.decode(), KEY.secret.hex(), base64.b64encode(KEY.secret).decode()]
    said = [repr(PRIVATE), repr(KEY), str(Entered(entry=Entry(key=KEY))), KEY.label]
    for damaged in (PRIVATE.text()[:-3], PRIVATE.text().replace("a", "b"), "x" + PRIVATE.text(), word(b"[" + KEY.secret)):
        with pytest.raises(ConfigError) as caught:
            invitation.read(damaged)
        said.append(str(caught.value))
    assert not any(form in text for form in forms for text in said)
    assert not any(PRIVATE.text()[20:40] in text for text in said)


def test_a_file_may_hold_it(tmp_path: Path) -> None:
    file = tmp_path / "invitation"
    file.write_text(PRIVATE.text() + "\n")
    assert invitation.read(str(file)) == PRIVATE
    file.write_text("nothing of the kind")
    with pytest.raises(ConfigError, match=rf"{file}: an invitation begins with swarm1"):
        invitation.read(str(file))
    with pytest.raises(ConfigError, match="or a file that holds one, got 'nowhere': No such file"):
        invitation.read("nowhere")


# --- what is kept


def test_a_key_is_kept_for_its_user_only_and_found_again(tmp_path: Path) -> None:
    assert keyring.kept(tmp_path, "attic") is None
    path = keyring.keep(tmp_path, "attic", KEY)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o077 == 0
    assert keyring.kept(tmp_path, "attic") == KEY and keyring.kept(tmp_path, "cellar") is None
    assert [found.name for found in path.parent.iterdir()] == [path.name], "no partial file is left"
    path.write_text("swarm1broken")
    with pytest.raises(ConfigError, match="is damaged; remove it, and join again by an invitation"):
        keyring.kept(tmp_path, "attic")


def entered(data_dir: Path, join: str | None, swarm: str = "public", now_s: float = 1.0) -> Entered:
    return enter(swarm=swarm, data_dir=data_dir, join=join, warn=pytest.fail, now_s=now_s)


def test_joining_once_is_enough_and_an_old_invitation_then_does_no_harm(tmp_path: Path) -> None:
    into = entered(tmp_path, PRIVATE.text())
    assert (into.swarm, into.peers, into.entry.key) == ("attic", (PEER,), KEY)
    assert entered(tmp_path, None, "attic").entry.key == KEY
    late_s = 1_900_000_000.0
    assert entered(tmp_path, PRIVATE.text(), now_s=late_s).entry.key == KEY
    with pytest.raises(ConfigError, match="expired"):
        entered(tmp_path / "elsewhere", PRIVATE.text(), now_s=late_s)
    assert keyring.kept(tmp_path / "elsewhere", "attic") is None


def test_what_is_typed_wrongly_beside_an_invitation_is_refused_before_its_key_is_kept(tmp_path: Path) -> None:
    for wrong, why in (
        ({"swarm": ""}, "--swarm"),
        ({"swarm": "x" * 65}, "--swarm"),
        ({"peers": (PEER, "10.0.0.1:4000")}, "--peer"),
    ):
        with pytest.raises(ConfigError, match=why):
            enter(**{"swarm": "public", "data_dir": tmp_path, "join": PRIVATE.text(), "warn": pytest.fail, "now_s": 1.0, **wrong})
        assert not list(tmp_path.iterdir())


def test_an_invitation_never_replaces_a_kept_key_and_names_must_agree(tmp_path: Path) -> None:
    """The kept one may be the only copy; and the invitation may be an old one, of before a member was excluded."""
    entered(tmp_path, PRIVATE.text(), "attic")
    changed, file = Invitation(swarm="attic", key=OTHER).text(), keyring.file_of(tmp_path, "attic")
    with pytest.raises(ConfigError, match=rf"another key of swarm `attic` than {file}; .* remove that file and join again"):
        entered(tmp_path, changed)
    assert keyring.kept(tmp_path, "attic") == KEY
    file.unlink()
    assert entered(tmp_path, changed).entry.key == OTHER == keyring.kept(tmp_path, "attic")
    with pytest.raises(ConfigError, match="the invitation is to swarm `attic`, --swarm says `cellar`: leave --swarm out"):
        entered(tmp_path, PRIVATE.text(), "cellar")


def test_a_public_invitation_to_a_name_uses_no_kept_key(tmp_path: Path) -> None:
    keyring.keep(tmp_path, "attic", KEY)
    assert entered(tmp_path, Invitation(swarm="attic", peers=(PEER,)).text()).entry.key is None
    assert keyring.known_as("attic", None) != keyring.known_as("attic", KEY) != keyring.known_as("attic", OTHER)


def test_proofs_are_for_one_purpose_one_order_and_one_key() -> None:
    proof = KEY.proof("a", b"one", b"two")
    assert KEY.is_proof(proof, "a", b"one", b"two")
    for purpose, parts in (("b", (b"one", b"two")), ("a", (b"two", b"one")), ("a", (b"onet", b"wo")), ("a", (b"onetwo",))):
        assert not KEY.is_proof(proof, purpose, *parts)
    assert not OTHER.is_proof(proof, "a", b"one", b"two")
    assert not KEY.is_proof(b"", "a", b"one", b"two")
