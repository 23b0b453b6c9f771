"""A conversation as text, and which letters of it are answers.

The template is rendered for every beginning of the conversation: what follows the prompt of an answer (the messages before it, up to where
the model speaks) is that answer, with the mark of its end. White space that a template puts after that mark is no target: a model stops
before it. A token that would hold the prompt's last letters and the answer's first (a prompt that ends in a space) is divided there, as
it is when the model is asked. Templates are untrusted programs: they are rendered in the sandbox, and on a fixed day, because one that
writes the date would give other tokens tomorrow.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import pairwise

from node.training.data.documents import Conversation, Message
from node.training.data.faults import bad
from swarm.thin.tokenizing.encoded import Encoded
from swarm.thin.tokenizing.templates import TemplateError

DAY = "2026-01-01"
"""Today, for templates."""

EncodeAll = Callable[[Sequence[str], bool], list[Encoded]]
"""`encode_all` of a tokenizer: texts and whether spans are wanted."""

Render = Callable[[Sequence[Message], bool], str]
"""Messages and `is_prompt` (end where the model speaks) to text; TemplateError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A document of a conversation."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """[start, stop) of each answer, in letters; rising."""


def marked(conversation: Conversation, render: Render) -> list[Marked]:
    """The conversation as one document; as one for each answer if the template writes earlier turns anew when later ones come.

    The latter is what templates do that drop the thinking of earlier turns. DataError if the template does not take the conversation, or
    an answer does not begin where the model is asked to speak.
    """
    messages, where = conversation.messages, conversation.where
    try:
        whole = render(messages, False)
        answers = [_answer(messages, at, render, where) for at, one in enumerate(messages) if one["role"] == "assistant"]
    except TemplateError as error:
        raise bad(where, f"cannot be rendered ({error})", "a conversation that the chat template takes", "mend it") from None
    if all(whole.startswith(answer.text) for answer in answers):
        return [Marked(text=whole, answers=tuple(span for answer in answers for span in answer.answers))]
    return answers


def _answer(messages: Sequence[Message], at: int, render: Render, where: str) -> Marked:
    """The conversation up to and with message `at`, which alone is marked."""
    prompt, said = render(messages[:at], True), render(messages[: at + 1], False)
    if not said.startswith(prompt):
        raise bad(
            where,
            f"gives an answer (message {at}) that does not follow the prompt {prompt[-40:]!r}",
            "a chat template whose generation prompt begins an answer",
            "change the template",
        )
    return Marked(text=said, answers=((len(prompt), len(said)),))


def encode(documents: Sequence[Marked], encode_all: EncodeAll) -> list[Encoded]:
    """Each document as tokens with spans; none stands across the beginning of an answer."""
    found = encode_all([document.text for document in documents], True)
    cuts = [_cuts(document, one) for document, one in zip(documents, found, strict=True)]
    return [
        _joined(document.text, cut, encode_all) if cut else one for document, one, cut in zip(documents, found, cuts, strict=True)
    ]


def _cuts(document: Marked, encoded: Encoded) -> list[int]:
    """Where answers begin in the middle of a token."""
    begins = {start for start, _ in document.answers}
    return sorted({begin for start, stop in encoded.spans for begin in begins if start < begin < stop}) if begins else []


def _joined(text: str, cuts: Sequence[int], encode_all: EncodeAll) -> Encoded:
    edges = [0, *cuts, len(text)]
    pieces = encode_all([text[start:stop] for start, stop in pairwise(edges)], True)
    shifted = [(start + edge, stop + edge) for edge, one in zip(edges, pieces, strict=False) for start, stop in one.spans]
    return Encoded(ids=[number for one in pieces for number in one.ids], spans=shifted)


def targets_of(document: Marked, encoded: Encoded, special: Container[int]) -> list[int]:
    """1 for each token that lies in an answer as a whole; white space after an answer's last special token is none of it."""
    found = [0] * len(encoded.ids)
    for start, stop in document.answers:
        own = [at for at, span in enumerate(encoded.spans) if start <= span[0] < span[1] <= stop]
        ends = [encoded.spans[at][1] for at in own if encoded.ids[at] in special]
        if ends and not document.text[ends[-1] : stop].strip():
            own = [at for at in own if encoded.spans[at][1] <= ends[-1]]
        for at in own:
            found[at] = 1
    return found
