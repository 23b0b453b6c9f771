"""HTTP/2 by hand, for calls that our libraries do not make.

Such as unfinished requests, many streams, no credential.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterable

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_ACK, _END_HEADERS = 1, 4


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _field(name: bytes, value: bytes) -> bytes:
    length = bytes([len(value)]) if len(value) < 127 else bytes([127, (len(value) - 127) & 0x7F | 0x80, (len(value) - 127) >> 7])
    return b"\x00" + bytes([len(name)]) + name + length + value


class RawCaller:
    """One TLS connection on which any number of gRPC calls begin and none ends."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        self._socket = context.wrap_socket(socket.create_connection((host, int(port)), 10))
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        self._received = b""
        self._window, self._initial = 65_535, 65_535
        self._granted: dict[int, int] = {}
        self.ended: set[int] = set()
        """Streams that the server has refused or ended."""
        self.is_gone = False
        self._wait_for_settings()

    def begin(self, path: str, metadata: Iterable[tuple[str, bytes]] = ()) -> int:
        """Open a stream and send its headers; its number."""
        stream = 2 * len(self._granted) + 1
        self._granted[stream] = 0
        block = b"\x83\x87" + _field(b":path", path.encode()) + _field(b":authority", b"peer")
        block += _field(b"te", b"trailers") + _field(b"content-type", b"application/grpc")
        self._socket.sendall(
            _frame(_HEADERS, _END_HEADERS, stream, block + b"".join(_field(key.encode(), value) for key, value in metadata))
        )
        return stream

    def pour(self, claimed: int, num_bytes: int, seconds: float) -> int:
        """Send up to `num_bytes` of a message of `claimed` bytes on every open stream, as the server's windows allow; how many went out."""
        import time

        sent = dict.fromkeys(self._granted, 0)
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s and not self.is_gone:
            went = 0
            for stream in sent.keys() - self.ended:
                num_free = min(
                    self._window, self._initial + self._granted[stream] - sent[stream], num_bytes - sent[stream], 16_384
                )
                if num_free > 5:
                    head = b"\0" + struct.pack(">I", claimed) if sent[stream] == 0 else b""
                    self._send(_frame(_DATA, 0, stream, head + bytes(num_free - len(head))))
                    sent[stream] += num_free
                    self._window -= num_free
                    went += num_free
            self._hear(0.2 if not went else 0.0001)
            if all(stream in self.ended or number >= num_bytes for stream, number in sent.items()):
                break
        return sum(sent.values())

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(10)
            self._socket.sendall(data)
        except OSError:
            self.is_gone = True

    def _wait_for_settings(self) -> None:
        while self._initial == 65_535 and not self.is_gone:
            self._hear(1.0)
            if self._initial == 65_535 and self._window > 65_535:
                break

    def _hear(self, seconds: float) -> None:
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(1 << 16)
        except (TimeoutError, ssl.SSLWantReadError):
            return
        except OSError:
            data = b""
        if not data:
            self.is_gone = True
        self._received += data
        while len(self._received) >= 9:
            length = int.from_bytes(self._received[:3], "big")
            if len(self._received) < 9 + length:
                return
            kind, flags = self._received[3], self._received[4]
            stream = int.from_bytes(self._received[5:9], "big") & 0x7FFFFFFF
            payload, self._received = self._received[9 : 9 + length], self._received[9 + length :]
            self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == _WINDOW and stream in self._granted:
            self._granted[stream] += int.from_bytes(payload, "big")
        elif kind == _SETTINGS and not flags & _ACK:
            for at in range(0, len(payload), 6):
                key, value = struct.unpack(">HI", payload[at : at + 6])
                self._initial = value if key == 4 else self._initial
            self._send(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._send(_frame(_PING, _ACK, 0, payload))
        elif kind == _RESET or (kind == _HEADERS and flags & 1):
            self.ended.add(stream)
        elif kind == _GOAWAY:
            self.is_gone = True

    def close(self) -> None:
        self._socket.close()
