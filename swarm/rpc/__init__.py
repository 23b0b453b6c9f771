"""Calls between peers: gRPC over TLS that proves who answers, with signed credentials that prove who asks. The door to grpc."""

import os

# The one effect of an import here: gRPC's C core reads this once, when it is loaded, and would otherwise write a line to stderr
# for every stranger who pokes the port and every peer that leaves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

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
