"""Calls between peers: gRPC over TLS, both sides proven.

TLS proves who answers, signed credentials prove who asks. Only this package imports grpc.
"""

import os

# The one effect of an import here: gRPC's C core reads these once, when it is loaded. What the user has set stays.
# Else a forked child gets threads of gRPC that write to its parent's connections, and break them (see `forked.py`).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Else gRPC writes a line to stderr for every connection that sends no gRPC and every peer that leaves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Else threads of its event engine move the bytes, and not the thread that waits for them: 390 -> 355 µs for a call (docs/log.md).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

from swarm.rpc.call import Call, Handler, Handlers, StreamHandler, UnaryHandler
from swarm.rpc.pool import ChannelPool, PeerChannel
from swarm.rpc.server import RpcServer
from swarm.rpc.stream import Stream
from swarm.rpc.tls import TlsCertificate

__all__ = [
    "Call",
    "ChannelPool",
    "Handler",
    "Handlers",
    "PeerChannel",
    "RpcServer",
    "Stream",
    "StreamHandler",
    "TlsCertificate",
    "UnaryHandler",
]
