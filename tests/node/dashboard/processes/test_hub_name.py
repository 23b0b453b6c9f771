"""A Hub name whose config is at hand is placed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node.dashboard.estimates import Estimates
from node.watching import sizes
from node.watching.watcher import Watcher
from protocols.errors import ModelNotSupportedError, OverloadedError
from swarm.checkpoints import hub_cache
from tests.families import make_checkpoint
from tests.node.dashboard.made_swarm import MadeSource, many


async def test_a_config_is_counted_by_one_process_at_a_time_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make_checkpoint("llama", tmp_path / "small")
    exact = sizes.of_directory(checkpoint)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    asked = list[str]()

    def cached(name: str) -> Path:
        asked.append(name)
        return alone

    monkeypatch.setattr(hub_cache, "cached", cached)
    made = Estimates(Watcher(MadeSource(many(4, 32)).met))
    for _ in range(2):
        found = await made.named("owner/small")
        assert (found.name, found.num_blocks, found.block_bytes) == ("owner/small", exact.num_blocks, exact.block_bytes)
    assert asked == ["owner/small"]
    async with made._counting:
        with pytest.raises(OverloadedError, match="another model's blocks are being counted"):
            await made.named("owner/other")
    (alone / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}}))
    with pytest.raises(ModelNotSupportedError):
        await made.named("owner/evil")
