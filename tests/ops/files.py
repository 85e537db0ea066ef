"""The files under test, read once, and the metrics that exist."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # it has no types, and what is read is Any

from worker import metrics

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"
DOCS = ROOT / "docs"
_NAME = re.compile(r"\bonward_[a-z_]+[a-z]\b")


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@cache
def alerts() -> dict[str, dict[str, Any]]:
    groups = read_yaml(OPS / "prometheus" / "rules.yml")["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@cache
def dashboards() -> dict[str, dict[str, Any]]:
    found = sorted((OPS / "grafana" / "dashboards").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in found}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, board in dashboards().items():
        for panel in board["panels"]:
            yield f"{name}: {panel['title']}", panel


def metrics_named(text: str) -> set[str]:
    """Return the metric names in an expression or a page."""
    return set(_NAME.findall(text))


@cache
def families() -> dict[str, Any]:
    """Return every metric by the name it is queried by."""
    found = {}
    for metric in metrics.ALL:
        (family,) = metric.describe()
        found[family.name + ("_total" if family.type == "counter" else "")] = metric
    return found


@cache
def series() -> set[str]:
    """Return every name that a scrape shows."""
    names = set()
    for name, metric in families().items():
        histogram = metric._type == "histogram"
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if histogram else {name}
    return names
