"""The disk of the events' Redis is full: nothing more can be written to its append-only file."""

import resource
from pathlib import Path

import pytest

from tests.faults.scene import WINDOW, Make, Scene
from tests.stack import eventually

pytestmark = pytest.mark.processes
LIMIT, ENDLESS = resource.RLIMIT_FSIZE, resource.RLIM_INFINITY


def append_only_file(s: Scene) -> Path:
    (file,) = (s.folder / "redis" / "appendonlydir").glob("*.incr.aof")
    return file


def refuses(s: Scene) -> bool:
    """Whether the store takes no write because of its disk."""
    return bool(s.redis.info("persistence")["aof_last_write_status"] != "ok")


@pytest.mark.slow
@pytest.mark.row(16, "disk of the append-only file full, then room again")
def test_a_full_disk(scene: Make) -> None:
    s = scene()
    s.store.command = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh", *s.store.command]
    with s:
        s.hook("a"), s.other("amplitude")
        worker = s.worker()
        with s.load():
            s.moving(100)
            assert s.store.process
            room = append_only_file(s).stat().st_size + 20_000
            resource.prlimit(s.store.process.pid, LIMIT, (room, ENDLESS))
            eventually(lambda: refuses(s), 60, "the disk is full")
            eventually(lambda: "MISCONF" in s.log(worker.name), 30, "the worker says so")
            resource.prlimit(s.store.process.pid, LIMIT, (ENDLESS, ENDLESS))
            eventually(lambda: not refuses(s), 30, "the store writes again")
            s.published(100)
        s.keep(worker)  # Celery ends where its broker refuses
        s.check(duplicates=WINDOW)
