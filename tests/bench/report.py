"""What was found: a table, `results.json`, a plot. Pure but for writing."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.plot import Line, chart

HERE = Path(__file__).parent
BEGIN, FINISH = "<!-- figures -->", "<!-- /figures -->"
PACKAGES = ("redis", "uvloop", "httptools", "msgspec", "celery", "httpx")


class Target(NamedTuple):
    """A figure of the results, and what it should be."""

    what: str
    scenario: str
    figure: str
    least: float | None = None
    most: float | None = None
    unit: str = ""


TARGETS = (
    Target("deliveries a second against naive", "single", "ratio_naive", 80, unit="x"),
    Target("deliveries a core against naive", "single", "ratio_naive_cpu", unit="x"),
    Target("deliveries a core against wrk", "single", "ratio_wrk", 0.25, unit="x"),
    Target("deliveries a second", "single", "per_second"),
    Target("CPU a delivery", "single", "cpu_us", unit="µs"),
    Target("batched events a core", "batch", "per_core", 100_000, unit="/s"),
    Target("HTTPS against HTTP", "tls", "ratio_plain", 0.6, unit="x"),
    Target("latency at half load, p50", "latency", "p50_ms", None, 10, "ms"),
    Target("latency at half load, p99", "latency", "p99_ms", None, 50, "ms"),
    Target("idle: latency, p99", "idle", "p99_ms", None, 50, "ms"),
    Target("idle: CPU", "idle", "cpu_percent", None, 2, "%"),
    Target("50 ms upstreams against naive", "slow", "ratio_naive", 500, unit="x"),
    Target("10 → 10,000 pipelines, CPU", "pipelines", "ratio_cpu", None, 1.5, "x"),
    Target("memory of a child at 1,000 pipelines", "memory", "memory_mb", None, 120, "MB"),
    Target("large backlog, CPU", "backlogs", "ratio_cpu", None, 1.1, "x"),
    Target("Redis bytes in the intake", "sizes", "intake_bytes_ratio", None, 1.3, "x JSON"),
    Target("Redis bytes in a lane", "sizes", "lane_bytes_ratio", None, 1.4, "x JSON"),
    Target("noisy tenant, others' p99", "tenant", "ratio_p99", None, 1.5, "x"),
    Target("hanging and dead, healthy rate", "neighbours", "ratio_rate", 0.95, unit="x"),
    Target("hanging and dead, healthy p99", "neighbours", "ratio_p99", None, 1.2, "x"),
    Target("second worker, CPU a delivery", "second", "ratio_cpu", None, 1.1, "x"),
    Target("the same, no core free", "second", "ratio_backlog_cpu", unit="x"),
    Target("rows a core to PostgreSQL", "record", "postgresql_rows_per_core", 100_000, unit="/s"),
    Target("rows a core to SQLite", "record", "sqlite_rows_per_core", unit="/s"),
)


def rows(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return (what, measured, target, reached or not) of what was measured."""
    table = []
    for target in TARGETS:
        value = found.get(target.scenario, {}).get(target.figure)
        if value is None:
            continue
        wanted, verdict = "", ""
        if target.least is not None:
            wanted, verdict = f"≥ {target.least:g}", "yes" if value >= target.least else "no"
        if target.most is not None:
            wanted, verdict = f"≤ {target.most:g}", "yes" if value <= target.most else "no"
        table.append((target.what, f"{value:,} {target.unit}".strip(), wanted, verdict))
    return table


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the rows as text in columns."""
    lines = [("", "measured", "target", "reached"), *rows(found)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip()
        for a, b, c, d in lines
    )


def results(found: Mapping[str, Mapping[str, Any]], *, quick: bool) -> dict[str, Any]:
    """Return what `results.json` holds: the headline figures, then everything."""

    def figure(scenario: str, name: str) -> Any:
        return found.get(scenario, {}).get(name)

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": "quick" if quick else "full",
        "ratio_naive": figure("single", "ratio_naive"),
        "ratio_naive_cpu": figure("single", "ratio_naive_cpu"),
        "ratio_wrk": figure("single", "ratio_wrk"),
        "deliveries_per_second": figure("single", "per_second"),
        "deliveries_per_core": figure("single", "per_core"),
        "batch_events_per_core": figure("batch", "per_core"),
        "p50_ms": figure("latency", "p50_ms"),
        "p99_ms": figure("latency", "p99_ms"),
        "idle_p99_ms": figure("idle", "p99_ms"),
        "idle_cpu_percent": figure("idle", "cpu_percent"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "scenarios": found,
    }


def machine() -> dict[str, Any]:
    """Return what the figures were made on; a load beyond one's own makes them worse."""
    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
    }


def page(found: Mapping[str, Mapping[str, Any]], *, quick: bool) -> str:
    """Return the part of RESULTS.md that each run writes anew, in Markdown."""
    told = results(found, quick=quick)
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    made_on = told["machine"]
    where = f"{made_on['cores']} cores ({made_on['system']}; load at the end {made_on['load']})"
    lines = [
        f"{told['date'][:10]}, {'a quick' if quick else 'a full'} run on {where}.",
        f"Versions: {versions}.",
        "",
        "| what | measured | target | reached |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows(found)),
    ]
    return "\n".join(lines)


def write_page(text: str, path: Path) -> None:
    """Put `text` between the marks of RESULTS.md; what people wrote around them stays."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, finish, after = rest.partition(FINISH)
    path.write_text(f"{before}{begin}\n{text}\n{finish}{after}")


def write(found: Mapping[str, Mapping[str, Any]], *, quick: bool, folder: Path = HERE) -> None:
    """Write `results.json` and RESULTS.md, and of a full run the plots."""
    text = json.dumps(results(found, quick=quick), indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n")
    write_page(page(found, quick=quick), folder / "RESULTS.md")
    if lines := _lines(found):
        (folder / "plot.svg").write_text(chart(lines))


def _lines(found: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    lines = []
    if points := found.get("pipelines", {}).get("points"):
        lines.append(
            _line("deliveries a second of CPU, by pipelines", points, "pipelines", "per_core")
        )
    if len(points := found.get("latency", {}).get("points", ())) > 1:
        lines.append(
            _line("latency p99 in ms, by deliveries a second", points, "per_second", "p99")
        )
    return lines


def _line(title: str, points: Iterable[Mapping[str, float]], across: str, up: str) -> Line:
    pairs: Sequence[tuple[float, float]] = [(point[across], point[up]) for point in points]
    return Line(title, pairs)
