"""The events' Redis: stopped, killed, frozen, cut off, full, emptied, spoilt."""

from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from threading import Timer
from typing import Any

import pytest

from tests.faults.proxy import Proxy
from tests.faults.scene import PROJECT, WINDOW, Make, Scene
from tests.stack import end, eventually, free_port
from worker.sandbox.upstreams import webhooks
from worker.servers import connect
from worker.state import GROUP, UNSHARDED, Keys, shard_of
from worker.supervisor import Part, valkey, wait_for_redis

pytestmark = pytest.mark.processes
SHARD = shard_of(PROJECT, 32)


def stop_store(s: Scene, number: int) -> None:
    assert s.store.process
    s.store.process.send_signal(number)
    s.store.process.wait()


def freeze_store(s: Scene, seconds: float) -> None:
    """Stop the store's process for so long."""
    assert s.store.process
    end_of_frost = Timer(seconds, s.store.process.send_signal, [SIGCONT])
    s.store.process.send_signal(SIGSTOP)
    end_of_frost.start()
    end_of_frost.join()


@pytest.mark.row(9, "store stopped and started under load")
def test_the_store_restarts(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.hook("b")
        s.worker()
        with s.load():
            s.moving(50)
            stop_store(s, SIGTERM)
            s.restart_store()
            s.moving(1, seconds=5)
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
@pytest.mark.row(11, "store frozen, for less and for more than a lease, then CONT")
@pytest.mark.parametrize("seconds", [8, 20])
def test_the_store_freezes(scene: Make, seconds: int) -> None:
    with scene() as s:
        s.hook("a"), s.hook("b"), s.hook("c")
        s.worker(), s.worker()
        s.fault("slow", slug="webhooks", seconds=0.1)  # some are under way, others just landed
        with s.load():
            s.send(2_000)
            s.moving(50)
            freeze_store(s, seconds)
            s.moving(50)
        s.check()
        assert s.balance().dropped["duplicate"] > 0, "the producer's repetitions are known"


@pytest.mark.slow
@pytest.mark.row(11, "store frozen for more than a lease: each of three workers keeps its shards")
def test_the_store_freezes_for_several(scene: Make) -> None:
    with scene() as s:
        projects = [s.project(f"prj_frozen_{number}") for number in range(24)]
        for project in projects:
            s.hook(project.replace("_", "-"), project)
        for _ in range(3):
            s.worker()
        eventually(lambda: len(s.owners() - {"nobody"}) >= 3, 60, "all drain")
        s.fault("slow", slug="webhooks", seconds=0.5)
        for project in projects:
            s.send(200, project)
        s.moving(50)
        freeze_store(s, 14)
        s.moving(50)
        s.check()


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
@pytest.mark.row(13, "link to the store flaps: reset, refused, 4 times in 2 s")
def test_the_link_flaps(scene: Make) -> None:
    with scene() as s, Proxy(s.redis_port) as link:
        s.hook("a")
        s.worker(**s.behind(link))
        with s.load(rate=80):
            s.moving(20)
            for _ in range(3):
                for _ in range(4):
                    link.close()
                    link.reset()
                    s.published(20)  # a quarter of a second
                    link.open()
                    s.published(20)
                s.moving(50)
        s.check(duplicates=3 * WINDOW)


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
        s.reached(20)
        link.silent = True
        s.send(300)
        eventually(lambda: not s.redis.exists(Keys(SHARD).lease), 60, "the lease lapses")
        before = s.arrived()
        link.silent = False
        s.reached(before + 20, seconds=15)
        s.check()


@pytest.mark.slow
@pytest.mark.row(15, "store full: drains itself, refuses new events")
@pytest.mark.parametrize("broker", ["within", "apart"])
def test_a_full_store_drains_itself(scene: Make, tmp_path: Path, broker: str) -> None:
    from worker.intake import IntakeFull

    with scene({"ONWARD_WINDOW": "64"}) as s:
        changed = {}
        if broker == "apart":
            _, changed["ONWARD_BROKER_URL"] = s.broker(tmp_path)
        s.hook("a"), s.hook("b")
        s.fault("slow", slug="webhooks", seconds=0.2)
        worker, api = s.worker(**changed), s.api()
        s.send(4_000)
        s.moving(50)
        used = int(s.redis.info("memory")["used_memory"])
        s.redis.config_set("maxmemory", used - 200_000)
        more = s.events(10)
        with pytest.raises(IntakeFull):
            s.publish(more)
        assert api.faults() == {"room"}
        s.no_faults()
        eventually(lambda: s.arrived() == 8_000, 90, "a full store is drained")
        s.redis.config_set("maxmemory", 0)
        assert not api.faults()
        s.publish(more)
        s.keep(worker)
        s.check(duplicates=2 * 64 + 100)


@pytest.mark.slow
@pytest.mark.row(18, "garbage in the broker, its keys deleted")
def test_the_broker_is_spoilt(scene: Make) -> None:
    from redis import Redis

    with scene() as s, Redis.from_url(s.settings.broker_url) as broker:
        s.hook("a")
        worker = s.worker()
        s.send(200)
        s.reached(1)
        for garbage in (b"x", b"null", b"[" * 100_000, b'{"body": "%%%", "properties": {}}'):
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
@pytest.mark.parametrize("spoilt", ["journal", "tally", "intake"])
def test_a_key_of_the_wrong_type(scene: Make, spoilt: str) -> None:
    with scene() as s:
        other = next(f"prj_{n}" for n in range(99) if shard_of(f"prj_{n}", 32) != SHARD)
        s.project(other)
        s.hook("a"), s.hook("b", other)
        worker = s.worker()
        s.send(20), s.send(20, other)
        s.reached(40)
        eventually(s.settled)
        key: str = getattr(Keys(SHARD), spoilt)
        s.redis.rename(key, "kept") if s.redis.exists(key) else None
        s.redis.set(key, "of another type")
        waiting = s.events(100)
        if spoilt != "intake":
            s.publish(waiting)
        theirs = s.send(200, other)
        b = next(i for i, (_, host, _) in s.receivers.items() if host.startswith("b."))
        eventually(lambda: s.taken_by(b).keys() >= {e["id"] for e in theirs}, 60, "others go on")
        eventually(lambda: s.recorded(b).get("delivered") == 220, 60, "and are recorded")
        eventually(lambda: key in s.log(worker.name), 60, "the log names the key")
        s.redis.delete(key)
        if s.redis.exists("kept"):
            s.redis.rename("kept", key)
        if spoilt == "intake":
            s.publish(waiting)
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


@pytest.mark.slow
@pytest.mark.row("S", "the primary killed: Sentinels name another, and all go on there")
def test_a_failover(scene: Make) -> None:
    with scene() as s:
        replica, sentinel = free_port(), free_port()
        follow(s, replica, sentinel)
        s.hook("a")
        worker = s.worker(
            ONWARD_REDIS_URL=f"sentinel://127.0.0.1:{sentinel}/0?name=onward",
            ONWARD_BROKER_URL=f"sentinel://127.0.0.1:{sentinel}/1?name=onward",
        )
        s.fault("slow", slug="webhooks", seconds=0.2)
        s.send(1_500)
        s.moving(50)
        assert s.redis.wait(1, 10_000) == 1, "the replica has what was accepted"
        stop_store(s, SIGKILL)
        s.redis.close()
        s.redis = connect(f"redis://127.0.0.1:{replica}/0", protocol=2)
        eventually(lambda: s.redis.info("replication")["role"] == "master", 60, "promoted")
        s.no_faults()
        s.send(100)
        s.keep(worker)
        s.check(duplicates=WINDOW)


def follow(s: Scene, replica: int, sentinel: int) -> None:
    """Start a replica of the store, and a Sentinel that knows both."""
    second = valkey(s.folder / "replica", replica)
    second.name = "replica"
    second.command += ["--replicaof", "127.0.0.1", str(s.redis_port)]
    s.start(second)
    file = s.folder / "sentinel.conf"
    file.write_text(
        f"port {sentinel}\nbind 127.0.0.1\ndir {s.folder}\n"
        f"sentinel monitor onward 127.0.0.1 {s.redis_port} 1\n"
        "sentinel down-after-milliseconds onward 1000\n"
    )
    s.start(Part("sentinel", [second.command[0], str(file), "--sentinel"]))
    wait_for_redis(f"redis://127.0.0.1:{sentinel}")
    with connect(f"redis://127.0.0.1:{sentinel}", protocol=2) as asked:
        known: Any = asked
        eventually(lambda: len(known.sentinel_slaves("onward")) == 1, 60, "it knows the replica")
    with connect(f"redis://127.0.0.1:{replica}/0") as copy:
        linked: Any = copy
        eventually(
            lambda: linked.info("replication").get("master_link_status") == "up", 60, "a copy"
        )
