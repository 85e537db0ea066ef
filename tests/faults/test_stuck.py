"""Workers that live and do not consume: it shows, and they end themselves to be started again."""

from pathlib import Path

import psutil
import pytest

from tests.faults.scene import WINDOW, Make
from tests.stack import end, eventually, family

pytestmark = pytest.mark.processes
QUICKLY = "import worker.watchdog as w; w.STUCK_SECONDS, w.LOOK_SECONDS = 5, 0.5\n"
HANGS = """
import time
from pathlib import Path
from {module} import {owner}
real = {owner}.{method}
def call_or_hang(self, *arguments):
    while Path({hang!r}).exists():
        time.sleep(0.1)
    return real(self, *arguments)
{owner}.{method} = call_or_hang
"""


def hangs(module: str, owner: str, method: str, hang: Path) -> str:
    """Return lines that let a method hang for as long as there is such a file."""
    return HANGS.format(module=module, owner=owner, method=method, hang=str(hang))


def changed(folder: Path, *lines: str) -> dict[str, str]:
    """Return the environment of a process that runs `lines` first."""
    (folder / "sitecustomize.py").write_text("".join(lines))
    return {"PYTHONPATH": f"{folder}:{Path.cwd()}"}


@pytest.mark.slow
@pytest.mark.row("L", "a delivery loop hangs: its process ends itself")
def test_a_loop_hangs(scene: Make, tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    with scene({"ONWARD_CONCURRENCY": "1"}) as s:
        s.hook("a")
        loop = hangs("worker.clock", "StoreClock", "set", hang)
        worker = s.worker(**changed(tmp_path, QUICKLY, loop))
        s.send(100)
        s.reached(100)
        (pid,) = s.owners()
        hang.touch()
        s.send(100)
        eventually(lambda: "has not moved" in s.log(worker.name), 60, "noticed")
        eventually(lambda: not psutil.pid_exists(int(pid)), 60, "and ended")
        hang.unlink()
        s.reached(200)
        assert worker.running
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row("L", "a worker consumes no hint: it ends itself, and another goes on")
def test_a_worker_does_not_consume(scene: Make, tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    with scene() as s:
        s.hook("a")
        consumer = hangs("kombu.transport.redis", "Channel", "_brpop_start", hang)
        worker = s.worker(**changed(tmp_path, QUICKLY, consumer))
        s.send(100)
        s.reached(100)
        hang.touch()
        for child in s.children(worker):  # who drained is not asked again
            end(child, 9)
        s.send(100)
        eventually(lambda: not worker.running, 60, "it ends")
        assert worker.process
        assert worker.process.returncode == 70
        hang.unlink()
        s.again(worker)
        s.reached(200)
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row("L", "all workers stopped: not ready, and ready again")
def test_nobody_consumes(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        worker, api = s.worker(), s.api()
        s.send(100)
        s.reached(100)
        assert not api.faults()
        assert worker.process
        with s.frozen(family(worker.process.pid)):
            s.send(100)
            eventually(lambda: "workers" in api.faults(), 60, "it says so")
            eventually(lambda: "intake" in api.faults(), 60, "and that events wait unread")
        s.reached(200)
        eventually(lambda: not api.faults(), 60, "ready")
        s.check(duplicates=WINDOW)
