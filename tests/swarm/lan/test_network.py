"""A network has the same name each time, and its own."""

from __future__ import annotations

from pathlib import Path

from swarm.lan import network

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
"""
NEIGHBOURS = """IP address       HW type     Flags       HW address            Mask     Device
192.168.1.7      0x1         0x2         aa:00:00:00:00:07     *        eth0
192.168.1.1      0x1         0x2         {router}     *        eth0
"""


def machine(root: Path, routes: str, router: str) -> Path:
    (root / "proc/net").mkdir(parents=True)
    (root / "proc/net/route").write_text(routes)
    (root / "proc/net/arp").write_text(NEIGHBOURS.format(router=router))
    return root


def test_two_homes_with_the_same_addresses_have_two_names(tmp_path: Path) -> None:
    mine = machine(tmp_path / "mine", ROUTES, "aa:bb:cc:dd:ee:01")
    again = machine(tmp_path / "again", ROUTES, "aa:bb:cc:dd:ee:01")
    other = machine(tmp_path / "other", ROUTES, "aa:bb:cc:dd:ee:02")
    assert network.name(mine) == network.name(again) != network.name(other) != ""


def test_without_a_gateway_there_is_no_name(tmp_path: Path) -> None:
    lines = ROUTES.splitlines(keepends=True)
    assert network.name(machine(tmp_path / "alone", "".join(lines[:2]), "aa:bb:cc:dd:ee:01")) == ""
    assert network.name(tmp_path / "nothing") == ""
    assert network.name(machine(tmp_path / "odd", lines[0] + "what\n", "aa:bb:cc:dd:ee:01")) == ""
