"""gRPC's settings, the same for all peers, each with its reason.

HTTP/2 flow control of clients stays at its default: window growth by probing reaches 84 of 100 Mbit/s at 100 ms; without the probe, 17.
A server's window is fixed, since a caller may fill it in every stream and is not read meanwhile; gRPC's own begins with 4 MiB.
"""

from __future__ import annotations

from protocols.defaults import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S, MAX_FRAME_BYTES, MAX_PART_BYTES, MAX_REQUEST_BYTES

MAX_CONCURRENT_STREAMS = 1_024
"""Calls on one connection beyond which gRPC would make a caller wait in silence: we refuse by ourselves before."""

SERVER_WINDOW_BYTES = 1 << 20
"""Of one stream, unread: 1 MiB in 100 ms is 84 Mbit/s."""

HANDSHAKE_S = 10.0
IDLE_CONNECTION_S = 600.0
"""Without a call; the caller connects anew when it needs to."""

_COMMON: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1_000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1_000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # the default, 2, never notices a host that was cut off
)

SERVER: tuple[tuple[str, int], ...] = (
    *_COMMON,
    ("grpc.max_receive_message_length", MAX_PART_BYTES + MAX_REQUEST_BYTES),  # refused by its prefix, before it arrives
    ("grpc.so_reuseport", 0),  # or another process binds our port too, and takes half the connections
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
    ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * 1_000)),
    ("grpc.max_connection_idle_ms", int(IDLE_CONNECTION_S * 1_000)),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", SERVER_WINDOW_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),  # peers ping each other for as long as they like
)

CLIENT: tuple[tuple[str, int | str], ...] = (
    *_COMMON,
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, without the back-off of the old one
    ("grpc.enable_retries", 0),  # what may be repeated is decided by us
    ("grpc.enable_http_proxy", 0),
)
