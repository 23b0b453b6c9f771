"""The files of deploy/ fit together, and their commands are real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.config import parse_address, parse_port
from protocols.ids import parse_address as parse_grpc_address
from swarm.dht.address import PeerAddress
from tests.commands_of_files import PEER, in_shell, parsed

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MANIFEST: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes/murmuration.yaml").read_text()))
DOCKERFILES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
NUMBERS = {"NUM_BLOCKS": "15", "SEED_PEER": PEER, "HOSTNAME": "node-1", "MODEL": "tiny"}


def of_service(service: dict[str, Any]) -> list[list[str]]:
    """The calls of `swarm` that a service makes."""
    if "command" not in service or not service["image"].startswith("murmuration:"):
        return []
    if service.get("entrypoint") == ["sh", "-c"]:
        return list(in_shell(service["command"][0], NUMBERS))
    return list(in_shell("swarm " + " ".join(service["command"]), NUMBERS))


def of_manifest() -> list[list[str]]:
    templates = [one["spec"]["template"]["spec"] for one in MANIFEST if one["kind"] in ("StatefulSet", "Deployment")]
    return [words for pod in templates for one in pod["containers"] for words in in_shell(one["args"][0], NUMBERS)]


PREPARING = list(in_shell((DEPLOY / "docker/prepare.sh").read_text()))
CALLS = [words for service in SERVICES.values() for words in of_service(service)] + of_manifest() + PREPARING


def test_every_service_has_its_command() -> None:
    names = [words[0] for words in CALLS]
    assert names.count("node") == 4 + 2 and names.count("serve") == 1 + 1 and len(PREPARING) == 2
    assert sorted(name for name, service in SERVICES.items() if of_service(service)) == ["anna", "ben", "cleo", "dora", "gateway"]


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_a_command_is_understood_with_each_of_its_values(words: list[str]) -> None:
    found = parsed(words)
    for peer in found.get("peer", ()):
        assert PeerAddress.parse(peer).peer == PEER
    if words[0] == "node":
        assert parse_address(found["listen"], "--listen")[1] == 4000 and parse_port(found["metrics"], "--metrics") == (
            "0.0.0.0",
            9400,
        )
        parse_address(found["announce"], "--announce")
        parse_grpc_address(found["announce"])
        assert not found["lan"] and found["num_blocks"] == int(NUMBERS["NUM_BLOCKS"])


def test_the_check_itself_finds_a_wrong_flag_and_a_wrong_command() -> None:
    for script in ("exec swarm node tiny --no-such", "swarm nodes tiny", "a && swarm serve tiny --port many"):
        with pytest.raises(Exception, match=r"no-such|nodes|integer"):
            parsed(next(in_shell(script)))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_names_volumes_files_and_services_that_there_are(name: str) -> None:
    service = SERVICES[name]
    for volume in service.get("volumes", ()):
        source = volume.rpartition(":ro")[0].rpartition(":")[0] if volume.endswith(":ro") else volume.rpartition(":")[0]
        if source.startswith("."):
            assert (DEPLOY / "docker" / source).resolve().is_file(), source
        else:
            assert source.startswith("${MODEL_DIR") or source in COMPOSE["volumes"], source
    assert set(service.get("depends_on", ())) <= set(SERVICES)
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), "only this machine reaches it"


def test_what_joins_asks_the_first_node_and_announces_its_own_name() -> None:
    for name in ("anna", "ben", "cleo", "dora"):
        (words,) = of_service(SERVICES[name])
        found = parsed(words)
        assert found["announce"] == f"{name}:4000" and found["name"] == name
        assert [PeerAddress.parse(peer).host for peer in found["peer"]] == ([] if name == "anna" else ["anna"])


def test_prometheus_reads_the_nodes_and_the_gateway_of_the_compose_file() -> None:
    jobs = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
    targets = {target for job in jobs for one in job["static_configs"] for target in one["targets"]}
    assert targets == {"anna:9400", "ben:9400", "cleo:9400", "dora:9400", "gateway:8000"}
    assert [job["authorization"]["credentials_file"] for job in jobs if "authorization" in job] == ["/key/gateway.key"]
    (source,) = yaml.safe_load((DEPLOY / "grafana/datasources.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in SERVICES
    (provider,) = yaml.safe_load((DEPLOY / "grafana/dashboards.yaml").read_text())["providers"]
    assert any(f"{provider['options']['path']}/murmuration.json" in volume for volume in SERVICES["grafana"]["volumes"])


def test_prepare_makes_an_identity_and_a_key_once(tmp_path: Path) -> None:
    folders = seed, public, key, gateway = [tmp_path / name for name in ("seed", "public", "key", "gateway")]
    for folder in folders:
        folder.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    made = []
    for _ in range(2):
        subprocess.run(
            ["sh", DEPLOY / "docker/prepare.sh", *folders],
            check=True,
            capture_output=True,
            env={**os.environ, "PATH": path},
        )
        made.append([file.read_text() for file in (public / "seed.peer", key / "gateway.key")])
    assert made[0] == made[1] and made[0][0].startswith("12D3KooW") and (gateway / "gateway_keys.json").exists()
    assert [file.name for file in (*seed.iterdir(), *public.iterdir())] == ["seed.key", "seed.peer"], (
        "no secret where others read"
    )


def mounted_secrets(pod: dict[str, Any]) -> set[str]:
    """Secrets that its containers can read: as files, or as variables."""
    names = {volume["secret"]["secretName"] for volume in pod.get("volumes", ()) if "secret" in volume}
    for container in pod["containers"]:
        names |= {
            one["valueFrom"]["secretKeyRef"]["name"] for one in container.get("env", ()) if "secretKeyRef" in one["valueFrom"]
        }
        names |= {one["secretRef"]["name"] for one in container["envFrom"] if "secretRef" in one}
    return names


def test_a_pod_reads_the_secret_that_it_needs_and_no_other() -> None:
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in MANIFEST
        if one["kind"] in ("StatefulSet", "Deployment")
    }
    assert {name: mounted_secrets(pod) for name, pod in pods.items()} == {
        "seed": {"murmuration-seed"}, "node": set(), "gateway": {"murmuration-keys"}
    }  # fmt: skip


def test_the_manifest_s_pods_are_found_by_the_names_that_they_announce() -> None:
    sets = [one for one in MANIFEST if one["kind"] == "StatefulSet"]
    (service,) = [one for one in MANIFEST if one["kind"] == "Service" and one["metadata"]["name"] == "nodes"]
    for one in sets:
        labels, selected = one["spec"]["template"]["metadata"]["labels"], one["spec"]["selector"]["matchLabels"]
        assert (
            one["spec"]["serviceName"] == "nodes" and selected == labels and service["spec"]["selector"].items() <= labels.items()
        )
    assert len({tuple(one["spec"]["selector"]["matchLabels"].items()) for one in sets}) == len(sets), "each has its own pods"
    asked = {PeerAddress.parse(peer).host for words in of_manifest() for peer in parsed(words).get("peer", ())}
    assert asked == {"seed-0.nodes"} and [one["spec"]["replicas"] for one in sets if one["metadata"]["name"] == "seed"] == [1]


def test_a_secret_is_where_only_its_reader_and_its_maker_are() -> None:
    mounted = {
        volume: {
            name for name, service in SERVICES.items() for one in service.get("volumes", ()) if one.partition(":")[0] == volume
        }
        for volume in COMPOSE["volumes"]
    }
    assert mounted["seed"] == {"prepare", "anna"} and mounted["key"] == {"prepare", "prometheus"}
    assert mounted["gateway"] == {"prepare", "gateway"} and mounted["public"] == {"prepare", "ben", "cleo", "dora", "gateway"}
    assert SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?"), "else it is admin"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_copies_what_there_is_and_ends_as_swarm_without_root(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    steps = [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]
    assert {name for name, _ in steps} <= {
        "FROM",
        "RUN",
        "COPY",
        "USER",
        "ENV",
        "VOLUME",
        "EXPOSE",
        "ENTRYPOINT",
        "CMD",
        "WORKDIR",
    }
    for sources in [rest.split()[:-1] for name, rest in steps if name == "COPY"]:
        assert all((ROOT / source).exists() for source in sources)
    assert dict(steps)["USER"] == "swarm" and dict(steps)["ENTRYPOINT"] == '["swarm"]'
    (pinned,) = set(re.findall(r"torch==\S+", file.read_text()))
    assert f'TORCH="{pinned}"' in (ROOT / "scripts/setup").read_text()


def test_the_two_images_differ_in_their_torch_only() -> None:
    cpu, cuda = (
        [line for line in (DEPLOY / f"docker/{name}.Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
        for name in ("cpu", "cuda")
    )
    different = [(one, other) for one, other in zip(cpu, cuda, strict=True) if one != other]
    assert [one.replace(" --index-url https://download.pytorch.org/whl/cpu", "") for one, _ in different] == [different[0][1]]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_a_command_that_there_is(unit: Path) -> None:
    (line,) = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    program, _, rest = line.removeprefix("ExecStart=").partition(" ")
    assert program.endswith("/swarm")
    (words,) = in_shell(f"swarm {rest}", NUMBERS)
    assert parsed(words)["data_dir"].name == unit.stem


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_a_unit_and_calls_it_safe(unit: Path, tmp_path: Path) -> None:
    own = tmp_path / unit.name
    own.write_text(unit.read_text().replace("/opt/murmuration/.venv/bin/swarm", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", own], capture_output=True, text=True)
    assert verified.returncode == 0 and unit.name not in verified.stderr, verified.stderr
    # An exposure of 4.0 and less is "OK" in systemd's words.
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=40", own]
    done = subprocess.run(command, capture_output=True, text=True)
    if "systemd-analyze security" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("this systemd cannot judge a file")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_selectors_and_ports_of_the_manifest_fit_their_pods() -> None:
    by_kind = {(one["kind"], one["metadata"]["name"]): one for one in MANIFEST}
    pods = {name: one["spec"] for (kind, name), one in by_kind.items() if kind in ("StatefulSet", "Deployment")}
    assert set(pods) == {"seed", "node", "gateway"}
    for name, spec in pods.items():
        labels, (container,) = spec["template"]["metadata"]["labels"], spec["template"]["spec"]["containers"]
        assert spec["selector"]["matchLabels"] == labels
        service = by_kind["Service", name if name == "gateway" else "nodes"]["spec"]
        assert service["selector"].items() <= labels.items()
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert all(ports[port["name"]] == port["port"] for port in service["ports"])
        assert container["readinessProbe"]["httpGet"]["port"] in ports
        volumes = {one["name"] for one in spec["template"]["spec"].get("volumes", ())}
        volumes |= {one["metadata"]["name"] for one in spec.get("volumeClaimTemplates", ())}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
