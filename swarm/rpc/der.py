"""The form of a peer's certificate, checked before a library reads it.

cryptography parses what an untrusted peer sends and prints warnings about odd parts of it (a serial number below zero, a Diffie-Hellman
key, a policy's text, a country of three letters). Here everything is refused that `tls.make` would not write, but for extensions
of newer peers, which are neither parsed nor looked at. This only refuses: the key is still the one that cryptography reads.
"""

from __future__ import annotations

from collections.abc import Iterator

_SEQUENCE, _INTEGER, _OID, _OCTETS, _BITS, _BOOLEAN = 0x30, 0x02, 0x06, 0x04, 0x03, 0x01
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_V3 = bytes.fromhex("020102")
_ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")
_P256_POINT = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107034200")
MAX_SERIAL_BYTES = 20

Part = tuple[int, bytes]
"""A tag, and what it holds."""


def extensions(der: bytes) -> dict[bytes, bytes]:
    """The values of a certificate's extensions, by the content of their object identifiers; ValueError says what is not as it must be."""
    (whole,) = _exactly(der, "the certificate", _SEQUENCE)
    body, algorithm, _signature = _exactly(whole, "its parts", _SEQUENCE, _SEQUENCE, _BITS)
    tags = (_VERSION, _INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE, _EXTENSIONS)
    version, serial, signed_by, _issuer, _validity, _subject, key, listed = _exactly(body, "its body", *tags)
    if version != _V3:
        raise ValueError("its version is not 3")
    if not 1 <= len(serial) <= MAX_SERIAL_BYTES or serial[0] & 0x80 or not any(serial):
        raise ValueError(f"its serial number must be above 0, in at most {MAX_SERIAL_BYTES} bytes")
    if algorithm != _ECDSA_SHA256 or signed_by != _ECDSA_SHA256:
        raise ValueError("it must be signed with ECDSA and SHA-256")
    if not key.startswith(_P256_POINT):
        raise ValueError("its key must be a point on the curve P-256")
    (entries,) = _exactly(listed, "its extensions", _SEQUENCE)
    return _by_name(entries)


def _by_name(entries: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for tag, entry in _parts(entries):
        parts = [part for part in _parts(entry) if part[0] != _BOOLEAN]  # whether it is critical
        if tag != _SEQUENCE or [kind for kind, _ in parts] != [_OID, _OCTETS]:
            raise ValueError("an extension is a name and a value")
        (_, name), (_, value) = parts
        if name in found:
            raise ValueError("an extension is there twice")
        found[name] = value
    return found


def _exactly(data: bytes, what: str, *tags: int) -> list[bytes]:
    """Contents of the parts, which must have these tags in this order."""
    parts = list(_parts(data))
    if tuple(tag for tag, _ in parts) != tags:
        raise ValueError(f"{what}: unexpected fields {[hex(tag) for tag, _ in parts][:12]}")
    return [content for _, content in parts]


def _parts(data: bytes) -> Iterator[Part]:
    """Tag and content of one value after the other. Tags and lengths have one form only, as DER demands."""
    at = 0
    while at < len(data):
        tag, length, start = data[at], *_length(data, at + 1)
        if tag & 0x1F == 0x1F or start + length > len(data):
            raise ValueError("a field is cut off, or its tag is too long")
        yield tag, data[start : start + length]
        at = start + length


def _length(data: bytes, at: int) -> tuple[int, int]:
    """(length, where the content starts)."""
    first = data[at] if at < len(data) else 0x80
    if first < 0x80:
        return first, at + 1
    size = first & 0x7F
    length = int.from_bytes(data[at + 1 : at + 1 + size])
    if not 1 <= size <= 2 or at + 1 + size > len(data) or length < (0x80 if size == 1 else 0x100):
        raise ValueError("a length is not in its shortest form")
    return length, at + 1 + size
