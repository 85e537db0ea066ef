"""What deploys the service: no default secrets, everything bounded, checked and mounted as said."""

import configparser
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no types, and what is read is Any

from tests.ops.files import OPS, ROOT, read_yaml
from worker.settings import WorkerSettings

COMPOSE = read_yaml(ROOT / "docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LASTING = [name for name, one in SERVICES.items() if one.get("restart") != "no"]
SETTINGS = {f"ONWARD_{name.upper()}" for name in WorkerSettings.model_fields}
SECRET = re.compile(r"PASSWORD|SECRET_KEYS|ADMIN_KEY")


# --- set-up -------------------------------------------------------------------------------------


def test_an_interpreter_is_chosen_that_serves() -> None:
    script = [sys.executable, str(OPS / "choose_python.py")]
    chosen = subprocess.run(script, capture_output=True, check=True, text=True).stdout.strip()
    serves = "import sys, venv; sys.exit(sys.version_info < (3, 11))"
    assert subprocess.run([chosen, "-c", serves], check=False).returncode == 0


def test_what_is_no_interpreter_is_not_chosen() -> None:
    seconds = runpy.run_path(str(OPS / "choose_python.py"))["seconds"]
    assert seconds("/bin/false") == seconds("/nowhere/python3") == float("inf")
    assert 0 < seconds(sys.executable) < float("inf")


# --- compose ------------------------------------------------------------------------------------


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", text)
    secrets = {name for name, _ in used if SECRET.search(name)}
    assert secrets == {
        "REDIS_PASSWORD", "POSTGRES_PASSWORD", "ONWARD_SECRET_KEYS", "ONWARD_ADMIN_KEY",
        "GRAFANA_PASSWORD",
    }  # fmt: skip
    for name in secrets:
        forms = {form for other, form in used if other == name}
        assert forms <= {"", ":?set it in .env"}, name
        assert ":?set it in .env" in forms, name


def test_the_example_names_what_compose_asks_for_and_no_secret() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    lines = (OPS / "compose.env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(given) == asked
    assert [name for name, value in given.items() if value and SECRET.search(name)] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_bounded(name: str) -> None:
    one = SERVICES[name]
    if name != "migrate":
        assert one["deploy"]["resources"]["limits"]["memory"]
        assert one["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", [name for name in LASTING if name != "sandbox"])
def test_a_service_is_checked(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]


def test_ports_are_published_on_loopback_only_and_none_of_the_workers() -> None:
    published = {name: one.get("ports", []) for name, one in SERVICES.items()}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert {name for name, ports in published.items() if ports} == {"api", "prometheus", "grafana"}


def test_workers_can_be_scraped_in_the_network() -> None:
    environment = SERVICES["worker"]["environment"]
    assert environment["ONWARD_METRICS_HOST"] == "0.0.0.0"
    assert "ONWARD_METRICS_PORT" not in environment, "Prometheus asks at the default"
    assert WorkerSettings.model_fields["metrics_port"].default == 9464
    assert WorkerSettings.model_fields["metrics_host"].default == "127.0.0.1"


def test_mounts_from_the_checkout_exist_and_volumes_are_declared() -> None:
    for one in SERVICES.values():
        for mount in one.get("volumes", []):
            source = mount.split(":")[0]
            found = (ROOT / source).exists() if source[0] == "." else source in COMPOSE["volumes"]
            assert found, mount


def test_redis_keeps_what_it_is_given() -> None:
    command = SERVICES["redis"]["command"]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


# --- names of settings, everywhere --------------------------------------------------------------


def settings_in(path: Path) -> set[str]:
    return set(re.findall(r"\bONWARD_[A-Z_]+[A-Z]\b", path.read_text()))


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "docker-compose.yml",
        *sorted(OPS.rglob("*.md")),
        *sorted(OPS.rglob("*.example")),
        *sorted(OPS.rglob("*.yaml")),
        *sorted(OPS.rglob("*.service")),
        *sorted((ROOT / "docs").glob("*.md")),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_settings_named_exist(path: Path) -> None:
    assert settings_in(path) <= SETTINGS


# --- Kubernetes ---------------------------------------------------------------------------------


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name in read_yaml(OPS / "kubernetes" / "kustomization.yaml")["resources"]:
        for one in yaml.safe_load_all((OPS / "kubernetes" / name).read_text()):
            found[one["kind"], one["metadata"]["name"]] = one
    return found


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    template: dict[str, Any] = manifest["spec"]["template"]
    return template


@pytest.mark.parametrize("name", ["onward-worker", "onward-api"])
def test_a_deployment_has_probes_limits_and_a_budget(name: str) -> None:
    deployment = manifests()["Deployment", name]
    (container,) = pod_of(deployment)["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    assert container["resources"]["limits"]["memory"]
    labels = pod_of(deployment)["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    budget = manifests()["PodDisruptionBudget", name]
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert deployment["spec"]["replicas"] > budget["spec"]["maxUnavailable"]


def test_every_pod_runs_as_nobody_on_a_root_it_can_not_write() -> None:
    pods = [
        pod_of(one)["spec"] for one in manifests().values() if "template" in one.get("spec", {})
    ]
    assert len(pods) == 3
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_no_manifest_holds_a_secret() -> None:
    assert all(kind != "Secret" for kind, _ in manifests())


# --- systemd ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["migrate", "worker", "api"])
def test_a_unit_runs_one_of_our_programs_with_few_rights(name: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as its documentation says
    unit.read(OPS / "systemd" / f"onward-{name}.service")
    service = unit["Service"]
    assert service["ExecStart"].split()[:2] == ["/opt/onward/bin/onward", name]
    assert service["User"] != "root"
    assert service["NoNewPrivileges"] == "yes"
    assert name == "migrate" or service["Restart"] == "always"
