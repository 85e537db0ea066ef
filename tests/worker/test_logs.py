"""What is logged of a server that is away, and of a fault of ours."""

import json
import logging
import sys
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from redis.exceptions import BusyLoadingError, ResponseError
from redis.exceptions import ConnectionError as LostConnection
from sqlalchemy.exc import OperationalError

from worker.logs import ONCE_SECONDS, Json, Once, Text, in_one_line


def logged(error: Exception, told: str, *args: Any) -> logging.LogRecord:
    try:
        raise error  # noqa: TRY301  as where it comes from
    except Exception:  # noqa: BLE001  as the library that logs it
        record = logging.LogRecord("kombu", 40, __file__, 1, told, args, sys.exc_info())
    assert in_one_line(record)
    return record


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LostConnection("Connection refused."), "Will retry a: Connection refused."),
        (BusyLoadingError("loading"), "Will retry a: loading"),
        (WorkerLostError("signal 9"), "Will retry a: signal 9"),
        (OperationalError("", {}, Exception("it\nis gone")), "Will retry a: it is gone"),
    ],
)  # fmt: skip
def test_a_server_that_is_away_is_one_line(error: Exception, said: str) -> None:
    record = logged(error, "Will\nretry %s", "a")
    assert (record.getMessage(), record.exc_info) == (said, None)


def test_what_was_said_already_is_not_said_again() -> None:
    assert logged(LostConnection("gone"), "It is gone").getMessage() == "It is gone"


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    assert logged(ResponseError("WRONGTYPE"), "It failed").exc_info


def test_the_same_line_again_is_dropped_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    once = Once()

    def printed(level: int, told: str) -> bool:
        return bool(once.filter(logging.LogRecord("a", level, __file__, 1, told, (), None)))

    assert [printed(logging.WARNING, told) for told in ("x", "x", "y", "x")] == [
        True, False, True, False,
    ]  # fmt: skip
    assert [printed(logging.INFO, "x") for _ in range(2)] == [True, True]
    now += ONCE_SECONDS
    assert printed(logging.WARNING, "x")


def test_a_line_for_machines_says_what_when_and_who() -> None:
    record = logging.LogRecord("onward", logging.WARNING, __file__, 1, "it is %s", ("é",), None)
    record.created = 1_790_000_000.25
    assert json.loads(Json().format(record)) == {
        "event": "it is é", "level": "warning", "logger": "onward",
        "timestamp": "2026-09-21T14:13:20.250000Z",
    }  # fmt: skip
    assert Text().format(record) == "2026-09-21T14:13:20.250000Z [WARNING ] it is é [onward]"


@pytest.mark.parametrize("form", [Json(), Text()])
def test_a_traceback_is_told(form: logging.Formatter) -> None:
    line = form.format(logged(ResponseError("WRONGTYPE"), "It failed"))
    assert "Traceback" in line
    assert "WRONGTYPE" in line
