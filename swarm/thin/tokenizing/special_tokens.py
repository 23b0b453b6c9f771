"""Special tokens of a checkpoint.

Read from every file that may name them, by tokenizers.

transformers looks into `tokenizer_config.json`, and for old checkpoints into `special_tokens_map.json` and `added_tokens.json` too. Here
are the same rules in the same order (`PreTrainedTokenizerBase._from_pretrained`, `TokenizersBackend.__init__`), since the order in
which tokens are added decides their ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from protocols.errors import CheckpointError
from swarm.checkpoints.bounds import read_json

STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Names that every tokenizer has, in transformers' order; a checkpoint may add others, as `image_token`."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """What a checkpoint says beside `tokenizer.json`."""

    named: Mapping[str, AddedToken | str]
    """`bos_token`, `eos_token`, …: chat templates use these names."""

    listed: Sequence[AddedToken]
    """Tokens with an id of their own, in the order of the ids."""

    extra: Sequence[AddedToken | str]
    """Special tokens without a name."""

    def names(self) -> dict[str, str]:
        """The named tokens as text."""
        return {name: str(token) for name, token in self.named.items()}

    def missing_from(self, present: Sequence[AddedToken]) -> list[AddedToken]:
        """The tokens that a tokenizer whose added tokens are `present` does not have yet, in the order in which they get their ids."""
        known = {repr(token) for token in present}
        found: list[AddedToken] = [token for token in self.listed if repr(token) not in known]
        seen = {str(token) for token in (*present, *found)}
        names = {str(token) for token in self.named.values()}
        for token in (*self.named.values(), *self.extra):
            if str(token) not in seen:
                seen.add(str(token))
                found.append(AddedToken(token, special=True) if isinstance(token, str) else token)
        return [_as_special(token) if str(token) in names else token for token in found]


def read(folder: Path, config: Mapping[str, Any], present: Mapping[int, AddedToken], padding: str | None) -> SpecialTokens:
    """The special tokens of the checkpoint in `folder`.

    config: its `tokenizer_config.json`. present: the added tokens of `tokenizer.json`, by id. padding: the token that it pads with.
    CheckpointError if a file does not parse.
    """
    said = dict(config)
    if said.get("additional_special_tokens") and not said.get("extra_special_tokens"):
        said["extra_special_tokens"] = said.pop("additional_special_tokens")
    listed = said.get("added_tokens_decoder")
    by_id: dict[int, AddedToken]
    if isinstance(listed, dict):  # then transformers reads neither of the two old files
        by_id = dict(_by_id(listed))
    else:
        said |= _from_map(folder, said)
        by_id = _from_added(folder, said) | dict(present)
    by_text = {str(token): token for token in by_id.values()}
    named = {name: by_text.get(str(token), token) if name in STANDARD else token for name, token in _named(said).items()}
    if padding is not None and "pad_token" not in said:
        named.setdefault("pad_token", padding)
    extra = said.get("extra_special_tokens") or said.get("additional_special_tokens") or []
    order = (*STANDARD, *named)
    return SpecialTokens(
        named={name: named[name] for name in dict.fromkeys(order) if name in named},
        listed=[token for _, token in sorted(by_id.items())],
        extra=[token for one in (extra if isinstance(extra, list) else []) if (token := _token(one)) is not None],
    )


def _named(said: Mapping[str, Any]) -> dict[str, AddedToken | str]:
    own = said.get("extra_special_tokens")
    values = {name: value for name, value in said.items() if name.endswith("_token")} | (own if isinstance(own, dict) else {})
    return {name: token for name, value in values.items() if (token := _token(value)) is not None}


def _from_map(folder: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """What `special_tokens_map.json` says, which wins over `tokenizer_config.json`."""
    path = folder / "special_tokens_map.json"
    if not path.exists():
        return {}
    found = {name: _special(value) for name, value in read_json(path).items()}
    more = found.get("extra_special_tokens")
    if isinstance(more, list):
        before = said.get("extra_special_tokens") or []
        found["extra_special_tokens"] = [*before, *(special for token in more if (special := _special(token)) not in before)]
    return found


def _special(value: object) -> object:
    """A token of `special_tokens_map.json`: one that is written as an object is special whatever it says."""
    return {**value, "special": True} if isinstance(value, dict) and "content" in value else value


def _from_added(folder: Path, said: Mapping[str, Any]) -> dict[int, AddedToken]:
    """What `added_tokens.json` lists: text and id of each token."""
    path = folder / "added_tokens.json"
    if not path.exists():
        return {}
    extra = said.get("extra_special_tokens")
    special = {str(token) for name in STANDARD if (token := _token(said.get(name))) is not None}
    special |= {str(token) for one in (extra if isinstance(extra, list) else []) if (token := _token(one)) is not None}
    found = {}
    for text, number in read_json(path).items():
        if type(number) is not int or number < 0:
            raise CheckpointError(f"{path}: {text[:40]!r} has the id {str(number)[:40]}, expected a whole number")
        found[number] = AddedToken(text, normalized=text not in special, special=text in special)
    return found


def _by_id(listed: Mapping[str, object]) -> Iterator[tuple[int, AddedToken]]:
    for number, value in listed.items():
        token = _token(value)
        if not number.isdecimal() or not isinstance(token, AddedToken):
            raise CheckpointError(
                f"tokenizer_config.json: added_tokens_decoder has {number[:20]!r}: {str(value)[:60]}, expected an id and a token"
            )
        yield int(number), token


def _token(value: object) -> AddedToken | str | None:
    """A token as text, or as an object with flags; None if it is neither."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return None
    return AddedToken(value["content"], **{name: value[name] for name in _FLAGS if isinstance(value.get(name), bool)})


def _as_special(token: AddedToken) -> AddedToken:
    token.special = True
    return token
