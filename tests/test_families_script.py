"""`scripts/families`: its verdicts on a few configurations.

A worker that dies costs one of them, and the page is what was found.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from families import Worker, earlier  # noqa: E402
from family_check import check, greedy  # noqa: E402
from family_configs import all_configurations, shrunk  # noqa: E402
from family_table import EXACT, summary, table  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("qwen3", "packed"),
        ("falcon: alibi", "paged"),
        ("gpt_neo", "serial"),
        ("jamba", "paged"),
        ("emu3", "packed"),
        ("deepseek_v4", "refused"),
    ],
)
def test_a_configuration_gets_its_verdict(name: str, verdict: str) -> None:
    outcome = check(name, all_configurations()[name])
    assert outcome.verdict == verdict, outcome
    assert outcome.architecture and (verdict != "refused" or outcome.reason)


def test_a_model_that_computes_something_else_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself is checked: tokens that are wrong in one place must show."""

    def wrong(model: object, ids: object, **options: object) -> object:
        tokens = greedy(model, ids, **options)  # type: ignore[arg-type]
        if "Swarm" in str(type(model).__mro__):
            tokens[0, -3] += 1
        return tokens

    monkeypatch.setattr("family_check.greedy", wrong)
    outcome = check("llama", all_configurations()["llama"])
    assert outcome.verdict == "differs" and "22" in outcome.reason


def test_every_type_of_transformers_is_among_the_configurations() -> None:
    names = list(all_configurations())
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= set(names)
    assert len(names) == len(set(names)) and names == list(all_configurations())


def test_a_configuration_that_cannot_be_made_is_incomparable() -> None:
    assert check("odd", lambda: shrunk("llama", {"hidden_size": -1})).verdict == "incomparable"


def test_a_worker_that_dies_or_hangs_fails_one_configuration_only() -> None:
    worker = Worker(limit_s=60.0, show_errors=False)
    try:
        dead = worker.check("no such configuration")
        assert (dead["verdict"], "died" in dead["reason"]) == ("fails", True)
        assert worker.check("gpt2")["verdict"] == "packed"
    finally:
        worker.stop()
    hasty = Worker(limit_s=0.01, show_errors=False)
    assert hasty.check("gpt2")["reason"].startswith("no answer within")


def test_outcomes_survive_a_line_that_was_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.jsonl"
    file.write_text(json.dumps({"name": "llama", "verdict": "packed"}) + "\n" + '{"name": "gpt2", "ver')
    assert list(earlier(file)) == ["llama"]


def test_the_page_counts_what_it_lists_and_promises_at_least_130() -> None:
    page = (ROOT / "docs" / "families.md").read_text()
    counted = re.search(r"\*\*(\d+) exact\*\*", page)
    rows = page.partition("## Exact")[2].partition("## Not served")[0].count("\n| ") - 1
    assert counted and int(counted[1]) == rows >= 130


def test_a_table_holds_one_row_for_each_outcome() -> None:
    outcomes = [
        {"name": name, "verdict": verdict, "architecture": "A", "reason": "a|b", "remark": ""}
        for name, verdict in [("one", "packed"), ("two", "serial"), ("three", "refused")]
    ]
    assert "3 configurations, **2 exact** (1 packed, 0 paged, 1 one by one); 1 refused." in summary(outcomes)
    assert [line for line in table(outcomes).splitlines() if line.startswith("| three")] == ["| three | A | refused | a\\|b |"]
    assert set(EXACT) == {"packed", "paged", "serial"}
