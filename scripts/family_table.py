"""The page docs/families.md, made from the outcomes of `scripts/families`."""

from __future__ import annotations

import re
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


_HEAD_OF_GRADIENTS = """- **gradients**: *equal* ({equal} of {count}) if one micro-batch through two training stages gives the loss, the
  gradients of every parameter and those of the hidden states that enter each stage, that the whole model gives in transformers, to
  1e-4 (`scripts/families --gradients`)."""
_NOTE = re.compile(r"- \*\*gradients\*\*.*\n(  .*\n)*")


def exact_names(page: str) -> list[str]:
    """The configurations that the page says are served exactly."""
    return [_cells(line)[0] for line in _exact_rows(page)]


def gradients_of(page: str) -> dict[str, str]:
    """The column of gradients on the page, by configuration; nothing if it has none."""
    return {cells[0]: cells[3] for cells in map(_cells, _exact_rows(page)) if len(cells) == len(_WITH_GRADIENTS)}


def with_gradients(page: str, verdicts: dict[str, str]) -> str:
    """The page with these verdicts as its column of gradients, and a sentence that counts them; as it is if there are none."""
    if not verdicts:
        return page
    kept = _NOTE.sub("", page).splitlines()
    start = kept.index("## Exact")
    equal = sum(verdict == "equal" for verdict in verdicts.values())
    note = _HEAD_OF_GRADIENTS.format(equal=equal, count=len(verdicts))
    stop = kept.index("## Not served")
    rows = [_with_cell(line, verdicts) if line.startswith("|") else line for line in kept[start:stop]]
    return "\n".join([*kept[: start - 1], note, "", *rows, *kept[stop:]]) + "\n"


_WITH_GRADIENTS = ("configuration", "class", "served", "gradients", "remark")


def _with_cell(line: str, verdicts: dict[str, str]) -> str:
    cells = _cells(line)
    rest = cells[len(cells) - 1 :]
    if cells[0] == "configuration":
        return f"| {' | '.join(_WITH_GRADIENTS)} |"
    if set(line) <= {"|", "-"}:
        return "|---" * len(_WITH_GRADIENTS) + "|"
    return f"| {' | '.join([*cells[:3], verdicts.get(cells[0], ''), *rest])} |"


def _exact_rows(page: str) -> list[str]:
    section = page.partition("## Exact\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| configuration")]


def _cells(line: str) -> list[str]:
    """What stands between the bars of a line; a bar with a backslash before it is text."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def summary_of_gradients(outcomes: Sequence[dict[str, Any]]) -> str:
    """One line: how many of each verdict."""
    counts = Counter(outcome["verdict"] for outcome in outcomes)
    return f"transformers {transformers.__version__}: gradients of {len(outcomes)} configurations: " + ", ".join(
        f"{count} {verdict}" for verdict, count in counts.most_common()
    )


def _remark(outcome: dict[str, Any]) -> str:
    return "; ".join(part for part in (outcome["reason"], outcome["remark"]) if part)


def _row(outcome: dict[str, Any], verdict: str, text: str) -> str:
    cell = text.replace("|", "\\|")
    return f"| {outcome['name']} | {outcome['architecture']} | {verdict} | {cell} |"
