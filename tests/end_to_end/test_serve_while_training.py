"""Prompts are answered while a run goes on, and a node dies."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.run_files import write_run
from swarm.client import SwarmModelForCausalLM
from swarm.client.fetching import InTrainingError
from tests.end_to_end.processes import ProcessPool
from tests.end_to_end.served_run import ServedRun, fields_of, generated, judge, model_of
from tests.forked import ForkServer

STEPS = 6
GREEDY: dict[str, Any] = dict(do_sample=False)


def test_every_answer_is_of_exactly_one_version_which_it_names(tmp_path: Path, fork_server: ForkServer) -> None:
    run_file = write_run(tmp_path / "run", fields_of(STEPS, 256))
    with ProcessPool(tmp_path, fork_server) as pool:
        run = ServedRun(
            run_file=run_file, folder=tmp_path, pool=pool, deaths={3: -1}, publish_every_s=0.0, awaits_answers=True
        )  # fmt: skip
        run.start("0:2", "2:4", "2:4")
        with _client(run, follow=True) as follower:
            cache = follower.new_cache()
            before = follower.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, past_key_values=cache, **GREEDY)
            asyncio.run(run.train())
            after = follower.generate(before, max_new_tokens=run.num_tokens, past_key_values=cache, **GREEDY)
            first, newer = cache.versions
            assert first == 0 < newer, "nodes serve the last two versions only"
            for version, text, longer in ((first, [5, 6, 7], before), (newer, before[0].tolist(), after)):
                tokens = generated(model_of(run, version), text, longer.shape[1] - len(text))
                assert longer[0].tolist() == [*text, *tokens], version
        verdict = judge(run)
        print(verdict)
        assert not run.failures and not verdict.mixed and not verdict.wrong
        assert sorted(verdict.by_version) == [0, 2, 4, STEPS], "versions changed while clients asked"
        [dead] = run.dead
        used = [dead in answer.route for answer in run.answers]
        assert any(used) and not all(used) and len(run.seconds) == STEPS, "a peer that answered was killed, and the run went on"
        _ask_by_transformers_and_by_command(run)


def _client(run: ServedRun, **options: Any) -> Any:
    return SwarmModelForCausalLM.from_pretrained(
        "tiny", peers=run.peers, cache_dir=run.folder / "client", patience_s=60.0, **options
    )


def _ask_by_transformers_and_by_command(run: ServedRun) -> None:
    """Without `thin`: embedding and head of a model in training are the nodes'."""
    last = run.answers[-1]
    with _client(run) as model:
        assert model.version is None
        ids = model.generate(torch.tensor([last.prompt]), max_new_tokens=run.num_tokens, **GREEDY)
        assert (ids[0, len(last.prompt) :].tolist(), (model.version,)) == (last.tokens, last.versions)
    with pytest.raises(InTrainingError, match=r"tiny is a model in training.*load it with thin=True"):
        _client(run, thin=False)
    words = ["generate", "tiny", "A list is", "--max-new-tokens", "4", "--stats", "--no-lan", "--follow"]
    asked = run.pool.start(
        "asked", [*words, *(word for peer in run.peers for word in ("--peer", peer)), "--data-dir", str(run.folder / "client")]
    )
    assert asked.has_ended(120) and asked.code == 0, asked.last_words()
    assert f"0 replaced, version {last.versions[0]}" in asked.last_words()
