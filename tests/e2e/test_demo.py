"""`onward demo`, as a user runs it: it proves itself, and leaves nothing behind."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.stack import eventually
from worker.registry import all_providers
from worker.supervisor import onward

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]


def started(folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "TMPDIR": str(folder), "ONWARD_REDIS_URL": "redis://nowhere:1/0"}
    return subprocess.Popen(
        onward("demo", "--events", "60"),
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left(folder: Path) -> list[str]:
    """Return the processes that have to do with a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            signs = [*process.cmdline(), process.environ().get("TMPDIR", ""), process.cwd()]
            if str(folder) in " ".join(signs):
                found.append(f"{process.pid} {process.cmdline()}")
        except psutil.Error:
            continue
    return found


def test_the_whole_story_is_told_and_proven(tmp_path: Path) -> None:
    told, _ = (running := started(tmp_path)).communicate(timeout=580)
    assert running.returncode == 0, told
    slugs = len(all_providers())
    assert f"60 events x {slugs} pipelines = {60 * slugs:,} deliveries" in told
    assert "suspended (active=2): '401 from Webhooks: unauthorized'" in told
    assert "the held events arrived, in order for each user" in told
    for provider in all_providers().values():
        assert provider.title in told
    assert list(tmp_path.iterdir()) == []
    assert left(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    running = started(tmp_path)
    eventually(lambda: len(left(tmp_path)) >= 3, 120, why="its parts are started")
    running.send_signal(number)
    told, _ = running.communicate(timeout=120)
    assert running.returncode == 1
    assert "Interrupted" in told
    assert left(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
