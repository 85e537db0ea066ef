"""Slices that follow each other: a child's delivery loop goes on, or gives all back."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.scene import Make, Scene
from tests.stack import eventually
from worker.supervisor import Part

pytestmark = pytest.mark.processes
HASTY = [sys.executable, "-m", "tests.faults.hasty"]


def changed(s: Scene, worker: Part, more: int = 10) -> None:
    """Wait until this worker has begun `more` slices than now."""

    def begun() -> int:
        return s.log(worker.name).count("A slice begins")

    before = begun()
    eventually(lambda: begun() >= before + more, 60, "slices follow each other")


def halves(leases: list[bytes | None]) -> bool:
    """Whether two children have half of the shards each."""
    return None not in leases and sorted(Counter(leases).values()) == [16, 16]


@pytest.mark.row("S", "slices change under load; one upstream slow")
def test_leases_and_what_is_in_flight_outlast_a_slice(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.hook("b"), s.other("amplitude")
        s.fault("slow", slug="amplitude", seconds=3)
        worker = s.worker(command=HASTY)
        eventually(lambda: halves(s.leases()), why="each has half")
        tokens = s.leases()
        with s.load():
            changed(s, worker)
            assert s.leases() == tokens
        s.check(duplicates=0, ordered=True)


@pytest.mark.slow
@pytest.mark.row("S", "TERM while slices change, eight times")
def test_told_to_leave_while_slices_change(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.other("amplitude")
        worker = s.worker(command=HASTY)
        with s.load():
            for _ in range(8):
                changed(s, worker, 3)
                s.stop(worker, seconds=15)
                assert s.owners() == {"nobody"}
                s.again(worker)
        s.check(duplicates=0, ordered=True)


@pytest.mark.slow
@pytest.mark.row("S", "the broker is away at a slice's end, the store is not")
def test_without_a_hint_all_is_given_back(scene: Make, tmp_path: Path) -> None:
    with scene() as s:
        broker, url = s.broker(tmp_path)
        s.hook("a"), s.other("amplitude")
        worker = s.worker(command=HASTY, ONWARD_BROKER_URL=url)
        with s.load():
            s.moving(50)
            assert broker.process
            broker.process.terminate()
            broker.process.wait()
            eventually(lambda: s.owners() == {"nobody"}, 30, "its shards are free for others")
            s.start(broker)
        s.keep(worker)  # a consumer that hangs after that ends it
        s.check(duplicates=0, ordered=True)
