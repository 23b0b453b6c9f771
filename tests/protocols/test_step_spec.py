"""A step's description: what a client may send, every node takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import inference
from protocols.defaults import MAX_TOP
from protocols.errors import BadRequestError
from protocols.logit_changes import MAX_CHANGES_BYTES
from protocols.step_spec import KINDS, MAX_MASK_BYTES, MAX_WANT, PASS_ON, RESULTS, StepSpec
from tests.protocols.samples import SAMPLES

specs = st.builds(
    StepSpec,
    kind=st.sampled_from(KINDS),
    want=st.integers(-3, 2) | st.integers(MAX_WANT - 1, MAX_WANT + 1),
    result=st.sampled_from(RESULTS),
    top=st.integers(-1, 2) | st.integers(MAX_TOP - 1, MAX_TOP + 1),
    own=st.integers(-1, 2) | st.integers(MAX_TOP, MAX_TOP + 1),
    temperature=st.sampled_from([0.0, 0.7, -1.0, 1e-9, 1e9]),
    changes=st.binary(max_size=3) | st.sampled_from([bytes(MAX_CHANGES_BYTES), bytes(MAX_CHANGES_BYTES + 1)]),
    mask=st.binary(max_size=3) | st.sampled_from([bytes(MAX_MASK_BYTES), bytes(MAX_MASK_BYTES + 1)]),
)


@given(specs)
def test_what_a_client_s_check_lets_out_every_node_takes(spec: StepSpec) -> None:
    """Else honest nodes were blamed for a mistake of our own."""
    try:
        spec.check()
    except BadRequestError:
        return
    assert inference.parse(replace(SAMPLES["step"], spec=spec).encode()).spec == spec


@pytest.mark.parametrize(
    "spec",
    [
        StepSpec(want=-2),
        StepSpec(want=MAX_WANT + 1),
        StepSpec(kind="ids", result="top", top=MAX_TOP + 1),
        StepSpec(kind="ids", result="top"),
        StepSpec(kind="ids", result="top", top=1, own=1),
        StepSpec(kind="ids", result="scored", own=1),
        StepSpec(kind="ids", result="scored", top=1, own=MAX_TOP + 1),
        StepSpec(kind="ids", result="logits", top=3),
        StepSpec(kind="ids", result="logits", mask=b"x"),
        StepSpec(kind="ids", result="logits", temperature=0.7),
        StepSpec(kind="ids", result="top", top=1, temperature=-1.0),
        StepSpec(kind="ids", result="top", top=1, temperature=float("nan")),
        StepSpec(kind="ids", result="top", top=1, mask=bytes(MAX_MASK_BYTES + 1)),
        StepSpec(kind="ids", result="logits", changes=b"x"),
        StepSpec(kind="ids", result="top", top=1, changes=bytes(MAX_CHANGES_BYTES + 1)),
        StepSpec(result="logits"),
        StepSpec(result="pooled"),
        StepSpec(kind="ids", result="pooled", top=1),
        StepSpec(kind="ids", result="pooled", mask=b"x"),
        StepSpec(kind="text"),
    ],
)
def test_a_spec_that_no_node_takes_is_refused_by_the_client(spec: StepSpec) -> None:
    with pytest.raises(BadRequestError):
        spec.check()


def test_a_hop_changes_only_what_the_next_one_must_get() -> None:
    spec = StepSpec(kind="ids", want=1, result="top", top=5, priority=-3)
    assert spec.below() == replace(spec, kind="hidden")
    assert spec.passed_on() == StepSpec(kind="ids", priority=-3)
    masked = replace(spec, mask=b"x")
    assert masked.below().mask == masked.wanting(2).mask == b"x" and not masked.wanting(0).mask and not masked.passed_on().mask
    assert PASS_ON.below() is PASS_ON.passed_on() is PASS_ON.wanting(PASS_ON.want) is PASS_ON
