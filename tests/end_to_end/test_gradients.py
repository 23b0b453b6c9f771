"""Gradients through remote blocks equal those of one machine, deaths included."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from node.training.pass_limits import PassLimits
from protocols import compression
from protocols.errors import BadRequestError, InternalError, NoRouteError, PassTooLargeError
from protocols.ids import Span
from protocols.training import Pass
from protocols.weights_id import Weights
from swarm.access import Access
from swarm.client.remote_pass import MAX_OPEN
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_span
from swarm.training.chain import PassCall, PassError
from tests.end_to_end.wire import WireSwarm
from tests.families import make_checkpoint
from tests.swarm.inference.toy import ToyNode, new_identity, until

FAMILIES = ("llama", "qwen3_moe", "gemma3_text")
SPANS = [(0, 2), (2, 5)]
IDS = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(1))
GREEDY: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: make_checkpoint(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="module")
def swarm(checkpoint: Callable[[str], Path]) -> Iterator[Callable[[str], WireSwarm]]:
    """Two nodes, and nothing blamed: tests with deaths make their own."""
    made: dict[str, WireSwarm] = {}

    def get(family: str) -> WireSwarm:
        if family not in made:
            made[family] = WireSwarm(checkpoint(family), SPANS)
        return made[family]

    yield get
    for wire in made.values():
        wire.close()


@pytest.fixture(scope="module")
def replicas(checkpoint: Callable[[str], Path]) -> Iterator[WireSwarm]:
    """Two nodes of each span."""
    wire = WireSwarm(checkpoint("llama"), [*SPANS, *SPANS])
    yield wire
    wire.close()


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    """transformers' own model on this machine, with gradients by name after `measured`."""
    return cache(lambda family: AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32).eval())


def measured(model: Any, **arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradients of `inputs_embeds` and of what a client has: embedding, final norm, head."""
    embeds = arguments.get("inputs_embeds")
    if embeds is not None:
        embeds = arguments["inputs_embeds"] = embeds.clone().requires_grad_()
    model.requires_grad_()
    try:
        loss = model(**arguments).loss
        loss.backward()
        found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None and ".layers." not in name}
        return loss.detach(), found | ({} if embeds is None else {"inputs_embeds": embeds.grad})
    finally:
        model.zero_grad()
        model.requires_grad_(False)


def assert_equal(got: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert abs(got[0] - expected[0]) <= 1e-5 * abs(expected[0])
    assert got[1].keys() == expected[1].keys() and len(got[1]) >= 2
    for name, gradient in got[1].items():
        error = (gradient - expected[1][name]).abs().max() / expected[1][name].abs().max()
        assert error <= 1e-5, f"{name}: {error}"


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_one_machine(
    family: str, swarm: Callable[[str], WireSwarm], reference: Callable[[str], Any]
) -> None:
    wire, theirs = swarm(family), reference(family)
    sessions = [node.host.num_sessions for node in wire.nodes]
    assert_equal(measured(wire.model, input_ids=IDS, labels=IDS), measured(theirs, input_ids=IDS, labels=IDS))
    embeds = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(2))
    assert_equal(measured(wire.model, inputs_embeds=embeds, labels=IDS), measured(theirs, inputs_embeds=embeds, labels=IDS))
    assert [node.host.num_sessions for node in wire.nodes] == sessions and wire.model.num_parameters(only_trainable=True) == 0
    all_freed(wire)


@pytest.mark.parametrize(
    ("family", "side"), [("llama", "right"), ("qwen3_moe", "right"), ("gemma3_text", "left"), ("llama", "left")]
)
def test_sequences_of_unequal_length_are_exact(
    family: str, side: str, swarm: Callable[[str], WireSwarm], reference: Callable[[str], Any]
) -> None:
    """Each sequence alone is the reference: transformers' own padding is exact to fewer digits."""
    wire, theirs, lengths = swarm(family), reference(family), (4, 9)
    mask = torch.stack([torch.arange(9) < length for length in lengths]).long()
    mask = mask.flip(1) if side == "left" else mask
    ids = IDS.where(mask.bool(), 0)
    labels = ids.where(mask.bool(), -100)
    labels[:, 0] = -100  # after padding on the left, the first real token would be predicted from padding
    if side == "left":
        labels[0, 9 - lengths[0]] = -100
    expected: dict[str, Tensor] = {}
    num = total = 0
    for row in range(2):
        alone = ids[row][mask[row].bool()][None]
        loss, found = measured(theirs, input_ids=alone, labels=alone)
        share = alone.shape[1] - 1
        num, total = num + share, total + loss * share
        expected = {name: expected.get(name, 0) + gradient * share for name, gradient in found.items()}
    got = measured(wire.model, input_ids=ids, attention_mask=mask, labels=labels)
    assert_equal(got, (total / num, {name: gradient / num for name, gradient in expected.items()}))


def all_freed(wire: WireSwarm) -> None:
    """Wait until no node has a pass in hand."""
    gc.collect()
    wire.run(until(lambda: not any(node.passes.num_passes for node in wire.nodes)))


def here(path: Path, start: int, stop: int, hidden: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Output and input gradient of these layers on this machine."""
    given = hidden.clone().requires_grad_()
    output = load_span(open_checkpoint(path), Span(start, stop), dtype=torch.float32)(given)
    return output.detach(), torch.autograd.grad(output, given, weights)[0]


def close(got: Tensor, expected: Tensor) -> bool:
    return bool((got - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (1, 4), (2, 3)])
def test_any_blocks_are_differentiable(
    start: int, stop: int, swarm: Callable[[str], WireSwarm], checkpoint: Callable[[str], Path]
) -> None:
    hidden, weights = torch.randn(2, 3, 7, 64, generator=torch.Generator().manual_seed(3))
    expected = here(checkpoint("llama"), start, stop, hidden, weights)
    given = hidden.clone().requires_grad_()
    output = swarm("llama").model.blocks[start:stop](given)
    assert close(output.detach(), expected[0])
    for _ in range(2):  # the second time the call is gone, and the forward runs again
        (gradient,) = torch.autograd.grad(output, given, weights, retain_graph=True)
        assert close(gradient, expected[1])
    with pytest.raises(BadRequestError, match="without create_graph"):
        torch.autograd.grad(output, given, weights, create_graph=True)


def test_a_batch_in_pieces_and_more_forwards_than_calls_may_be_open(
    swarm: Callable[[str], WireSwarm], checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradient accumulation: all forwards first, then all backwards, from several threads, in pieces of one sequence."""
    wire, num = swarm("llama"), MAX_OPEN + 2
    monkeypatch.setattr(wire.backend._ways.pieces, "tokens", 3)
    hidden, weights = torch.randn(2, num, 2, 5, 64, generator=torch.Generator().manual_seed(4))
    given = [one.clone().requires_grad_() for one in hidden]
    with ThreadPoolExecutor(3) as threads:
        outputs = list(threads.map(wire.model.blocks, given))
        gradients = list(threads.map(lambda one: torch.autograd.grad(*one)[0], zip(outputs, given, weights, strict=True)))
    for one in range(num):
        assert close(gradients[one], here(checkpoint("llama"), 0, 5, hidden[one], weights[one])[1])
    del outputs
    all_freed(wire)


def test_a_batch_beyond_the_memory_of_a_node_goes_in_smaller_pieces(
    swarm: Callable[[str], WireSwarm], checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second hop has memory for the graphs of two sequences; later batches begin with pieces of that size."""
    wire = swarm("llama")
    hidden, weights = torch.randn(2, 7, 5, 64, generator=torch.Generator().manual_seed(6))
    expected = here(checkpoint("llama"), 0, 5, hidden, weights)[1]
    monkeypatch.setattr(wire.backend._ways.pieces, "tokens", wire.backend._ways.pieces.tokens)  # it is put back
    wire.model.blocks(hidden.clone().requires_grad_())  # makes the stages
    (stage,) = wire.nodes[1].passes._frozen.__self__._stages.values()
    monkeypatch.setattr(stage, "_limit_bytes", stage._cost.bytes(2, 5))
    forward, asked = stage.forward, list[int]()

    def counted(span: Span, values: Tensor, *others: Any, **more: Any) -> Any:
        asked.append(len(values))
        return forward(span, values, *others, **more)

    monkeypatch.setattr(stage, "forward", counted)
    for pieces in ([7, 4, 3, 2, 2, 2, 1], [2, 2, 2, 1]):
        given = hidden.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(wire.model.blocks(given), given, weights)
        assert close(gradient, expected) and sorted(asked, reverse=True) == pieces
        asked.clear()
    with pytest.raises(PassTooLargeError, match="a pass of 1 x 100 tokens"):
        wire.model.blocks(torch.zeros(2, 100, 64, requires_grad=True))
    all_freed(wire)


def test_what_is_let_go_without_a_backward_is_freed_at_the_nodes(swarm: Callable[[str], WireSwarm]) -> None:
    wire = swarm("llama")
    output = wire.model.blocks(torch.zeros(1, 3, 64, requires_grad=True))
    wire.run(until(lambda: all(node.passes.num_passes == 1 for node in wire.nodes)))
    del output
    all_freed(wire)


def test_a_pass_whose_time_is_over_runs_again_and_no_node_is_blamed(
    swarm: Callable[[str], WireSwarm], checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = swarm("llama")
    hidden, weights = torch.randn(2, 1, 4, 64, generator=torch.Generator().manual_seed(7))
    given = hidden.clone().requires_grad_()
    with monkeypatch.context() as patch:
        for node in wire.nodes:
            patch.setattr(node.passes._counts, "limits", PassLimits(client_s=2.0))
        output = wire.model.blocks(given)
        all_freed(wire)
    (gradient,) = torch.autograd.grad(output, given, weights)
    assert close(gradient, here(checkpoint("llama"), 0, 5, hidden, weights)[1])
    assert not any(wire.toys.router.experience.is_avoided(node.identity.peer_id) for node in wire.nodes)


@pytest.mark.parametrize(
    ("moment", "victim"), [("before the forward", 1), ("between", 0), ("between", 1), ("in the backward", 1)]
)
def test_a_death_changes_no_gradient(moment: str, victim: int, replicas: WireSwarm, reference: Callable[[str], Any]) -> None:
    """Each span has two nodes; the one on the route dies, and the other one takes over."""
    wire = replicas
    expected = measured(reference("llama"), input_ids=IDS, labels=IDS)
    if moment == "before the forward":
        measured(wire.model, input_ids=IDS, labels=IDS)  # it has a route, and is sure of it
        dead = kill_on_route(wire, victim)
        got = measured(wire.model, input_ids=IDS, labels=IDS)
    else:
        wire.model.requires_grad_()
        loss = wire.model(IDS, labels=IDS).loss
        dead = kill_in_backward(wire, victim) if moment == "in the backward" else kill_on_route(wire, victim)
        loss.backward()
        got = loss.detach(), {name: one.grad for name, one in wire.model.named_parameters()}
    assert_equal(got, expected)
    assert dead.server is None, "no node died, so this test has shown nothing"
    wire.model.zero_grad()
    wire.run(dead.host.stop())
    wire.run(dead.pool.close())
    wire.nodes.remove(dead)
    wire.add(*SPANS[victim])


def on_route(wire: WireSwarm, hop: int) -> ToyNode:
    """The node with a pass in hand, or else one that has served, as hop number `hop`."""
    proven = wire.toys.router.experience.is_proven
    served = [node for node in wire.nodes if node.span.start == SPANS[hop][0] and proven(node.identity.peer_id)]
    return max(served, key=lambda node: node.passes.num_passes)


def kill_on_route(wire: WireSwarm, hop: int) -> ToyNode:
    node = on_route(wire, hop)
    wire.run(node.kill())
    return node


def kill_in_backward(wire: WireSwarm, hop: int) -> ToyNode:
    """The node dies as its device begins the backward."""
    node = on_route(wire, hop)
    (stage,) = node.passes._frozen.__self__._stages.values()

    def die(*arguments: Any, **options: Any) -> Any:
        server, node.server = node.server, None
        wire._loop.submit(server.stop(0)).result(60)
        raise InternalError("nothing hears this")

    stage.backward = die
    return node


def test_no_node_left_is_said_and_a_newcomer_is_found(checkpoint: Callable[[str], Path], reference: Callable[[str], Any]) -> None:
    wire = WireSwarm(checkpoint("llama"), SPANS)
    try:
        wire.backend._ways = wire.ways(route_timeout_s=3.0)
        wire.model.requires_grad_()
        loss = wire.model(IDS, labels=IDS).loss
        wire.kill(1)
        with pytest.raises(NoRouteError, match="blocks 2:5"):
            loss.backward(retain_graph=True)
        wire.model.zero_grad()
        wire.add(2, 5)
        loss.backward()
        got = {name: one.grad for name, one in wire.model.named_parameters()}
        assert_equal((loss.detach(), got), measured(reference("llama"), input_ids=IDS, labels=IDS))
    finally:
        wire.close()


def test_sessions_beside_passes_keep_their_tokens(swarm: Callable[[str], WireSwarm], reference: Callable[[str], Any]) -> None:
    wire, theirs = swarm("llama"), reference("llama")
    expected = theirs.generate(IDS, **GREEDY).tolist()
    hidden = torch.zeros(2, 40, 64, requires_grad=True)

    def pass_on(_: int) -> None:
        wire.model.blocks(hidden + 1).sum().backward()

    with ThreadPoolExecutor(3) as threads:
        passes = [threads.submit(pass_on, number) for number in range(8)]
        answers = [threads.submit(wire.model.generate, IDS, **GREEDY) for _ in range(3)]
        assert [answer.result().tolist() for answer in answers] == [expected] * 3
        assert all(one.result() is None for one in passes)


def test_a_soft_prompt_learns_and_the_blocks_do_not_change(swarm: Callable[[str], WireSwarm]) -> None:
    wire, losses = swarm("llama"), []
    before = wire.model.generate(IDS, **GREEDY).tolist()
    prompt = torch.nn.Parameter(wire.model.get_input_embeddings()(IDS[0, :4]))
    optimizer = torch.optim.Adam([prompt], lr=0.02)
    labels = torch.cat([torch.full((2, 4), -100), IDS], 1)
    for _ in range(6):
        embeds = torch.cat([prompt.expand(2, -1, -1), wire.model.get_input_embeddings()(IDS)], 1)
        loss = wire.model(inputs_embeds=embeds, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(one.grad is None for one in wire.model.parameters())
    assert wire.model.generate(IDS, **GREEDY).tolist() == before


def test_what_cannot_be_differentiated_says_why(swarm: Callable[[str], WireSwarm]) -> None:
    model = swarm("llama").model
    embeds = torch.zeros(2, 6, 64, requires_grad=True)
    cache = model(IDS).past_key_values
    for arguments, words in (
        (dict(past_key_values=cache), "no gradient passes keys and values"),
        (dict(use_cache=True), "with use_cache=False"),
        (dict(position_ids=torch.arange(6)[None] * 2), "leave position_ids out"),
    ):
        with pytest.raises(BadRequestError, match=words):
            model(inputs_embeds=embeds, **arguments)
    with pytest.raises(BadRequestError, match="look at the loss"):
        model.blocks(embeds).backward(torch.full((2, 6, 64), float("nan")))
    with pytest.raises(BadRequestError, match="at most 256 tokens, got 300"):
        swarm("llama").backend.differentiate(torch.zeros(1, 300, 64))
    with model.blocks.session() as session, pytest.raises(BadRequestError, match="no gradient passes keys and values"):
        session.step(embeds)
    assert model(inputs_embeds=embeds).past_key_values is None
    with torch.no_grad():
        assert model(inputs_embeds=embeds, past_key_values=None).past_key_values is not None


# --- hostile clients


def client_pass(wire: WireSwarm, hidden: Tensor, **changes: Any) -> Pass:
    route = wire.run(wire.toys.router.find(1.0, "float32"))[0]
    weights = Weights(wire.toys.model)
    fields = dict(
        run=weights.model, version=0, index=None, weights=weights, route=route, payload=compression.pack(hidden), want="hidden"
    )
    return Pass(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_client_is_checked_by_the_lists_of_each_hop(
    swarm: Callable[[str], WireSwarm], checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second hop has lists: it computes for clients whose signature they allow, whichever hop passes it on."""
    wire, hidden = swarm("llama"), torch.ones(1, 2, 64)
    first, own = wire.nodes[0].identity.peer_id, wire.toys.identity.peer_id
    unsigned = client_pass(wire, hidden)
    signed = replace(unsigned, grant=wire.backend._ways.grant(unsigned.weights, unsigned.route))
    forged = replace(signed, grant=replace(signed.grant, expires_s=signed.grant.expires_s + 1))
    other = replace(wire.backend._ways, identity=new_identity()).grant(unsigned.weights, unsigned.route)
    gate = wire.nodes[1].host.hops._gate
    for access, sent, code in (
        (Access(), unsigned, "none"),
        (Access(), forged, "unauthenticated"),
        (Access(allow=frozenset({first})), unsigned, "not_allowed"),
        (Access(allow=frozenset({first})), signed, "not_allowed"),
        (Access(deny=frozenset({own})), signed, "not_allowed"),
        (Access(deny=frozenset({own})), replace(signed, grant=other), "not_allowed"),
        (Access(allow=frozenset({first, own})), forged, "unauthenticated"),
        (Access(allow=frozenset({first, own})), signed, "none"),
    ):
        monkeypatch.setattr(gate, "access", access)
        assert refusal(wire, sent) == code, access
    given = hidden.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(wire.model.blocks(given).sum(), given)
    assert close(gradient, here(checkpoint("llama"), 0, 5, hidden, hidden)[1])
    all_freed(wire)


def refusal(wire: WireSwarm, sent: Pass) -> str:
    async def ask() -> str:
        try:
            async with PassCall(wire.toys.pool, sent) as call:
                await call.output()
        except PassError as error:
            return error.cause.code
        return "none"

    return wire.run(ask())


def test_a_client_with_too_many_open_passes_is_refused_and_another_s_are_served(swarm: Callable[[str], WireSwarm]) -> None:
    wire = swarm("llama")
    sent = client_pass(wire, torch.zeros(1, 2, 64))

    async def open_all() -> list[PassCall]:
        calls = []
        for _ in range(8):
            call = PassCall(wire.toys.pool, sent)
            await call.__aenter__()
            await call.output()
            calls.append(call)
        return calls

    all_freed(wire)
    calls = wire.run(open_all())
    assert refusal(wire, sent) == "overloaded"
    for call in calls:
        wire._loop.call_soon(call.cancel)
    all_freed(wire)
    assert refusal(wire, sent) == "none"


def test_wrong_passes_are_refused_before_anything_is_computed(swarm: Callable[[str], WireSwarm]) -> None:
    wire = swarm("llama")
    all_freed(wire)
    right = torch.zeros(1, 2, 64)
    other = Weights(wire.toys.model.__class__(wire.toys.model.name, "e" * 64))
    for code, hidden, changes in (
        ("bad_request", torch.zeros(1, 2, 63), {}),
        ("bad_request", torch.zeros(1, 257, 64), {}),
        ("bad_request", right.bfloat16(), {}),
        ("bad_tensor", right / 0, {}),
        ("span_not_served", torch.ones(1, 2, dtype=torch.int32), {}),
        ("model_mismatch", right, dict(weights=other, run=other.model)),
        ("none", right, {}),
    ):
        assert refusal(wire, client_pass(wire, hidden, **changes)) == code
