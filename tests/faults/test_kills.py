"""Processes killed under load: a child, a parent, a whole worker; frozen; told to leave."""

from contextlib import ExitStack
from signal import SIGKILL, SIGTERM

import pytest

from tests.faults.proxy import Proxy
from tests.faults.scene import WINDOW, Make, ids_of
from tests.stack import end, eventually, family

pytestmark = pytest.mark.processes
TAKEN_OVER = 12  # s: a lease, and the time to look


@pytest.mark.row(1, "kill -9 of the children")
def test_children_are_killed(scene: Make) -> None:
    with scene() as s:
        hooks = [s.hook("a"), s.hook("b"), s.other("amplitude")]
        worker = s.worker()
        s.send(600)
        s.reached(100)
        for child in s.children(worker):
            end(child, SIGKILL)
        fresh = s.send(10)
        eventually(lambda: s.taken_by(hooks[0]).keys() & ids_of(fresh), TAKEN_OVER, "taken over")
        found = s.check(duplicates=WINDOW)
        assert [found[hook].count("delivered") for hook in hooks] == [610] * 3


@pytest.mark.slow
@pytest.mark.row(2, "kill -9 of the worker's parent")
def test_the_parent_is_killed(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        worker, other = s.worker(), s.worker()
        with s.load():
            s.moving(100)
            assert worker.process
            orphans = family(worker.process.pid)
            s.kill(worker)
            theirs = {str(process.pid) for process in s.children(other)}
            eventually(lambda: not any(p.is_running() for p in orphans), 12, "children end too")
            eventually(lambda: s.owners() <= theirs, TAKEN_OVER, "all shards are the other's")
            s.moving(400)
        assert other.running
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.row(3, "kill -9 of whole workers, 25 times under load")
def test_whole_workers_are_killed_again_and_again(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.hook("b"), s.other("amplitude")
        for number in range(4):  # in shards of their own
            s.hook(f"c{number}", s.project(f"prj_{number}"))
        workers = [s.worker(ONWARD_CONCURRENCY="1") for _ in range(4)]
        with ExitStack() as loads:
            for project in {project for _, _, project in s.receivers.values()}:
                loads.enter_context(s.load(rate=20, project=project))
            for number in range(25):
                s.moving(20)
                victim = workers[number % 4]  # what was killed before may still be starting
                s.kill_all(victim)
                s.start(victim)
        s.check(duplicates=25 * WINDOW)


@pytest.mark.slow
@pytest.mark.row(4, "kill -9 after the upstream took it, before its answer")
def test_killed_between_call_and_answer(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("a")
        worker = s.worker()
        s.fault("cut", slug="webhooks", count=1)  # taken; the answer never comes whole
        (event,) = s.send(1)
        eventually(lambda: s.taken_by(hook)[event["id"]], why="it is taken")
        s.kill_all(worker)
        s.again(worker)
        s.check(duplicates=1)
        assert s.taken_by(hook) == {event["id"]: 2}, "again, under the same key"


@pytest.mark.row(6, "TERM under load, then a new worker: twice")
def test_a_new_worker_for_an_old_one(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.other("amplitude")
        old = s.worker()
        with s.load():
            for _ in range(2):
                s.moving(50)
                new = s.worker()
                s.stop(old, seconds=10)
                old = new
            s.moving(50)
        s.check(duplicates=0, ordered=True)


@pytest.mark.slow
@pytest.mark.row(6, "all workers restarted in turn under load, 6 TERM in all")
def test_a_rolling_restart_repeats_nothing(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.other("amplitude")
        for number in range(4):
            s.hook(f"c{number}", s.project(f"prj_{number}"))
        workers = [s.worker() for _ in range(3)]
        with ExitStack() as loads:
            for project in {project for _, _, project in s.receivers.values()}:
                loads.enter_context(s.load(project=project))
            for worker in workers * 2:
                s.moving(50)
                s.stop(worker, seconds=10)
                s.again(worker)
            s.moving(50)
        s.check(duplicates=0, ordered=True)


@pytest.mark.slow
@pytest.mark.row(6, "TERM while an upstream hangs: leaves in time, hands back")
def test_leaving_while_an_upstream_hangs(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("a")
        worker = s.worker()
        s.fault("hang", slug="webhooks")
        s.send(300)
        eventually(lambda: s.calls("hang") >= 5, why="as many as may be are in flight")
        s.stop(worker, seconds=30)
        s.no_faults()
        s.worker()
        found = s.check(duplicates=0, ordered=True)
        assert found[hook].count("delivered") == 300


@pytest.mark.slow
@pytest.mark.row(7, "TERM, then kill -9 while it leaves")
def test_killed_while_leaving(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        worker = s.worker()
        s.fault("slow", slug="webhooks", seconds=3)
        s.send(400)
        s.moving()
        assert worker.process
        worker.process.send_signal(SIGTERM)
        eventually(lambda: not s.redis.zcard("onward:owners"), why="it leaves")
        s.kill_all(worker)
        s.no_faults()
        s.worker()
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row(8, "SIGSTOP of a worker until its leases lapse, then CONT")
def test_a_frozen_worker_wakes_up(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        zombie = s.worker()
        s.fault("slow", slug="webhooks", seconds=0.1)
        sent = s.send(1500)
        s.moving(50)
        assert zombie.process
        with s.frozen(family(zombie.process.pid)):
            s.worker()
            eventually(lambda: s.arrived() == len(sent), 60, "another takes over")
        with s.load():
            s.moving(200)
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row(6, "TERM while the database or the store hangs: leaves in time")
@pytest.mark.parametrize("what", ["database", "store"])
def test_leaving_while_a_server_hangs(
    scene: Make, postgres: tuple[str, Proxy, str], what: str
) -> None:
    url, to_database, through = postgres
    with scene(database=url) as s, Proxy(s.redis_port) as to_store:
        s.hook("a")
        worker = s.worker(ONWARD_DATABASE_URL=through, **s.behind(to_store))
        s.send(100)
        s.reached(100)
        link = to_database if what == "database" else to_store
        link.silent = True
        s.send(100)
        if what == "database":
            s.reached(200)
        s.stop(worker, seconds=30)
        link.silent = False
        s.worker()
        s.check(duplicates=WINDOW)
