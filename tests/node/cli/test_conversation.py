"""What is forgotten, stopped or refused changes no later answer.

A conversation runs over engines in this process, and not a token may differ.
"""

from __future__ import annotations

import io
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from node.cli.ask.chat import obey
from node.cli.ask.conversation import Conversation, Manner, fitting
from node.cli.ask.full import FullSpeaker
from node.cli.ask.speaking import PLAIN_STOP
from node.cli.flags.asking import Sampling
from node.cli.flags.speculation import Speculation
from node.cli.terminal.interruption import LEAVE_S, Interruption
from node.cli.terminal.utf8 import MAX_PROMPT, check_arguments, checked
from protocols.errors import BadRequestError, ModelNotSupportedError
from swarm.thin.tokenizing.templates import plain
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.speaking_model import make_speaker
from tests.swarm.client.local_backend import LocalBackend, local_model

NEW, LIMIT = 20, 256


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 positions, tokens are bytes."""
    directory = make_checkpoint("llama", tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def theirs(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


class Held:
    """A conversation, and what one machine says to the same messages."""

    def __init__(self, path: Path, theirs: Any, interruption: Interruption | None = None, new: int = NEW, **manner: Any) -> None:
        model, self.backend = local_model(path, 2)
        self._theirs, self._new = theirs, new
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        sampling = Sampling(
            max_new_tokens=new, temperature=None, top_p=None, top_k=None, seed=None, speculation=Speculation(tokens=None)
        )
        self.speaker = FullSpeaker(model, sampling)
        self.talk = Conversation(self.speaker, Manner(max_new_tokens=new, **manner), interruption)
        assert isinstance(self.backend, LocalBackend)

    def check_last_answer(self) -> None:
        *before, said = self.talk.messages
        ids = self._tokenizer(plain(before), return_tensors="pt").input_ids
        new = min(self._new, LIMIT - ids.shape[1] + 1)
        output = self._theirs.generate(ids, max_new_tokens=new, do_sample=False)
        text = self._tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert said["content"] == text.partition(PLAIN_STOP)[0].strip()


def test_the_oldest_turns_are_forgotten_and_every_answer_stays_exact(
    path: Path, theirs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Held(path, theirs, system="Be kind.")
    for number in range(9):
        held.talk.say(f"question number {number}, which is a long one")
        held.check_last_answer()
        assert held.talk.messages[0] == {"role": "system", "content": "Be kind."}
        assert [message["role"] for message in held.talk.messages[1:]] == ["user", "assistant"] * (len(held.talk.messages) // 2)
    assert len(held.talk.messages) < 19
    said = capsys.readouterr().err
    assert "the conversation is longer than this model's 256 tokens: the oldest turn is forgotten (--keep-all refuses" in said
    assert held.backend.num_opened == 1  # K/V were cut back to what is kept, not thrown away


@pytest.mark.parametrize("family", ["mamba2", "lfm2"])
def test_a_running_state_is_built_anew_where_others_are_cut_back(family: str, tmp_path: Path) -> None:
    copy = make_checkpoint(family, tmp_path / family)
    add_byte_tokenizer(copy)
    held = Held(copy, AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32).eval())
    for line in ("hello", "and you?"):
        held.talk.say(line)
        held.check_last_answer()
    assert held.backend.num_opened == 2 and held.backend.num_closed == 1


def test_keep_all_refuses_and_reset_starts_over(path: Path, theirs: Any) -> None:
    held = Held(path, theirs, keeps_all=True)
    with pytest.raises(BadRequestError, match=rf"does not fit any more: \d+ tokens.*limit is {LIMIT}; /reset starts over"):
        for _ in range(20):
            held.talk.say("a question that is said again and again")
            before = list(held.talk.messages)
    assert held.talk.messages == before
    held.talk.reset()
    held.talk.say("hello")
    held.check_last_answer()


def test_one_message_that_is_too_long_says_so_and_is_forgotten(path: Path, theirs: Any) -> None:
    held = Held(path, theirs)
    held.talk.say("hello")
    before = list(held.talk.messages)
    with pytest.raises(BadRequestError, match=r"the message is too long: 317 tokens .*limit is 256; shorten it by 61"):
        held.talk.say("x" * 300)
    assert held.talk.messages == before
    held.talk.say("and now?")
    held.check_last_answer()


def test_an_answer_at_the_models_limit_is_cut_and_says_so(path: Path, theirs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    held = Held(path, theirs, new=512)
    held.talk.say("y" * 200)
    held.check_last_answer()
    if "the answer ends here" not in capsys.readouterr().err:
        assert held.backend.calls[-1].counts  # it ended by itself before
    held = Held(path, theirs, new=512)
    held.talk.say("z" * 237)  # two positions are left for an answer
    held.check_last_answer()
    assert "the answer ends here, at this model's limit of 256 tokens" in capsys.readouterr().err


def test_what_fits_is_the_newest_and_the_systems_words() -> None:
    def render(messages: Any) -> list[int]:
        return [0] * sum(len(message["content"]) for message in messages)

    said = [{"role": role, "content": "x" * 10} for role in ("system", *["user", "assistant"] * 3, "user")]
    for most, dropped in ((80, 0), (79, 1), (60, 1), (59, 2), (20, 3), (1, 3)):
        kept, ids, count = fitting(said, render(said), render, most)
        assert (count, len(kept), len(ids)) == (dropped, 8 - 2 * dropped, 80 - 20 * dropped)
        assert kept[0]["role"] == "system" and kept[-1] is said[-1]


class Pressing(io.StringIO):
    """A stdout during whose n-th piece a person presses Ctrl-C."""

    def __init__(self, *at: int) -> None:
        super().__init__()
        self._at, self._count = at, 0

    def write(self, text: str) -> int:
        self._count += 1
        for _ in range(self._at.count(self._count)):
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.fixture
def stdout() -> Iterator[list[Any]]:
    """Puts what is appended in the place of stdout."""
    before = sys.stdout
    yield []
    sys.stdout = before


def test_ctrl_c_stops_the_answer_keeps_what_was_said_and_the_session(path: Path, theirs: Any, stdout: Any) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    held = Held(path, theirs, Interruption(), new=60)
    held.talk.say("hello")
    whole = len(held.talk.messages[-1]["content"])
    held.talk.reset()
    opened = held.backend.num_opened
    sys.stdout = Pressing(4)
    held.talk.say("hello")
    assert 0 < len(held.talk.messages[-1]["content"]) < whole
    sys.stdout = io.StringIO()
    held.talk.say("and you?")
    held.check_last_answer()
    assert held.backend.num_opened == opened + 1  # one session for both: K/V of the stopped answer were of use
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == handlers
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_second_ctrl_c_leaves(path: Path, theirs: Any, stdout: Any) -> None:
    held = Held(path, theirs, Interruption(), new=60)
    sys.stdout = Pressing(2, 2)
    with pytest.raises(KeyboardInterrupt):
        held.talk.say("hello")
    scripted = Held(path, theirs, None, new=60)
    sys.stdout = Pressing(2)
    with pytest.raises(KeyboardInterrupt):  # a script's first one is its last
        scripted.talk.say("hello")


def test_at_the_prompt_a_second_ctrl_c_leaves_unless_something_was_said_between() -> None:
    now_s = 0.0
    interruption = Interruption(lambda: now_s)
    assert not interruption.at_prompt()
    now_s += 100.0
    assert interruption.at_prompt()
    interruption.has_spoken()
    assert not interruption.at_prompt()
    interruption.has_spoken()
    with interruption.answering(lambda: None, lambda: None):
        signal.raise_signal(signal.SIGINT)
    now_s += LEAVE_S / 2
    assert interruption.at_prompt()  # soon after the one that stopped the answer


def test_unknown_commands_are_refused_and_two_slashes_say_one(
    path: Path, theirs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Held(path, theirs)
    for line, words in (
        ("/rest", r"unknown command '/rest': did you mean /reset\? /help lists them, and //rest says /rest to the model"),
        ("/etc/passwd is what?", "unknown command '/etc/passwd': /help lists"),
        ("  /", "unknown command '/'"),
        ("/reset now", "/reset stands alone on its line"),
    ):
        with pytest.raises(BadRequestError, match=words):
            obey(held.talk, line, "tiny")
    assert held.talk.messages == [] and held.backend.num_opened == 0
    obey(held.talk, "//rest", "tiny")
    assert held.talk.messages[0]["content"] == "/rest"
    held.check_last_answer()
    obey(held.talk, "/help", "tiny")
    assert "//text says /text" in capsys.readouterr().err
    obey(held.talk, "/reset", "tiny")
    assert held.talk.messages == []


TEMPLATES = {
    "a role": ("{{ raise_exception('System role not supported') }}", r"refuses this conversation: 'System role not supported'; "),
    "long words": ("{{ raise_exception('\x1b[2J' ~ 'x' * 5000) }}", r"refuses this conversation: '\[2Jx+…'|refuses this .*x…"),
    "arithmetic": ("{{ 1 / 0 }}", "cannot be rendered: ZeroDivisionError: "),
    "half a letter": ("{{ 'a\\ud800' }}", r"cannot be rendered: it makes text that is not Unicode, with '\\ud800' at letter 1"),
    "no template": ("{% for %}", "cannot be rendered: TemplateSyntaxError"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_refuses_is_heard(name: str, path: Path, theirs: Any, tmp_path: Path) -> None:
    template, words = TEMPLATES[name]
    copy = shutil.copytree(path, tmp_path / "tiny")
    (copy / "chat_template.jinja").write_text(template)
    held = Held(copy, theirs, system="X")
    with pytest.raises(ModelNotSupportedError, match=words) as refused:
        held.talk.say("hello")
    assert refused.value.exit_code == 4 and len(str(refused.value)) < 700
    assert len(held.talk.messages) == 1 and held.backend.num_opened == 0


def test_text_that_is_not_utf8_says_where() -> None:
    with pytest.raises(BadRequestError, match=r"the line is not UTF-8: byte 0xe9 at offset 3 after 'né'; convert it"):
        checked("the line", b"n\xc3\xa9\xe9".decode(errors="surrogateescape"))
    with pytest.raises(BadRequestError, match=r"the half letter U\+D800 at offset 0"):
        checked("x", "\ud800")
    with pytest.raises(BadRequestError, match=r"longer than any model takes"):
        checked("x", "x" * (MAX_PROMPT + 1))
    assert checked("x", "世界 🙂 \0 \ufeff") == "世界 🙂 \0 \ufeff"
    bad = b"caf\xe9".decode(errors="surrogateescape")
    for arguments, words in (
        (["generate", "m", bad], "argument 3 is not UTF-8: byte 0xe9 at offset 3 after 'caf'"),
        (["chat", bad], "argument 2 is not UTF-8"),
        (["chat", "m", "--system", bad], "--system is not UTF-8"),
        (["chat", "m", f"--data-dir={bad}"], "--data-dir is not UTF-8"),
        (["generate", "m", "--", bad], "argument 4 is not UTF-8"),
    ):
        with pytest.raises(BadRequestError, match=words):
            check_arguments(arguments)
    check_arguments(["chat", "m", "--system=é", "--", "世界"])


def test_what_a_model_says_to_itself_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model that answers in channels, as gpt-oss."""
    thinks, marks = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant", ("<|channel|>", "<|message|>", "<|return|>")
    says = {":": thinks, thinks: "<|channel|>", "<|channel|>": "final", "final": "<|message|>", "<|message|>": "It is 42."}
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}<|channel|><|message|>{% endif %}:"
    path = make_speaker(tmp_path / "tiny", template, says, marks, ("<|return|>",))
    held = Held(path, None)
    held.talk.say("What is 1 + 41?")
    assert held.talk.messages[-1] == {"role": "assistant", "content": "It is 42."}
    assert capsys.readouterr().out == "It is 42.\n"


@pytest.mark.parametrize(("special", "has_begun"), [((), False), (("<think>", "</think>"), False), ((), True)], ids=str)
def test_a_thought_is_not_shown_but_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], special: tuple[str, ...], has_begun: bool
) -> None:
    says = {":": "<think>", "<think>": "\nHm.", "\nHm.": "</think>", "</think>": "\n\nIt is 42."}
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}</think>{% endif %}" + (
        "<think>" if has_begun else ":"
    )
    held = Held(make_speaker(tmp_path / "tiny", template, says, special), None)
    held.talk.say("What is 1 + 41?")
    assert held.talk.messages[-1] == {"role": "assistant", "content": "It is 42."}
    shown = capsys.readouterr()
    assert shown.out == "It is 42.\n" and shown.err.count("the model thinks first") == 1
    short = Held(tmp_path / "tiny", None, new=2)
    short.talk.say("What is 1 + 41?")
    shown = capsys.readouterr()
    assert shown.out == "" and "the answer has ended with a thought" in shown.err
