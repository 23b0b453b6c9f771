"""One trace follows a request over the gateway and the hops."""

from __future__ import annotations

import signal

import pytest

from tests.node.gateway.processes.conftest import GatewaySwarm, serve

TRACE, ABOVE, NEW = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 6
FIELDS = {"model": "tiny", "prompt": "The quick", "max_tokens": NEW}


def test_a_request_goes_on_with_the_trace_of_its_client_over_all_hops_that_keep_traces(swarm: GatewaySwarm) -> None:
    gateway = serve(swarm.pool, "traced", "tiny", "--peer", swarm.peer, "--otlp", swarm.collector.url)
    gateway.wait_for("ready")
    client = swarm.client.with_options(base_url=gateway.said["address"])
    headers = {"traceparent": f"00-{TRACE}-{ABOVE}-01"}
    made = client.completions.create(**FIELDS, n=2, temperature=1.0, seed=1, extra_headers=headers)
    gateway.end(signal.SIGTERM)  # which sends what waits
    num_steps = made.usage.completion_tokens

    spans = swarm.collector.of(TRACE, lambda found: sum(one.name == "hop" for one in found) == num_steps)
    by_name = {name: [one for one in spans if one.name == name] for name in ("answer", "step", "hop")}
    (request,) = [one for one in spans if one.name == "POST /v1/completions"]
    assert request.parent == ABOVE and len(spans) == 1 + 2 + num_steps + num_steps
    assert {one.service for one in spans if one.name != "hop"} == {"murmuration-gateway"}
    assert request.fields["gen_ai.request.model"] == "tiny" and request.fields["gen_ai.usage.output_tokens"] == num_steps
    assert {one.parent for one in by_name["answer"]} == {request.span}
    assert {one.parent for one in by_name["step"]} == {one.span for one in by_name["answer"]}
    assert sum(one.fields["murmuration.t7_ms"] for one in by_name["answer"]) > 0

    steps = {one.span: one for one in by_name["step"]}
    assert sorted(one.parent for one in by_name["hop"]) == sorted(steps)  # once each, also through the node that keeps no traces
    for hop in by_name["hop"]:
        step = steps[hop.parent]
        assert (hop.service, hop.instance, hop.fields["murmuration.hop"]) == ("murmuration-node", "second", 1)
        assert step.start_ns < hop.start_ns < hop.end_ns < step.end_ns  # one machine, one clock
        assert hop.fields["murmuration.tokens"] == step.fields["murmuration.tokens"] in (1, len("The quick"))
        assert 0 < hop.fields["murmuration.compute_ms"] <= (hop.end_ns - hop.start_ns) / 1e6


@pytest.mark.parametrize("header", [f"00-{TRACE[::-1]}-{ABOVE}-00", None], ids=["a trace that is not sampled", "no trace"])
def test_a_gateway_without_an_endpoint_and_a_trace_that_is_not_kept_send_no_spans(
    swarm: GatewaySwarm, header: str | None
) -> None:
    before = len(swarm.collector.spans)
    swarm.client.completions.create(**FIELDS, extra_headers={} if header is None else {"traceparent": header})
    assert len(swarm.collector.spans) == before


def test_a_url_that_is_none_is_refused(swarm: GatewaySwarm) -> None:
    refused = swarm.pool.start(
        "refused", ["serve", "tiny", "--otlp", "localhost:4318", "--data-dir", str(swarm.pool.folder / "no")]
    )
    assert refused.has_ended(60.0) and "--otlp is a URL" in refused.last_words()
