"""Shards that change hands: stolen, after deaths, with an event that kills; clocks that jump."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.mortal import KILLED
from tests.faults.scene import PROJECT, WINDOW, Make, Scene
from tests.stack import end, eventually, family
from worker.record import record
from worker.state import GROUP, Keys, shard_of

pytestmark = pytest.mark.processes
SHARD = shard_of(PROJECT, 32)


@pytest.mark.slow
@pytest.mark.row(39, "two workers think that they own a shard")
def test_leases_are_taken_away(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.other("amplitude")
        s.worker(), s.worker()
        with s.load():
            for _ in range(8):
                s.moving(20)
                s.take_away(SHARD)
            s.moving(50)
        s.check(duplicates=8 * WINDOW)


@pytest.mark.row("N", "entries read by somebody who lost the shard: its owner takes them")
def test_stranded_entries(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        s.send(20)
        s.redis.xgroup_create(Keys(SHARD).intake, GROUP, "0")
        s.redis.xreadgroup(GROUP, "gone", {Keys(SHARD).intake: ">"}, count=5)
        s.worker()
        s.reached(20)
        late = s.encoded(20)
        with s.redis.pipeline(transaction=True) as pipe:  # not to be read by the owner between
            for raw in late:
                pipe.xadd(Keys(SHARD).intake, {"event": raw})
            pipe.xreadgroup(GROUP, "late", {Keys(SHARD).intake: ">"})
            pipe.execute()
        s.check()


@pytest.mark.slow
@pytest.mark.row("N", "workers come and go under load: no shard's events are left behind")
def test_workers_join_and_leave(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.hook("b")
        s.worker()
        with s.load(rate=200):
            for _ in range(4):
                other = s.worker()
                s.moving(100)
                s.stop(other)
                s.moving(100)
        s.check(ordered=True)


@pytest.mark.slow
@pytest.mark.row(36, "events that kill their process: only they are set apart")
def test_poison(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        events = s.events(600)
        poison = [events[100], events[400]]
        for event in poison:
            event["properties"]["mark"] = "kills its process"
        s.publish(events)
        deaths = _survive(s)
        assert 5 <= deaths <= 12
        letters = s.letters()
        assert letters == ["poison", "poison"]
        (accounts,) = s.check(duplicates=deaths * 300, absent=2).values()
        assert accounts.lost == {event["id"] for event in poison}


@pytest.mark.slow
@pytest.mark.row(36, "leases lost while suspects are tried: no innocent is set apart")
def test_suspects_and_lost_leases(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        s.send(400)
        intake = Keys(SHARD).intake
        s.redis.xgroup_create(intake, GROUP, "0")
        s.redis.xreadgroup(GROUP, "dead", {intake: ">"})
        for _ in range(2):  # as if their owners had died
            s.redis.xautoclaim(intake, GROUP, "dead", 0, count=400)
        s.fault("slow", slug="webhooks", seconds=0.5)
        s.begin()
        for _ in range(5):
            eventually(lambda: s.redis.exists(Keys(SHARD).solo), 60, "they are tried")
            s.take_away(SHARD)
            eventually(lambda: s.redis.exists(Keys(SHARD).lease), 60, "somebody takes the shard")
        s.no_faults()
        s.check(duplicates=5 * WINDOW)
        assert s.letters() == []


@pytest.mark.slow
@pytest.mark.row(38, "a worker's clock jumps an hour forth and back: due times are the store's")
def test_a_clock_jumps(scene: Make, tmp_path: Path) -> None:
    with scene() as s:
        hook = s.hook("a")
        offset = tmp_path / "offset"
        offset.write_text("0")
        (tmp_path / "sitecustomize.py").write_text(
            "import time\n"
            "real = time.time\n"
            f"time.time = lambda: real() + float(open({str(offset)!r}).read() or 0)\n"
        )
        s.worker(PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
        s.fault("fail", slug="webhooks")
        for jump in ("3600", "-3600", "0"):
            s.send(50)
            count = s.state(hook).delivery_error_count
            offset.write_text(jump)
            eventually(lambda: s.state(hook).delivery_error_count >= count + 2, 60, "rounds go on")  # noqa: B023
        s.no_faults()
        s.check(ordered=True)


@pytest.mark.slow
@pytest.mark.row("N", "killed three times with a backlog in memory: innocents are not slowed")
def test_suspects_are_tried_in_groups(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        s.fault("slow", slug="webhooks", seconds=0.02)
        worker = s.worker()
        s.send(2_500)
        for _ in range(4):
            s.moving(5)
            assert worker.process
            for process in family(worker.process.pid)[:-1]:
                end(process, 9)
        s.check(duplicates=4 * WINDOW)
        assert s.letters() == []


def _survive(s: Scene) -> int:
    """Start a mortal process again and again until all is done; return how often it died."""
    deaths = 0
    command = [sys.executable, "-m", "tests.faults.mortal"]
    while not s.settled():
        with subprocess.Popen(command, env=s.environ()) as mortal:
            eventually(lambda: _over(s, mortal), 60, "it dies, or all is done")
            deaths += mortal.poll() == KILLED
            mortal.terminate()
        s.take_away(*range(s.settings.shards))
    return deaths


def _over(s: Scene, mortal: "subprocess.Popen[bytes]") -> bool:
    record(s.redis, s.engine, s.settings.shards)
    return mortal.poll() is not None or s.settled()
