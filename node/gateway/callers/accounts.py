"""Who asks, and what they have left.

Each request looks whether the file of keys has changed, so a new key works at once, and a revoked one no longer.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers

from node import api_keys
from node.api_keys import Key
from node.gateway.callers import spent
from node.gateway.callers.budgets import Left, RequestBudget, TokenBudget, after_s, headers
from node.gateway.http.refusal import RefusedError
from protocols.errors import ConfigError
from swarm.clock import Clock

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Account:
    """One caller's budgets."""

    name: str
    """The key's name; "" = all clients of a gateway without keys."""

    clock: Clock
    requests: RequestBudget | None = None
    tokens: TokenBudget | None = None
    is_operator: bool = False
    """May give orders on the page."""

    owner: str = ""
    """Prompts of one owner share their first tokens. It is the hash of a key, so a new key shares nothing with an old one of that name."""

    @classmethod
    def of(cls, key: Key, clock: Clock) -> Account:
        requests = None if key.requests_per_minute is None else RequestBudget(key.requests_per_minute)
        tokens = None if key.tokens_per_day is None else TokenBudget(key.tokens_per_day)
        return cls(key.name, clock, requests, tokens, key.is_operator, key.sha256)

    def take_request(self) -> None:
        """Count one request that generates; RefusedError (429) if it is one too many, or no token is left."""
        if self.tokens is not None and not (left := self.tokens.left(self.clock.unix_s())).remaining:
            raise _spent(f"all {left.limit:,} tokens of this key for today (UTC) are used", "tokens", left)
        if self.requests is not None and not self.requests.take(now_s := self.clock.now_s()):
            left = self.requests.left(now_s)
            raise _spent(f"this key may send {left.limit:,} requests a minute", "requests", left)

    def take_prompt(self, num_tokens: int) -> None:
        """Count a prompt; RefusedError (429) if it would leave nothing for its answer."""
        if self.tokens is not None and not self.tokens.take(num_tokens, unix_s := self.clock.unix_s()):
            left = self.tokens.left(unix_s)
            message = f"the prompt has {num_tokens:,} tokens, and this key has {left.remaining:,} of {left.limit:,} left for today (UTC)"
            raise _spent(message, "tokens", left)

    def add_token(self) -> bool:
        """Count one token of an answer. Returns whether there may be more."""
        return self.tokens is None or self.tokens.add(1, self.clock.unix_s())

    def headers(self) -> dict[str, str]:
        """What is left, for the client."""
        return headers(
            None if self.requests is None else self.requests.left(self.clock.now_s()),
            None if self.tokens is None else self.tokens.left(self.clock.unix_s()),
        )


def _spent(message: str, what: str, left: Left) -> RefusedError:
    retry_after_s = after_s(left.wait_s or left.reset_s)
    return RefusedError(f"{message}; try again in {retry_after_s} s", None, f"{what}_exhausted", 429, retry_after_s)


class Accounts:
    """All callers. Methods belong to one event loop."""

    def __init__(self, path: Path | None, clock: Clock) -> None:
        """path: of the keys; None = there are none. ConfigError if the file is damaged."""
        self._path, self._clock = path, clock
        self._anybody = Account("", clock)
        self._stamp: api_keys.Stamp = None
        self._accounts: dict[str, Account] = {}
        self._keys: tuple[Key, ...] = ()
        self._kept: spent.Spent = {} if path is None else spent.read(path.with_name(spent.FILE))
        """What the file says that the keys have used."""

        self.needs_key = False
        """It stays true once there was a key: the gateway does not become public if the last key is revoked."""
        if path is not None:
            self._stamp = api_keys.stamp(path)
            self._use(api_keys.read(path))

    def of(self, given: Headers) -> Account:
        """The account of a request, by its headers; RefusedError (401) without a key, if one is needed."""
        self._look()
        if not self.needs_key:
            return self._anybody
        secret = key_in(given)
        if secret is None:
            raise _unknown("a key is missing: send one as `Authorization: Bearer KEY` or `x-api-key: KEY`")
        key = api_keys.matching(self._keys, secret)
        if key is None:
            raise _unknown("this key is not known here, or was revoked; ask the operator of this gateway for another one")
        return self._accounts[key.sha256]

    def is_known(self, given: Headers) -> bool:
        """Whether a request with these headers would be answered."""
        try:
            self.of(given)
        except RefusedError:
            return False
        return True

    async def keep(self) -> None:
        """Write what was used of today's tokens, if that has changed."""
        now = {name: one.tokens.spent for name, one in self._accounts.items() if one.tokens is not None and one.tokens.spent[1]}
        if self._path is not None and now != self._kept:
            self._kept = now
            await asyncio.to_thread(spent.write, self._path.with_name(spent.FILE), now)

    def _resumed(self, key: Key) -> Account:
        account = Account.of(key, self._clock)
        if account.tokens is not None and key.sha256 in self._kept:
            account.tokens.resume(*self._kept[key.sha256])
        return account

    def _look(self) -> None:
        """Read the keys again if the file has changed; if it cannot be read, they stay as they were."""
        if self._path is None or (now := api_keys.stamp(self._path)) == self._stamp:
            return
        self._stamp = now
        try:
            self._use(api_keys.read(self._path))
        except ConfigError as error:
            log.warning("%s; the keys stay as they were", error)

    def _use(self, keys: tuple[Key, ...]) -> None:
        known = self._accounts
        self._accounts = {key.sha256: known.get(key.sha256) or self._resumed(key) for key in keys}
        for key in keys:
            self._accounts[key.sha256].is_operator = key.is_operator
        self._keys, self.needs_key = keys, self.needs_key or bool(keys)


def key_in(given: Headers) -> str | None:
    """The key that a request brings: OpenAI's header, or else Anthropic's."""
    kind, _, secret = given.get("authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" and secret.strip() else given.get("x-api-key") or None


def _unknown(message: str) -> RefusedError:
    return RefusedError(message, code="invalid_api_key", status=401)
