"""Upstreams that refuse, hang, drip, flood, slow down or fall over."""

import asyncio
import gzip
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import psutil
import pytest

from tests.faults.proxy import Play, Proxy
from tests.faults.scene import NOISE, PROJECT, Make, Scene
from tests.stack import eventually
from worker.state import Keys, shard_of

pytestmark = pytest.mark.processes
POISON = "poison.of.its.batch"
PATIENT = {"ONWARD_RETRY_THRESHOLD": "1000", "ONWARD_ATTEMPT_TIMEOUT": "2"}


def says(*parts: bytes, pause: float = 0.0, endless: bool = False) -> Play:
    """Return a play that takes a request and writes `parts`, then the last for ever."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        while endless:
            writer.write(parts[-1])
            await writer.drain()
            await asyncio.sleep(pause)

    return play


OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(b"0" * 50_000_000)
PLAYS = {
    "silence": says(b"", pause=0.1, endless=True),
    "closed at once": says(),
    "headers dripped": says(OK, b"X-A: 1\r\n", pause=0.3, endless=True),
    "body dripped": says(OK + b"Content-Length: 1000\r\n\r\n", b".", pause=0.3, endless=True),
    "100 Continue for ever": says(b"HTTP/1.1 100 Continue\r\n\r\n", endless=True, pause=0.001),
    "endless headers": says(OK, b"X-A: 1\r\n" * 1000, endless=True),
    "cut in its body": says(OK + b"Content-Length: 1000\r\n\r\nhalf"),
    "no HTTP": says(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "status 99": says(b"HTTP/1.1 99 What\r\nContent-Length: 0\r\n\r\n"),
    "two lengths": says(OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
}  # fmt: skip


def failing(s: Scene, rounds: int = 1) -> None:
    """Wait until the pipeline has failed so many rounds more."""
    (hook,) = s.receivers
    before = s.state(hook).delivery_error_count
    eventually(lambda: s.state(hook).delivery_error_count >= before + rounds, 60, "rounds fail")


@pytest.mark.slow
@pytest.mark.row(27, "answers that are none: silence, drips, floods, cuts, not HTTP")
def test_answers_that_are_none(scene: Make) -> None:
    with scene(PATIENT) as s, Proxy(s.sandbox_port) as link:
        s.hook("a")
        s.worker(ONWARD_UPSTREAM=f"http://127.0.0.1:{link.port}")
        for name, play in PLAYS.items():
            link.play = play
            link.reset()
            s.send(20)
            failing(s)
            assert s.arrived() == len(s.sent[PROJECT]) - 20, name
            link.play = None
            link.reset()
            eventually(lambda: s.arrived() == len(s.sent[PROJECT]), 60, f"all arrive after {name}")
        s.check(ordered=True)


@pytest.mark.slow
@pytest.mark.row(25, "upstream refuses connections, resets, cuts its answers")
def test_no_connection(scene: Make) -> None:
    with scene(PATIENT) as s, Proxy(s.sandbox_port) as link:
        s.hook("a")
        s.worker(ONWARD_UPSTREAM=f"http://127.0.0.1:{link.port}")
        link.close()
        s.send(50)
        failing(s)
        link.open()
        s.reached(50)
        s.fault("reset", slug="webhooks")
        s.send(50)
        failing(s)
        s.no_faults()
        s.reached(100)
        found = s.check(ordered=True)
        assert sum(accounts.count("delivered") for accounts in found.values()) == 100


@pytest.mark.slow
@pytest.mark.row(28, "endless bodies and gzip bombs as good answers: memory stays")
def test_memory_is_bounded(scene: Make) -> None:
    head = OK + b"Content-Encoding: gzip\r\n"
    with scene(PATIENT) as s, Proxy(s.sandbox_port) as link:
        (hook,) = [s.hook("a")]
        worker = s.worker(ONWARD_UPSTREAM=f"http://127.0.0.1:{link.port}")
        s.send(50)
        s.reached(50)
        before = sum(child.memory_info().rss for child in s.children(worker))
        link.play = says(head + b"\r\n", b"x" * 65_536, endless=True)
        link.reset()
        s.send(100)
        eventually(lambda: s.recorded(hook).get("delivered") == 150, 60, "200 is 200")
        link.play = says(head + b"Content-Length: %d\r\n\r\n" % len(BOMB) + BOMB)
        s.send(100)
        eventually(lambda: s.recorded(hook).get("delivered") == 250, 60)
        after = sum(child.memory_info().rss for child in s.children(worker))
        assert after - before < 2 * 20 * 2**20, f"{(after - before) / 2**20:.0f} MiB more"
        assert all(psutil.Process(child.pid).num_fds() < 400 for child in s.children(worker))
        s.checked = True  # nothing arrived at the upstream's own count
        s.figures += [("accepted", 250), ("lost", 0), ("duplicates", 0)]


@pytest.mark.row(26, "one upstream hangs: the others do not notice")
def test_one_hangs(scene: Make) -> None:
    with scene() as s:
        stuck, *others = s.hook("stuck"), s.hook("b"), s.hook("c")
        s.worker()
        with s.load(rate=100):
            s.moving(300)
            since = s.now()
            s.moving(900)
            s.fault("hang", slug="webhooks", host="stuck.customer.example")
            hangs = s.now()
            had = len(s.taken_by(stuck))
            s.moving(1_600)
            ends = s.now()
        assert len(s.taken_by(stuck)) <= had + 10, "but for what was under way"
        assert s.calls("hang") <= 5, "a webhook has so many in flight, then one probe at a time"
        s.no_faults()
        s.check(ordered=True)
        assert s.p99(others, hangs, ends) < 1.5 * s.p99(others, since, hangs) + NOISE


@pytest.mark.slow
@pytest.mark.row(29, "a storm of 500, then all is well; half of the calls fail")
def test_a_storm(scene: Make) -> None:
    with scene(PATIENT) as s:
        s.hook("a")
        s.worker()
        s.fault("fail", slug="webhooks", status=500)
        s.send(300, users=7)
        failing(s, rounds=4)
        s.send(100, users=7)
        s.fault("half", slug="webhooks", status=503)
        s.moving(200)
        s.no_faults()
        s.check(ordered=True)


@pytest.mark.slow
@pytest.mark.row(30, "429 with every form of Retry-After: never a suspension")
def test_asked_to_slow_down(scene: Make) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    with scene({"ONWARD_RETRY_THRESHOLD": "2"}) as s, Proxy(s.sandbox_port) as link:
        (hook,) = [s.hook("a")]
        s.worker(ONWARD_UPSTREAM=f"http://127.0.0.1:{link.port}")
        for asked in ("1", soon, "-5", "soon", "", "0", "Wed, 21 Oct 2015 07:28:00 GMT"):
            link.play = says(
                b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nConnection: close\r\n"
                b"Retry-After: " + asked.encode() + b"\r\n\r\n"
            )
            link.reset()
            s.send(5)
            calls = link.accepted
            eventually(lambda: link.accepted >= calls + 4, 60, "several rounds")  # noqa: B023
            link.play = None
            eventually(lambda: s.arrived() == len(s.sent[PROJECT]), 60, f"after {asked!r}")
            assert s.state(hook).active == 1
        s.check(ordered=True)


@pytest.mark.slow
@pytest.mark.row(30, "429 with Retry-After of 31 years: a day, and no suspension")
def test_asked_to_wait_for_ever(scene: Make) -> None:
    with scene() as s, Proxy(s.sandbox_port) as link:
        hook = s.hook("a")
        worker = s.worker(ONWARD_UPSTREAM=f"http://127.0.0.1:{link.port}")
        link.play = says(
            b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nRetry-After: 1000000000\r\n\r\n"
        )
        s.send(20)
        due = Keys(shard_of(PROJECT, s.settings.shards)).due
        soon = s.now() + timedelta(hours=1)
        eventually(lambda: (s.redis.zscore(due, hook) or 0) > 1000 * soon.timestamp(), 60, "waits")
        assert (s.redis.zscore(due, hook) or 0) <= 1000 * (s.now() + timedelta(days=1)).timestamp()
        assert s.state(hook).active == 1
        link.play = None
        s.stop(worker)
        s.redis.zadd(due, {hook: 0})  # as if the day were over
        s.again(worker)
        s.check(ordered=True)


@pytest.mark.slow
@pytest.mark.row(41, "a burst of one project among 50: others do not notice")
def test_a_burst(scene: Make) -> None:
    lights = [f"light{number}" for number in range(49)]
    with scene() as s:
        heavy = s.hook("heavy")
        hooks = [s.hook(name, s.project(name)) for name in lights]
        s.fault("slow", slug="webhooks", host="heavy.customer.example", seconds=0.2)
        s.worker()

        def light(rounds: int) -> tuple[datetime, datetime]:
            began = s.now()
            for _ in range(rounds):
                s.publish([event for name in lights for event in s.events(1, name)])
                sent = sum(len(s.sent[name]) for name in lights)
                eventually(lambda: len(s.taken("webhooks", "light")) == sent, 60, "theirs arrive")  # noqa: B023
            return began, s.now()

        light(10)
        alone = light(40)
        s.send(10_000)
        parking = light(5)
        eventually(lambda: s.balance().intake == 0, 60, "the burst waits in its lane")
        among = light(40)
        assert len(s.taken_by(heavy)) < 10_000, "while the burst lasts"
        s.no_faults()
        s.check(ordered=True)
        assert s.p99(hooks, *parking) < 1_000
        assert s.p99(hooks, *among) < 2 * s.p99(hooks, *alone) + NOISE


@pytest.mark.slow
@pytest.mark.row("F", "a flapping upstream: down and up 12 times, never suspended")
def test_flapping(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("a")
        s.worker()
        with s.load():
            for _ in range(12):  # more often than failures in a row suspend
                s.fault("fail", slug="webhooks", status=502)
                eventually(lambda: s.state(hook).delivery_error_count, 60, "down")
                s.no_faults()
                eventually(lambda: s.state(hook).delivery_error_count == 0, 60, "up")
        s.check(ordered=True)
        assert s.state(hook).active == 1


@pytest.mark.slow
@pytest.mark.row("B", "one event poisons its batch: it alone is rejected")
def test_a_poisoned_batch(scene: Make) -> None:
    with scene() as s:
        s.other("amplitude")
        poison = s.events(3_000)
        for number in (7, 1_500):
            poison[number]["product_id"] = POISON
        s.fault("fail", slug="amplitude", status=413, match=POISON)
        s.publish(poison)
        s.worker()
        (accounts,) = s.check().values()
        assert accounts.count("delivered") == 2_998
        assert s.letters() == ["too_large", "too_large"]


@pytest.mark.row("E", "one event keeps failing: it alone is given up, the pipeline works")
@pytest.mark.parametrize("slug", ["webhooks", "amplitude"])
def test_one_event_fails_for_itself(scene: Make, slug: str) -> None:
    """Its neighbours in a batch are not given up with it."""
    with scene({"ONWARD_EVENT_ATTEMPTS": "6"}) as s:
        made = s.hook("a") if slug == "webhooks" else s.other(slug)
        bad = s.events(30)
        bad[7]["product_id"] = POISON
        s.fault("fail", slug=slug, status=500, match=POISON)
        s.publish(bad)
        s.worker()
        with s.load(rate=20):
            eventually(lambda: s.letters() == ["exhausted"], 60, "it is given up")
        (accounts,) = s.check(ordered=True).values()
        assert accounts.count("rejected") == 1
        assert accounts.count("delivered") == len(s.sent[PROJECT]) - 1
        assert s.state(made).active == 1
