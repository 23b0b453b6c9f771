"""An untrusted certificate is refused or read; nothing of it reaches stderr."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
import subprocess
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec

from protocols.identity import from_seed
from swarm.rpc import tls

ME = from_seed(bytes([7]) * 32)
SAN, POLICIES = "2.5.29.17", "2.5.29.32"

READ_ALL = """
import json, sys
from protocols.errors import UnauthenticatedError
from protocols.identity import from_seed
from swarm.rpc import tls
from swarm.rpc.pool import PeerChannel

me, verdicts = from_seed(bytes([7]) * 32).peer_id, {}
for name, der in json.load(sys.stdin).items():
    try:
        PeerChannel(from_seed(bytes(32)), me).target(("127.0.0.1:1",), bytes.fromhex(der))
        verdicts[name] = "read"
    except UnauthenticatedError:
        verdicts[name] = "refused"
print(json.dumps(verdicts))
"""
FETCH = """
import asyncio, sys
from protocols.errors import PeerUnreachableError, UnauthenticatedError
from swarm.rpc import tls

async def main():
    for address in sys.argv[1:]:
        try:
            tls.owner(await tls.fetch(address))
        except (PeerUnreachableError, UnauthenticatedError) as error:
            print(type(error).__name__)

asyncio.run(main())
"""


def tlv(tag: int, *content: bytes) -> bytes:
    data = b"".join(content)
    size = len(data)
    return (
        bytes([tag]) + (bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2) if size > 255 else bytes([0x81, size])) + data
    )


def parts(data: bytes) -> list[bytes]:
    """The values in the content of one, whole."""
    found, at = [], 0
    while at < len(data):
        size, header = data[at + 1], 2
        if size & 0x80:
            header += size & 0x7F
            size = int.from_bytes(data[at + 2 : at + header])
        found.append(data[at : at + header + size])
        at += header + size
    return found


def content(value: bytes) -> bytes:
    return value[2 + (value[1] & 0x7F if value[1] & 0x80 else 0) :]


def changed(der: bytes, field: int, value: bytes) -> bytes:
    """The certificate with another field of its body: 1 = serial number, 6 = key."""
    body, *rest = parts(content(der))
    fields = parts(content(body))
    fields[field] = value
    return tlv(0x30, tlv(0x30, *fields), *rest)


def with_extension(oid: str, value: bytes, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """A certificate of ME's form that has one more extension."""
    honest = x509.load_der_x509_certificate(tls.make(ME).der)
    builder = x509.CertificateBuilder().subject_name(honest.subject).issuer_name(honest.issuer).serial_number(5)
    builder = builder.not_valid_before(datetime.datetime(2000, 1, 1)).not_valid_after(datetime.datetime(2100, 1, 1))
    builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    for extension in honest.extensions:
        if extension.oid.dotted_string != oid:
            builder = builder.add_extension(extension.value, critical=False)
    key = key or ec.generate_private_key(ec.SECP256R1())
    return builder.public_key(key.public_key()).sign(key, hashes.SHA256()).public_bytes(ser.Encoding.DER)


def hostile() -> dict[str, bytes]:
    der = tls.make(ME).der
    group = tlv(0x30, bytes.fromhex("06092a864886f70d010301"), tlv(0x30, tlv(0x02, b"\x7f" * 64), b"\x02\x01\x02"))
    diffie_hellman = tlv(0x30, group, tlv(0x03, b"\0", tlv(0x02, b"\x05")))
    country = tlv(0x31, tlv(0x30, bytes.fromhex("0603550406"), tlv(0x13, b"XXX")))
    notice = tlv(0x30, bytes.fromhex("06082b06010505070202"), tlv(0x30, tlv(0x1A, "ü".encode())))
    return {
        "serial number below zero": changed(der, 1, tlv(0x02, b"\x80" + bytes(19))),
        "serial number zero": changed(der, 1, tlv(0x02, b"\0")),
        "a Diffie-Hellman key": changed(der, 6, diffie_hellman),
        "a country of three letters": with_extension(SAN, tlv(0x30, tlv(0xA4, tlv(0x30, country)))),
        "a policy's text": with_extension(POLICIES, tlv(0x30, tlv(0x30, bytes.fromhex("06032a0304"), tlv(0x30, notice)))),
        "honest": der,
    }


def in_a_process(program: str, *arguments: str, stdin: str = "") -> tuple[str, bytes]:
    """What it writes to stdout and, at the level of the file descriptor, to stderr; every warning is shown."""
    command = [sys.executable, "-W", "always", "-c", program, *arguments]
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=60, check=True)
    return done.stdout.decode(), done.stderr


def test_a_certificate_in_a_record_writes_nothing_to_stderr() -> None:
    """All but the key made cryptography print a warning with the reader's own file and line."""
    said, stderr = in_a_process(READ_ALL, stdin=json.dumps({name: der.hex() for name, der in hostile().items()}))
    verdicts = json.loads(said)
    assert stderr == b""
    assert verdicts.pop("honest") == "read"
    assert set(verdicts.values()) == {"refused"}  # of another key, or of no form that we take


async def test_a_certificate_that_a_server_shows_writes_nothing_to_stderr(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    odd = changed(with_extension("2.5.29.99", b"\0", key), 1, tlv(0x02, b"\x80" + bytes(3)))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()))
    (tmp_path / "cert.pem").write_bytes(tls.pem(odd))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03\x03\xff\xff\x1b]0;mine\x07" * 100)
        writer.transport.abort()

    async def polite(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    servers = [
        await asyncio.start_server(polite, "127.0.0.1", 0, ssl=context),
        await asyncio.start_server(rude, "127.0.0.1", 0),
    ]
    addresses = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    said, stderr = await asyncio.to_thread(in_a_process, FETCH, *addresses)
    for server in servers:
        server.close()
    assert said.split() == ["UnauthenticatedError", "PeerUnreachableError"] and stderr == b""
