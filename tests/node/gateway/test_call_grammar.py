"""Random answers that keep to a grammar are calls, or text.

What the finder of calls makes of an answer is the oracle.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from node.gateway.http.refusal import RefusedError
from node.gateway.tools.call_forms import FORMS, form_of
from node.gateway.tools.calling import Calling, rules_of
from node.gateway.tools.channels import ChannelFinder
from node.gateway.tools.thoughts import finder_of
from node.gateway.tools.tool_calls import ToolCall, tools_of
from protocols.errors import ModelNotSupportedError
from swarm.thin.channels import FINAL, THINK, Thought
from swarm.thin.grammar.answer_form import AnswerForm, ThoughtForm
from swarm.thin.grammar.grammar import Grammar
from swarm.thin.thoughts import MESSAGE, ThoughtReader
from tests.families import add_byte_tokenizer

TEMPLATES = {
    "qwen": "{{ tools }}<tool_call>",
    "mistral": "{{ tools }}[TOOL_CALLS]",
    "llama": "{{ tools }}<|python_tag|>",
    "llama4": "{{ tools }}<|header_start|>ipython<|header_end|>",
    "python": "{{ tools }}[func_name1(params_name1=params_value1)]",
    "gpt-oss": "{{ tools }}<|channel|>final<|message|>",
    "coder": "{{ tools }}<tool_call><function=<parameter=",
    "glm": "{{ tools }}<tool_call>{name}\n<arg_key>{key}</arg_key>\n<arg_value>",
    "deepseek": "{{ tools }}<｜tool▁calls▁begin｜>\n```json",
    "deepseek31": "{{ tools }}<｜tool▁calls▁begin｜>",
    "cohere": "{{ tools }}<|START_ACTION|>",
    "kimi": "{{ tools }}<|tool_calls_section_begin|>",
    "mistral11": "{{ tools }}[TOOL_CALLS][CALL_ID][ARGS]",
    "mistral13": "{{ tools }}[TOOL_CALLS][ARGS]",
}
MARKS = sorted({mark for _, form in FORMS if form is not None for mark in form.marks} - {"[TOOL_CALLS]"})
SPECIAL = ["[TOOL_CALLS]", "<|python_tag|>", "<|python_start|>", "<|python_end|>"]
TOOLS: list[Any] = [
    {"function": {"name": "add", "parameters": {
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"$ref": "#/$defs/some"}},
        "required": ["a", "b"], "additionalProperties": False, "$defs": {"some": {"enum": ["x", "<tool_call>", "]", "\u2028"]}},
    }}},
    {"function": {"name": "get-time", "parameters": {"type": "object", "additionalProperties": False}}},
]  # fmt: skip
NAMES = frozenset({"add", "get-time"})
ONE_CALL = ("llama", "llama4", "gpt-oss")


class Speaker:
    """Says random tokens of those that are allowed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.end = self.tokenizer.convert_tokens_to_ids("<end>")
        self.grammar = Grammar(folder, len(self.tokenizer), [self.end])
        self.random = random.Random(seed)

    def allowed(self, token: int | None) -> list[int]:
        mask = self.grammar.allowed(token)
        return [one for one in range(len(self.tokenizer)) if mask[one // 8] >> one % 8 & 1]

    def say(self, form: AnswerForm, most: int = 400, likes: Callable[[str], bool] = lambda _: False) -> tuple[str, bool]:
        """Text as a client gets it, and whether it is complete. likes: tokens that are preferred."""
        self.grammar.begin(form)
        said, token = list[int](), None
        skips = form.calls is None or form.calls.form.layout is None  # a gateway shows marks of laid out calls
        for _ in range(most):
            allowed = self.allowed(token)
            token = self.random.choice([one for one in allowed if likes(self.tokenizer.convert_ids_to_tokens(one))] or allowed)
            if token == self.end:
                return self.tokenizer.decode(said, skip_special_tokens=skips), True
            said.append(token)
        return self.tokenizer.decode(said, skip_special_tokens=skips), False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    add_tokens(path, ("<think>",))
    return path


def add_tokens(path: Path, words: Sequence[str]) -> None:
    """A tokenizer of bytes, with these tokens beside the marks of all families."""
    add_byte_tokenizer(path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in (*words, *MARKS)])
    tokenizer.add_special_tokens({"eos_token": "<end>", "additional_special_tokens": SPECIAL})
    tokenizer.save_pretrained(path)


@pytest.fixture
def speaker(folder: Path, request: pytest.FixtureRequest) -> Speaker:
    return Speaker(folder, seed=sum(map(ord, request.node.name)))


def form(family: str, calling: Calling, schema: str | None = None) -> AnswerForm:
    return AnswerForm(schema=schema, calls=rules_of(calling, TOOLS, TEMPLATES[family]))


def parsed(family: str, text: str) -> tuple[str, list[ToolCall]]:
    found = form_of(TEMPLATES[family])
    assert found is not None
    finder = finder_of(found, None, tools_of(TOOLS))
    assert finder is not None
    every = [*finder.feed(text), *finder.rest()]
    return "".join(one for one in every if isinstance(one, str)), [one for one in every if isinstance(one, ToolCall)]


def is_of_schema(call: ToolCall) -> bool:
    if call.name == "get-time":
        return call.arguments == {}
    enum = TOOLS[0]["function"]["parameters"]["$defs"]["some"]["enum"]
    return set(call.arguments) == {"a", "b"} and call.arguments["a"] in range(10) and call.arguments["b"] in enum


FORCED = Calling(param="tool_choice", is_forced=True)


@pytest.mark.parametrize("family", TEMPLATES)
def test_forced_answers_are_calls_and_nothing_else(speaker: Speaker, family: str) -> None:
    numbers = set()
    for _ in range(20):
        text, is_complete = speaker.say(form(family, FORCED), most=2000)
        rest, calls = parsed(family, text)
        assert is_complete and calls and not rest.strip() and all(map(is_of_schema, calls)), text
        numbers.add(min(len(calls), 2))
    assert numbers == ({1} if family in ONE_CALL else {1, 2})


@pytest.mark.parametrize("family", TEMPLATES)
def test_one_call_is_one_and_a_named_tool_is_called(speaker: Speaker, family: str) -> None:
    for name in NAMES:
        text, _ = speaker.say(form(family, replace(FORCED, only=name, is_single=True)))
        ((call,), rest) = parsed(family, text)[::-1]
        assert call.name == name and not rest.strip()


def likes_calls(token: str) -> bool:
    """Or what may begin one."""
    return token in ("<tool_call>", "[", "{", "[TOOL_CALLS]", "<|python_start|>")


@pytest.mark.parametrize("family", TEMPLATES)
def test_strict_tools_may_be_called_and_text_stays_possible(speaker: Speaker, family: str) -> None:
    strict = form(family, Calling(param="tools", strict=NAMES))
    some, num_called = 0, 0
    for number in range(30):
        text, is_complete = speaker.say(strict, 300, likes_calls if number % 2 else lambda _: False)
        rest, calls = parsed(family, text)
        assert all(map(is_of_schema, calls)), text
        assert family != "qwen" or not is_complete or "<tool_call>" not in rest, "an opened call is completed"
        some += bool(rest)
        num_called += bool(calls)
    assert some and num_called


def test_text_may_have_other_tokens_and_marks_that_are_spelled_out_begin_a_call(speaker: Speaker) -> None:
    ids = speaker.tokenizer.convert_tokens_to_ids
    for said in ["<think>", "a", "<tool_call>"], list("a<tool_call>"):
        speaker.grammar.begin(form("qwen", Calling(param="tools", strict=NAMES)))
        token = None
        for one in said:
            assert ids(one) in (allowed := speaker.allowed(token)) and speaker.end in allowed
            token = ids(one)
        assert speaker.tokenizer.decode(speaker.allowed(token)) == "\n"


def test_tools_that_are_not_strict_take_any_object_and_are_called_once(speaker: Speaker) -> None:
    single = form("qwen", Calling(param="parallel_tool_calls", is_single=True))
    for _ in range(10):
        text, _ = speaker.say(single, 1000, lambda token: token in ("<tool_call>", "}"))
        rest, calls = parsed("qwen", text)
        assert len(calls) == 1 and isinstance(calls[0].arguments, dict) and "<tool_call>" not in rest


@pytest.mark.parametrize("family", TEMPLATES)
def test_beside_a_schema_an_answer_is_json_or_calls(speaker: Speaker, family: str) -> None:
    lead = FINAL if family == "gpt-oss" else ""
    either = replace(form(family, Calling(param="response_format"), '{"enum": [[1], {"a": 2}]}'), lead=lead)
    kinds = set()
    for _ in range(20):
        text, is_complete = speaker.say(either, 3000, lambda token: token == "}")
        rest, calls = parsed(family, text)
        assert not is_complete or bool(calls) != bool(rest.strip()), text
        if rest.strip() and is_complete:
            assert json.loads(rest) in ([1], {"a": 2})
        kinds.add(bool(calls))
    assert kinds == {True, False}


NOTE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"}, "n": {"type": ["integer", "null"]}, "one": {"const": "{1}"},
        "some": {"type": "array", "items": {"enum": [1, "2"]}},
    },
    "required": ["text", "one"],
    "additionalProperties": False,
}  # fmt: skip
LAID_OUT = {
    "coder": ("<tool_call>\n<function=note>\n", "<parameter={}>\n{}\n</parameter>\n", "</function>\n</tool_call>"),
    "glm": ("<tool_call>note\n", "<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n", "</tool_call>"),
}


def note_rules(family: str, parameters: dict[str, Any], strict: bool = True) -> AnswerForm:
    tools: list[Any] = [{"function": {"name": "note", "parameters": parameters}}]
    calling = replace(FORCED, is_single=True, strict=frozenset({"note"} if strict else ()))
    return AnswerForm(calls=rules_of(calling, tools, TEMPLATES[family]))


@pytest.mark.parametrize("family", LAID_OUT)
def test_arguments_that_stand_as_they_are_are_of_their_schema(speaker: Speaker, family: str) -> None:
    def is_allowed(**arguments: str) -> bool:
        head, one, close = LAID_OUT[family]
        text = head + "".join(one.format(*item) for item in arguments.items()) + close
        speaker.grammar.begin(note_rules(family, NOTE))
        token = None
        for following in speaker.tokenizer.encode(text, add_special_tokens=False):
            if following not in speaker.allowed(token):
                return False
            token = following
        return speaker.end in speaker.allowed(token)

    assert is_allowed(text="a < b\n</x>\n", one="{1}") and is_allowed(text="", n="3", one="{1}", some='[1, "2"]')
    assert is_allowed(text="x", n="null", one="{1}", some="[]")
    assert not is_allowed(one="{1}") and not is_allowed(text="x") and not is_allowed(text="x", one="1")
    assert not is_allowed(text="x", n="a", one="{1}") and not is_allowed(text="x", one="{1}", more="1")


@pytest.mark.parametrize("family", LAID_OUT)
def test_what_such_a_form_cannot_keep_to_is_refused_only_if_it_is_strict(speaker: Speaker, family: str) -> None:
    for odd in ({"minProperties": 1}, {"properties": {"a": {"type": "string", "pattern": "b"}}}):
        with pytest.raises(ModelNotSupportedError, match="cannot be kept to"):
            speaker.grammar.begin(note_rules(family, {**NOTE, **odd}))
        speaker.grammar.begin(note_rules(family, {**NOTE, **odd}, strict=False))
    with pytest.raises(ModelNotSupportedError, match="no argument called 'a>'"):
        speaker.grammar.begin(note_rules(family, {"properties": {"a>": {}}}, strict=False))


THOUGHT = f"hm </thi <tool_call> <|python_tag|>{'x' * 20}"


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("words", [(), ("<think>", "</think>")], ids=str)
@pytest.mark.parametrize("family", [None, *sorted(TEMPLATES.keys() - {"gpt-oss"})])
def test_a_thought_comes_first_and_is_free(tmp_path: Path, family: str | None, words: tuple[str, ...], is_open: bool) -> None:
    add_tokens(tmp_path, words)
    speaker, thought = Speaker(tmp_path, seed=len(words)), ThoughtForm(begin="<think>", end="</think>", is_open=is_open)
    both = AnswerForm(schema='{"enum": [[1]]}') if family is None else form(family, FORCED)
    speaker.grammar.begin(replace(both, thought=thought))
    token, said = None, ("" if is_open else "<think>") + THOUGHT
    for one in speaker.tokenizer.encode(said, add_special_tokens=False):
        assert one in (allowed := speaker.allowed(token)) and speaker.end not in allowed
        token = one
    for one in speaker.tokenizer.encode("</think>\n\n", add_special_tokens=False):
        assert one in speaker.allowed(token)
        token = one
    behind = list[int]()
    for _ in range(2000):
        token = speaker.random.choice(speaker.allowed(token))
        if token == speaker.end:
            break
        behind.append(token)
    text = speaker.tokenizer.decode(behind, skip_special_tokens=family is None or both.calls.form.layout is None)
    if family is None:
        assert json.loads(text) == [1]
    else:
        rest, calls = parsed(family, text)
        assert token == speaker.end and calls and not rest.strip() and all(map(is_of_schema, calls)), text


@pytest.mark.parametrize("is_json", [False, True])
def test_a_message_of_thoughts_comes_first_and_is_free(speaker: Speaker, is_json: bool) -> None:
    either = AnswerForm(schema='{"enum": [[1]]}', lead=FINAL) if is_json else form("gpt-oss", FORCED)
    thought = f"{THINK}hm </thi {'x' * 20}"
    for starts in (thought + "<|end|><|start|>assistant", FINAL if is_json else "<|channel|>commentary"):
        speaker.grammar.begin(replace(either, thought=MESSAGE))
        token, said = None, speaker.tokenizer.encode(starts, add_special_tokens=False)
        for one in said:
            assert one in (allowed := speaker.allowed(token)) and speaker.end not in allowed
            token = one
        for _ in range(2000):
            if (token := speaker.random.choice(speaker.allowed(token))) == speaker.end:
                break
            said.append(token)
        finder = ChannelFinder(tools_of(TOOLS))
        text = speaker.tokenizer.decode(said)
        found = [*finder.feed(text), *finder.rest()]
        thoughts = "".join(one.text for one in found if isinstance(one, Thought))
        assert thoughts == (thought.removeprefix(THINK) if starts.startswith(THINK) else "")
        rest, calls = "".join(one for one in found if isinstance(one, str)), [one for one in found if isinstance(one, ToolCall)]
        assert token == speaker.end and (json.loads(rest) == [1] if is_json else not rest and all(map(is_of_schema, calls)))


@pytest.mark.parametrize("family", ["llama", "python", "qwen"])
def test_strict_calls_behind_a_thought_are_of_their_schema(speaker: Speaker, family: str) -> None:
    thought, num_called = ThoughtForm(begin="<think>", end="</think>"), 0
    strict = replace(form(family, Calling(param="tools", strict=NAMES)), thought=thought)
    for number in range(30):
        likes = [likes_calls, lambda token: token == "<think>"][number % 2]
        text, _ = speaker.say(strict, 300, likes)
        reader = ThoughtReader(thought)
        behind = "".join(one for one in (*reader.feed(text), *reader.rest()) if isinstance(one, str))
        _, calls = parsed(family, behind)
        assert all(map(is_of_schema, calls)), text
        num_called += bool(calls)
    assert num_called


def test_what_no_grammar_can_be_made_of_is_refused(speaker: Speaker) -> None:
    with pytest.raises(RefusedError, match="tool_choice: how this model writes calls is not known"):
        rules_of(FORCED, TOOLS, "{{ tools }}")
    of_list: list[Any] = [{"function": {"name": "a", "parameters": {"type": "array"}}}]
    with pytest.raises(RefusedError, match="the parameters of a are no object"):
        rules_of(FORCED, of_list, TEMPLATES["qwen"])
    odd: list[Any] = [{"function": {"name": "a", "parameters": {"properties": {"b": {"type": "string", "format": "colour"}}}}}]
    for strict, is_refused in ((frozenset({"a"}), True), (frozenset[str](), False)):
        rules = rules_of(replace(FORCED, strict=strict), odd, TEMPLATES["qwen"])
        if is_refused:
            with pytest.raises(ModelNotSupportedError, match="Unknown format: colour"):
                speaker.grammar.begin(AnswerForm(calls=rules))
        else:
            speaker.grammar.begin(AnswerForm(calls=rules))


def test_a_mark_that_is_left_out_of_texts_is_refused(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["special"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    size = 256 + len(document["added_tokens"])
    with pytest.raises(ModelNotSupportedError, match="leaves <tool_call> out of texts"):
        Grammar(tmp_path, size, [size - 1]).begin(form("qwen", FORCED))


def test_a_form_survives_its_way_to_the_sandbox() -> None:
    given = form("mistral", Calling(param="tools", strict=NAMES, is_single=True), "{}")
    given = replace(given, thought=ThoughtForm(begin="<think>", end="</think>", is_open=True))
    assert AnswerForm.unpack(json.loads(json.dumps(given.pack()))) == given
    assert AnswerForm.unpack(json.loads(json.dumps(AnswerForm(schema="{}").pack()))) == AnswerForm(schema="{}")
