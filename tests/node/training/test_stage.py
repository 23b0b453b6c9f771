"""A stage's gradients are those of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import transformers as T
from torch import Tensor

from node.engines.engine import choose_engine
from node.training.stage import Stage
from protocols.errors import BadRequestError, InternalError, SpanNotServedError
from protocols.ids import Span
from protocols.parts_of_units import EMBED, HEAD, Part
from protocols.units import Blocks, Ends
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_parts
from tests.families import Checkpoints, write_checkpoint
from tests.node.training.staged import (
    IDS,
    LABELS,
    Measured,
    all_configurations,
    equal,
    fault,
    one_stage,
    staged_gradients,
    stages,
    whole,
)

CUT = 2


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def llama(checkpoints: Checkpoints) -> Path:
    return checkpoints("llama")


# --- the same numbers as on one machine


@pytest.mark.parametrize("family", ["gemma3_text", "llama", "mamba", "qwen2", "qwen3_moe"])
def test_two_stages_give_the_gradients_of_the_whole_model(checkpoints: Checkpoints, family: str) -> None:
    """qwen2 is tied: both ends give a part of one parameter's gradient."""
    folder = checkpoints(family)
    first, second = stages(folder, CUT)
    expected = whole(folder, CUT)
    assert len(expected.gradients) > 20
    assert fault(expected, staged_gradients(first, second)) == ""


def test_one_matrix_that_is_a_thousandth_off_shows(llama: Path) -> None:
    """The check itself is checked."""
    first, second = stages(llama, CUT)
    name = "3.mlp.up_proj.weight"
    second.write(Blocks(3, 4), {name: second.parameters(Blocks(3, 4))[name] * 1.001})
    assert "off by" in fault(whole(llama, CUT), staged_gradients(first, second))


def test_a_dropped_gradient_shows(llama: Path) -> None:
    measured = staged_gradients(*stages(llama, CUT))
    kept = {name: one for name, one in measured.gradients.items() if name != "model.norm.weight"}
    assert "model.norm.weight" in fault(whole(llama, CUT), Measured(loss=measured.loss, gradients=kept))


def test_any_cut_of_a_stage_gives_the_same_as_two_stages(llama: Path) -> None:
    """A route may ask for fewer blocks than a stage has; here all three of its hops are one stage."""
    stage, (first, second) = one_stage(llama), stages(llama, CUT)
    expected = staged_gradients(first, second)
    flights, values = [], IDS
    for span in (Span(0, 1), Span(1, 4), Span(4, 5)):
        flights.append(stage.forward(span, values, None, LABELS if span.stop == 5 else None))
        values = flights[-1].output
    gradient, found = None, {}
    for flight in reversed(flights):
        gradients = stage.backward(flight, gradient)
        gradient = gradients.input
        found |= {f"{part}/{name}": one for part, names in gradients.by_part.items() for name, one in names.items()}
    assert flights[-1].loss_sum == pytest.approx(expected.loss, rel=1e-6) and flights[-1].num_targets == 22
    for key, one in found.items():
        torch.testing.assert_close(one, expected.gradients[key.rpartition("/")[2]], rtol=1e-4, atol=1e-4)
    assert len(found) == sum(len(stage.parameters(unit)) for unit in stage.units)


def test_a_clients_embeddings_get_their_gradient(checkpoints: Checkpoints) -> None:
    folder = checkpoints("opt_projected")  # the width of its embeddings is not the hidden size
    stage = one_stage(folder, use="frozen")
    model = T.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    embeds = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model(inputs_embeds=embeds).logits.sum().backward()
    flight = stage.forward(Span(0, 5), embeds.detach(), is_embeds=True)
    hidden = flight.output.clone().requires_grad_()
    stage._ends.logits(hidden).sum().backward()
    got = stage.backward(flight, hidden.grad)
    torch.testing.assert_close(got.input, embeds.grad, rtol=1e-4, atol=1e-5)
    assert not any(got.by_part.values())


# --- nothing is left half done


def test_gradients_are_added_nowhere_and_a_flight_is_used_once(llama: Path) -> None:
    stage = one_stage(llama)
    flight = stage.forward(Span(0, 5), IDS, None, LABELS)
    one = stage.backward(flight)
    with pytest.raises(InternalError, match="second"):
        stage.backward(flight)
    assert equal(one, stage.backward(stage.forward(Span(0, 5), IDS, None, LABELS)))
    assert all(tensor.grad is None for unit in stage.units for tensor in stage.parameters(unit).values())


def test_a_backward_that_fails_frees_its_flight_and_changes_nothing(llama: Path) -> None:
    stage = one_stage(llama, recompute="never")
    flight = stage.forward(Span(0, 3), IDS)
    assert stage.held_bytes > 0
    with pytest.raises(BadRequestError, match=r"floats \[2, 12, 64\]"):
        stage.backward(flight, torch.zeros(2, 11, 64))
    assert stage.held_bytes == 0
    with pytest.raises(BadRequestError, match="from the hop below"):
        stage.backward(stage.forward(Span(0, 3), IDS))


@pytest.mark.parametrize("recompute", ["always", "never"])
def test_parameters_that_changed_since_the_forward_are_noticed(llama: Path, recompute: str) -> None:
    stage = one_stage(llama, recompute=recompute)
    flight = stage.forward(Span(0, 3), IDS)
    with torch.no_grad():
        stage.parameters(Blocks(1, 2))["1.mlp.up_proj.weight"].add_(1e-3)
    with pytest.raises(InternalError, match="changed between forward and backward"):
        stage.backward(flight, flight.output)


@pytest.mark.parametrize("recompute", ["always", "never"])
@pytest.mark.parametrize("span", [Span(0, 2), Span(0, 5)])
def test_ids_at_a_stage_that_is_asked_for_no_part_give_nothing(
    llama: Path, span: Span, recompute: Literal["always", "never"]
) -> None:
    """It holds the micro-batch already; stages below it computed it again, after a death."""
    stage = one_stage(llama, recompute=recompute)
    labels, gradient = (LABELS, None) if span.stop == 5 else (None, torch.ones(*IDS.shape, 64))
    found = stage.backward(stage.forward(span, IDS, None, labels), gradient, parts=[])
    assert found.input is None and not found.by_part


def test_only_the_parts_that_are_asked_for_are_computed(llama: Path) -> None:
    stage = one_stage(llama)
    every = stage.backward(stage.forward(Span(0, 5), IDS, None, LABELS))
    assert [*every.by_part] == [EMBED, *map(Part.block, range(5)), HEAD]
    some = stage.backward(stage.forward(Span(0, 5), IDS, None, LABELS), parts=[Part.block(1), HEAD])
    assert [*some.by_part] == [Part.block(1), HEAD] and some.input is None
    assert all(torch.equal(one, every.by_part[HEAD][name]) for name, one in some.by_part[HEAD].items())


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda stage: stage.forward(Span(0, 2), torch.full((1, 3), 256)), BadRequestError),
        (lambda stage: stage.forward(Span(0, 2), torch.full((1, 3), -1)), BadRequestError),
        (lambda stage: stage.forward(Span(0, 2), torch.zeros(3, dtype=torch.long)), BadRequestError),
        (lambda stage: stage.forward(Span(0, 2), torch.zeros(1, 0, dtype=torch.long)), BadRequestError),
        (lambda stage: stage.forward(Span(0, 2), IDS, torch.full((2, 12), 3)), BadRequestError),
        (lambda stage: stage.forward(Span(0, 2), IDS, torch.zeros(2, 12)), BadRequestError),
        (lambda stage: stage.forward(Span(0, 2), IDS[:, :2], torch.tensor([[0, 1], [1, 2]])), BadRequestError),
        (lambda stage: stage.forward(Span(0, 2), torch.zeros(1, 3, 63)), BadRequestError),
        (lambda stage: stage.forward(Span(0, 5), IDS, None, LABELS + 200), BadRequestError),
        (lambda stage: stage.forward(Span(0, 5), IDS, None, LABELS[:, :3]), BadRequestError),
        (lambda stage: stage.forward(Span(0, 4), IDS, None, LABELS), SpanNotServedError),
        (lambda stage: stage.forward(Span(1, 2), IDS), SpanNotServedError),
        (lambda stage: stage.forward(Span(3, 6), torch.zeros(1, 3, 64)), SpanNotServedError),
        (lambda stage: stage.parameters(Blocks(5, 6)), SpanNotServedError),
        (lambda stage: stage.write(Blocks(1, 2), {"1.mlp.up_proj.weight": torch.zeros(3)}), BadRequestError),
    ],
)
def test_what_does_not_fit_is_refused(llama: Path, call: Callable[[Stage], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        call(one_stage(llama))


# --- bfloat16


def test_matrices_in_bfloat16_give_nearly_the_same_float32_gradients(llama: Path) -> None:
    exact, rounded = one_stage(llama), one_stage(llama, compute="bfloat16")
    one, other = (stage.forward(Span(0, 5), IDS, None, LABELS) for stage in (exact, rounded))
    assert one.loss_sum != other.loss_sum == pytest.approx(one.loss_sum, rel=1e-2)
    expected, got = exact.backward(one), rounded.backward(other)
    assert expected.by_part.keys() == got.by_part.keys()
    for part, tensors in expected.by_part.items():
        for name, tensor in tensors.items():
            own = got.by_part[part][name]
            assert own.dtype == torch.float32 and not torch.equal(own, tensor), name
            assert float((own - tensor).norm()) <= 0.15 * float(tensor.norm()), name


def test_hidden_states_and_their_gradients_stay_float32_in_bfloat16_and_are_computed_again_alike(llama: Path) -> None:
    hidden = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for recompute in ("never", "always"):
        stage = one_stage(llama, compute="bfloat16", recompute=recompute)
        flight = stage.forward(Span(1, 3), hidden)
        assert flight.output is not None and flight.output.dtype == torch.float32
        assert (flight.graph is None) is (recompute == "always")
        found.append(stage.backward(flight, torch.ones_like(hidden)))
    assert equal(*found) and found[0].input is not None and found[0].input.dtype == torch.float32


# --- memory


def test_a_forward_that_is_computed_again_gives_the_same_bits(llama: Path) -> None:
    kept, again = one_stage(llama, recompute="never"), one_stage(llama, recompute="always")
    one, other = (stage.forward(Span(0, 5), IDS, None, LABELS) for stage in (kept, again))
    assert kept.held_bytes > 0 == again.held_bytes and one.graph is not None and other.graph is None
    assert one.loss_sum == other.loss_sum and equal(kept.backward(one), again.backward(other))


def test_auto_keeps_graphs_while_they_fit_and_frees_what_is_dropped(llama: Path) -> None:
    stage = one_stage(llama)
    cost = stage.forward(Span(0, 3), IDS).graph_bytes
    assert stage.held_bytes == 0, "a flight that is gone is not counted"
    stage = one_stage(llama, graph_bytes=int(2.5 * cost))
    flights = [stage.forward(Span(0, 3), IDS) for _ in range(3)]
    assert [flight.graph is None for flight in flights] == [False, False, True]
    assert stage.held_bytes == sum(flight.graph_bytes for flight in flights[:2]) > cost
    flights[0].close()
    assert stage.held_bytes == flights[1].graph_bytes and stage.forward(Span(0, 3), IDS).graph is not None
    results = [stage.backward(flight, torch.ones(2, 12, 64)) for flight in flights[1:]]
    assert equal(*results) and stage.held_bytes == 0


def test_a_sequence_beyond_the_table_of_positions_is_refused_before_a_module_sees_it(checkpoints: Checkpoints) -> None:
    folder = checkpoints("gpt2")
    most = open_checkpoint(folder).max_positions
    stage = one_stage(folder, max_positions=most)
    stage.forward(Span(0, 1), torch.zeros(1, most, dtype=torch.long), for_backward=False)
    for values in (torch.zeros(1, most + 1, dtype=torch.long), torch.zeros(1, most + 1, 64)):
        with pytest.raises(BadRequestError, match=f"at most {most} tokens, got {most + 1}"):
            stage.forward(Span(0, 1), values)


def test_a_forward_for_no_backward_keeps_nothing(llama: Path) -> None:
    stage = one_stage(llama)
    flight = stage.forward(Span(0, 5), IDS, None, LABELS, for_backward=False)
    assert flight.loss_sum == stage.forward(Span(0, 5), IDS, None, LABELS).loss_sum
    assert flight.graph is None and flight.head is not None and flight.head.hidden is None
    with pytest.raises(InternalError):
        stage.backward(flight)


def test_tensors_of_an_inference_mode_are_taken(llama: Path) -> None:
    stage = one_stage(llama)
    with torch.inference_mode():
        hidden = torch.randn(2, 12, 64)
        flight = stage.forward(Span(1, 3), hidden)
        inside = stage.backward(flight, torch.ones(2, 12, 64))
    assert equal(inside, stage.backward(stage.forward(Span(1, 3), hidden.clone()), torch.ones(2, 12, 64)))


def test_longer_sequences_in_between_change_nothing(tmp_path: Path) -> None:
    """A dynamic rope remembers the longest sequence so far; a forward that is computed again must not see it."""
    rope = dict(rope_type="dynamic", rope_theta=10_000.0, factor=4.0)
    sizes = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
    config = T.LlamaConfig(**sizes, max_position_embeddings=8, rope_parameters=rope)
    stage = one_stage(write_checkpoint(config, tmp_path), recompute="always")
    first = stage.forward(Span(0, 3), IDS)
    alone = stage.backward(stage.forward(Span(0, 3), IDS), torch.ones(2, 12, 64))
    longer = stage.forward(Span(0, 3), torch.cat([IDS, IDS, IDS], 1)).output
    assert not torch.equal(longer[:, :12], first.output), "this rope depends on the length"
    assert equal(stage.backward(first, torch.ones(2, 12, 64)), alone)


# --- beside serving


@pytest.mark.parametrize("family", ["gemma3_text", "llama", "mamba"])
def test_what_has_served_is_trained_and_serves_again_with_the_same_bits(checkpoints: Checkpoints, family: str) -> None:
    folder = checkpoints(family)
    checkpoint = open_checkpoint(folder)
    module, parts = load_parts(checkpoint, Span(0, 2), dtype=torch.float32)
    engine = choose_engine(module, 64 << 20)
    hidden = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(1))
    open_sequence = engine.open()
    engine.step([(open_sequence, 7)], hidden[:, :7])
    before = serve(engine, hidden)
    ends = load_ends(checkpoint, dtype=torch.float32)
    for use in ("frozen", "copy"):
        stage = Stage(parts, ends, 5, use=use)
        output = stage.forward(Span(0, 2), hidden)
        assert stage.backward(output, torch.ones(1, 12, 64)).input is not None
        assert torch.equal(serve(engine, hidden), before)
    gradients = staged_gradients(stage, stages(folder, 2)[1])
    assert fault(whole(folder, 2), gradients) == "", "trained beside an engine"
    for unit in stage.units:
        stage.write(unit, {name: tensor + 1e-2 for name, tensor in stage.parameters(unit).items()})
    assert torch.equal(serve(engine, hidden), before), "the served copy is another"
    rest = engine.step([(open_sequence, 5)], hidden[:, 7:])
    torch.testing.assert_close(rest, before[:, 7:], rtol=1e-4, atol=1e-4)
    numbers = {name: one.detach() for unit in (Blocks(0, 1), Blocks(1, 2)) for name, one in stage.parameters(unit).items()}
    trained = parts.with_tensors(numbers)
    with torch.inference_mode():
        published = serve(choose_engine(trained.cut(Span(0, 2)), 64 << 20), hidden)
    torch.testing.assert_close(published, stage.forward(Span(0, 2), hidden).output, rtol=1e-4, atol=1e-4)


def serve(engine: object, hidden: Tensor) -> Tensor:
    """A prompt of 7 tokens, then 5 more in three steps: [1, 12, H]."""
    sequence = engine.open()  # type: ignore[attr-defined]
    outputs, at = [], 0
    for count in (7, 1, 1, 3):
        outputs.append(engine.step([(sequence, count)], hidden[:, at : at + count]).clone())  # type: ignore[attr-defined]
        at += count
    engine.close(sequence)  # type: ignore[attr-defined]
    return torch.cat(outputs, 1)


def test_a_frozen_stage_computes_on_the_tensors_that_are_served(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    module, parts = load_parts(checkpoint, Span(1, 3), dtype=torch.float32)
    stage = Stage(parts, None, 5, use="frozen")
    assert stage.units == () and not any(tensor.requires_grad for tensor in module.parameters())
    flight = stage.forward(Span(1, 3), torch.randn(2, 12, 64))
    got = stage.backward(flight, torch.ones(2, 12, 64))
    trained = Stage(parts, None, 5)
    expected = trained.backward(trained.forward(Span(1, 3), flight.inputs.values), torch.ones(2, 12, 64))
    torch.testing.assert_close(got.input, expected.input)
    with pytest.raises(SpanNotServedError):
        stage.parameters(Ends())


def test_what_transformers_keeps_fixed_is_not_trained(tmp_path: Path) -> None:
    stage = one_stage(write_checkpoint(all_configurations()["marian"](), tmp_path))
    names = stage.parameters(Ends())
    assert names and not any("embed_positions" in name for name in names)
