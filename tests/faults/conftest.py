"""`scene`: a service to break; and, at the end of the run, a table of what held."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from tests.faults.proxy import Proxy
from tests.faults.scene import Scene
from tests.faults.table import HEAD, row_of
from tests.worker.store.databases import database

OUTCOMES = ("passed", "failed", "error", "xfailed", "xpassed")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(number, fault): a row of the fault matrix")


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("row")
    if mark is not None:
        item.user_properties += [("row", str(mark.args[0])), ("fault", mark.args[1])]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not report.passed:
        item.stash[_BROKEN] = True
    return report


_BROKEN = pytest.StashKey[bool]()


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Scene]]:
    """Return how to make the service; whoever uses it must have its accounts checked at the end."""
    made: list[Scene] = []

    def make(environment: dict[str, str] | None = None, **options: Any) -> Scene:
        folder = tmp_path / f"s{len(made)}"
        made.append(Scene(folder, environment, figures=request.node.user_properties, **options))
        return made[-1]

    yield make
    if not request.node.stash.get(_BROKEN, False):
        assert all(one.checked for one in made), "a test of a fault ends with the accounts"


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[tuple[str, Proxy, str]]:
    """Give a database's URL, a link to it, and the URL through that link."""
    with database("postgresql", tmp_path) as url:
        folder = make_url(url).query["host"]
        with Proxy(f"{folder}/.s.PGSQL.5432") as link:
            through = make_url(url).set(query={}, host="127.0.0.1", port=link.port)
            yield url, link, through.render_as_string(hide_password=False)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [(o, report) for o in OUTCOMES for report in terminalreporter.stats.get(o, ())]
    rows = {report.nodeid: row_of(report, outcome) for outcome, report in reports}
    told = sorted(row for row in rows.values() if row is not None)
    if told:
        terminalreporter.section("what held")
        for line in (HEAD, *told):
            terminalreporter.write_line(str(line))
