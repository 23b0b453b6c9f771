"""How much of a gateway's memory and time visitors can take."""

from __future__ import annotations

import httpx
import pytest

from node.gateway import page
from protocols.ids import Span
from tests.node.dashboard.made_swarm import MadeSource, made_record, serving


@pytest.mark.parametrize("path", ["", "no-such-page", "peer/_nicegui"])
def test_only_so_many_visitors_are_let_in_whatever_they_ask_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nicegui import Client

    before = len(Client.instances)
    monkeypatch.setattr(page, "MAX_VISITORS", before + 4)
    with serving(MadeSource([made_record(1, Span(0, 3), 6, "first")])) as url, httpx.Client() as visitor:
        answers = [visitor.get(url + path) for _ in range(2 * (before + 4) + 4)]
        assert answers[0].status_code in (200, 404) and answers[-1].status_code == 503 and answers[-1].headers["retry-after"]
        assert len(Client.instances) <= 2 * (before + 4)


def test_a_part_of_a_page_that_is_not_there_makes_no_visitor() -> None:
    from nicegui import Client

    with serving(MadeSource([made_record(1, Span(0, 3), 6, "first")])) as url, httpx.Client() as visitor:
        before = len(Client.instances)
        assert {visitor.get(f"{url}_nicegui/no-such-file").status_code for _ in range(3)} == {404}
        assert len(Client.instances) == before
