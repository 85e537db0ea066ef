"""`onward up`, as a user starts, kills and leaves it: its files are one service's at a time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.stack import QUICK, eventually, family, kill
from worker.settings import STATE_FILE
from worker.supervisor import onward, wait_for_http

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]
Up = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    started: list[subprocess.Popen[str]] = []
    hidden = {name: value for name, value in os.environ.items() if not name.startswith("ONWARD_")}
    environment = {**hidden, **QUICK, "ONWARD_DATA_DIR": str(tmp_path)}

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            onward("up", "--port", "0"),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            kill(process)
        assert process.stdout
        process.stdout.close()


def answers(folder: Path, process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the processes of a service once its API answers, that of `process`."""

    def look() -> str:
        try:
            state = json.loads((folder / STATE_FILE).read_text())
        except FileNotFoundError:
            return ""
        return str(state["api_url"]) if state["pid"] == process.pid else ""

    wait_for_http(f"{eventually(look, 90, 'it says where it is')}/healthz", 90)
    return family(process.pid)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all have ended; who inherits one need not have asked yet how it did."""
    return all(map(_ended, processes))


def _ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed service's parts live on")
def test_killed_it_leaves_nothing_that_the_next_would_meet(tmp_path: Path, up: Up) -> None:
    first = up()
    parts = answers(tmp_path, first)
    assert len(parts) >= 4, "Valkey, a worker with its child, the API"

    second = up()
    told, _ = second.communicate()
    assert second.returncode != 0
    assert f"Onward runs here already (process {first.pid})" in told

    first.kill()
    first.wait()
    third = up()
    answers(tmp_path, third)
    assert gone(parts), "before the next one began"
    third.terminate()
    told, _ = third.communicate()
    assert "Stopping …" in told


def test_a_terminal_that_closes_ends_it(tmp_path: Path, up: Up) -> None:
    closed = up()
    parts = answers(tmp_path, closed)
    assert closed.stdout
    closed.stdout.close()  # what it says reaches nobody any more
    closed.send_signal(signal.SIGHUP)
    closed.wait(60)
    eventually(lambda: gone(parts), 10, "all ended")
