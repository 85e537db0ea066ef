"""Logs: JSON lines for machines, plain text on a terminal; never a secret, never a payload."""

import json
import logging
import sys
import time
from datetime import UTC, datetime

from billiard.exceptions import WorkerLostError

from worker.away import AWAY, told
from worker.settings import WorkerSettings

EXPECTED: tuple[type[Exception], ...] = (*AWAY, WorkerLostError)
ONCE_SECONDS = 10.0
LINES = 1_000  # remembered


def in_one_line(record: logging.LogRecord) -> bool:
    """Tell of a server that is away, or a child that was killed, without a traceback.

    Whichever library noticed: none of it is a bug, and where it was noticed tells nobody anything.
    """
    thrown = record.exc_info[1] if record.exc_info else None
    error = getattr(thrown, "exc", thrown)  # the pool's way to bring one from a child
    if isinstance(error, EXPECTED):
        said, why = " ".join(record.getMessage().split()), told(error)
        record.msg = said if why in said else f"{said}: {why}"
        record.args, record.exc_info, record.exc_text = (), None, None
    return True


class Once(logging.Filter):
    """Drops a line that this process has said in these words a moment ago: it tells nothing new.

    While a server is away, all who need it say so several times a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to print the line."""
        if record.levelno < logging.WARNING or record.exc_info:
            return True
        now, line = time.monotonic(), (record.name, record.getMessage())
        if self._said.get(line, float("-inf")) > now - ONCE_SECONDS:
            return False
        if len(self._said) > LINES:
            self._said.clear()
        self._said[line] = now
        return True


class Text(logging.Formatter):
    """Time, level, message and logger on a line for people; a traceback below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s [%(levelname)-8s] %(message)s [%(name)s]")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802  the base class's signature
        """Return when it was logged, in UTC."""
        return datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")


class Json(Text):
    """The same as an object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback is its `exception`."""
        line = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "timestamp": self.formatTime(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(settings: WorkerSettings) -> None:
    """Send every log line to stderr in the chosen form."""
    text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(in_one_line)
    handler.addFilter(Once())
    handler.setFormatter(Text() if text else Json())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("celery.app.trace", "celery.worker.strategy", "kombu", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
