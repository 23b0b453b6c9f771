"""Which weights a name means, and the file that remembers it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from protocols.errors import ModelMismatchError, ModelNotFoundError
from protocols.identity import from_seed
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from protocols.swarm_key import KEY_BYTES, SwarmKey
from swarm.client.connection import Settings
from swarm.meeting.entering import Entry
from swarm.weights.election import chosen, tallies
from swarm.weights.remembered import MAX_NAMES, NameMemory, file_of, load
from tests.hosting import hosted


def record(
    number: int, digest: str, start: int, stop: int, *, num_blocks: int = 8, dtype: str = "float32", state: str = "serving"
) -> PeerRecord:
    served = hosted(ModelId("m", digest * 64), Span(start, stop), num_blocks, dtype=dtype)
    return PeerRecord(peer=from_seed(bytes([number]) * 32).peer_id, hosted=served, state=state)


HONEST = [record(1, "a", 0, 4), record(2, "a", 4, 8), record(3, "a", 4, 8)]


@pytest.mark.parametrize(
    "usurpers",
    [
        [record(9, "0", 0, 10_000, num_blocks=10_000)],
        [record(number, "0", 0, 8, dtype=f"float{number}") for number in (8, 9)],
        [record(number, "0", 0, 4) for number in range(4, 20)],
        [record(number, "0", 0, 8, state="joining") for number in range(4, 20)],
    ],
    ids=["claims 10,000 blocks", "two complete ones", "many without a route", "many that only join"],
)
def test_a_name_means_the_weights_of_most_peers_on_a_complete_route(usurpers: list[PeerRecord]) -> None:
    found = tallies([*usurpers, *HONEST], "m")
    assert found[0].model.digest[0] == "a" and (found[0].on_route, found[0].num_blocks) == (3, 8)
    meant, note = chosen(found, "m")
    assert meant is found[0] and "we take m@aaaaaaaaaaaa (3 nodes), not m@000000000000" in note


def test_peers_that_do_not_answer_count_for_nothing() -> None:
    flood = [record(number, "0", 0, 8) for number in range(10, 200)]
    answering = {one.peer for one in HONEST}
    assert tallies([*flood, *HONEST], "m", answering=answering)[0].model.digest[0] == "a"
    assert tallies([*flood, *HONEST], "m")[0].model.digest[0] == "0", "without asking, the flood wins: nothing was shown"


def test_another_length_of_the_same_weights_counts_only_with_more_peers_on_a_route() -> None:
    liars = [record(number, "a", 0, 4, num_blocks=10_000) for number in range(20, 60)]
    assert tallies([*liars, *HONEST], "m")[0].num_blocks == 8


def test_spans_that_do_not_meet_or_differ_in_format_are_no_route() -> None:
    assert tallies([record(1, "a", 0, 5), record(2, "a", 4, 8)], "m")[0].on_route == 0
    assert tallies([record(1, "a", 0, 4), record(2, "a", 4, 8, dtype="bfloat16")], "m")[0].on_route == 0
    assert tallies([*HONEST, record(4, "a", 2, 4)], "m")[0].on_route == 3  # nothing ends where 2:4 begins


def test_what_a_name_meant_before_stays_and_a_change_is_refused_until_it_is_asked_for() -> None:
    found = tallies([*HONEST, record(9, "b", 0, 8)], "m")
    assert chosen(found, "m", "b" * 64)[0].model.digest[0] == "b", "fewer serve it, but it is what the name means here"
    with pytest.raises(
        ModelMismatchError, match=r"meant weights cccccccccccc here before.*m@aaaaaaaaaaaa or --accept-new-weights"
    ):
        chosen(found, "m", "c" * 64)
    only = tallies([*HONEST, record(9, "b", 0, 8)], "m", "a" * 12)
    assert chosen(only, "m@" + "a" * 12, "c" * 64) == (only[0], "")


def test_the_beginning_of_a_digest_must_fit_one_but_for_what_was_meant_before() -> None:
    served = hosted(ModelId("m", "a" * 63 + "b"), Span(0, 8), 8)
    twin = PeerRecord(peer=from_seed(b"t" * 32).peer_id, hosted=served)
    both = tallies([*HONEST, twin], "m", "aaaaaa")
    with pytest.raises(ModelNotFoundError, match="fits 2 models"):
        chosen(both, "m@aaaaaa")
    assert chosen(both, "m@aaaaaa", "a" * 64)[0].model.digest == "a" * 64


def test_names_are_remembered_by_swarm_in_a_bounded_file(tmp_path: Path) -> None:
    memory, other = (NameMemory(file_of(tmp_path, swarm)) for swarm in ("public", "attic"))
    memory.keep("m", "a" * 64, 1.0)
    assert (memory.digest_of("m"), memory.digest_of("n"), other.digest_of("m")) == ("a" * 64, None, None)
    memory.keep("m", "b" * 64, 2.0)
    assert memory.digest_of("m") == "b" * 64
    for number in range(MAX_NAMES):
        memory.keep(f"n{number}", "c" * 64, 3.0 + number)
    assert memory.file is not None and len(load(memory.file)) == MAX_NAMES and memory.digest_of("m") is None
    assert [path.name for path in memory.file.parent.iterdir()] == [memory.file.name], "nothing partial is left"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"m": 3}', b'{"m": ["xyz", 1]}', b'{"m": ["' + b"a" * 64 + b'", "x"]}'])
def test_a_file_of_another_form_remembers_nothing(tmp_path: Path, content: bytes) -> None:
    memory = NameMemory(file_of(tmp_path, "public"))
    assert memory.file is not None
    memory.file.parent.mkdir()
    memory.file.write_bytes(content)
    assert memory.digest_of("m") is None
    memory.keep("m", "a" * 64, 1.0)
    assert memory.digest_of("m") == "a" * 64


def test_a_folder_that_cannot_be_written_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "names").write_text("a file where the folder should be")
    memory = NameMemory(file_of(tmp_path, "public"))
    memory.keep("m", "a" * 64, 1.0)
    assert memory.digest_of("m") is None and "cannot be kept" in caplog.text
    assert os.listdir(tmp_path) == ["names"]


def test_a_private_swarm_does_not_share_its_names_with_the_public_one_of_its_name(tmp_path: Path) -> None:
    async def ping(_record: object) -> None: ...

    public, private, other = (
        Settings(cache_dir=tmp_path, swarm="attic", entry=Entry(key=key)).naming(SimpleNamespace(ping=ping))  # type: ignore[arg-type]
        for key in (None, SwarmKey(b"a" * KEY_BYTES), SwarmKey(b"b" * KEY_BYTES))
    )
    private.keep(ModelId("m", "a" * 64))
    assert [one.meant_before("m") for one in (public, private, other)] == [None, "a" * 64, None]
    assert public.memory.file == file_of(tmp_path, "attic"), "what was remembered of public swarms is found again"
