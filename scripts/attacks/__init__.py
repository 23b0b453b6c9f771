"""Attacks that run against real nodes, one in each file.

`async def attack(target)` runs until it is cancelled.
"""

NAMES = {
    "refuse": "6 hostile nodes announce all blocks at 0.01 ms and refuse every session with an error of their choice",
    "swallow": "6 hostile nodes announce all blocks, answer hello, and swallow every step",
    "reroutes": "sessions send 30,000 Reroutes a second, each to another next hop at silent addresses",
    "idle": "1,100 idle TCP connections to each of two nodes",
    "unfinished": "60 MB requests that never end, without a credential, 8 at a time to each node",
    "lists": "messages of 64 KB that hold nothing but empty lists, 0.5 MB/s to each node",
    "operations": "steps with as many row operations as fit, one behind the other, in 4 sessions",
    "uploads": "12 identities hold upload places at each node with one question every 20 s",
    "records": "signed records of made-up peers for the model, as many as one core signs",
    "keys": "junk keys for the DHT's storage, as many as one core sends",
}
"""What each attack does, for people."""

BUSY = ("reroutes", "unfinished", "lists", "operations", "records", "keys")
"""Those that take all of a core if they may."""

PROCESSES = {"refuse": 6, "swallow": 6}
"""Of one attack, if more than one: six nodes in one process would answer a hello later than honest ones do, and be chosen last."""
