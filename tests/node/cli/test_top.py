"""`swarm top`: one screen of any size, a live one at peers."""

from __future__ import annotations

import asyncio
from datetime import UTC
from pathlib import Path

from rich.cells import cell_len

from node.cli.watch import top_view
from node.training.report.history import History
from node.watching import run_losses
from node.watching.changes import change
from node.watching.look import Look, seen
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord
from protocols.roles import Role
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer
from swarm.suggestion import NodeCommand
from tests.forked import ForkServer
from tests.hosting import hosted
from tests.node.cli.terminal import Terminal
from tests.node.cli.test_commands import NOBODY, eventually, run
from tests.node.cli.test_status import hosting, record

TRAINED = ModelId("prose", "c" * 64)


def lines(look: Look, columns: int = 80, rows: int = 24, num_events: int = 0) -> list[str]:
    events = [change(number, "joined", f"event {number}") for number in range(num_events)]
    made = [line.plain.rstrip() for line in top_view.screen("attic", look, events, NodeCommand(), columns, rows, UTC)]
    assert len(made) <= rows and max(map(cell_len, made)) <= columns, made
    return made


def look_of(*records: PeerRecord, silent: tuple[PeerId, ...] = ()) -> Look:
    return seen(0.0, {"tiny": records}, silent, {one.peer: 1.5 for one in records})


def test_a_screen_tells_nodes_gaps_runs_and_events() -> None:
    busy = record(1, Span(0, 3), ends=True, queue=6, free_tokens=9_999, step_ms=2.5)
    dead, stage = record(2, Span(3, 6)), PeerRecord(peer=NOBODY, roles=(Role(kind="trainer", model=TRAINED),))
    shown = lines(look_of(busy, dead, stage, silent=(dead.peer,)), columns=120, num_events=2)
    assert shown[0] == "swarm attic: 3 nodes, 1 model, at 00:00:00"
    assert shown[1:3] == ["tiny@aaaaaaaaaaaa, 6 blocks", "  missing: blocks 3:6; host them:"]
    assert shown[3] == "  swarm node tiny --blocks 3:6" and shown[4] == "  ▁▁▁···"
    assert shown[6].split() == ["0:3", "+ends", "n1", "…111111", "serving", "busy", "6", "2.5", "ms", "9,999", "1.5", "ms"]
    assert shown[7].split()[:4] == ["3:6", "n2", "…222222", "silent"]
    assert shown[8] == "run prose@cccccccccccc: 1 trainer"
    assert shown[9:] == ["events", "  00:00:00 joined    event 0", "  00:00:01 joined    event 1"]
    assert lines(Look(at_s=0.0))[1] == "no node serves any model; be the first: swarm node MODEL"


def history(*losses: float | None) -> History:
    """With a validation loss of 2.5."""
    versions = [
        {"version": number, "loss": loss, "tokens": 64, "tokens_per_s": 1234.4, "grad_norm": 1.0, "time_s": 1.0, "peers": 1}
        for number, loss in enumerate(losses, 1)
    ]
    return History(name="prose", versions=versions, evaluations=[{"evaluation": 3, "loss": 2.5}], events=[])


def test_a_run_shows_its_losses() -> None:
    look = look_of(PeerRecord(peer=NOBODY, roles=(Role(kind="trainer", model=TRAINED),)))

    def shown(made: History) -> list[str]:
        made_lines = top_view.screen("attic", look, (), NodeCommand(), 80, 24, UTC, {TRAINED: made})
        return [line.plain for line in made_lines if "run prose" in line.plain or "version" in line.plain]

    assert shown(history(4.0, 3.0, 2.0)) == [
        "run prose@cccccccccccc: 1 trainer", "  version 3, loss 2.000, validation 2.500, 1,234 tokens/s  █▅▁"
    ]  # fmt: skip
    assert shown(history(2.0, None))[1] == "  version 2, no loss known, validation 2.500, 1,234 tokens/s"
    (row,) = run_losses.rows(look, {TRAINED: history(*map(float, range(100, 0, -1)))})
    assert (
        len(row.losses) == 20 and row.losses[0] == 98.0 and row.losses[-1] == 3.0 and run_losses.curve(row.losses)[::19] == "█▁"
    )
    assert run_losses.rows(look, {})[0].version is None and run_losses.curve((1.0, 1.0)) == "▁▁"


def test_a_small_screen_keeps_the_newest_events_and_says_what_is_left_out() -> None:
    many = look_of(*(record(number, Span(0, 6)) for number in range(1, 10)))
    shown = lines(many, rows=12, num_events=40)
    assert shown[-1].endswith("event 39") and "… and" in "".join(shown) and shown[0].startswith("swarm attic: 9 nodes")
    assert lines(many, columns=40, rows=3) and lines(many, columns=20, rows=1) and lines(many, columns=200, rows=100)


def test_names_and_errors_of_peers_say_nothing_to_a_terminal_or_to_rich() -> None:
    served = hosted(ModelId("[red]tiny", "a" * 64), Span(0, 6), 6)
    hostile = PeerRecord(peer=NOBODY, name="[bold]me[/]", hosted=served)
    look = seen(0.0, {"[red]tiny": [hostile]}, (), {})
    shown = "\n".join(lines(look))
    assert "[bold]me[/]" in shown and "[red]tiny@aaaa" in shown
    failed = "\n".join(lines(Look(at_s=0.0, problem="no peer \x1b]0;x\x07\nanswers"), num_events=1))
    assert "\x1b" not in failed and "\x07" not in failed and r"\x1b]0;x\x07 answers" in failed


async def test_a_live_screen_shows_a_death_and_q_gives_the_terminal_back(tmp_path: Path, fork_server: ForkServer) -> None:
    """Peers of this process announce blocks; the command looks at them from its own."""
    async with Peer(PeerConfig(data_dir=tmp_path)) as first:
        await first.directory.announce(lambda: hosting(first, "tiny"), ["tiny"])
        async with Peer(PeerConfig(data_dir=tmp_path, bootstrap=first.multiaddrs)) as second:
            await second.joined()
            await second.directory.announce(lambda: hosting(second, "tiny"), ["tiny"])
            command = ["--peer", first.multiaddrs[0], "--no-lan", "--data-dir", str(tmp_path / "client")]

            def shows_both() -> bool:
                code, said, _ = run("top", *command)
                assert code == 0 and "\x1b" not in said
                return "2 nodes, 1 model" in said

            assert await asyncio.to_thread(eventually, shows_both), "one that is late is shown the next time"
            terminal = await asyncio.to_thread(Terminal, fork_server, "top", *command)
            try:
                await asyncio.to_thread(terminal.until, "swarm public: 2 nodes, 1 model")
                await second.directory.withdraw()
                await asyncio.to_thread(terminal.until, " left ")
                await asyncio.to_thread(terminal.until, "swarm public: 1 node, 1 model")
                await asyncio.to_thread(terminal.type, "q")
                assert await asyncio.to_thread(terminal.end) == 0
            finally:
                terminal.close()


def test_without_a_swarm_it_fails_as_every_command(tmp_path: Path) -> None:
    peer = f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}"
    code, said, remarks = run("top", "--once", "--peer", peer, "--no-lan", "--data-dir", str(tmp_path))
    assert code == 6 and not said and "no peer of the swarm answers" in remarks
