#!/bin/sh
# Makes what the services of a swarm must know of each other before they start: run once, harmless to repeat.
#
# /shared/seed.key     the identity of the first node       /shared/seed.peer    its PeerID, for the others
# /shared/gateway.key  a key of the gateway, for Prometheus and for you; its hash is in the gateway's data directory
set -eu
shared=${1:-/shared} gateway_data=${2:-/gateway}
swarm whoami --identity "$shared/seed.key" >"$shared/seed.peer"
if [ ! -s "$shared/gateway.key" ]; then
  swarm keys add compose --data-dir "$gateway_data" >"$shared/gateway.key"
  chmod 0644 "$shared/gateway.key"
fi
echo "seed: $(cat "$shared/seed.peer")"
