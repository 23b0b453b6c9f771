"""The page docs/families.md, made from the outcomes of `scripts/families`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import transformers

EXACT = {"packed": "exact, packed", "paged": "exact, paged", "serial": "exact, one by one"}
OTHERS = {
    "refused": "refused",
    "differs": "differs",
    "fails": "fails",
    "incomparable": "incomparable",
}

_HEAD = """# Families

<!-- written by scripts/families; do not edit -->

{summary}

Every causal language model that transformers has (`MODEL_FOR_CAUSAL_LM_MAPPING`) and further forms of many, tiny and with random
weights in float32, runs through two nodes' spans in one process, by the `load_span`, `choose_engine` and client of a real swarm.
*Exact*: the logits of a prompt differ from plain transformers by at most 1e-4 of the largest (usually 1e-6), and greedy `generate`
gives the same 24 tokens, for one prompt and for a batch of two of different lengths.

- **packed**: all sequences of all sessions on one token axis, the fastest; decodes replay captured graphs unless a remark says
  otherwise. **paged**: sequences side by side, with the model's own masks. **one by one**: one sequence per forward. A self-test at
  load decides which engine serves (see [architecture.md](architecture.md#many-users-at-one-hop)).
- **refused**: the loader or the self-test refuses before anything is computed, for the reason given.
- **incomparable**: transformers alone does not run such a configuration, so there is nothing to compare with.
- `type: form` is a form of a type, `tests: name` a configuration that the test suite uses.
"""


def summary(outcomes: Sequence[dict[str, Any]]) -> str:
    """One line: how many of each verdict."""
    counts = Counter(outcome["verdict"] for outcome in outcomes)
    exact = sum(counts[verdict] for verdict in EXACT)
    others = ", ".join(f"{counts[verdict]} {word}" for verdict, word in OTHERS.items() if counts[verdict])
    return (
        f"transformers {transformers.__version__}: {len(outcomes)} configurations, **{exact} exact** "
        f"({counts['packed']} packed, {counts['paged']} paged, {counts['serial']} one by one)"
        + (f"; {others}" if others else "")
        + "."
    )


def table(outcomes: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    exact = [outcome for outcome in outcomes if outcome["verdict"] in EXACT]
    others = [outcome for outcome in outcomes if outcome["verdict"] not in EXACT]
    lines = [_HEAD.format(summary=summary(outcomes))]
    lines += ["## Exact", "", "| configuration | class | served | remark |", "|---|---|---|---|"]
    lines += [_row(outcome, EXACT[outcome["verdict"]].partition(", ")[2], _remark(outcome)) for outcome in exact]
    lines += ["", "## Not served", "", "| configuration | class | verdict | reason |", "|---|---|---|---|"]
    lines += [_row(outcome, OTHERS[outcome["verdict"]], outcome["reason"]) for outcome in others]
    return "\n".join(lines) + "\n"


def _remark(outcome: dict[str, Any]) -> str:
    return "; ".join(part for part in (outcome["reason"], outcome["remark"]) if part)


def _row(outcome: dict[str, Any], verdict: str, text: str) -> str:
    cell = text.replace("|", "\\|")
    return f"| {outcome['name']} | {outcome['architecture']} | {verdict} | {cell} |"
