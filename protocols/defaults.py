"""Every default and limit of the protocol, in one table.

Those on which two peers must agree, and those that a person may want to look up.
"""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 2
OLDEST_PROTOCOL_VERSION: Final = 2

MAX_FRAME_BYTES: Final = 64 << 20
"""Largest frame, header included."""

MAX_HEADER_BYTES: Final = 1 << 18
"""Largest msgpack header of a frame, that of a route of 128 hops; most kinds of message have far less (`protocols/bounds.py`)."""

MAX_PART_BYTES: Final = 4 << 20
"""Largest message that a server reads at once, in bytes, without 64 KiB of headers; larger frames come in parts of this size."""

MAX_REQUEST_BYTES: Final = 64 << 10
"""Largest request of a unary call, such as hello; streams carry whatever is larger."""

MAX_BUFFERS: Final = 8
"""Raw buffers in one frame of any kind; ours have two at most."""

MAX_ROWS: Final = 1_024
"""Sequences of one session."""

MAX_STEP_TOKENS: Final = 4_096
"""New tokens of one step, all sequences together. Clients cut what is longer."""

MAX_TOP: Final = 1_024
"""Largest logits, with their token ids, that a step may ask for instead of all."""

MAX_OPS: Final = 64
"""Row operations that travel with one step."""

MAX_ROW_INDICES: Final = 4 * MAX_ROWS
"""Indices of sequences in the operations of one step, all `rows` operations together."""

MAX_COPIED_TOKENS: Final = 1 << 18
"""Tokens of sequences that the operations of one step may copy; those that are kept, moved or dropped cost nothing."""

MAX_HOPS: Final = 128
"""Hops of one route."""

WINDOW_STEPS: Final = 8
"""Steps of one session in flight; encoded frames are kept this long."""

WINDOW_BYTES: Final = 8 << 20
"""Bytes of one session in flight (one step may exceed it alone)."""

REPLY_BYTES: Final = 8 << 20
"""Logits that one step may ask for (those of one token may exceed it alone): clients cut their steps so, nodes refuse more."""

PREFILL_CHUNK_TOKENS: Final = 128
"""Tokens of a prompt that travel as one step, so that several hops work on one prompt at once."""

RESUME_S: Final = 30.0
"""How long a hop keeps a session whose neighbour vanished without `close`, or has not come yet."""

IDLE_S: Final = 600.0
"""Seconds without a step before a session loses its memory."""

MAX_KEEP_S: Final = 3_600
"""Longest time, in seconds, for which a client may ask hops to keep the sequences of a session that has ended."""

ROUTE_TIMEOUT_S: Final = 60.0
"""How long a client waits for a route that covers the model."""

STALL_S: Final = 3.0
"""Seconds without a reply, at least, before a client asks each hop how far it is and tries others; more on a route with slow steps."""

SILENCE_S: Final = 180.0
"""Seconds without a reply before a client gives up a hop that says it is computing."""

RETAINED_BYTES: Final = 1 << 30
"""Sent activations that one hop keeps for all its sessions; beyond it the client that holds most loses those of its largest session."""

MAX_SESSIONS: Final = 512
"""Sessions that one node holds."""

MAX_SESSIONS_PER_CLIENT: Final = 128
"""Of these, sessions of one client: so that no client alone can fill a node."""

KEEPALIVE_S: Final = 10.0
KEEPALIVE_TIMEOUT_S: Final = 5.0

RECORD_LIFE_S: Final = 60.0
RECORD_RENEW_S: Final = 20.0
MAX_RECORD_BYTES: Final = 1_536

AVOID_S: Final = 30.0
"""How long a peer that failed is avoided before it is forgiven."""

GRANT_LIFE_S: Final = 3_600.0
"""Longest life of a client's signed grant, in seconds; nodes refuse a longer one. A reroute brings a fresh one."""

PLACEMENT_LOOK_S: Final = 10.0
"""Between two looks of a node at whether the swarm needs it elsewhere."""

PLACEMENT_COOL_DOWN_S: Final = 60.0
"""Between two moves of a node for a better balance; a gap is filled at once."""

DRAIN_S: Final = 10.0
"""How long sessions may go on at blocks that their node gives up; then their clients go on with replicas."""

HEAL_S: Final = 30.0
"""Seconds until other nodes fill the gap of a node that died, if they have memory; plus the time to fetch and load the blocks."""

MAX_MEMBERS: Final = 32
"""Replicas that average together, in one group."""

MAX_GROUP_UNITS: Final = 128
"""Elementary training units of one group; a trainer makes two groups of more."""

MAX_RUN_UNITS: Final = 512
"""Elementary training units of one run: its blocks and `Ends`."""
