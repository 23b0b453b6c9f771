"""What a step's tokens are, and what is wanted back.

One object describes a step from the client's call to the engine of a node. A hop changes only what the next hop must get (`below`), or
what its place in the route demands (`passed_on`). A new wish of clients is one more field here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from protocols import fields
from protocols.defaults import MAX_TOP
from protocols.errors import BadRequestError
from protocols.logit_changes import MAX_CHANGES_BYTES

WANT_NONE, WANT_ALL = 0, -1
MAX_WANT = 1 << 16
"""Last tokens of a sequence that a step may want back; more than a step brings, so that it bounds only the number in the message."""

MAX_MASK_BYTES = 1 << 17
"""Of a vocabulary of a million."""

EXCLUDED = -3.0e38
"""A logit below this is of a token that the mask excludes."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e6

KINDS = ("hidden", "ids", "embeds")
"""What the tokens of a step are: hidden states [T, H] between blocks; token ids [T] int32 or a caller's embeddings [T, E], which the
first hop puts through the model's own embedding stage. A session that brings either of the last two is thin."""

RESULTS = ("hidden", "logits", "top", "scored", "pooled")
"""What the last hop answers: hidden states [T', H]; float32 logits [T', V]; the `top` largest of them, values [T', k] and ids
[T', k] int32, largest first, ties to the lowest id; the same with what scores need (`scored`): behind these k, the model's own logits of
the same tokens, before changes and masks, and its `own` largest, [T', k + k + own] with their ids; or, of a step of one sequence, the sum
of its final hidden states [1, H] float32, with the model's last norm, over the tokens T' that are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec:
    """By default: hidden states in, those of all tokens out, as in the middle of a route."""

    kind: str = "hidden"
    """One of `KINDS`."""
    want: int = WANT_ALL
    """Tokens that come back: 0 none, -1 all, n the last n of each sequence."""
    result: str = "hidden"
    """One of `RESULTS`."""
    top: int = 0
    """How many of the largest logits come back, from 1 on; 0 if `result` is neither "top" nor "scored"."""
    own: int = 0
    """How many of the model's own largest logits come back; 0 if `result` is not "scored"."""
    mask: bytes = field(default=b"", repr=False)
    """Which tokens count for the largest logits, a bit for each id of the vocabulary: bit `id % 8` of byte `id // 8`; empty = all. It holds
    for every token that comes back, so a step with a mask mostly wants one. If too few are allowed, others follow, below `EXCLUDED`."""
    changes: bytes = field(default=b"", repr=False)
    """How single logits are changed before that, as `LogitChanges` packs it; empty = not at all. It holds for every token that comes back.
    A node that does not know it finds a mask of a wrong size, and refuses the step."""
    temperature: float = 0.0
    """Above 0: beside the largest logits comes, for each token, the logarithm of the sum of exp(logit / temperature) over all logits that
    the mask allows, as they were changed. With it, a client knows how likely the largest are, and needs no others. A scored step gets two
    such sums for each token, [T', 2]: this one, and that of the model's own logits at temperature 1, which stands twice if this is 0."""
    priority: int = 0
    """Below 0: others go first. Above 0 counts as 0, for as long as nodes cannot tell a contributor from an untrusted peer."""

    @property
    def is_thin(self) -> bool:
        """The tokens need the model's embedding."""
        return self.kind != "hidden"

    @property
    def is_top(self) -> bool:
        """Only the largest logits come back."""
        return self.result in ("top", "scored")

    @property
    def num_values(self) -> int:
        """Logits that come back for each token, of a result that is the largest of them."""
        return 2 * self.top + self.own if self.result == "scored" else self.top

    def check(self) -> None:
        """BadRequestError if the fields do not fit each other: what a client asks of its own session."""
        if self.kind not in KINDS or self.result not in RESULTS:
            raise BadRequestError(
                f"tokens are {', '.join(KINDS)}, results {', '.join(RESULTS)}; got {self.kind!r} and {self.result!r}"
            )
        if not WANT_ALL <= self.want <= MAX_WANT:
            raise BadRequestError(f"want is -1 for all tokens, 0 for none, or up to {MAX_WANT} tokens; got {self.want}")
        self._check_logits()
        if not self.is_thin and self.result != "hidden":
            raise BadRequestError(
                f"hidden states come from a client with the model's head, which gets hidden states, not {self.result}"
            )

    def wanting(self, want: int) -> StepSpec:
        """The same for a prefill chunk of the step, which wants `want` of its tokens."""
        if want == self.want:
            return self
        return replace(self, want=want) if want else replace(self, want=0, mask=b"", changes=b"")

    def answered(self, kept: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of each sequence in the reply, of which `kept` are wanted: a sum is one."""
        return tuple([min(1, count) for count in kept]) if self.result == "pooled" else kept

    def below(self) -> StepSpec:
        """What the next hop gets: this one has turned the tokens into hidden states."""
        return self if self.kind == "hidden" else replace(self, kind="hidden")

    def passed_on(self) -> StepSpec:
        """What a hop makes of it that is not the last: hidden states of all tokens."""
        if (self.want, self.result) == (WANT_ALL, "hidden"):
            return self
        return StepSpec(kind=self.kind, priority=self.priority)

    @classmethod
    def parse(cls, header: fields.Header, second: bytes = b"") -> StepSpec:
        """From the header of a step, and its second buffer; BadRequestError if a field is out of its bounds."""
        size = fields.integer(header, "changes", 0, min(len(second), MAX_CHANGES_BYTES)) if "changes" in header else 0
        changes, mask = second[:size], second[size:]
        spec = cls(
            want=fields.integer(header, "want", -1, MAX_WANT),
            kind=fields.one_of(header, "kind", KINDS),
            result=fields.one_of(header, "result", RESULTS),
            top=fields.integer(header, "top", 0, MAX_TOP),
            own=fields.integer(header, "own", 0, MAX_TOP) if "own" in header else 0,
            mask=mask,
            changes=changes,
            temperature=fields.number(header, "temperature", 0, MAX_TEMPERATURE) if "temperature" in header else 0.0,
            priority=fields.integer(header, "priority", -100, 100),
        )
        spec._check_logits()
        return spec

    def _check_logits(self) -> None:
        """BadRequestError if what is asked of logits does not fit the result."""
        _check_top(self)
        _check_mask(self)
        _check_changes(self)
        _check_temperature(self)


PASS_ON = StepSpec()
"""Hidden states in, those of all tokens out: what a hop in the middle of a route does."""


def _check_top(spec: StepSpec) -> None:
    if not (1 <= spec.top <= MAX_TOP if spec.is_top else spec.top == 0):
        raise BadRequestError(
            f"top is 1 to {MAX_TOP} if the result is the largest logits, and else 0; got {spec.top} for {spec.result!r}"
        )
    if not (0 <= spec.own <= MAX_TOP if spec.result == "scored" else spec.own == 0):
        raise BadRequestError(f"own is up to {MAX_TOP} if the result is 'scored', and else 0; got {spec.own} for {spec.result!r}")


def _check_mask(spec: StepSpec) -> None:
    if spec.mask and (not spec.is_top or len(spec.mask) > MAX_MASK_BYTES):
        raise BadRequestError(
            f"a mask of tokens is for the largest logits and has at most {MAX_MASK_BYTES} bytes; got {len(spec.mask)} for {spec.result!r}"
        )


def _check_changes(spec: StepSpec) -> None:
    if spec.changes and (not spec.is_top or len(spec.changes) > MAX_CHANGES_BYTES):
        raise BadRequestError(
            f"changes are for the largest logits and have at most {MAX_CHANGES_BYTES} bytes; got {len(spec.changes)} for {spec.result!r}"
        )


def _check_temperature(spec: StepSpec) -> None:
    if spec.temperature and not (spec.is_top and MIN_TEMPERATURE <= spec.temperature <= MAX_TEMPERATURE):
        raise BadRequestError(
            f"a temperature is for the largest logits, {MIN_TEMPERATURE} to {MAX_TEMPERATURE:.0f}; got {spec.temperature} for "
            f"{spec.result!r}"
        )
