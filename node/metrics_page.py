"""The page that Prometheus reads, served by threads within bounds.

A reader that is slow, or says nothing, is cut off after `READER_S`, and `MAX_READERS` are answered at once: what else connects is closed.
So a port that others reach costs no more than that.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import prometheus_client
from prometheus_client import CollectorRegistry

from node.config import Address

READER_S = 10.0
"""Longest time of one reader, in seconds, from its connection to the last byte of the page."""

MAX_READERS = 8
"""Readers that are answered at once."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    reader_s = READER_S

    def __init__(self, *args: Any, **named: Any) -> None:
        self._places = threading.BoundedSemaphore(MAX_READERS)
        super().__init__(*args, **named)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(self.reader_s, _cut_off, [request])
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that has gone, or was cut off, is no fault of ours."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: anyone can make such lines."""


def _cut_off(reader: socket.socket) -> None:
    with contextlib.suppress(OSError):
        reader.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def served(registry: CollectorRegistry, address: Address, reader_s: float = READER_S) -> Iterator[str]:
    """Serve until the block ends; yields the page's URL. OSError if the address is not free.

    The threads are not those of the event loop, so that a busy loop still tells what it does.
    """
    host, port = address
    family, _, _, _, (bound, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    kind = type("Server", (_Server,), {"address_family": family, "reader_s": reader_s})
    server: _Server
    with make_server(str(bound), port, prometheus_client.make_wsgi_app(registry), kind, _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
        finally:
            server.shutdown()
            thread.join()
