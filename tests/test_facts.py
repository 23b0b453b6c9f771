"""Numbers that the documents quote are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ARCHITECTURE, COMMANDS, JOIN = "docs/architecture.md", "docs/commands.md", "docs/before-you-join.md"
TRAINING, GATEWAY = "docs/training.md", "docs/gateway.md"
DEFAULTS = "protocols/defaults.py"

FACTS: tuple[tuple[str, str, str, str], ...] = (
    (ARCHITECTURE, "Every {:g} seconds a node announces a record", DEFAULTS, "RECORD_RENEW_S"),
    (ARCHITECTURE, "that expires after {:g} seconds", DEFAULTS, "RECORD_LIFE_S"),
    (ARCHITECTURE, "holds up to {} addresses", "swarm/meeting/known_peers.py", "MAX_PEERS"),
    (ARCHITECTURE, "At most {} are of one network", "swarm/recent.py", "MAX_PER_PREFIX"),
    (ARCHITECTURE, "at most {} of one PeerID", "swarm/meeting/known_peers.py", "MAX_PER_PEER"),
    (ARCHITECTURE, "finds no peer within {:g} s serves as the first", "swarm/meeting/joining.py", "NEIGHBOUR_S"),
    (ARCHITECTURE, "at most {} entries", "swarm/dht/shelf.py", "MAX_PER_AUTHOR"),
    (ARCHITECTURE, "A shelf holds {:,} entries", "swarm/dht/shelf.py", "MAX_ENTRIES"),
    (ARCHITECTURE, "entries, {:,} for one key", "swarm/dht/shelf.py", "MAX_PER_KEY"),
    (ARCHITECTURE, "and {:,} in all", "swarm/dht/shelf.py", "MAX_PER_PREFIX"),
    (ARCHITECTURE, "(/24 or /48) {} for one key", "swarm/dht/shelf.py", "MAX_PER_PREFIX_AND_KEY"),
    (ARCHITECTURE, "a reader asks the {} members nearest to a key", "swarm/dht/lookup.py", "BEAM"),
    (ARCHITECTURE, "{} keys each", "swarm/dht/protocol.py", "MAX_KEYS"),
    (ARCHITECTURE, "a sample of {} entries", "swarm/dht/protocol.py", "MAX_ANSWERED"),
    (ARCHITECTURE, "checks at most {:,} new signatures", "swarm/dht/checking.py", "MAX_CHECKED"),
    (ARCHITECTURE, "has not answered within {:g} s", "swarm/dht/lookup.py", "LATE_S"),
    (ARCHITECTURE, "later lookups skip it for {:g} s", "swarm/dht/neighbourhood.py", "SILENT_S"),
    (ARCHITECTURE, "the last {} members that a peer has joined through", "swarm/dht/node.py", "MAX_ANCHORS"),
    (ARCHITECTURE, "An answer has at most {:,} entries", "protocols/directory.py", "MAX_ENTRIES"),
    (ARCHITECTURE, "The client checks {} signatures", "swarm/directory/remote.py", "MAX_CHECKED"),
    (ARCHITECTURE, "an answer of up to {:g} s ago", "swarm/directory/answering.py", "STALE_S"),
    (ARCHITECTURE, "announces `joining`, waits {:g} s", "node/placement/span_choice.py", "RACE_WAIT_S"),
    (ARCHITECTURE, "checks every {:g} s if it should host other blocks", DEFAULTS, "PLACEMENT_LOOK_S"),
    (ARCHITECTURE, "at most {} other nodes", "node/placement/span_choice.py", "MAX_PLANNED"),
    (ARCHITECTURE, "multiplies the minimum by {:g}", "swarm/placement/balancing.py", "GAIN"),
    (ARCHITECTURE, "within **{} rounds**", "swarm/placement/rebalance.py", "ROUNDS"),
    (ARCHITECTURE, "up to {:g} s for running ones", DEFAULTS, "DRAIN_S"),
    (ARCHITECTURE, "swarm of more than {}", "node/placement/liveness.py", "SMALL_SWARM"),
    (ARCHITECTURE, "within {:g} s (`HEAL_S`)", DEFAULTS, "HEAL_S"),
    (ARCHITECTURE, "sends {} random hidden states", "node/placement/proving.py", "NUM_TOKENS"),
    (ARCHITECTURE, "peer counts for {:g} s from the check", "node/placement/span_choice.py", "MAX_JOINING_S"),
    (ARCHITECTURE, "watches its DHT neighbours every {:g} s", "swarm/peer/config.py", "WATCH_S"),
    (ARCHITECTURE, "it announces again (at most every {:g} s)", "swarm/peer/dht_keeper.py", "REANNOUNCE_S"),
    (ARCHITECTURE, "from up to {} peers at once", "swarm/weights/terms.py", "MAX_SOURCES"),
    (ARCHITECTURE, "sends nothing for {:g} s loses its place", "swarm/weights/roster.py", "TRIAL_S"),
    (ARCHITECTURE, "at most {} peers are served at once", "swarm/weights/uploader.py", "MAX_UPLOADS"),
    (ARCHITECTURE, "disagree with it in one direction by more than {:g} s", "swarm/meeting/clocks.py", "TOLERATED_S"),
    (ARCHITECTURE, "At most {} steps or 8 MB", DEFAULTS, "WINDOW_STEPS"),
    (ARCHITECTURE, "prefill chunks of {} tokens", DEFAULTS, "PREFILL_CHUNK_TOKENS"),
    (ARCHITECTURE, "Hellos are sent to {} peers at once", "swarm/asking.py", "AT_ONCE"),
    (ARCHITECTURE, "takes a route {:g} s after", "swarm/routing/router.py", "GRACE_S"),
    (ARCHITECTURE, "within {:g} s of a directory lookup", "swarm/routing/shown.py", "FRESH_S"),
    (ARCHITECTURE, "At most {} parts have an engine", "node/serving/part_engines.py", "MAX_PARTS"),
    (ARCHITECTURE, "if {} peers say the same", "swarm/inference/client/hearsay.py", "AGREED"),
    (ARCHITECTURE, "After {:g} s, or after 20 times", DEFAULTS, "STALL_S"),
    (ARCHITECTURE, "or after {:g} times the expected time", "swarm/inference/client/suspicion.py", "FACTOR"),
    (ARCHITECTURE, "A peer that failed is avoided for {:g} s", DEFAULTS, "AVOID_S"),
    (ARCHITECTURE, "for each count of 1 to {} tokens", "node/engines/graphs/engine_graphs.py", "MAX_TOKENS"),
    (ARCHITECTURE, "A step of more than {} tokens per sequence", "node/device/forward_size.py", "DECODE_TOKENS"),
    (ARCHITECTURE, "about {:g} (`CHUNK_SHARE`)", "node/device/forward_size.py", "CHUNK_SHARE"),
    (ARCHITECTURE, "waits up to {:g} (`GATHER_SHARE`) of a step", "node/device/forward_size.py", "GATHER_SHARE"),
    (ARCHITECTURE, "at most {:g} ms, for sessions", "node/device/forward_size.py", "MAX_GATHER_MS"),
    (ARCHITECTURE, "was refused in the last {:g} s", "node/device/memory.py", "WANTING_S"),
    (ARCHITECTURE, "| {} per peer", "swarm/rpc/admission.py", "MAX_CALLS_PER_PEER"),
    (ARCHITECTURE, "| sessions | {} per client |", DEFAULTS, "MAX_SESSIONS_PER_CLIENT"),
    (ARCHITECTURE, "| connection without a call by a proven caller | {:g} s |", "swarm/rpc/connections.py", "UNKNOWN_S"),
    ("docs/operating.md", "At most {} readers are answered", "node/metrics_page.py", "MAX_READERS"),
    ("docs/operating.md", "at once, for {:g} s each", "node/metrics_page.py", "READER_S"),
    (COMMANDS, "the first {} letters of a digest", "swarm/weights/names.py", "MIN_PREFIX"),
    (COMMANDS, "a K/V reserve of {:,} tokens", "node/placement/span_choice.py", "KV_RESERVE_TOKENS"),
    (COMMANDS, "serves up to {} models from one process", "protocols/records.py", "MAX_MODELS"),
    (COMMANDS, "at most {} models are shown", "node/cli/watch/status.py", "MAX_MODELS"),
    (COMMANDS, "no time to ask it ({:g} s for all)", "node/cli/watch/status.py", "ASK_S"),
    (COMMANDS, "up to {} addresses", "swarm/meeting/invitation.py", "MAX_PEERS"),
    (COMMANDS, "invitation can be used ({:g})", "swarm/meeting/invitation.py", "VALID_DAYS"),
    (COMMANDS, "so that others wait, for {:g} s at most", "swarm/weights/uploader.py", "MAX_DEBT_S"),
    (GATEWAY, "answer has at most {:,} tokens", "node/gateway/answers/prompts.py", "MOST_NEW"),
    (GATEWAY, "or up to {:,}; or their token ids", "node/gateway/answers/embedding.py", "MAX_TEXTS"),
    (GATEWAY, "written every {:g} s", "node/gateway/answers/gateway.py", "WRITE_SPENT_S"),
    (GATEWAY, "a text's has {}", "node/gateway/openai/completions.py", "USUAL_TOKENS"),
    (GATEWAY, "cut off after {:g} s", "node/gateway/http/hanging_up.py", "SEND_S"),
    (GATEWAY, "did not come within {:g} s", "node/gateway/http/limits.py", "BODY_S"),
    (GATEWAY, "after `--patience` ({:g} s)", "node/gateway/answers/config.py", "ROUTE_TIMEOUT_S"),
    (GATEWAY, "for {:g} s at most, and takes no new ones", "node/gateway/server.py", "DRAIN_S"),
    (COMMANDS, "lets running answers end, for {:g} s at most; then the node leaves", "node/gateway/server.py", "DRAIN_S"),
    (GATEWAY, "and for {:g} s at most, then they get 429", "node/gateway/answers/config.py", "WAIT_S"),
    (GATEWAY, "listed anew every {:g} s", "node/gateway/answers/gateway.py", "LIST_AGAIN_S"),
    (GATEWAY, "for `top_k` up to {:,}", DEFAULTS, "MAX_TOP"),
    (TRAINING, "M at most {:,}", "protocols/runs.py", "MAX_MICRO_BATCHES"),
    (TRAINING, "{} for each pipeline at most", "swarm/training/window.py", "MOST"),
    (TRAINING, "end after {:g} s of silence", "swarm/training/lease_desk.py", "SILENT_S"),
    (TRAINING, "looks every {:g} s if others are ahead", "node/runs/stage/taking_part.py", "LOOK_S"),
    (TRAINING, "a node keeps {} older version", "node/runs/stage/node_run.py", "OLDER_VERSIONS"),
    (TRAINING, "`--train-share {:g}`", "node/device/scheduler.py", "TRAIN_SHARE"),
    (TRAINING, "so that uploads wait, for {:g} s at most", "swarm/weights/uploader.py", "MAX_DEBT_S"),
    (COMMANDS, "k logits for `--top-k` up to {:,}", DEFAULTS, "MAX_TOP"),
    (COMMANDS, "a plain line on stderr after {:g} s", "node/cli/terminal/waiting.py", "SCRIPT_S"),
    (JOIN, "after {:g} s if your client vanishes", DEFAULTS, "RESUME_S"),
)
"""(document, what it says with {} for the number, file, the constant's name)."""


@pytest.mark.parametrize(("document", "sentence", "file", "name"), FACTS, ids=[f"{file}:{name}" for _, _, file, name in FACTS])
def test_a_number_in_the_documents_is_that_of_the_code(document: str, sentence: str, file: str, name: str) -> None:
    text = " ".join((ROOT / document).read_text(encoding="utf-8").split())
    assert says(text, sentence.format(constant(file, name))), f"{document} should say {sentence!r} with {name} of {file}"


@pytest.mark.parametrize(
    ("text", "is_said"),
    [("at most 5 peers", True), ("and 5.", True), ("and 5, too", True)]
    + [(f"{wrong} peers, and {wrong}", False) for wrong in ("15", "1.5", "1,5", "55", "5.5", "5,000")],
)
def test_a_part_of_another_number_is_not_the_number(text: str, is_said: bool) -> None:
    assert (says(text, "5 peers") or says(text, "and 5")) is is_said


def says(text: str, sentence: str) -> bool:
    """Whether the sentence is there, and its number is a whole one."""
    return re.search(rf"(?<!\d)(?<!\d[.,]){re.escape(sentence)}(?![.,]?\d)", text) is not None


def constant(file: str, name: str) -> float:
    """A number that a file assigns at its top: read, not imported, so that no import has to be paid for."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == name:
                value = ast.literal_eval(node.value)  # type: ignore[arg-type]
                assert isinstance(value, int | float)
                return value
    raise AssertionError(f"{file} assigns no number to {name}: change the fact that quotes it")
