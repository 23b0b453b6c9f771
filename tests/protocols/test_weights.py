"""A manifest's digest depends on the weights and on nothing else.

The parser takes only the canonical form.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from protocols import frame, weights
from protocols.errors import BadRequestError, FrameError, SwarmError
from tests.protocols.samples import MANIFEST, configs, manifests

CANONICAL = MANIFEST.canonical()


@settings(max_examples=100)
@given(manifests)
def test_the_canonical_form_is_read_back(manifest: weights.Manifest) -> None:
    again = weights.Manifest.from_canonical(manifest.canonical())
    assert again == manifest and again.digest == manifest.digest


@given(configs)
def test_a_config_does_not_depend_on_who_saved_it(config: dict[str, Any]) -> None:
    shuffled = dict(reversed(list(config.items())))
    canonical = weights.canonical_config(config)
    assert weights.canonical_config({**shuffled, "transformers_version": "9", "_name_or_path": "/home/me"}) == canonical
    assert weights.canonical_config(json.loads(json.dumps(config, indent=2))) == canonical
    assert weights.canonical_config({"text_config": {**config, "_name_or_path": "x"}}) == weights.canonical_config(
        {"text_config": config}
    )


def test_every_difference_changes_the_digest_and_is_named() -> None:
    first, second = MANIFEST.entries
    others = {
        "tensor 'scale': ours is F32 [] 0001": replace(MANIFEST, entries=(first, second._replace(root=bytes(32)))),
        "tensor 'scale': ours is F32 [] 00010203": replace(MANIFEST, entries=(first, second._replace(shape=(1,)))),
        "theirs is F16 []": replace(MANIFEST, entries=(first, second._replace(dtype="F16"))),
        "tensor 'scale': ours is F32 [] 000102030405…, theirs is absent": replace(MANIFEST, entries=(first,)),
        "tensor 'a': ours is absent": replace(MANIFEST, entries=(second._replace(name="a"), *MANIFEST.entries)),
        "config: 'hidden_size' is 4 here, 5 there": replace(MANIFEST, config=b'{"hidden_size":5,"model_type":"llama"}'),
        "config: 'rope' is None here, 1 there": replace(MANIFEST, config=b'{"hidden_size":4,"model_type":"llama","rope":1}'),
        "file 'tokenizer.json' differs": replace(MANIFEST, files=(weights.FileEntry("tokenizer.json", bytes(32)),)),
        "file 'tokenizer.json' differs, or one side lacks it": replace(MANIFEST, files=()),
    }
    assert weights.difference(MANIFEST, MANIFEST) is None
    assert len({other.digest for other in others.values()} | {MANIFEST.digest}) == len(others) + 1
    for text, other in others.items():
        assert text in str(weights.difference(MANIFEST, other))


HEX = "0" * 64
BAD_LINES = {
    "no magic": CANONICAL[1:],
    "magic of the future": CANONICAL.replace(b"manifest 1", b"manifest 2"),
    "no config": b"murmuration manifest 1\n",
    "empty": b"",
    "no line end": CANONICAL[:-1],
    "two line ends": CANONICAL + b"\n",
    "windows line ends": CANONICAL.replace(b"\n", b"\r\n"),
    "config not JSON": CANONICAL.replace(b'{"hidden', b"{hidden"),
    "config with spaces": CANONICAL.replace(b":4", b": 4"),
    "config unsorted": CANONICAL.replace(b'{"hidden_size":4,"model_type":"llama"}', b'{"model_type":"llama","hidden_size":4}'),
    "config with a key twice": CANONICAL.replace(b'{"hidden_size":4', b'{"hidden_size":3,"hidden_size":4'),
    "config a list": CANONICAL.replace(b'{"hidden_size":4,"model_type":"llama"}', b"[]"),
    "config with its saver": CANONICAL.replace(b'{"hidden', b'{"_name_or_path":"x","hidden'),
    "config 100,000 deep": CANONICAL.replace(b'"llama"', b"[" * 100_000 + b"]" * 100_000),
    "config with a number of 10,000 digits": CANONICAL.replace(b":4", b":" + b"4" * 10_000),
    "config too long": CANONICAL.replace(b'"llama"', b'"' + b"x" * (1 << 20) + b'"'),
    "tensor before file": b"\n".join(
        [*CANONICAL.split(b"\n")[:2], *CANONICAL.split(b"\n")[3:-1], CANONICAL.split(b"\n")[2], b""]
    ),
    "tensors unsorted": CANONICAL.replace(b"] scale", b"] a"),
    "a tensor twice": CANONICAL.replace(b"] scale", b"] model.embed_tokens.weight"),
    "a name with a control letter": CANONICAL.replace(b"] scale", b"] sca\tle"),
    "a name that is not UTF-8": CANONICAL.replace(b"] scale", b"] sca\xffle"),
    "a name with a line separator": CANONICAL.replace(b"] scale", "] sca\u2028le".encode()),
    "no name": CANONICAL.replace(b"] scale", b"] "),
    "a long name": CANONICAL.replace(b"] scale", b"] " + b"x" * 301),
    "dtype in small letters": CANONICAL.replace(b" F32 ", b" f32 "),
    "dtype too long": CANONICAL.replace(b" F32 ", b" F" + b"3" * 16 + b" "),
    "no dtype": CANONICAL.replace(b" F32 ", b"  "),
    "shape below 0": CANONICAL.replace(b"[8,4]", b"[8,-4]"),
    "shape with a leading zero": CANONICAL.replace(b"[8,4]", b"[8,04]"),
    "shape with spaces": CANONICAL.replace(b"[8,4]", b"[8, 4]"),
    "shape with a comma more": CANONICAL.replace(b"[8,4]", b"[8,4,]"),
    "shape of 2^60": CANONICAL.replace(b"[8,4]", b"[1152921504606846976]"),
    "shape of nine": CANONICAL.replace(b"[8,4]", b"[1,1,1,1,1,1,1,1,1]"),
    "shape open": CANONICAL.replace(b"[8,4]", b"[8,4"),
    "root too short": CANONICAL.replace(b"1e1f F32", b"1e F32"),
    "root in capitals": CANONICAL.replace(b"1e1f F32", b"1E1F F32"),
    "another word": CANONICAL.replace(b"tensor 00", b"sensor 00"),
    "file outside": CANONICAL.replace(b" tokenizer.json", b" ../tokenizer.json"),
    "file from the root": CANONICAL.replace(b" tokenizer.json", b" /etc/passwd"),
    "file on another drive": CANONICAL.replace(b" tokenizer.json", b" C:tokenizer.json"),
    "file with a backslash": CANONICAL.replace(b" tokenizer.json", b" ..\\tokenizer.json"),
    "file without name": CANONICAL.replace(b" tokenizer.json", b" "),
    "too many files": CANONICAL.replace(
        CANONICAL.split(b"\n")[2] + b"\n", b"".join(f"file {HEX} {n:03}\n".encode() for n in range(weights.MAX_FILES + 1))
    ),
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_anything_but_the_canonical_form_is_refused(what: str) -> None:
    assert BAD_LINES[what] != CANONICAL
    with pytest.raises(BadRequestError) as caught:
        weights.Manifest.from_canonical(BAD_LINES[what])
    assert len(str(caught.value)) < 600


def test_every_byte_counts() -> None:
    """Flip any one: refused, or another digest. Nothing in the form is free."""
    for at in range(len(CANONICAL)):
        data = CANONICAL[:at] + bytes([CANONICAL[at] ^ 1]) + CANONICAL[at + 1 :]
        try:
            manifest = weights.Manifest.from_canonical(data)
        except SwarmError:
            continue
        assert manifest.digest != MANIFEST.digest and manifest.canonical() == data


def test_the_frame_of_a_manifest_has_one_buffer() -> None:
    for buffers in ([], [CANONICAL, b""]):
        with pytest.raises(FrameError, match="buffer"):
            weights.Manifest.parse(frame.encode({"t": "manifest"}, buffers))


def test_a_large_manifest_is_read_in_seconds() -> None:
    entries = tuple(
        weights.TensorEntry(f"model.layers.{n:06}.mlp.experts.weight", "BF16", (2_048, 768), bytes(32)) for n in range(50_000)
    )
    manifest = weights.Manifest(entries, b"{}")
    started = time.process_time()
    assert weights.Manifest.parse(manifest.encode()) == manifest
    assert time.process_time() - started < 60


def test_too_many_lines_are_refused_before_they_are_split() -> None:
    lines = b"murmuration manifest 1\nconfig {}\n" + b"\n" * (20 << 20)
    tracemalloc.start()
    with pytest.raises(BadRequestError, match="at most 200000 tensors"):
        weights.Manifest.from_canonical(lines)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_more_tensors_than_the_limit_are_refused() -> None:
    with pytest.raises(BadRequestError, match="at most 200000 tensors"):
        weights.Manifest(
            tuple(weights.TensorEntry(f"{n:06}", "I8", (), bytes(32)) for n in range(weights.MAX_TENSORS + 1)), b"{}"
        )


def test_we_build_no_manifest_that_others_refuse() -> None:
    first, second = MANIFEST.entries
    for entries in (
        (second, first),
        (first, first),
        (first._replace(root=b""),),
        (first._replace(shape=(True,)),),
        (first._replace(dtype="bf16"),),
    ):
        with pytest.raises(BadRequestError):
            weights.Manifest(entries, b"{}")
    for config in (b"", b"[]", b'{ "a": 1}'):
        with pytest.raises(BadRequestError, match="canonical JSON"):
            weights.Manifest((), config)


@pytest.mark.parametrize("model", ["", "tiny", "tiny@0", 7])
def test_a_request_names_a_model(model: object) -> None:
    with pytest.raises(BadRequestError):
        weights.ManifestRequest.parse(frame.encode({"t": "manifest?", "model": model}))
