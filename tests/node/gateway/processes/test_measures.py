"""A chat is counted at the gateway and at a node."""

from __future__ import annotations

from tests.node.gateway.processes.conftest import GatewaySwarm
from tests.scraped import Page, page_where

NEW = 8


def test_the_parts_of_an_answer_are_counted_at_the_gateway_and_at_the_node(swarm: GatewaySwarm) -> None:
    node, gateway = swarm.nodes[0].said["metrics"], swarm.url.replace("/v1", "/metrics")
    before, before_at_gateway = Page(node), Page(gateway)
    made = swarm.client.completions.create(model="tiny", prompt="The quick", max_tokens=NEW, extra_body={"timings": True})
    num_steps, told = made.usage.completion_tokens, made.timings[0]

    after = page_where(gateway, lambda page: page.value("murmuration_open_sessions", model="tiny") == 0)
    for stage in [f"T{number}" for number in range(1, 10)]:
        for part in ("prompt", "token") if stage > "T3" else ("prompt",):
            labels, name = {"stage": stage, "part": part}, "murmuration_answer_stage_seconds"
            assert after.value(f"{name}_count", **labels) - before_at_gateway.value(f"{name}_count", **labels) == 1
            spent_s = after.value(f"{name}_sum", **labels) - before_at_gateway.value(f"{name}_sum", **labels)
            ms = (
                told[stage]
                if stage <= "T3"
                else told["prompt"][stage]
                if part == "prompt"
                else told["later"][stage] / (num_steps - 1)
            )
            assert abs(spent_s * 1e3 - ms) < 0.01

    ended = page_where(node, lambda page: page.value("murmuration_node_sessions") == 0)
    name, own = "murmuration_step_stage_seconds", next(hop for hop in told["hops"] if hop["peer"] == swarm.nodes[0].said["peer"])
    for stage in ("T5", "T6", "T7"):
        assert ended.value(f"{name}_count", stage=stage) - before.value(f"{name}_count", stage=stage) == num_steps
        assert abs(1e3 * (ended.value(f"{name}_sum", stage=stage) - before.value(f"{name}_sum", stage=stage)) - own[stage]) < 0.1
    tokens = {part: ended.value("murmuration_step_tokens_total", part=part) for part in ("prompt", "token")}
    assert tokens["prompt"] - before.value("murmuration_step_tokens_total", part="prompt") == len("The quick")
    assert tokens["token"] - before.value("murmuration_step_tokens_total", part="token") == num_steps - 1
    assert ended.value("murmuration_step_sent_bytes_total") > before.value("murmuration_step_sent_bytes_total")
    assert ended.value("murmuration_node_hosted_blocks") == 2 and ended.value("murmuration_node_free_bytes") > 1 << 20
