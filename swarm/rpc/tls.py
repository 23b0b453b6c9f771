"""A TLS certificate that proves a PeerID.

A P-256 key, which the peer's Ed25519 identity has signed.

The proof sits in the certificate extension of libp2p's TLS handshake, so libp2p peers accept it too. Every certificate carries
the same name; what separates peers is that the client pins the very certificate, after `owner` has said whose it is.
In a private swarm a second extension proves the swarm's key for this very TLS key, so a member is known before anything is sent to it.
Source: https://github.com/libp2p/specs/blob/master/tls/tls.md; P-256 because gRPC's TLS cannot use an Ed25519 certificate key.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import ipaddress
import re
import ssl
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from protocols.errors import PeerUnreachableError, PrivateSwarmError, UnauthenticatedError
from protocols.identity import Identity, verify
from protocols.ids import PeerId, peer_id_of, public_bytes, short_peer
from protocols.swarm_key import SwarmKey
from swarm import awake
from swarm.private import ASK_FOR_INVITATION, OTHER_KEY
from swarm.rpc.der import extensions as extensions_of

NAME = "peer"
"""The name in every certificate, which gRPC is told to expect."""

MAX_CERTIFICATE_BYTES = 4_096

_OID = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_OID_DER = bytes.fromhex("2b0601040183a25a0101")
_MEMBER_OID = x509.ObjectIdentifier("2.25.1836410226.1")
"""Proof of a private swarm's key; an arc that needs no registration."""
_MEMBER_OID_DER = bytes.fromhex("6986ebd5ca7201")
_PURPOSE = "certificate"
_CONTEXT = b"libp2p-tls-handshake:"
_KEY_PREFIX = bytes.fromhex("30680424" + "08011220")  # DER: sequence, octets(36): protobuf PublicKey{Ed25519, 32 bytes}
_SIGNATURE_PREFIX = bytes.fromhex("0440")  # DER: octets(64)
_PROOF_BYTES = 106
_NO_CERTIFICATE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What `der.py` and cryptography raise on untrusted bytes: a point beside the curve, an invalid date, version 34, …"""
_ADDRESS = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:.]{2,45}\]):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class TlsCertificate:
    """What a server needs to prove whose it is; `der` is what clients pin."""

    key_pem: bytes
    cert_pem: bytes
    der: bytes


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(ser.Encoding.DER, ser.PublicFormat.SubjectPublicKeyInfo)


def make(identity: Identity, swarm_key: SwarmKey | None = None) -> TlsCertificate:
    """A fresh key, signed by `identity`: 0.5 ms. It never expires, since volunteers' clocks lie; a new one replaces it.

    swarm_key: of our private swarm; the certificate proves that we hold it.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    signature = identity.sign(_CONTEXT + _spki(key.public_key()))
    proof = _KEY_PREFIX + identity.public_bytes + _SIGNATURE_PREFIX + signature
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2000, 1, 1))
        .not_valid_after(datetime.datetime(2100, 1, 1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(_OID, proof), critical=False)
    )
    if swarm_key:
        membership = swarm_key.proof(_PURPOSE, _spki(key.public_key()), identity.public_bytes)
        builder = builder.add_extension(x509.UnrecognizedExtension(_MEMBER_OID, membership), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    key_pem = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
    return TlsCertificate(key_pem, certificate.public_bytes(ser.Encoding.PEM), certificate.public_bytes(ser.Encoding.DER))


def parse(pem: bytes) -> TlsCertificate:
    """Key and certificate of `make`, one after the other; UnauthenticatedError if they do not parse or belong together."""
    key_pem, marker, rest = pem.partition(b"-----BEGIN CERTIFICATE-----")
    cert_pem = marker + rest
    try:
        certificate = x509.load_pem_x509_certificate(cert_pem)
        key = ser.load_pem_private_key(key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or _spki(key.public_key()) != _spki(_key_of(certificate)):
            raise UnauthenticatedError("the TLS key is not the certificate's")
    except (ValueError, TypeError) as error:
        raise UnauthenticatedError(f"the TLS key or certificate does not parse: {error}") from None
    return TlsCertificate(key_pem, cert_pem, certificate.public_bytes(ser.Encoding.DER))


def owner(der: bytes) -> PeerId:
    """The PeerID that signed this certificate's key; UnauthenticatedError if the proof is absent or wrong. 0.3 ms."""
    return _read(der)[0]


def _read(der: bytes) -> tuple[PeerId, bytes, dict[bytes, bytes]]:
    """The owner, the key (SPKI) and the extensions by name."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise UnauthenticatedError(f"a certificate has at most {MAX_CERTIFICATE_BYTES} bytes, got {len(der)}")
    try:
        extensions = extensions_of(der)  # first: cryptography prints warnings about what this refuses
        key = _spki(_key_of(x509.load_der_x509_certificate(der)))
    except _NO_CERTIFICATE as error:
        raise UnauthenticatedError(f"the TLS certificate carries no proof of a peer: {' '.join(str(error).split())}") from None
    proof = extensions.get(_OID_DER, b"")
    if len(proof) != _PROOF_BYTES or proof[:8] != _KEY_PREFIX or proof[40:42] != _SIGNATURE_PREFIX:
        raise UnauthenticatedError(f"the TLS certificate's proof of a peer is malformed ({len(proof)} bytes)")
    peer = peer_id_of(proof[8:40])
    verify(peer, proof[42:], _CONTEXT + key)
    return peer, key, extensions


def member(der: bytes, swarm_key: SwarmKey | None) -> PeerId:
    """`owner`, if it is in the same swarm as we are: both public, or both with this key; else PrivateSwarmError. 0.4 ms."""
    peer, key, extensions = _read(der)
    proof = extensions.get(_MEMBER_OID_DER)
    if proof is None and swarm_key is not None:
        raise PrivateSwarmError(
            f"peer {short_peer(peer)} is not in your private swarm: it does not prove its key; check --peer and --join"
        )
    if proof is not None and swarm_key is None:
        raise PrivateSwarmError(f"peer {short_peer(peer)}: {ASK_FOR_INVITATION}")
    if proof is not None and swarm_key is not None and not swarm_key.is_proof(proof, _PURPOSE, key, public_bytes(peer)):
        raise PrivateSwarmError(f"peer {short_peer(peer)}: {OTHER_KEY}")
    return peer


def _key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UnauthenticatedError(f"the TLS key must be on the curve P-256, got {type(key).__name__}")
    return key


def fingerprint(der: bytes) -> bytes:
    """32 bytes that stand for a certificate."""
    return hashlib.sha256(der).digest()


def pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`; PeerUnreachableError for anything else, since it came from a peer.

    Also refused are addresses that no peer can have and an attacker would like us to dial: link-local (the metadata of a cloud's machines),
    multicast, and 0.0.0.0, which is ourselves.
    """
    match = _ADDRESS.fullmatch(address)
    if not match or not 0 < int(match[2]) < 65_536:
        raise PeerUnreachableError(f"an address is host:port, got {address[:80]!r}")
    host = match[1].strip("[]")
    with contextlib.suppress(ValueError):  # a name
        ip = ipaddress.ip_address(host)
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
            raise PeerUnreachableError(
                f"{address} is no address of a peer: link-local, multicast or unspecified ones are not dialled"
            )
    return host, int(match[2])


async def fetch(address: str, timeout_s: float = 3.0) -> bytes:
    """The certificate (DER) that is shown at an address. It proves nothing until `owner` has read it.

    PeerUnreachableError if there is no answer in time, or none with TLS. One TCP and one TLS handshake: 4-17 ms on loopback.
    """
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # owner() is the check
    context.set_alpn_protocols(["h2"])
    try:
        async with awake.timeout(timeout_s):
            _reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError, ValueError) as error:
        raise PeerUnreachableError(f"no answer at {address}: {str(error) or 'no answer in time'}") from None
    try:
        der: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(0.5):
                await writer.wait_closed()
    if not der:
        raise PeerUnreachableError(f"{address} shows no certificate")
    return der
