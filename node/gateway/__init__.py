"""Models of the swarm by APIs that tools already speak.

It stands on the thin client: no weights, no torch, no transformers on the gateway's machine.
"""

from node.gateway.answers.config import GatewayConfig as GatewayConfig
from node.gateway.app import create_app as create_app
