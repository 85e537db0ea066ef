"""Rules, runbook, dashboards and the metrics' table tell of the same things, and only of real ones.

What only the tools can judge is left to them where they are on the path.
"""

import re
import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tests.ops.files import (
    DOCS,
    OPS,
    alerts,
    dashboards,
    families,
    metrics_named,
    panels,
    read_yaml,
    series,
)
from worker import metrics

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="promtool is not on the path")
VARIABLES = {"$__rate_interval", "$provider"}
PANELS = dict(panels())
BUILT_IN = {"job", "instance", "le"}


# --- metrics ------------------------------------------------------------------------------------


def test_every_metric_of_the_module_is_listed() -> None:
    registered = {family.name for family in REGISTRY.collect() if family.name.startswith("onward_")}
    listed = {family.name for metric in metrics.ALL for family in metric.describe()}
    assert registered == listed


def test_no_label_is_an_id() -> None:
    labels = {label for metric in metrics.ALL for label in metric._labelnames}
    known = {"provider", "outcome", "reason", "kind", "table", "where", "state", "limit"}
    assert labels <= known


def table() -> str:
    """Return the table that docs/metrics.md must hold."""
    lines = ["| metric | type | labels | what | alerts |", "|---|---|---|---|---|"]
    for name, metric in families().items():
        used = [
            alert
            for alert, rule in alerts().items()
            if any(one.startswith(name) for one in metrics_named(rule["expr"]))
        ]
        (family,) = metric.describe()
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        words = family.documentation.replace("|", "\\|")
        lines.append(f"| `{name}` | {metric._type} | {labels} | {words} | {', '.join(used)} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_metrics_is_complete_and_true() -> None:
    assert table() in (DOCS / "metrics.md").read_text()


# --- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_somebody_needs(name: str) -> None:
    rule = alerts()[name]
    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["runbook_url"] == f"ops/runbook.md#{name.lower()}"


@pytest.mark.parametrize("name", alerts())
def test_an_alert_names_metrics_that_exist(name: str) -> None:
    named = metrics_named(alerts()[name]["expr"])
    assert named
    assert named <= series()


@pytest.mark.parametrize("name", alerts())
def test_every_alert_is_tested_both_ways(name: str) -> None:
    tests = read_yaml(OPS / "prometheus" / "rules_test.yml")["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    fires = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == name}
    assert fires == {True, False}


def test_prometheus_reads_the_rules_and_finds_the_workers() -> None:
    config = read_yaml(OPS / "prometheus" / "prometheus.yml")
    assert config["rule_files"] == ["rules.yml"]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (found,) = jobs["onward-worker"]["dns_sd_configs"]
    assert (found["names"], found["port"]) == (["worker"], 9464)


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=["config", "rules", "tests"],
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    assert PROMTOOL
    command = [PROMTOOL, *arguments]
    done = subprocess.run(
        command, cwd=OPS / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_finds_no_fault_in_the_metrics() -> None:
    assert PROMTOOL
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=metrics.exposition(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# --- runbook ------------------------------------------------------------------------------------


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", (OPS / "runbook.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    assert list(sections()) == list(alerts())


@pytest.mark.parametrize("name", alerts())
def test_a_section_says_what_it_means_what_to_look_at_and_what_to_type(name: str) -> None:
    text = sections()[name]
    places = [text.find(f"**{word}:**") for word in ("Means", "Look at", "Type")]
    assert -1 not in places
    assert places == sorted(places)
    assert "```sh" in text


# --- dashboards ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dashboards())
def test_a_dashboard_asks_for_its_data_source(name: str) -> None:
    board = dashboards()[name]
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert board["uid"] == name
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_a_panel_names_metrics_and_variables_that_exist(panel: dict[str, Any]) -> None:
    place = panel["gridPos"]
    assert place["x"] + place["w"] <= 24
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
        named = metrics_named(target["expr"])
        assert named
        assert named <= series()
        assert set(re.findall(r"\$\w+", target["expr"])) <= VARIABLES


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_a_panel_selects_and_groups_by_labels_its_metrics_have(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expr = target["expr"]
        have = set(BUILT_IN)
        for name in metrics_named(expr):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            have |= set(families()[base]._labelnames)
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expr))
        used |= {
            part.strip()
            for group in re.findall(r"by \(([^)]*)\)", expr)
            for part in group.split(",")
        }
        used |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert used <= have


def test_grafana_finds_its_data_source_and_dashboards() -> None:
    folder = OPS / "grafana" / "provisioning"
    (source,) = read_yaml(folder / "datasources" / "prometheus.yml")["datasources"]
    (boards,) = read_yaml(folder / "dashboards" / "onward.yml")["providers"]
    compose = read_yaml(OPS.parent / "docker-compose.yml")["services"]
    assert source["url"] == "http://prometheus:9090"
    mounts = compose["grafana"]["volumes"]
    assert f"./ops/grafana/dashboards:{boards['options']['path']}:ro" in mounts
    assert "./ops/grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
