"""Every mode of `generate` equals transformers with the same seed.

The families are a plain, a windowed, a mixed and an alibi one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from protocols.errors import BadRequestError
from protocols.inference import Crop, Repeat, Rows

FAMILIES = ["llama", "mistral", "gemma3_text", "bloom"]
NEW = 20
SEED = 5
_draw = torch.Generator().manual_seed(7)
PROMPT = torch.randint(3, 250, (1, 11), generator=_draw)
BATCH = torch.randint(3, 250, (3, 11), generator=_draw)
LEFT = torch.ones_like(BATCH)
LEFT[0, :5] = LEFT[2, :2] = 0
PADDED = BATCH * LEFT
REPETITIVE = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7]])

GREEDY: dict[str, Any] = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=None)
SAMPLED: dict[str, Any] = dict(max_new_tokens=NEW, do_sample=True, top_k=20, top_p=0.9, temperature=0.8, eos_token_id=None)
PAD: dict[str, Any] = dict(attention_mask=LEFT)
BEAMS: dict[str, Any] = dict(num_beams=3, num_return_sequences=2)

# name -> (prompt, keyword arguments, steps that it must take: more would mean that nothing was cached)
MODES: dict[str, tuple[Tensor, dict[str, Any], int]] = {
    "greedy": (BATCH, GREEDY, NEW),
    "greedy, left-padded": (PADDED, GREEDY | PAD, NEW),
    "sampled": (BATCH, SAMPLED, NEW),
    "3 samples of one prompt": (PROMPT, SAMPLED | dict(num_return_sequences=3), NEW),
    "beams": (BATCH, GREEDY | BEAMS, NEW),
    "beams, left-padded": (PADDED, GREEDY | BEAMS | PAD, NEW),
    "sampled beams": (BATCH, SAMPLED | dict(num_beams=3), NEW),
    "chunked prefill": (BATCH, GREEDY | dict(prefill_chunk_size=4), NEW + 2),
    "chunked prefill, left-padded": (PADDED, GREEDY | PAD | dict(prefill_chunk_size=4), NEW + 2),
    "no cache": (BATCH, GREEDY | dict(use_cache=False), NEW),
    "no cache, left-padded": (PADDED, GREEDY | PAD | dict(use_cache=False), NEW),
    "penalties and bad words": (
        BATCH,
        GREEDY | dict(repetition_penalty=1.3, no_repeat_ngram_size=2, bad_words_ids=[[9], [17, 4]]),
        NEW,
    ),
    "some sequences end early": (BATCH, dict(max_new_tokens=NEW, do_sample=False, eos_token_id=list(range(100, 130))), NEW),
    "static cache asked for": (BATCH, GREEDY | dict(cache_implementation="static", disable_compile=True), NEW),
}


def both(theirs: Any, ours: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The same call at both models, after the same seed."""
    results = []
    for model in (theirs, ours):
        torch.manual_seed(SEED)
        results.append(model.generate(*args, **kwargs))
    return results[0], results[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_mode_equals_transformers(family: str, mode: str, pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair(family)
    prompt, options, most_steps = MODES[mode]
    expected, got = both(theirs, ours, prompt, **options)
    assert got.tolist() == expected.tolist()
    assert 0 < len(backend.calls) <= most_steps
    if options.get("use_cache", True):
        assert all(max(call.counts) == 1 for call in backend.calls[most_steps - NEW + 1 :])
        assert backend.num_opened == 1
    if "attention_mask" in options:
        assert (
            sum(sum(call.counts) for call in backend.calls[: most_steps - NEW + 1]) % int(LEFT.sum()) == 0
        )  # no padding travels
    assert backend.num_opened == backend.num_closed and backend.used_bytes == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_lookup_takes_fewer_steps_than_tokens(family: str, pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair(family)
    expected, got = both(theirs, ours, REPETITIVE, **GREEDY, prompt_lookup_num_tokens=4)
    assert got.tolist() == expected.tolist()
    assert got.tolist() == theirs.generate(REPETITIVE, **GREEDY).tolist()
    assert any(len(call.counts) == 1 and call.counts[0] > 1 for call in backend.calls[1:])  # speculated
    assert any(isinstance(op, Crop) for call in backend.calls for op in call.ops)  # and some were refused
    assert all(call.want == call.counts[0] for call in backend.calls[1:])


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_assisted_generation(
    family: str, options: dict[str, Any], pair: Callable[[str], Any], reference: Callable[[str], Any]
) -> None:
    """The assistant is the model itself: it drafts well, so that runs of several tokens are accepted."""
    theirs, ours, backend = pair(family)
    expected, got = both(theirs, ours, PROMPT, **options, assistant_model=reference(family))
    assert got.tolist() == expected.tolist()
    assert len(backend.calls) < NEW and backend.num_opened == backend.num_closed == 1


def test_assisted_by_another_model(pair: Callable[[str], Any], reference: Callable[[str], Any]) -> None:
    """A bad assistant: nearly everything it drafts is refused, and cropped."""
    theirs, ours, backend = pair("llama")
    expected, got = both(theirs, ours, PROMPT, **GREEDY, assistant_model=reference("qwen3"))
    assert got.tolist() == expected.tolist()
    assert sum(isinstance(op, Crop) for call in backend.calls for op in call.ops) > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_goes_on_with_the_first_ones_cache(family: str, pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair(family)
    answers = []
    for model in (theirs, ours):
        first = model.generate(PADDED, attention_mask=LEFT, **GREEDY, return_dict_in_generate=True)
        said = torch.cat([first.sequences, BATCH[:, :4]], dim=1)
        mask = torch.cat([LEFT, torch.ones(3, NEW + 4, dtype=torch.long)], dim=1)
        second = model.generate(said, attention_mask=mask, past_key_values=first.past_key_values, **GREEDY)
        answers.append(second.tolist())
    assert answers[0] == answers[1]
    assert backend.calls[NEW].counts == (5, 5, 5)  # the last token of the first turn, and the four new ones
    assert backend.num_opened == 1 and backend.num_closed == 0  # `first` still holds it
    first.past_key_values.close()
    assert backend.num_closed == 1 and backend.used_bytes == 0


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.has_ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.has_ended = True


class After(StoppingCriteria):
    def __init__(self, columns: int) -> None:
        self.columns = columns

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.columns)


def test_streamer_and_stopping_criteria(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    streamer = Collected()
    got = ours.generate(PROMPT, **GREEDY, streamer=streamer, stopping_criteria=StoppingCriteriaList([After(16)]))
    assert streamer.tokens == got[0].tolist() and streamer.has_ended
    assert got.shape[1] == 16 and len(backend.calls) == 5


def test_scores_and_hidden_states_of_every_step(pair: Callable[[str], Any]) -> None:
    theirs, ours, _backend = pair("gemma3_text")
    wanted: dict[str, Any] = dict(return_dict_in_generate=True, output_scores=True, output_logits=True, output_hidden_states=True)
    expected, got = both(theirs, ours, BATCH, **GREEDY, **wanted)
    torch.testing.assert_close(torch.stack(got.scores), torch.stack(expected.scores), rtol=1e-4, atol=1e-4)
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a[-1], b[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guess", ["lookup", "assistant"])
def test_hidden_states_of_every_token_of_a_guessed_run(
    guess: str, pair: Callable[[str], Any], reference: Callable[[str], Any]
) -> None:
    theirs, ours, backend = pair("gemma3_text")
    how = dict(prompt_lookup_num_tokens=4) if guess == "lookup" else dict(assistant_model=reference("gemma3_text"))
    expected, got = both(theirs, ours, REPETITIVE, **GREEDY, **how, return_dict_in_generate=True, output_hidden_states=True)
    assert got.sequences.tolist() == expected.sequences.tolist() and len(backend.calls) < NEW
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert len(a) == len(b)
        torch.testing.assert_close(a[-1], b[-1], rtol=1e-4, atol=1e-4)
    with pytest.raises(BadRequestError, match="no activation comes back"):
        got.hidden_states[1][0]


@pytest.mark.parametrize("how", ["the model itself", "its first blocks"])
def test_a_model_that_drafts_for_itself_takes_no_real_token_for_padding(how: str, pair: Callable[[str], Any]) -> None:
    """transformers drops the mask of a text without padding before it asks the assistant."""
    theirs, ours, backend = pair("llama")
    drafted: list[Any] = []
    plain = theirs.generate(PROMPT, **GREEDY)
    prompt = torch.cat([PROMPT, torch.tensor([[int(plain[0, 14])]])], dim=1)
    padding = dict(attention_mask=torch.ones_like(prompt), pad_token_id=int(prompt[0, -1]))
    assist = dict(assistant_model=ours) if how == "the model itself" else dict(assistant_early_exit=2)
    hook = ours.register_forward_hook(lambda module, args, output: drafted.append(output.logits.shape[1]))
    try:
        got = ours.generate(prompt, **GREEDY, **padding, **assist)
    finally:
        hook.remove()
    assert got.tolist() == theirs.generate(prompt, **GREEDY, **padding).tolist()
    assert (
        max(drafted) > 1 and backend.num_opened == 2
    )  # guesses were checked several at once; drafts have a session of their own
    gc.collect()
    assert backend.num_closed == 2


def test_embeddings_instead_of_ids(pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("llama")
    embeds = theirs.get_input_embeddings()(PADDED).detach()
    expected, got = both(theirs, ours, inputs_embeds=embeds, attention_mask=LEFT, **GREEDY)
    assert got.tolist() == expected.tolist() and len(backend.calls) == NEW


def test_no_prompt_starts_from_the_start_token(pair: Callable[[str], Any]) -> None:
    theirs, ours, _backend = pair("llama")
    expected, got = both(theirs, ours, **GREEDY)
    assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("options", [GREEDY, GREEDY | BEAMS, GREEDY | dict(use_cache=False)], ids=["greedy", "beams", "no cache"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_padded_on_the_right_is_continued_from_its_last_token(
    family: str, options: dict[str, Any], pair: Callable[[str], Any]
) -> None:
    """transformers warns and continues from the padding; the same sequences padded on the left say what is right."""
    theirs, ours, _backend = pair(family)
    lengths = LEFT.sum(1).tolist()
    right_mask = torch.stack([(torch.arange(11) < length).long() for length in lengths])
    right = torch.stack([row.roll(length, 0) for row, length in zip(PADDED, lengths, strict=True)]) * right_mask
    expected = theirs.generate(PADDED, attention_mask=LEFT, **options)
    got = ours.generate(right, attention_mask=right_mask, **options)
    assert got[:, 11:].tolist() == expected[:, 11:].tolist()
    assert got[:: len(got) // 3, :11].tolist() == right.tolist()  # the caller's own columns come back


def test_beams_send_their_reordering_with_the_next_step(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    ours.generate(PROMPT, **GREEDY, num_beams=3)
    assert backend.calls[0].ops == ()
    moved = [op for call in backend.calls[1:] for op in call.ops]
    assert moved and all(isinstance(op, Rows) and len(op.indices) == 3 for op in moved)


def test_row_operations_reach_the_hops_in_order_and_cost_no_step(pair: Callable[[str], Any]) -> None:
    """Repeat, reorder, drop and crop by hand; the sequences then answer as fresh ones of the same tokens."""
    theirs, ours, backend = pair("llama")
    cache = ours(BATCH[:2], use_cache=True).past_key_values
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3, 1]))
    cache.reorder_cache(torch.tensor([1, 0, 0]))
    cache.crop(-2)
    cache.crop(-1)
    cache.crop(0)
    assert len(backend.calls) == 1 and cache.get_seq_length() == 8 and cache.rows == [8, 8, 8]
    new = torch.tensor([[20, 21], [22, 23], [24, 25]])
    got = ours(new, past_key_values=cache).logits
    assert backend.calls[1].ops == (Repeat(2), Rows((3, 0, 0)), Crop(3)) and backend.calls[1].counts == (2, 2, 2)
    whole = torch.cat([BATCH[[1, 0, 0], :8], new], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(got, theirs(whole).logits[:, -2:], rtol=1e-4, atol=1e-4)


def test_generation_config_of_the_checkpoint_is_read(pair: Callable[[str], Any]) -> None:
    theirs, ours, _backend = pair("llama")
    assert isinstance(ours.generation_config, GenerationConfig)
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id == 2
