"""What-if asks placement and routing themselves, and gives each number a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from node.watching import sizes
from node.watching.look import Look, seen
from node.watching.peer_facts import facts, fixes, units
from node.watching.what_if import Sizes, as_served, machines, predict
from protocols.errors import CheckpointError, ModelNotFoundError, ModelNotSupportedError
from protocols.ids import PeerId, Span
from protocols.records import PeerRecord
from swarm.checkpoints import hub_cache
from swarm.models.config_sizes_main import answered
from tests.families import make_checkpoint
from tests.node.dashboard.made_swarm import MODEL, made_record
from tests.node.watching.test_changes import look

SIZE = {MODEL.digest: 10_000_000}
FAST = made_record(1, Span(0, 3), 6, "fast", block_ms=1.0, step_ms=3.0)
SLOW = made_record(2, Span(3, 6), 6, "slow", block_ms=4.0, step_ms=12.0)


def able(record: PeerRecord, blocks: int) -> PeerRecord:
    """The same with memory for so many blocks of MODEL."""
    return replace(record, hosted=tuple(replace(one, capacity_blocks=blocks if one.is_blocks else 0) for one in record.hosted))


def at(*records: PeerRecord, silent: tuple[PeerRecord, ...] = (), **trips_ms: float) -> Look:
    trips = {record.peer: trips_ms.get(record.name, 2.0) for record in records}
    return seen(7.0, {"tiny": records}, {one.peer for one in silent}, trips)


def test_a_model_that_fits_is_spread_and_its_speed_is_the_sum_of_its_parts() -> None:
    now = at(able(FAST, 6), able(SLOW, 4), fast=10.0, slow=30.0)
    found = predict(Sizes(name="other", num_blocks=4, block_bytes=20_000_000), machines(now, SIZE), now)
    spans = {one.machine.label.split()[0]: one.span for one in found.placed}
    assert spans["slow"] is not None and len(spans["slow"]) == 2, "4 blocks of 10 MB are 2 of 20 MB"
    assert spans["fast"] is not None and not found.missing
    assert found.token_ms == pytest.approx(sum(leg.ms for leg in found.legs)) and found.tokens_per_s == pytest.approx(
        1e3 / found.token_ms
    )
    computing = {leg.what: leg.ms for leg in found.legs if "computes" in leg.what}
    for what, ms in computing.items():
        assert ms == pytest.approx(len(Span.parse(what.split()[-1])) * (2.0 if what.startswith("fast") else 8.0)), (
            "twice the bytes"
        )
    assert all(leg.reason for leg in found.legs) and all(one.reason for one in found.placed)
    assert {round(leg.ms) for leg in found.legs if leg.what.startswith("way")} <= {5, 15, 10}


def test_a_model_that_is_too_large_has_gaps_and_no_route() -> None:
    now = at(able(FAST, 2), able(SLOW, 1))
    found = predict(Sizes(name="large", num_blocks=8, block_bytes=10_000_000), machines(now, SIZE), now)
    assert (found.legs, found.tokens_per_s, sum(map(len, found.missing))) == ((), 0.0, 2), "they host 3 blocks each"
    huge = predict(Sizes(name="huge", num_blocks=8, block_bytes=10**12), machines(now, SIZE), now)
    assert [one.span for one in huge.placed] == [None, None] and "no memory for even one" in huge.placed[0].reason


def test_a_served_model_is_predicted_as_its_clients_choose_their_route() -> None:
    now = at(FAST, SLOW, fast=10.0, slow=30.0)
    found = as_served("tiny", 6, now)
    assert [round(leg.ms, 2) for leg in found.legs] == [5.0, 3.75, 10.0, 12.0, 15.0]
    assert "4.00 ms a block, as it announces; 0 waiting" in [leg.reason for leg in found.legs]
    assert as_served("tiny", 6, at(FAST, SLOW, silent=(SLOW,))).legs == ()
    assert as_served("no", 6, now).legs == ()
    told = replace(FAST, round_trips=((SLOW.peer, 4.0),))
    assert [round(leg.ms, 2) for leg in as_served("tiny", 6, at(told, SLOW)).legs][2] == 2.0


def test_sizes_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = make_checkpoint("llama", tmp_path / "tiny")
    tensors = load_file(path / "model.safetensors")
    one = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("model.layers.1."))
    found = sizes.of_directory(path)
    assert (found.name, found.block_bytes) == (
        "tiny",
        one,
    ) and f"model.layers.{found.num_blocks - 1}.mlp.up_proj.weight" in tensors
    assert sizes.of_size(7e9, 32, 2).block_bytes == 437_500_000


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_config_alone_says_the_same_as_the_checkpoint(family: str, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path / family)
    raw = json.loads((path / "config.json").read_text())
    exact = sizes.of_directory(path)
    assert answered(raw) == {"num_blocks": exact.num_blocks, "block_bytes": exact.block_bytes}
    half = answered({**raw, "dtype": "bfloat16"})
    assert half["block_bytes"] * 2 == exact.block_bytes


def test_a_config_that_is_refused_says_why() -> None:
    assert answered({"model_type": "no such"})["code"] == "model_not_supported"
    assert "num_hidden_layers" in answered({"model_type": "llama", "num_hidden_layers": 1 << 30})["error"]


def test_a_hub_name_is_found_in_the_cache_of_this_machine_alone(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("a" * 40)
    with pytest.raises(ModelNotFoundError, match="hf download owner/name"):
        hub_cache.cached("owner/name", tmp_path)
    (snapshot / "config.json").write_text("{}")
    assert hub_cache.cached("owner/name", tmp_path) == snapshot
    for odd in ("../../etc", "/etc/passwd", "owner/name/more", "", "a\0b", "owner/../name"):
        with pytest.raises(ModelNotFoundError, match="no Hub name"):
            hub_cache.cached(odd, tmp_path)


@pytest.mark.parametrize("config", ["{", '{"auto_map": {"AutoConfig": "evil.Config"}}', None])
def test_a_visitor_is_not_told_where_this_machine_keeps_files(
    config: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    monkeypatch.setattr(hub_cache, "cached", lambda name: tmp_path)
    with pytest.raises((CheckpointError, ModelNotSupportedError)) as refused:
        sizes.of_hub_name("owner/name")
    assert str(tmp_path) not in str(refused.value) and "owner/name" in str(refused.value)


def test_a_peer_that_cannot_be_reached_is_told_what_to_do() -> None:
    bad = replace(FAST, reachable=False, software="murmuration 9.9.9\x1b[31m", protocol=(2, 99))
    now = look(bad)
    said = dict(facts(bad, now))
    assert said["answers"] == "yes, in 2.0 ms from here" and said["software"] == "murmuration 9.9.9\\x1b[31m"
    mended = " ".join(fixes(bad, now))
    assert "--announce HOST:PORT" in mended and "upgrade this machine" in mended and mended.isprintable()
    assert "Start it again" in " ".join(fixes(FAST, look(FAST, silent=(FAST,)))) and list(fixes(FAST, look(FAST))) == []
    assert [row.unit for row in units(FAST)] == ["decoder/0:3", "decoder/ends"] and now.peer(PeerId("no")) is None
