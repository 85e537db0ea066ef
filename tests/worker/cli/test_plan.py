"""`onward plan`: what it prints, and what it refuses."""

import pytest
import typer

from tests.worker.cli.run import run
from worker.cli.plan import seconds, size

EXAMPLE = (
    "plan",
    "--events-per-second",
    "5000",
    "--integrations-per-project",
    "5",
    "--hold",
    "72h",
)


def test_the_example_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, *EXAMPLE)
    assert done.code == 0
    assert "25,000/s on average" in done.out
    for name in ("Worker processes", "ONWARD_SHARDS", "Redis", "Database"):
        assert name in done.out


def test_json_has_what_was_asked_and_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    told = run(capsys, *EXAMPLE, "--json").json
    assert told["load"]["hold_seconds"] == 259_200
    assert told["plan"]["deliveries_per_second"] == 25_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "events-per-second"),
        (("--events-per-second", "0"), "more than 0"),
        (("--events-per-second", "many"), "valid"),
        (("--events-per-second", "5", "--hold", "3w"), "72h"),
        (("--events-per-second", "5", "--held-share", "2"), "less than or equal to 1"),
    ],
)
def test_what_will_not_do_is_said(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    done = run(capsys, "plan", *arguments)
    assert done.code == 2
    assert message in done.err


def test_more_than_one_service_can_have_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "plan", "--events-per-second", "10000000")
    assert done.code == 1
    assert "several services" in done.err


@pytest.mark.parametrize(
    "arguments", [("1e300",), ("1", "--hold", f"{'9' * 400}d"), ("1", "--days", "inf")]
)
def test_numbers_beyond_all_sums_are_said(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    done = run(capsys, "plan", "--events-per-second", *arguments)
    assert (done.code, "too large" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("45s", 45), ("10m", 600), ("72h", 259_200), ("1.5d", 129_600)]
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "h", "-1h", "1w", "1h30m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        seconds(text)


def test_sizes_for_people() -> None:
    assert size(1536) == "1.5 KiB"
    assert size(5 * 2**50) == "5 PiB"
