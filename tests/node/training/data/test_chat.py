"""Conversations: exactly the tokens of answers are targets."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner
from transformers import PreTrainedTokenizerFast

from node.training.data import chat
from node.training.data.chat import DAY, Marked, marked, targets_of
from node.training.data.documents import Conversation, Message
from protocols.errors import DataError
from swarm.thin.tokenizing import render as thin_render
from swarm.thin.tokenizing.encoded import Encoded
from swarm.thin.tokenizing.templates import TemplateError
from swarm.thin.tokenizing.tokenizer import Tokenizer, open_tokenizer
from tests.node.training.data.tokenizers_made import CHATML, THINKING, make, trained

WORDS = st.text(st.sampled_from("ab \n.üé世🙂"), max_size=12)


def conversation(*texts: str) -> Conversation:
    """A user and an assistant in turn."""
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return Conversation(messages=messages, where="line 1 of a.jsonl", done_bytes=1)


def documents(template: str, of: Conversation) -> list[Marked]:
    def render(messages: Sequence[Message], is_prompt: bool) -> str:
        return thin_render.render(template, messages, {"bos_token": "<s>", "eos_token": "</s>"}, is_prompt, DAY)

    return marked(of, render)


def plain(colon: str, end: str) -> str:
    """A template without special tokens at a turn's beginning."""
    turns = "{% for m in messages %}{{ m.role }}" + colon + "{{ m.content + '" + end + "' }}{% endfor %}"
    return turns + "{% if add_generation_prompt %}assistant" + colon + "{{ '' }}{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(make(tmp_path_factory.mktemp("tokenizer")))


def pieces(tokenizer: Tokenizer, document: Marked) -> tuple[str, list[str]]:
    """The text of all tokens, and that of each run of targets."""
    encoded = chat.encode([document], tokenizer.encode_all)[0]
    targets = targets_of(document, encoded, tokenizer.vocabulary().special)
    runs: list[list[int]] = []
    for at, is_target in enumerate(targets):
        if is_target:
            runs = [*runs, [at]] if not at or not targets[at - 1] else [*runs[:-1], [*runs[-1], at]]
    decoded = [tokenizer.decode([encoded.ids[at] for at in run], skip_special_tokens=False) for run in runs]
    return tokenizer.decode(encoded.ids, skip_special_tokens=False), decoded


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(WORDS, min_size=2, max_size=6))
def test_each_answer_is_a_target_with_the_mark_of_its_end_and_nothing_else(tokenizer: Tokenizer, texts: list[str]) -> None:
    (document,) = documents(CHATML, conversation(*texts))
    text, answers = pieces(tokenizer, document)
    assert text == document.text
    assert answers == [text + "<|im_end|>" for text in texts[1::2]]


def test_targets_are_those_of_transformers_where_a_template_marks_answers(tokenizer: Tokenizer) -> None:
    """`{% generation %}` marks them for transformers; we find them without. No answer begins with white space (below)."""
    said = "{{ '<|im_start|>' + message['role'] + '\n' }}"
    text = "{{ message['content'] + '<|im_end|>' }}"
    turn = (
        f"{{% if message['role'] == 'assistant' %}}{{% generation %}}{text}{{% endgeneration %}}{{% else %}}{text}{{% endif %}}"
    )
    template = f"{{% for message in messages %}}{said}{turn}{{{{ '\n' }}}}{{% endfor %}}"
    template += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    theirs = PreTrainedTokenizerFast(tokenizer_object=Inner.from_str(trained()), eos_token="</s>")
    for of in (conversation("Grüße?", "世界 and 🙂 more.", "a\nb", "c"), conversation("x", "two\n\nlines \n")):
        asked = dict(chat_template=template, return_assistant_tokens_mask=True, return_dict=True)
        expected = theirs.apply_chat_template(of.messages, **asked)
        (document,) = documents(template, of)
        (encoded,) = chat.encode([document], tokenizer.encode_all)
        assert list(encoded.ids) == list(expected["input_ids"])
        assert targets_of(document, encoded, tokenizer.vocabulary().special) == list(expected["assistant_masks"])


def test_an_answer_begins_with_its_space_although_the_post_processor_trims_spans(tokenizer: Tokenizer) -> None:
    template = plain(":", "</s>")
    (document,) = documents(template, conversation("hi", " two  words", "and", " more"))
    assert pieces(tokenizer, document)[1] == [" two  words</s>", " more</s>"]


def test_without_an_end_token_the_line_end_is_part_of_the_answer(tokenizer: Tokenizer) -> None:
    template = plain(": ", "\n")
    (document,) = documents(template, conversation("hi", "two.", "and", "three"))
    text, answers = pieces(tokenizer, document)
    assert text == document.text and answers == ["two.\n", "three\n"]


def test_a_template_that_writes_earlier_turns_anew_gives_a_document_for_each_answer(tokenizer: Tokenizer) -> None:
    found = documents(THINKING, conversation("one", "two", "three", "four"))
    assert [pieces(tokenizer, document)[1] for document in found] == [
        ["<think></think>two<|im_end|>"],
        ["<think></think>four<|im_end|>"],
    ]
    assert "<think>" not in found[1].text[: found[1].answers[0][0]], "as the model is asked later: without earlier thinking"


def test_the_day_is_fixed(tokenizer: Tokenizer) -> None:
    (document,) = documents("{{ strftime_now('%d %b %Y') }}" + CHATML, conversation("a", "b"))
    assert document.text.startswith("01 Jan 2026<|im_start|>user")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{{ raise_exception('no system role') }}",
            r"a.jsonl cannot be rendered \(no system role\), expected a conversation that the",
        ),
        (
            CHATML.replace("assistant\n' }}", "assistant\nSure: ' }}"),
            r"answer \(message 1\) that does not follow the prompt '.*Sure: '",
        ),
    ],
)
def test_what_the_template_does_not_take_is_refused(template: str, words: str) -> None:
    def render(messages: Sequence[Message], is_prompt: bool) -> str:
        try:
            return thin_render.render(template, messages, {}, is_prompt, DAY)
        except jinja2.TemplateError as error:
            raise TemplateError(str(error), True) from None

    with pytest.raises(DataError, match=words):
        marked(conversation("a", "b"), render)


def test_a_token_across_the_end_of_an_answer_is_no_target() -> None:
    """It holds letters of what the user says next."""
    document = Marked(text="a:helloB", answers=((2, 7),))
    encoded = Encoded(ids=[1, 2, 3], spans=[(0, 2), (2, 6), (6, 8)])
    assert targets_of(document, encoded, frozenset()) == [0, 1, 0]
