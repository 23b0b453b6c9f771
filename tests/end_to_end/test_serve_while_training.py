"""Prompts are answered while a run goes on, and a node dies."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.end_to_end.processes import ProcessPool
from tests.end_to_end.served_run import SERVE_EVERY, ServedRun, judge
from tests.end_to_end.tiny_run import write_tiny_run
from tests.forked import ForkServer


def test_every_answer_is_of_exactly_one_version_which_it_names(tmp_path: Path, fork_server: ForkServer) -> None:
    run_file = write_tiny_run(tmp_path / "run", steps=10, batch_tokens=256, checkpoint_every=SERVE_EVERY, serve_every=SERVE_EVERY)
    with ProcessPool(tmp_path, fork_server) as pool:
        run = ServedRun(run_file=run_file, folder=tmp_path, pool=pool, deaths={5: -1})
        run.start("0:2", "2:4", "2:4")
        asyncio.run(run.train())
    verdict = judge(run)
    print(verdict)
    assert not run.failures and not verdict.mixed and not verdict.wrong
    assert len(verdict.by_version) >= 3, "versions changed while clients asked"
    [dead] = run.dead
    used = [dead in answer.route for answer in run.answers]
    assert any(used) and not all(used) and len(run.seconds) == 10, "a peer that answered was killed, and the run went on"
