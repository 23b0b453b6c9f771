"""Machines on one local network, made of network namespaces.

Each has an address; a bridge joins them. Needs root, `ip`, bridges and veth.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from typing import Self

HUBS = ("hub0", "hub1")
"""Bridges; all machines are at the first one, but those that are cut off."""


class BridgeError(Exception):
    """This machine does not allow it; the text says what failed."""


class Bridge:
    """`num` machines, number n at 10.83.0.(n + 1). They reach one another and nothing else."""

    def __init__(self, num: int) -> None:
        tag = f"m{os.getpid() % 100_000}"  # an interface's name has at most 15 letters
        self._bridge, self._names = f"{tag}b", [f"{tag}n{number}" for number in range(num)]

    def __enter__(self) -> Self:
        try:
            # the bridge has a namespace of its own: the machine's firewall has no say there
            _ip("netns", "add", self._bridge)
            for hub in HUBS:
                _ip("-n", self._bridge, "link", "add", "name", hub, "type", "bridge", "mcast_snooping", "0")
                _ip("-n", self._bridge, "link", "set", hub, "up")
            for number, name in enumerate(self._names):
                _ip("netns", "add", name)
                _ip(
                    "-n",
                    name,
                    "link",
                    "add",
                    "name",
                    "lan0",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    f"port{number}",
                    "netns",
                    self._bridge,
                )
                _ip("-n", self._bridge, "link", "set", f"port{number}", "master", HUBS[0], "up")
                _ip("-n", name, "address", "add", f"10.83.0.{number + 1}/24", "dev", "lan0")
                for device in ("lo", "lan0"):
                    _ip("-n", name, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*self._names, self._bridge):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def cut(self, machines: Iterable[int]) -> None:
        """These machines reach one another, but no other machine, until `heal`."""
        for number in machines:
            _ip("-n", self._bridge, "link", "set", f"port{number}", "master", HUBS[1])

    def link(self, number: int, state: str) -> None:
        """Machine `number`'s link `up` or `down`: down, it reaches no other machine."""
        _ip("-n", self._bridge, "link", "set", f"port{number}", state)

    def heal(self) -> None:
        """All machines reach one another again."""
        for number in range(len(self._names)):
            _ip("-n", self._bridge, "link", "set", f"port{number}", "master", HUBS[0])

    def command(self, number: int, command: Sequence[str]) -> list[str]:
        """A command as it is run at a machine."""
        return ["ip", "netns", "exec", self._names[number], *command]

    def network(self, number: int) -> int:
        """A descriptor of machine `number`'s network namespace, for the caller to close."""
        return os.open(f"/var/run/netns/{self._names[number]}", os.O_RDONLY)


def _ip(*words: str) -> None:
    try:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise BridgeError("`ip` (iproute2) is not installed") from None
    except subprocess.CalledProcessError as error:
        raise BridgeError(f"ip {' '.join(words)}: {error.stderr.strip()}") from None
