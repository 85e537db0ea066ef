"""The events' Redis: stopped, killed, frozen, cut off, full, emptied, spoilt."""

from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from threading import Timer
from typing import Any

import pytest

from tests.faults.proxy import Proxy
from tests.faults.scene import PROJECT, WINDOW, Make, Scene
from tests.stack import end, eventually
from worker.sandbox.upstreams import webhooks
from worker.state import GROUP, UNSHARDED, Keys, shard_of

pytestmark = pytest.mark.processes
SHARD = shard_of(PROJECT, 32)


def stop_store(s: Scene, number: int) -> None:
    assert s.store.process
    s.store.process.send_signal(number)
    s.store.process.wait()


@pytest.mark.row(9, "store stopped and started under load")
def test_the_store_restarts(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.hook("b")
        s.worker()
        with s.load():
            s.moving(50)
            stop_store(s, SIGTERM)
            s.restart_store()
            s.moving(100)
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row(10, "store kill -9 and started under load, 4 times")
def test_the_store_is_killed(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.other("amplitude")
        s.worker()
        with s.load():
            for _ in range(4):
                s.moving(50)
                stop_store(s, SIGKILL)
                s.restart_store()
            s.moving(50)
        s.check(duplicates=4 * WINDOW)


@pytest.mark.slow
@pytest.mark.row(11, "store frozen until the leases lapse, then CONT")
def test_the_store_freezes(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        s.worker()
        with s.load():
            s.moving(50)
            assert s.store.process
            pid = s.store.process.pid
            end_of_frost = Timer(12, s.store.process.send_signal, [SIGCONT])
            s.store.process.send_signal(SIGSTOP)
            end_of_frost.start()
            end_of_frost.join()
            assert s.store.process.pid == pid
            s.moving(50)
        s.check(duplicates=WINDOW)


@pytest.mark.row(12, "every connection to the store killed, again and again")
def test_connections_are_killed(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.hook("b")
        s.worker()
        s.fault("slow", slug="webhooks", seconds=0.05)
        with s.load():
            for _ in range(10):
                s.moving(10)
                s.redis.client_kill_filter(_type="normal", skipme=True)
            s.moving(50)
        s.check(duplicates=10 * 32 + 100)


@pytest.mark.slow
@pytest.mark.row(13, "link to the store flaps: reset, refused, again and again")
def test_the_link_flaps(scene: Make) -> None:
    with scene() as s, Proxy(s.redis_port) as link:
        s.hook("a")
        s.worker(**s.behind(link))
        with s.load():
            for _ in range(6):
                s.moving(20)
                link.close()
                link.reset()
                link.open()
            s.moving(50)
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row(14, "answers of the store cut off midway, at many places")
def test_answers_are_cut(scene: Make) -> None:
    with scene() as s, Proxy(s.redis_port) as link:
        s.hook("a")
        s.worker(**s.behind(link))
        for count in (0, 1, 40, 400, 4_000, 40_000):
            link.cut_after = count
            s.send(60)
            eventually(lambda: s.arrived() == len(s.sent[PROJECT]), 60, f"cut after {count}")
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row(14, "link to the store half-open, then back")
def test_a_half_open_link(scene: Make) -> None:
    with scene() as s, Proxy(s.redis_port) as link:
        s.hook("a")
        s.worker(**s.behind(link))
        s.send(100)
        s.moving(20)
        link.silent = True
        s.send(300)
        eventually(lambda: not s.redis.exists(Keys(SHARD).lease), 60, "the lease lapses")
        link.silent = False
        s.moving(20)
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row(15, "store full: drains itself, refuses new events")
def test_a_full_store_drains_itself(scene: Make) -> None:
    from worker.intake import IntakeFull

    with scene({"ONWARD_WINDOW": "64"}) as s:
        s.hook("a"), s.hook("b")
        s.fault("slow", slug="webhooks", seconds=0.2)
        s.worker()
        s.send(4_000)
        s.moving(50)
        used = int(s.redis.info("memory")["used_memory"])
        s.redis.config_set("maxmemory", used - 200_000)
        more = s.events(10)
        with pytest.raises(IntakeFull):
            s.publish(more)
        s.no_faults()
        eventually(lambda: s.arrived() == 8_000, 90, "a full store is drained")
        s.redis.config_set("maxmemory", 0)
        s.publish(more)
        s.check(duplicates=2 * 64 + 100)


@pytest.mark.slow
@pytest.mark.row(18, "garbage in the broker, its keys deleted")
def test_the_broker_is_spoilt(scene: Make) -> None:
    from redis import Redis

    with scene() as s, Redis.from_url(s.settings.broker_url) as broker:
        s.hook("a")
        worker = s.worker()
        s.send(200)
        s.moving()
        for garbage in (b"x", b"null", b"[" * 100_000, b'{"body": "%%%", "properties": {}}'):
            broker.lpush("onward", garbage)
            for queue in broker.keys("onward.drain.*"):
                broker.lpush(queue, garbage)
        broker.flushdb()
        s.send(200)
        s.keep(worker)
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row(19, "consumer groups deleted while entries are in flight")
def test_groups_are_deleted(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        s.worker()
        s.fault("slow", slug="webhooks", seconds=0.1)
        s.send(300)
        s.moving(10)
        s.redis.xgroup_destroy(Keys(SHARD).intake, GROUP)
        s.redis.xgroup_destroy(UNSHARDED, GROUP)
        s.send(100)
        s.redis.xadd(UNSHARDED, {"event": s.encoded(1)[0]})
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row(20, "a key of the wrong type: its shard waits, others go on")
def test_a_key_of_the_wrong_type(scene: Make) -> None:
    with scene() as s:
        other = next(f"prj_{n}" for n in range(99) if shard_of(f"prj_{n}", 32) != SHARD)
        s.project(other)
        s.hook("a"), s.hook("b", other)
        s.worker()
        s.send(20), s.send(20, other)
        s.reached(40)
        eventually(s.settled)
        journal: Any = Keys(SHARD).journal
        s.redis.delete(journal)
        s.redis.set(journal, "not a stream")
        s.send(100)
        theirs = s.send(200, other)
        b = next(i for i, (_, host, _) in s.receivers.items() if host.startswith("b."))
        eventually(lambda: s.taken_by(b).keys() >= {e["id"] for e in theirs}, 60, "others go on")
        eventually(lambda: s.recorded(b).get("delivered") == 220, 60, "and are recorded")
        s.redis.delete(journal)
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row("R", "store emptied while idle: what comes next is delivered, nothing crashes")
def test_the_store_is_emptied(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        worker = s.worker()
        s.send(100)
        eventually(lambda: s.arrived() == 100, 60)
        eventually(s.settled)
        s.redis.flushall()
        assert s.balance().unaccounted == 0
        s.send(100)
        eventually(lambda: s.arrived() == 200, 60, "the next events are delivered")
        for child in s.children(worker):  # new children need new hints
            end(child, SIGKILL)
        s.send(100)
        eventually(lambda: s.arrived() == 300, 60, "hints flow again")
        assert worker.running
        s.check(duplicates=WINDOW)


@pytest.mark.slow
@pytest.mark.row("R", "store emptied while events wait: the audit says how many are gone")
def test_the_store_is_emptied_with_events_in_it(scene: Make) -> None:
    with scene({"ONWARD_CREDENTIAL_THRESHOLD": "1"}) as s:
        hook = s.hook("a", auth_token="wrong")
        s.worker()
        s.send(200)
        eventually(lambda: s.state(hook).active == 2, 60, "suspended")
        eventually(lambda: s.settled() and s.balance().lines[0].waiting == 200, 60, "held")
        s.redis.flushall()
        assert s.balance().unaccounted == 200, "gone, and said so"
        s.activate(hook)
        name = s.receivers[hook][1]
        s.settings_of(hook, {**webhooks.upstream.settings, "url": f"https://{name}/onward"})
        s.send(100)
        eventually(lambda: s.arrived() == 100, 60, "the next are delivered")
        eventually(lambda: s.recorded(hook).get("delivered") == 100, 60, "and recorded")
        assert s.balance().unaccounted == 200, "still said so"
        s.figures += [("accepted", 300), ("lost", 0), ("duplicates", 0)]
        s.checked = True  # what was in the store is gone with it


@pytest.mark.slow
@pytest.mark.row("U", "killed between reading the unsharded intake and moving it on")
def test_the_unsharded_intake_under_kills(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        worker = s.worker()
        for _ in range(3):
            pipe = s.redis.pipeline(transaction=False)
            for raw in s.encoded(300):
                pipe.xadd(UNSHARDED, {"event": raw})
            pipe.execute()
            s.kill_all(worker)
            s.again(worker)
        s.check(duplicates=3 * WINDOW)


@pytest.mark.slow
@pytest.mark.row(17, "append-only file cut in its last entry: starts, loses no more")
def test_a_truncated_file(scene: Make) -> None:
    with scene() as s:
        s.hook("a")
        s.send(300)
        stop_store(s, SIGTERM)
        (log,) = (s.folder / "redis" / "appendonlydir").glob("*.incr.aof")
        with log.open("r+b") as file:
            file.truncate(log.stat().st_size - 100)
        s.restart_store()
        left: Any = s.redis.xlen(Keys(SHARD).intake)
        assert left == 299
        s.worker()
        s.check(absent=1)
