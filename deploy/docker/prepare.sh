#!/bin/sh
# Makes what the services of a swarm must know of each other before they start: run once, harmless to repeat.
#
# /seed/seed.key     the identity of the first node; only that node may read it
# /public/seed.peer  its PeerID, for the others
# /key/gateway.key   a key of the gateway, for Prometheus and for you; its hash is in the gateway's data directory, /gateway
set -eu
seed=${1:-/seed} public=${2:-/public} key=${3:-/key} gateway=${4:-/gateway}
swarm whoami --identity "$seed/seed.key" >"$public/seed.peer"
if [ ! -s "$key/gateway.key" ]; then
  swarm keys add compose --data-dir "$gateway" >"$key/gateway.key"
  chmod 0644 "$key/gateway.key"
fi
echo "seed: $(cat "$public/seed.peer")"
