"""Samples and random strategies for every kind of message.

There is one fixed message of every kind, whose bytes are golden vectors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from protocols import (
    about,
    averaging,
    cards,
    directory,
    entries,
    groups,
    held,
    hello,
    inference,
    journal,
    kept,
    leases,
    masks,
    orders,
    progress,
    records,
    roles,
    run_status,
    runs,
    state,
    tensors,
    timings,
    training,
    weights,
)  # fmt: skip
from protocols.hosted import STATES, Hosted, Load
from protocols.identity import Identity, from_seed
from protocols.ids import MAX_BLOCKS, ModelId, PeerId, SessionId, Span
from protocols.logit_changes import LogitChanges
from protocols.parts_of_units import EMBED, HEAD, Part, parts_of
from protocols.receipts import Receipt
from protocols.runs import MAX_MICRO_BATCHES
from protocols.units import AXES, MAX_EXPERTS, MAX_EXTENT, STACKS, Blocks, Ends, Expert, Partition, Unit
from protocols.weights_id import MAX_VERSION, Weights
from tests.hosting import hosted

ALICE, BOB, CAROL = (from_seed(bytes([number]) * 32) for number in (1, 2, 3))
MODEL = ModelId("tiny", "ab" * 32)
SESSION = SessionId(bytes(range(16)))
HIDDEN = tensors.WireTensor("float32", (3, 1), "none", bytes.fromhex("0000803f00000040000040c0"))  # 1, 2, -3
TOKENS = tensors.WireTensor("int32", (2,), "none", bytes.fromhex("07000000ff000000"))  # 7, 255
IDS = tensors.WireTensor("int32", (3, 1), "none", bytes.fromhex("0700000008000000ff000000"))
STATES_BTH = tensors.WireTensor("float32", (1, 3, 1), "none", HIDDEN.data)

ROUTE = (
    inference.Hop(BOB.peer_id, ("10.0.0.2:4001", "[2001:db8::2]:4001"), b"DER", Blocks(0, 2)),
    inference.Hop(CAROL.peer_id, ("carol.example:4001",), b"", Blocks(2, 4)),
)
GRANT = inference.Grant(
    client=ALICE.peer_id, session=SESSION, epoch=1, weights=Weights(MODEL), route=ROUTE, expires_s=1_900_000_000.5
).signed(ALICE.sign)
RECEIPT = Receipt(
    peer=CAROL.peer_id, added=(Part.block(2), HEAD), held=(Part.block(3),),
    queue_ms=0.5, forward_ms=1.5, backward_ms=2.25, wait_ms=0.0, num_bytes=12,
)  # fmt: skip
MANIFEST = weights.Manifest(
    (
        weights.TensorEntry("model.embed_tokens.weight", "BF16", (8, 4), weights.tensor_root([])),
        weights.TensorEntry("scale", "F32", (), bytes(range(32))),
    ),
    weights.canonical_config({"model_type": "llama", "hidden_size": 4, "transformers_version": "5.23.0"}),
    (weights.FileEntry("tokenizer.json", bytes(range(32, 64))),),
)
RUN = runs.RunSpec(
    name="prose",
    seed=7,
    data=runs.DataRule(digest="da" * 32, sequence_tokens=128),
    batch=runs.BatchRule(steps=500, batch_tokens=8_192, micro_batch_sequences=8),
    schedule=runs.ScheduleSpec(warmup_steps=20),
)
RECORD = records.PeerRecord(
    peer=ALICE.peer_id,
    name="attic",
    software="murmuration 0.1.0",
    addresses=("192.0.2.7:4002",),
    certificate=b"DER",
    p2p_addresses=(f"/ip4/192.0.2.7/tcp/4001/p2p/{ALICE.peer_id}", f"/ip4/192.0.2.9/tcp/4001/p2p/{BOB.peer_id}"),
    reachable=True,
    hosted=hosted(MODEL, Span(0, 2), 4, ends=True, free_tokens=4096, queue=2, step_ms=12.34),
    upload_bytes_s=1_250_000,
    round_trips=((BOB.peer_id, 20.5),),
)
FORM = state.Form.of(
    (
        state.TensorForm("momentum/3.mlp.weight", "F32", (2, 3)),
        state.TensorForm("parameter/3.mlp.weight", "F32", (2, 3)),
        state.TensorForm("parameter/3.count", "I64", ()),
    )
)

ROLES = (
    roles.Role("stage", MODEL, Blocks(0, 2)),
    roles.Role("stage", MODEL, Ends()),
    roles.Role("keeper", MODEL),
    roles.Role("trainer", ModelId("prose", "cd" * 32)),
)
GROUP = groups.Group(
    id=groups.GroupId(bytes(range(16))),
    run=MODEL,
    version=7,
    units=(Blocks(0, 1), Ends()),
    members=(
        groups.Member(peer=ALICE.peer_id, addresses=("10.0.0.1:4001",), certificate=b"DER"),
        groups.Member(peer=BOB.peer_id),
    ),
    num_micro_batches=12,
    chains=(bytes(32), b"c" * 32),
    codec="int8",
    deadline_s=30.0,
)
LEDGER = cards.Ledger(
    version=7,
    units=(
        cards.UnitSum(num_values=5, chain=bytes(32), held=(0b1001,)),
        cards.UnitSum(num_values=1 << 33, chain=b"c" * 32, held=(1 << 11, 0)),
    ),
    num_targets={0: 128, 3: 0, 11: 70_000},
)
CARD = cards.Card(group=GROUP.digest(), peer=ALICE.peer_id, ledger=LEDGER).signed(ALICE.sign)

KEPT = kept.Kept(version=7, chains={Blocks(3, 4): bytes(range(32)), Ends(): bytes(32)})
HELD = held.Held(version=7, whole=KEPT.chain, chains={Blocks(3, 4): bytes(range(32))}, is_done=False)

CHANGES = LogitChanges(penalty=1.5, repeated=(1, 9), bias=((3, -1.25),), less=((9, 0.5),))
TIMES = timings.appended(b"", timings.HopTime(index=0, queue_ms=0.25, compute_ms=1.5, total_ms=2.0))

SAMPLES: dict[str, Any] = {
    "hello": hello.Hello(oldest=1, newest=2, software="murmuration 0.1.0", swarm="public", name="attic"),
    "dial_back": hello.DialBack(addresses=("192.0.2.7:4002",), certificate=b"DER"),
    "dialled_back": hello.DialBackReply(reachable=("192.0.2.7:4002",), reason="timed out"),
    "about?": about.AboutRequest(),
    "about": about.About(
        machine=about.Machine(device="cuda:0", name="NVIDIA H200", system="Linux x86_64", cores=16, memory_bytes=1 << 37,
                              device_bytes=1 << 37),
        uptime_s=3_600.5, free_bytes=1 << 36, num_sessions=12, num_steps=3_400, num_tokens=5_600,
        trained=(about.Trained(run=MODEL, role="stage", num_micro_batches=96, num_tokens=98_304, num_versions=6, seconds=61.5),),
    ),
    "journal?": journal.JournalRequest(run=MODEL, journal=b"8 bytes.", after=7),
    "journal": journal.JournalPart(
        journal=b"8 bytes.", last=11, newest=12, coordinator=ALICE.peer_id,
        notes=(
            journal.NotedVersion(version=3, loss=2.5, tokens=3_072, tokens_per_s=81.5, grad_norm=0.25, time_s=9.5, num_stages=2),
            journal.NotedEvent(event="left out", version=3, time_s=9.75, text="attic for 30 s"),
            journal.NotedEvaluation(
                version=3, loss=None, bits_per_byte=None, num_tokens=0, time_s=10.0, samples=(("Once", "upon a time"),)
            ),
        ),
    ),
    "manifest": MANIFEST,
    "manifest of a run": replace(MANIFEST, run=RUN),
    "manifest?": weights.ManifestRequest(model=MODEL),
    "directory?": directory.DirectoryRequest(swarm="public", model="tiny"),
    "directory": directory.DirectoryReply(((ALICE.peer_id, entries.SignedEntry(b"\xc4\x02hi" + bytes(64), 1_900_000_000.5)),)),
    "record": RECORD,
    "state?": state.StateRequest(run=MODEL, units=(Blocks(3, 4), Ends()), version=7),
    "state": state.StateHeader(unit=Blocks(3, 4), version=7, chain=bytes(range(32)), form=FORM, digest=bytes(range(32, 64))),
    "state_part": state.StatePart(offset=1 << 20, data=b"values"),
    "progress?": progress.ProgressRequest(session=SESSION, unit=Blocks(2, 4)),
    "progress": progress.Progress(epoch=1, received=6, computed=5, sent=5, is_busy=True, lost=2),
    "open": inference.Open(grant=GRANT, index=1, dtype="float32"),
    "open of a fork": inference.Open(grant=GRANT, index=1, dtype="float32", fork=inference.Fork(session=SESSION, step=7)),
    "step": inference.Step(
        session=SESSION,
        epoch=1,
        step=5,
        counts=(2, 1),
        payload=HIDDEN,
        ops=(inference.Rows((1, 0)), inference.Repeat(2), inference.Crop(3)),
        positions=(4, 5, 9),
        spec=inference.StepSpec(want=1, kind="embeds", result="top", top=2, priority=-1),
        budget_ms=2_500,
    ),
    "step with a mask": inference.Step(
        session=SESSION,
        epoch=1,
        step=6,
        counts=(1,),
        payload=tensors.WireTensor("int32", (1,), "none", bytes(4)),
        spec=inference.StepSpec(want=1, kind="ids", result="top", top=1, mask=b"\x05\x80"),
    ),
    "step with changes": inference.Step(
        session=SESSION,
        epoch=1,
        step=6,
        counts=(1,),
        payload=tensors.WireTensor("int32", (1,), "none", bytes(4)),
        spec=inference.StepSpec(want=1, kind="ids", result="top", top=1, mask=b"\x05\x80", changes=CHANGES.pack()),
    ),
    "step of a draw": inference.Step(
        session=SESSION,
        epoch=1,
        step=7,
        counts=(1,),
        payload=tensors.WireTensor("int32", (1,), "none", bytes(4)),
        spec=inference.StepSpec(want=1, kind="ids", result="top", top=2, temperature=0.5),
    ),
    "step of scores": inference.Step(
        session=SESSION,
        epoch=1,
        step=7,
        counts=(1,),
        payload=tensors.WireTensor("int32", (1,), "none", bytes(4)),
        spec=inference.StepSpec(want=1, kind="ids", result="scored", top=2, own=5, temperature=0.5),
    ),
    "step with times": inference.Step(
        session=SESSION,
        epoch=1,
        step=8,
        counts=(2, 1),
        payload=HIDDEN,
        times=TIMES,
        trace=bytes(range(1, 26)),
    ),
    "step of a sum": inference.Step(
        session=SESSION,
        epoch=1,
        step=8,
        counts=(1,),
        payload=tensors.WireTensor("int32", (1,), "none", bytes(4)),
        spec=inference.StepSpec(kind="ids", result="pooled"),
    ),
    "history": inference.History(session=SESSION, epoch=1, base=5, counts=(1, 1), payload=TOKENS, part=0, parts=2, kind="ids"),
    "reroute": inference.Reroute(grant=GRANT, index=0),
    "open of a shorter fork": inference.Open(
        grant=GRANT, index=1, dtype="float32", fork=inference.Fork(session=SESSION, step=7, tokens=300)
    ),
    "close": inference.Close(session=SESSION, below=True),
    "close and keep": inference.Close(session=SESSION, keep_s=300),
    "expect": inference.Expect(session=SESSION, epoch=1, step=0),
    "lost": inference.HopLost(session=SESSION, epoch=1, index=1, code="peer_unreachable", message="it\nbroke"),
    "attach": inference.Attach(grant=GRANT, step=3),
    "reply": inference.Reply(session=SESSION, epoch=1, step=5, counts=(3,), payload=HIDDEN, ids=IDS, compute_ms=1.25),
    "reply with times": inference.Reply(session=SESSION, epoch=1, step=8, counts=(3,), payload=HIDDEN, times=TIMES),
    "reply to a draw": inference.Reply(
        session=SESSION,
        epoch=1,
        step=7,
        counts=(3,),
        payload=HIDDEN,
        ids=IDS,
        totals=tensors.WireTensor("float32", (3,), "none", bytes(12)),
    ),
    "reply with scores": inference.Reply(
        session=SESSION,
        epoch=1,
        step=7,
        counts=(3,),
        payload=HIDDEN,
        ids=IDS,
        totals=tensors.WireTensor("float32", (3, 2), "none", bytes(24)),
    ),
    "pass": training.Pass(
        run=MODEL, version=7, index=5, route=ROUTE, skip=(EMBED, Part.block(1)), payload=IDS, labels=IDS, positions=IDS,
        num_targets=3, codec="bfloat16", budget_ms=2_500,
    ),
    "pass of a client": training.Pass(
        run=MODEL, version=0, index=None, weights=Weights(MODEL), route=ROUTE, hop=1, payload=STATES_BTH, want="hidden"
    ),
    "signed pass of a client": training.Pass(
        run=MODEL, version=0, index=None, weights=GRANT.weights, grant=replace(GRANT, route=training.named(ROUTE)).signed(ALICE.sign),
        route=ROUTE,
        payload=STATES_BTH, want="hidden",
    ),
    "pass of an evaluation": training.Pass(
        run=MODEL, version=7, index=None, route=ROUTE, payload=IDS, labels=IDS, num_targets=3, budget_ms=2_500
    ),
    "output": training.Output(hidden=STATES_BTH),
    "gradient": training.Gradient(gradient=STATES_BTH),
    "result": training.Result(gradient=STATES_BTH, loss_sum=2.5, receipts=(RECEIPT,)),
    "pass_failed": training.PassFailed(hop=1, code="version_mismatch", message="it\nbroke"),
    "run_status?": run_status.StatusRequest(run=MODEL),
    "run_status": run_status.RunStatus(
        num_micro_batches=12,
        units=(
            run_status.UnitStatus(unit=Blocks(3, 4), version=7, chain=bytes(range(32)), ledger={Part.block(3): 0xFFF},
                                  agreed=bytes(range(16))),
            run_status.UnitStatus(unit=Ends(), version=0, chain=b"", ledger={EMBED: 1, HEAD: 1 << 11}),
        ),
        queue=2, forward_ms=1.5, backward_ms=3.25, is_catching_up=True, is_paused=True, served=(0, 5), kept=KEPT,
    ),
    "run_status with copies": run_status.RunStatus(num_micro_batches=12, held=(HELD,), has_memory=True),
    "hold": held.Hold(run=MODEL, kept=KEPT),
    "holding": held.Holding(version=7),
    "restore": kept.Restore(run=MODEL, kept=KEPT),
    "restored": kept.Restored(version=7),
    "publish": run_status.Publish(run=MODEL, version=7, chains={Blocks(0, 1): bytes(range(32)), Ends(): bytes(32)}),
    "published": run_status.Published(version=7),
    "lease?": leases.LeaseRequest(
        run=MODEL, version=7, done=(leases.Done(index=3, loss_sum=2.5, num_targets=5, num_bytes=6),), running=(1, 4_095), wanted=2, shown=6
    ),
    "lease": leases.LeaseAnswer(
        coordinator=BOB.peer_id, version=7, indices=(5, 0), deadline_s=30.0, is_again=True,
        finished=(leases.Finished(version=7, loss_sum=2.5, num_targets=5, seconds=1.5, closing_s=0.25, num_stages=2, num_bytes=6,
                                  num_redone=1, grad_norm=0.5),),
    ),
    "order": orders.Order(action="ban", peer=BOB.peer_id, seconds=3_600),
    "ordered": orders.OrderReply(
        done="paused: 2 open sessions go on", may=("pause", "ban"), state="paused", bans=(orders.Ban(peer=CAROL.peer_id, seconds=60),)
    ),
    "group": GROUP,
    "card": CARD,
    "prepare": averaging.Prepare(id=GROUP.id, cards=(CARD, CARD)),
    "prepared": averaging.Prepared(lost=BOB.peer_id, text="no slice from …Sdf9"),
    "of_group": groups.OfGroup(id=GROUP.id),
    "values": averaging.Values(b"values"),
    "decide": averaging.Decide(id=GROUP.id, is_agreed=False, cards=(CARD,)),
    "decision": averaging.Decision(said="open", vote=bytes(range(32))),
    "closed": averaging.Closed(
        outcome="missing", group_id=GROUP.id, version=7, missing=(0b10, 0, 1 << 11), lost=(BOB.peer_id,), text="dead"
    ),
    "apply": averaging.Apply(run=MODEL, version=7, id=GROUP.id),
    "applied": averaging.Applied(
        version=8, chains={Ends(): b"e" * 32, Blocks(0, 1): b"b" * 32}, squares={Ends(): 2.25, Blocks(0, 1): 0.5}, num_targets=96
    ),
}  # fmt: skip

PARSERS: dict[str, Callable[[bytes], Any]] = {
    "hello": hello.Hello.parse,
    "dial_back": hello.DialBack.parse,
    "dialled_back": hello.DialBackReply.parse,
    "about?": about.AboutRequest.parse,
    "about": about.About.parse,
    "journal?": journal.JournalRequest.parse,
    "journal": journal.JournalPart.parse,
    "manifest": weights.Manifest.parse,
    "manifest of a run": weights.Manifest.parse,
    "manifest?": weights.ManifestRequest.parse,
    "directory?": directory.DirectoryRequest.parse,
    "directory": directory.DirectoryReply.parse,
    "record": records.PeerRecord.parse,
    "state?": state.StateRequest.parse,
    "state": state.parse_answer,
    "state_part": state.parse_answer,
    "progress?": progress.ProgressRequest.parse,
    "progress": progress.Progress.parse,
    "run_status?": run_status.StatusRequest.parse,
    "run_status": run_status.RunStatus.parse,
    "publish": run_status.Publish.parse,
    "published": run_status.Published.parse,
    "run_status with copies": run_status.RunStatus.parse,
    "hold": held.Hold.parse,
    "holding": held.Holding.parse,
    "restore": kept.Restore.parse,
    "restored": kept.Restored.parse,
    "lease?": leases.LeaseRequest.parse,
    "lease": leases.LeaseAnswer.parse,
    "order": orders.Order.parse,
    "ordered": orders.OrderReply.parse,
    "group": groups.Group.parse,
    "card": cards.Card.parse,
    "prepare": averaging.Prepare.parse,
    "prepared": averaging.Prepared.parse,
    "of_group": groups.OfGroup.parse,
    "values": averaging.Values.parse,
    "decide": averaging.Decide.parse,
    "decision": averaging.Decision.parse,
    "closed": averaging.Closed.parse,
    "apply": averaging.Apply.parse,
    "applied": averaging.Applied.parse,
}
OF_A_PASS = frozenset(kind for kind, sample in SAMPLES.items() if isinstance(sample, training.Message))


def parser(kind: str) -> Callable[[bytes], Any]:
    """What reads a message of this kind."""
    return PARSERS.get(kind, training.parse if kind in OF_A_PASS else inference.parse)


# --- strategies: any message that our own code may build

_LETTERS = st.characters(min_codepoint=32, max_codepoint=0x2FF).filter(str.isprintable)


def text(longest: int, smallest: int = 0) -> st.SearchStrategy[str]:
    return st.text(_LETTERS, min_size=smallest, max_size=longest)


def identities() -> st.SearchStrategy[Identity]:
    return st.integers(0, 255).map(lambda number: from_seed(bytes([number]) * 32))


peers: st.SearchStrategy[PeerId] = identities().map(lambda identity: identity.peer_id)
sessions = st.binary(min_size=16, max_size=16).map(SessionId)
models = st.builds(ModelId, text(40, 1).filter(lambda name: "@" not in name), st.binary(min_size=32, max_size=32).map(bytes.hex))
epochs, steps = st.integers(0, inference.MAX_EPOCH), st.integers(0, inference.MAX_STEP)
addresses = st.builds("{}:{}".format, st.sampled_from(["10.0.0.1", "[::1]", "a.example", "localhost"]), st.integers(1, 65_535))
address_lists = st.lists(addresses, max_size=8).map(tuple)


_stacks, _layers = st.sampled_from(STACKS), st.integers(0, MAX_BLOCKS - 1)


def _ranges(highest: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, highest), st.integers(0, highest)).filter(lambda pair: pair[0] != pair[1]).map(_sorted)


def _sorted(pair: tuple[int, int]) -> tuple[int, int]:
    return min(pair), max(pair)


_words = st.text("AZaz09_", min_size=1, max_size=9)
_matrices = st.lists(_words, min_size=1, max_size=10).map(".".join)
all_units: st.SearchStrategy[Unit] = st.one_of(
    st.builds(lambda pair, stack: Blocks(*pair, stack), _ranges(MAX_BLOCKS), _stacks),
    st.builds(Ends, _stacks),
    st.builds(Expert, _layers, st.integers(0, MAX_EXPERTS - 1), _stacks),
    st.builds(
        lambda layer, matrix, axis, pair, stack: Partition(layer, matrix, axis, *pair, stack),
        _layers, _matrices, st.sampled_from(AXES), _ranges(MAX_EXTENT), _stacks,
    ),
)  # fmt: skip

_versions = st.integers(1, MAX_VERSION)
_hashes = st.binary(min_size=32, max_size=32)


def _weights(models: st.SearchStrategy[ModelId]) -> st.SearchStrategy[Weights]:
    adapters = st.none() | _hashes.map(bytes.hex)
    return st.builds(Weights, models, adapter=adapters) | st.builds(Weights, models, _versions, _hashes, adapters)


all_weights = _weights(st.builds(ModelId, text(200, 1).filter(lambda name: "@" not in name), _hashes.map(bytes.hex)))
some_weights = _weights(models)
"""With names that are short enough for a record."""

_milliseconds = st.integers(0, 10**7).map(lambda hundredths: hundredths / 100)
_loads = st.builds(
    Load, free_tokens=st.integers(0, 1 << 40), queue=st.integers(0, 1 << 20), step_ms=_milliseconds, block_ms=_milliseconds
)
all_hosted = st.builds(
    Hosted,
    unit=all_units,
    weights=some_weights,
    num_blocks=st.just(MAX_BLOCKS),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    quantization=st.sampled_from(["none", "int8"]),
    state=st.sampled_from(["", *STATES]),
    load=_loads,
    capacity_blocks=st.integers(0, MAX_BLOCKS),
)


@st.composite
def routes(draw: st.DrawFn) -> tuple[inference.Hop, ...]:
    cuts = sorted(draw(st.sets(st.integers(0, 100), min_size=2, max_size=6)))
    spans = [Span(a, b) for a, b in pairwise(cuts)]
    return tuple(
        inference.Hop(draw(peers), draw(address_lists), draw(st.binary(max_size=600)), Blocks.of(span)) for span in spans
    )


@st.composite
def grants(draw: st.DrawFn) -> inference.Grant:
    client = draw(identities())
    unsigned = inference.Grant(
        client=client.peer_id,
        session=draw(sessions),
        epoch=draw(epochs),
        weights=draw(all_weights),
        route=draw(routes()),
        expires_s=draw(st.floats(0, 1e12)),
    )
    return unsigned.signed(client.sign)


@st.composite
def payloads(draw: st.DrawFn, num_tokens: int) -> tensors.WireTensor:
    dtype, codec = draw(st.sampled_from([("float32", "none"), ("bfloat16", "none"), ("float32", "float16"), ("int32", "none")]))
    shape = (num_tokens,) if dtype == "int32" else (num_tokens, draw(st.integers(0, 5)))
    num_bytes = tensors.ITEM_BYTES[dtype if codec == "none" else codec] * (shape[0] * (1 if len(shape) == 1 else shape[1]))
    return tensors.WireTensor(dtype, shape, codec, random.Random(draw(st.integers(0, 99))).randbytes(num_bytes))


ops = st.one_of(
    st.lists(st.integers(0, 1_023), max_size=6).map(lambda rows: inference.Rows(tuple(rows))),
    st.integers(1, 1_024).map(inference.Repeat),
    st.integers(1, inference.MAX_LENGTH).map(inference.Crop),
)


@st.composite
def tokens_of_rows(draw: st.DrawFn) -> dict[str, Any]:
    """Fields that must agree: counts, positions, payload."""
    counts = tuple(draw(st.lists(st.integers(0, 6), max_size=5)))
    position = st.integers(0, inference.MAX_LENGTH)
    positions = draw(st.none() | st.lists(position, min_size=sum(counts), max_size=sum(counts)).map(tuple))
    return {"counts": counts, "positions": positions, "payload": draw(payloads(sum(counts)))}


times = st.none() | st.integers(0, 4).flatmap(lambda count: st.binary(min_size=13 * count, max_size=13 * count))


@st.composite
def step_messages(draw: st.DrawFn) -> inference.Step:
    return inference.Step(
        session=draw(sessions),
        epoch=draw(epochs),
        step=draw(steps),
        ops=tuple(draw(st.lists(ops, max_size=4))),
        spec=inference.StepSpec(
            want=draw(st.integers(-1, 65_536)),
            kind=draw(st.sampled_from(inference.KINDS)),
            **draw(
                st.sampled_from(
                    [
                        {"result": "hidden"},
                        {"result": "logits"},
                        {"result": "top", "top": 7},
                        {"result": "pooled"},
                        {"result": "scored", "top": 7, "own": 3},
                    ]
                )
            ),
            priority=draw(st.integers(-100, 100)),
        ),
        budget_ms=draw(st.integers(0, 86_400_000)),
        times=draw(times),
        trace=draw(st.sampled_from([b"", bytes(range(25))])),
        **draw(tokens_of_rows()),
    )


@st.composite
def histories(draw: st.DrawFn) -> inference.History:
    parts = draw(st.integers(1, 9))
    head: dict[str, Any] = {"session": draw(sessions), "epoch": draw(epochs), "base": draw(steps)}
    return inference.History(**head, part=draw(st.integers(0, parts - 1)), parts=parts, kind=draw(st.sampled_from(inference.KINDS)),
                             **draw(tokens_of_rows()))  # fmt: skip


@st.composite
def replies(draw: st.DrawFn) -> inference.Reply:
    table = draw(tokens_of_rows())
    del table["positions"]
    shape = table["payload"].shape
    ids = tensors.WireTensor("int32", shape, "none", bytes(4 * math.prod(shape)))
    return inference.Reply(
        session=draw(sessions),
        epoch=draw(epochs),
        step=draw(steps),
        compute_ms=draw(st.floats(0, 1e9)),
        times=draw(times),
        ids=draw(st.sampled_from([None, ids])),
        **table,
    )


@st.composite
def with_grant(draw: st.DrawFn) -> Any:
    grant = draw(grants())
    index = draw(st.integers(0, len(grant.route) - 1))
    kind = draw(st.sampled_from(["open", "reroute", "attach"]))
    if kind == "open":
        forks = st.builds(
            inference.Fork, session=sessions, step=st.integers(1, inference.MAX_STEP), tokens=st.integers(0, 1 << 24)
        )
        dtype, fork = draw(st.sampled_from(["float32", "bfloat16"])), draw(st.none() | forks)
        return inference.Open(grant=grant, index=index, dtype=dtype, fork=fork)
    return inference.Reroute(grant=grant, index=index) if kind == "reroute" else inference.Attach(grant=grant, step=draw(steps))


hellos = st.integers(0, 9).flatmap(
    lambda oldest: st.builds(
        hello.Hello,
        oldest=st.just(oldest),
        newest=st.integers(oldest, 20),
        software=text(64),
        swarm=text(64),
        name=text(64),
        time_s=st.floats(0, 1e12),
    )
)
_hash = st.binary(min_size=32, max_size=32)
_shape = st.lists(st.integers(0, 10**15 - 1), max_size=8).map(tuple)
_entry = st.builds(weights.TensorEntry, text(40, 1), st.sampled_from(["BF16", "F32", "F8_E4M3"]), _shape, _hash)
_file = st.builds(weights.FileEntry, st.sampled_from(["tokenizer.json", "vocab.txt", "merges.txt", "sub/a b.json"]), _hash)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
configs = st.dictionaries(st.text(max_size=12), _json, max_size=5)


def _by_name(entries: list[Any]) -> tuple[Any, ...]:
    return tuple(sorted({entry.name: entry for entry in entries}.values()))


manifests = st.builds(
    weights.Manifest,
    st.lists(_entry, max_size=6).map(_by_name),
    configs.map(weights.canonical_config),
    st.lists(_file, max_size=4).map(_by_name),
    st.none() | st.deferred(lambda: run_specs()),
)


_bounded_text = text(40, 1).filter(lambda name: "@" not in name)


def _numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high) | st.sampled_from([low, high])


@st.composite
def run_specs(draw: st.DrawFn) -> runs.RunSpec:
    sequence_tokens = draw(st.integers(2, runs.MAX_PASS_TOKENS))
    sequences = draw(st.integers(1, min(64, runs.MAX_PASS_TOKENS // sequence_tokens)))
    num_micro_batches, num_steps = draw(st.integers(1, runs.MAX_BATCH_TOKENS // (sequence_tokens * sequences)).map(
        lambda number: min(number, runs.MAX_MICRO_BATCHES))), draw(st.integers(1, runs.MAX_STEPS))  # fmt: skip
    digests = _hashes.map(bytes.hex)
    share = _numbers(0, 1)
    optimizer = runs.OptimizerSpec(
        name=draw(st.sampled_from(runs.OPTIMIZERS)), lr=draw(_numbers(0, 100)), betas=(draw(_numbers(0, 0.999)), draw(_numbers(0, 0.999))),
        eps=draw(_numbers(1e-30, 1)), weight_decay=draw(_numbers(0, 100)), clip=draw(_numbers(0, 1e9)), momentum=draw(_numbers(0, 0.999)),
    )  # fmt: skip
    return runs.RunSpec(
        name=draw(_bounded_text),
        seed=draw(st.integers(0, runs.MAX_SEED)),
        base=draw(st.just("") | digests),
        data=runs.DataRule(digest=draw(digests), sequence_tokens=sequence_tokens, packing=draw(st.booleans())),
        batch=runs.BatchRule(
            steps=num_steps,
            batch_tokens=num_micro_batches * sequences * sequence_tokens,
            micro_batch_sequences=sequences,
        ),
        optimizer=optimizer,
        schedule=runs.ScheduleSpec(
            shape=draw(st.sampled_from(runs.SHAPES)),
            warmup_steps=draw(st.integers(0, num_steps)),
            final_share=draw(share),
            decay_share=draw(share),
        ),
        averaging=runs.AveragingSpec(
            codec=draw(st.sampled_from(runs.AVERAGING_CODECS)),
            deadline_s=draw(_numbers(runs.MIN_DEADLINE_S, runs.MAX_DEADLINE_S)),
        ),
        activations=draw(st.sampled_from(runs.ACTIVATION_CODECS)),
        checkpoint_every=draw(st.integers(0, runs.MAX_STEPS)),
        serve_every=draw(st.integers(0, runs.MAX_STEPS)),
    )


all_roles = st.builds(roles.Role, st.just("stage"), models, all_units.filter(lambda unit: len(str(unit)) < 30)) | st.builds(
    roles.Role, st.sampled_from(["trainer", "keeper"]), models
)


@st.composite
def peer_records(draw: st.DrawFn) -> records.PeerRecord:
    oldest, peer = draw(st.integers(0, 5)), draw(peers)
    multiaddr = st.builds("/ip4/10.0.0.1/tcp/{}/p2p/{}".format, st.integers(1, 65_535), st.just(peer) | peers)
    return records.PeerRecord(
        peer=peer,
        name=draw(text(16)),
        software=draw(text(16)),
        protocol=(oldest, draw(st.integers(oldest, 9))),
        state=draw(st.sampled_from(STATES)),
        addresses=tuple(draw(st.lists(addresses, max_size=3))),
        certificate=draw(st.binary(max_size=250)),
        p2p_addresses=tuple(draw(st.lists(multiaddr, max_size=2))),
        reachable=draw(st.sampled_from([None, True, False])),
        hosted=tuple(draw(st.lists(all_hosted, max_size=2))),
        upload_bytes_s=draw(st.integers(0, 1 << 40)),
        round_trips=tuple(draw(st.lists(st.tuples(peers, _milliseconds), max_size=8))),
        also=tuple(draw(st.lists(text(16), max_size=2))),
        roles=tuple(draw(st.lists(all_roles, max_size=2))),
        paused=draw(st.booleans()),
    )


_parts = st.integers(0, MAX_BLOCKS - 1).map(Part.block) | st.sampled_from([EMBED, HEAD])
_part_lists = st.lists(_parts, max_size=4).map(tuple)
_ms = st.floats(0, 1e9)
_leased = st.lists(st.integers(0, MAX_MICRO_BATCHES - 1), max_size=5, unique=True).map(tuple)
_done = st.builds(
    leases.Done, index=st.integers(0, MAX_MICRO_BATCHES - 1), loss_sum=st.floats(-1e30, 1e30), num_targets=st.integers(0, 1 << 16),
    num_bytes=st.integers(0, 1 << 48),
)  # fmt: skip
_finished = st.builds(
    leases.Finished, version=st.integers(1, MAX_VERSION), loss_sum=st.floats(-1e30, 1e30), num_targets=st.integers(0, 1 << 28),
    seconds=_ms, closing_s=_ms, num_stages=st.integers(0, 1 << 16), num_bytes=st.integers(0, 1 << 60),
    num_redone=st.integers(0, 1 << 24), grad_norm=st.floats(0, 1e30),
)  # fmt: skip
_receipts = st.builds(
    Receipt, peer=peers, added=_part_lists, held=_part_lists, queue_ms=_ms, forward_ms=_ms, backward_ms=_ms, wait_ms=_ms,
    num_bytes=st.integers(0, 1 << 48),
)  # fmt: skip


@st.composite
def _applied(draw: st.DrawFn) -> averaging.Applied:
    chains = draw(st.dictionaries(elementary, _hashes, max_size=4))
    return averaging.Applied(
        version=draw(st.integers(1, MAX_VERSION)), chains=chains,
        squares={unit: draw(st.floats(0, averaging.MAX_SQUARES)) for unit in chains}, num_targets=draw(st.integers(0, 1 << 32)),
    )  # fmt: skip


@st.composite
def states(draw: st.DrawFn, shape: tuple[int, int] | None = None) -> tensors.WireTensor:
    """Hidden states or gradients [B, T, H]."""
    num_rows, num_tokens = shape or draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    flat = draw(payloads(num_rows * num_tokens).filter(lambda wire: len(wire.shape) == 2))
    return tensors.WireTensor(flat.dtype, (num_rows, num_tokens, flat.shape[1]), flat.codec, flat.data)


@st.composite
def passes(draw: st.DrawFn) -> training.Pass:
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    ids = tensors.WireTensor("int32", shape, "none", random.Random(draw(st.integers(0, 99))).randbytes(4 * math.prod(shape)))
    route, wanted, kind = draw(routes()), draw(all_weights), draw(st.sampled_from(["training", "client", "evaluation"]))
    is_training, is_client = kind == "training", kind == "client"
    want = draw(st.sampled_from(training.WANTS)) if is_client else "loss"
    hop, payload = draw(st.integers(0, len(route) - 1)), draw(st.just(ids) | states(shape))
    may_embed = is_client and not hop and payload.dtype != "int32"
    grant = replace(draw(grants()), weights=wanted, route=training.named(route)) if is_client and draw(st.booleans()) else None
    return training.Pass(
        run=wanted.model, version=wanted.version, index=draw(st.integers(0, 4_095)) if is_training else None,
        weights=wanted if is_client else None, grant=grant, route=route, hop=hop,
        skip=draw(_part_lists) if is_training else (), payload=payload, is_embeds=may_embed and draw(st.booleans()),
        labels=ids if want == "loss" else None, positions=draw(st.sampled_from([None, ids])),
        num_targets=draw(st.integers(0, math.prod(shape))), want=want, codec=draw(st.sampled_from(tensors.CODECS)),
        budget_ms=draw(st.integers(0, training.MAX_BUDGET_MS)),
    )  # fmt: skip


_kept = st.builds(
    kept.Kept,
    version=_versions,
    chains=st.dictionaries(st.integers(0, MAX_BLOCKS - 1).map(lambda n: Blocks(n, n + 1)) | st.just(Ends()), _hashes, max_size=4),
)


_held = st.builds(held.Held, version=_versions, whole=_hashes, chains=_kept.map(lambda one: one.chains), is_done=st.booleans())


@st.composite
def run_statuses(draw: st.DrawFn) -> run_status.RunStatus:
    num = draw(st.integers(1, 40))
    found = draw(st.sets(st.integers(0, MAX_BLOCKS - 1).map(lambda n: Blocks(n, n + 1)) | st.just(Ends()), max_size=5))
    units = []
    for unit in sorted(found):
        version = draw(st.just(0) | _versions)
        ledger = {part: draw(st.integers(0, 2**num - 1)) for part in parts_of(unit)}
        chain, agreed = draw(_hashes) if version else b"", draw(st.sampled_from([b"", bytes(range(16))]))
        units.append(run_status.UnitStatus(unit=unit, version=version, chain=chain, ledger=ledger, agreed=agreed))
    return run_status.RunStatus(
        num_micro_batches=num, units=tuple(units), queue=draw(st.integers(0, 9)), forward_ms=draw(_ms), backward_ms=draw(_ms),
        is_catching_up=draw(st.booleans()), is_paused=draw(st.booleans()),
        served=tuple(draw(st.lists(_versions, max_size=3))), kept=draw(st.none() | _kept),
        held=tuple(draw(st.lists(_held, max_size=held.MAX_HELD))), has_memory=draw(st.booleans()),
    )  # fmt: skip


_state_name = st.builds("{}/{}".format, st.sampled_from(["parameter", "momentum", "square"]), text(40, 1))
_tensor_form = st.builds(
    state.TensorForm,
    _state_name,
    st.sampled_from(["F32", "BF16", "I64", "BOOL"]),
    st.lists(st.integers(0, 1 << 12), max_size=3).map(tuple),
)
forms = st.lists(_tensor_form, max_size=6, unique_by=lambda tensor: tensor.name).map(state.Form.of)


@st.composite
def state_headers(draw: st.DrawFn) -> state.StateHeader:
    version, chain = draw(st.just((0, b"")) | st.tuples(_versions, _hashes))
    return state.StateHeader(unit=draw(all_units), version=version, chain=chain, form=draw(forms), digest=draw(_hashes))


spans = st.integers(0, 9_999).flatmap(lambda start: st.builds(Span, st.just(start), st.integers(start + 1, 10_000)))

_group_ids = st.binary(min_size=16, max_size=16).map(groups.GroupId)
_masks = st.sets(st.integers(0, MAX_MICRO_BATCHES - 1), max_size=6).map(masks.mask_of)
elementary = st.just(Ends()) | st.integers(0, MAX_BLOCKS - 1).map(lambda number: Blocks(number, number + 1))
_unit_lists = st.lists(elementary, min_size=1, max_size=5, unique=True).map(tuple)
_members = st.builds(groups.Member, peer=peers, addresses=address_lists, certificate=st.binary(max_size=600))
all_groups = st.builds(
    groups.Group,
    id=_group_ids,
    run=models,
    version=st.integers(0, MAX_VERSION - 1),
    units=_unit_lists,
    members=st.lists(_members, min_size=1, max_size=4, unique_by=lambda member: member.peer).map(tuple),
    num_micro_batches=st.integers(1, MAX_MICRO_BATCHES),
    codec=st.sampled_from(runs.AVERAGING_CODECS),
    deadline_s=st.floats(runs.MIN_DEADLINE_S, runs.MAX_DEADLINE_S),
)


@st.composite
def ledgers(draw: st.DrawFn, units: tuple[Unit, ...] | None = None) -> cards.Ledger:
    version = draw(st.integers(0, MAX_VERSION))
    sums = tuple(
        cards.UnitSum(
            num_values=draw(st.integers(0, cards.MAX_VALUES)),
            chain=draw(_hashes) if version else b"",
            held=tuple(draw(_masks) for _ in parts_of(unit)),
        )
        for unit in units or draw(_unit_lists)
    )
    ledger = cards.Ledger(version=version, units=sums)
    targets = {index: draw(st.integers(0, (1 << 32) - 1)) for index in masks.indices_of(ledger.any_held)}
    return cards.Ledger(version=version, units=sums, num_targets=targets)


@st.composite
def all_cards(draw: st.DrawFn) -> cards.Card:
    author = draw(identities())
    agreed = draw(st.none() | st.builds(cards.Agreement, group_id=_group_ids, digest=_hashes))
    return cards.Card(group=draw(_hashes), peer=author.peer_id, ledger=draw(ledgers()), agreed=agreed).signed(author.sign)


_card_lists = st.lists(all_cards(), max_size=3).map(tuple)
_peer_lists = st.lists(peers, max_size=3).map(tuple)

_amounts = st.integers(0, about.MAX_AMOUNT)
_ages = st.floats(0, about.MAX_SECONDS)
abouts = st.builds(
    about.About,
    machine=st.builds(
        about.Machine, device=text(80), name=text(80), system=text(80), cores=st.integers(0, about.MAX_CORES),
        memory_bytes=_amounts, device_bytes=_amounts,
    ),
    uptime_s=_ages, free_bytes=_amounts, num_sessions=_amounts, num_steps=_amounts, num_tokens=_amounts,
    trained=st.lists(
        st.builds(
            about.Trained, run=models, role=st.sampled_from(about.TRAINED_ROLES), num_micro_batches=_amounts, num_tokens=_amounts,
            num_versions=_amounts, seconds=_ages,
        ),
        max_size=3,
    ).map(tuple),
)  # fmt: skip

_losses = st.none() | st.floats(-training.MAX_LOSS, training.MAX_LOSS)
_row_numbers = st.integers(0, journal.MAX_NUMBER)
_run_versions = st.integers(0, MAX_VERSION)
_journal_ids = st.binary(min_size=8, max_size=8)
_noted = st.one_of(
    st.builds(
        journal.NotedVersion, version=_run_versions, loss=_losses, tokens=_amounts, tokens_per_s=st.floats(0, journal.MAX_SPEED),
        grad_norm=st.floats(0, training.MAX_LOSS), time_s=_ages, num_stages=st.integers(0, 1 << 16),
    ),
    st.builds(
        journal.NotedEvaluation, version=_run_versions, loss=_losses, bits_per_byte=st.none() | st.floats(0, journal.MAX_BITS),
        num_tokens=_amounts, time_s=_ages,
        samples=st.lists(st.tuples(text(journal.MAX_TEXT), text(journal.MAX_TEXT)), max_size=journal.MAX_SAMPLES).map(tuple),
    ),
    st.builds(journal.NotedEvent, event=text(journal.MAX_EVENT), version=_run_versions, time_s=_ages, text=text(journal.MAX_TEXT)),
)  # fmt: skip


@st.composite
def journal_parts(draw: st.DrawFn) -> journal.JournalPart:
    last, newest = sorted((draw(_row_numbers), draw(_row_numbers)))
    return journal.JournalPart(
        journal=draw(_journal_ids), last=last, newest=newest, notes=tuple(draw(st.lists(_noted, max_size=4))),
        coordinator=draw(st.none() | peers),
    )  # fmt: skip


STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "group": all_groups,
    "card": all_cards(),
    "prepare": st.builds(averaging.Prepare, id=_group_ids, cards=_card_lists),
    "prepared": st.builds(
        averaging.Prepared, digest=st.just(b"") | _hashes, lost=st.none() | peers, text=text(averaging.MAX_REASON)
    ),
    "of_group": st.builds(groups.OfGroup, id=_group_ids),
    "values": st.binary(max_size=600).map(averaging.Values),
    "decide": st.builds(averaging.Decide, id=_group_ids, is_agreed=st.booleans(), cards=_card_lists),
    "decision": st.builds(averaging.Decision, said=st.sampled_from(averaging.SAID), vote=st.just(b"") | _hashes),
    "closed": st.builds(
        averaging.Closed,
        outcome=st.sampled_from(averaging.OUTCOMES),
        group_id=_group_ids,
        version=st.integers(0, MAX_VERSION),
        digest=st.just(b"") | _hashes,
        chains=st.lists(_hashes, max_size=4).map(tuple),
        missing=st.lists(_masks, max_size=4).map(tuple),
        lost=_peer_lists,
        behind=_peer_lists,
        text=text(averaging.MAX_REASON),
    ),
    "apply": st.builds(averaging.Apply, run=models, version=st.integers(0, MAX_VERSION - 1), id=_group_ids),
    "applied": _applied(),
    "about?": st.builds(about.AboutRequest),
    "about": abouts,
    "journal?": st.builds(
        journal.JournalRequest, run=models, journal=st.just(b"") | _journal_ids, after=st.integers(0, journal.MAX_NUMBER)
    ),
    "journal": journal_parts(),
    "hello": hellos,
    "dial_back": st.builds(hello.DialBack, addresses=address_lists, certificate=st.binary(max_size=600)),
    "dialled_back": st.builds(hello.DialBackReply, reachable=address_lists, reason=text(300)),
    "manifest": manifests,
    "manifest?": st.builds(weights.ManifestRequest, model=models),
    "directory?": st.builds(directory.DirectoryRequest, swarm=text(64), model=text(200)),
    "directory": st.lists(
        st.tuples(peers, st.builds(entries.SignedEntry, st.binary(max_size=200), st.floats(0, 1e12))), max_size=4
    ).map(lambda found: directory.DirectoryReply(tuple(found))),
    "record": peer_records(),
    "open, reroute, attach": with_grant(),
    "step": step_messages(),
    "history": histories(),
    "close": st.builds(inference.Close, session=sessions, below=st.booleans(), keep_s=st.integers(0, 3_600)),
    "expect": st.builds(inference.Expect, session=sessions, epoch=epochs, step=steps),
    "lost": st.builds(
        inference.HopLost,
        session=sessions,
        epoch=epochs,
        index=st.integers(0, 127),
        code=text(64),
        message=st.text(st.characters(exclude_categories=["Cs"]), max_size=2_000),
    ),
    "reply": replies(),
    "state?": st.builds(
        state.StateRequest,
        run=models,
        units=st.lists(all_units, min_size=1, max_size=5, unique=True).map(tuple),
        version=st.none() | st.integers(0, MAX_VERSION),
    ),
    "state": state_headers(),
    "state_part": st.builds(
        state.StatePart, offset=st.integers(0, state.MAX_STATE_BYTES), data=st.binary(min_size=1, max_size=200)
    ),
    "progress?": st.builds(progress.ProgressRequest, session=sessions, unit=spans.map(Blocks.of)),
    "progress": st.builds(
        progress.Progress,
        epoch=st.just(-1) | epochs,
        received=steps,
        computed=steps,
        sent=steps,
        is_busy=st.booleans(),
        has_given_up=st.booleans(),
        lost=st.integers(-1, 127),
    ),
    "pass": passes(),
    "output": st.builds(training.Output, hidden=states()),
    "gradient": st.builds(training.Gradient, gradient=states()),
    "result": st.builds(
        training.Result,
        gradient=st.none() | states(),
        loss_sum=st.floats(-1e30, 1e30),
        receipts=st.lists(_receipts, max_size=3).map(tuple),
    ),
    "pass_failed": st.builds(
        training.PassFailed,
        hop=st.integers(0, 127),
        code=text(64),
        message=st.text(st.characters(exclude_categories=["Cs"]), max_size=2_000),
    ),
    "run_status?": st.builds(run_status.StatusRequest, run=models),
    "run_status": run_statuses(),
    "publish": st.builds(
        run_status.Publish,
        run=models,
        version=_versions,
        chains=st.dictionaries(
            st.integers(0, MAX_BLOCKS - 1).map(lambda n: Blocks(n, n + 1)) | st.just(Ends()), _hashes, max_size=4
        ),
    ),
    "published": st.builds(run_status.Published, version=st.integers(0, MAX_VERSION)),
    "restore": st.builds(kept.Restore, run=models, kept=_kept),
    "hold": st.builds(held.Hold, run=models, kept=_kept),
    "holding": st.builds(held.Holding, version=_versions),
    "restored": st.builds(kept.Restored, version=_versions),
    "order": st.builds(orders.Order, action=st.sampled_from(("ask", "drain", "pause", "resume", "kill")))
    | st.builds(orders.Order, action=st.just("ban"), peer=peers, seconds=st.integers(1, orders.MAX_BAN_S))
    | st.builds(orders.Order, action=st.just("unban"), peer=peers),
    "ordered": st.builds(
        orders.OrderReply,
        done=st.text(_LETTERS, max_size=orders.MAX_DONE),
        may=st.lists(st.sampled_from(orders.ACTIONS), max_size=len(orders.ACTIONS)).map(tuple),
        state=st.sampled_from(orders.STATES),
        bans=st.lists(st.builds(orders.Ban, peer=peers, seconds=st.integers(0, orders.MAX_BAN_S)), max_size=3).map(tuple),
    ),
    "lease?": st.builds(
        leases.LeaseRequest,
        run=models,
        version=st.integers(0, MAX_VERSION),
        done=st.lists(_done, max_size=3).map(tuple),
        running=_leased,
        wanted=st.integers(0, leases.MAX_LEASED),
        shown=st.integers(0, MAX_VERSION),
    ),
    "lease": st.builds(
        leases.LeaseAnswer,
        coordinator=st.none() | peers,
        version=st.integers(0, MAX_VERSION),
        indices=_leased,
        deadline_s=_ms,
        is_again=st.booleans(),
        finished=st.lists(_finished, max_size=3).map(tuple),
    ),
}
