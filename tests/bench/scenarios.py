"""What is measured, by name. Each returns its figures; `ratio_…` are of one and the same run."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeAlias

from sqlalchemy import Engine, text

from tests.bench import load, naive, wrk
from tests.bench.events import Source, fill
from tests.bench.rig import Measured, Rig, Worker, until
from worker.journal import PAGE, Page, Row, pack
from worker.record import record as record_journal
from worker.state import OWNERS, Keys, shard_of
from worker.store.database import make_engine
from worker.store.schema import upgrade

Figures: TypeAlias = dict[str, Any]
AT_ONCE = 20  # requests to a slow upstream
OTHER_SHARDS = 1_000_003  # most of them are nobody's: what is put there waits


@dataclass
class Bench:
    """The rig, one worker that runs all the time, and what earlier scenarios found."""

    rig: Rig
    worker: Worker
    quick: bool
    found: dict[str, Figures] = field(default_factory=dict)
    projects: dict[str, list[str]] = field(default_factory=dict)

    def size(self, quick: int, full: int) -> int:
        """Return how much of something, by how much time there is."""
        return quick if self.quick else full

    @property
    def highest(self) -> float:
        """Return the deliveries a second that `single` found; few where it did not run."""
        return float(self.found.get("single", {}).get("per_second") or 2_000)

    def hooks(self, name: str, count: int, path: str = "ok", **more: Any) -> list[str]:
        """Return projects with a webhook each, known to the worker; made once."""
        if name not in self.projects:
            self.projects[name] = self.rig.webhooks(name, count, path, **more)
            self.worker.learns(self.projects[name])
        return self.projects[name]

    def many(self, count: int) -> list[str]:
        """Return `count` projects with a webhook each, for every scenario that needs so many."""
        return self.hooks(f"of{count}", count)

    def drained(self, projects: list[str], count: int) -> Measured:
        """Measure the delivery of `count` events of projects with one integration each."""
        return self.worker.drained(Source(projects), count)


def single(bench: Bench) -> Figures:
    """One request an event: 50 webhooks on 50 hosts; the naive baseline and wrk beside it."""
    count = bench.size(8_000, 20_000)
    projects = bench.hooks("hook", 50)
    bench.drained(projects, count // 4)  # warm
    first = bench.drained(projects, count)
    limit = wrk.measure(bench.rig, bench.size(3, 6))
    base = naive.measure(bench.rig, bench.size(600, 2_000))
    second = bench.drained(projects, count)
    best = min(first, second, key=lambda measured: measured.cpu)
    return best.summary() | {
        "naive": base.summary(),
        "ratio_naive": round(max(first.rate, second.rate) / base.rate, 1),
        "ratio_naive_cpu": round(best.per_core / base.per_core, 1),
        "wrk": limit and limit.summary(),
        "ratio_wrk": limit and round(best.per_core / limit.per_core, 3),
    }


def one_host(bench: Bench) -> Figures:
    """One request an event, all to one webhook: its own limit of requests in flight holds."""
    projects = bench.hooks("alone", 1)
    return bench.drained(projects, bench.size(4_000, 10_000)).summary()


def batch(bench: Bench) -> Figures:
    """100 events a request: ten PostHog integrations."""
    rig = bench.rig
    settings = [
        {"project_api_key": "phc_bench", "region": "custom", "host": rig.url(number, "")}
        for number in range(10)
    ]
    if "batch" not in bench.projects:
        bench.projects["batch"] = rig.projects("batch", "posthog", settings)
        bench.worker.learns(bench.projects["batch"])
    count = bench.size(20_000, 60_000)
    measured = bench.drained(bench.projects["batch"], count)
    requests = sum(measured.seen["requests"].values())
    return measured.summary() | {"events_a_request": round(count / requests, 1)}


def tls(bench: Bench) -> Figures:
    """The same webhooks over HTTPS with keep-alive, against plain HTTP."""
    count = bench.size(4_000, 10_000)
    plain, secure = bench.hooks("hook", 50), bench.hooks("secure", 50, tls=True)
    pairs = [(bench.drained(plain, count), bench.drained(secure, count)) for _ in range(2)]
    ratio = max(one.cpu / other.cpu for one, other in pairs)
    return min(pairs, key=lambda p: p[1].cpu)[1].summary() | {"ratio_plain": round(ratio, 2)}


def slow(bench: Bench) -> Figures:
    """Upstreams that answer after 50 ms, 50 hosts; the naive baseline has the same.

    Each may have so many requests in flight at once as a host is to get; by itself a webhook has 5.
    """
    projects, count = bench.hooks("slow", 50, "slow", at_once=AT_ONCE), bench.size(6_000, 30_000)
    bench.drained(projects, count // 4)  # its thousand connections are made
    measured = bench.drained(projects, count)
    base = naive.measure(bench.rig, bench.size(60, 300), "slow")
    ratio = round(measured.rate / base.rate, 1)
    return measured.summary() | {"naive": base.summary(), "ratio_naive": ratio}


def latency(bench: Bench) -> Figures:
    """From XADD until the upstream has it, at shares of the highest rate; half is what counts."""
    projects = bench.hooks("hook", 50)
    most = bench.found.get("single", {}).get("per_second") or bench.drained(projects, 8_000).rate
    shares = (0.5,) if bench.quick else (0.1, 0.25, 0.5, 0.5, 0.5, 0.75)
    points = [_at_rate(bench, projects, most * share, share) for share in shares]
    halves = sorted((p for p in points if p["share"] == 0.5), key=itemgetter("p99"))
    half = halves[len(halves) // 2]
    others = [point for point in points if point["share"] != 0.5]
    points = sorted([half, *others], key=itemgetter("share"))
    return {"p50_ms": half["p50"], "p99_ms": half["p99"], "points": points}


def _at_rate(bench: Bench, projects: list[str], rate: float, share: float) -> Figures:
    seconds = bench.size(4, 8)
    _loaded(bench, seconds, (rate, projects))
    return {"share": share, "per_second": round(rate), **bench.rig.seen()["ms"]["ok"]}


def _loaded(bench: Bench, seconds: float, *groups: tuple[float, list[str]]) -> None:
    """Publish to groups of projects at a rate each, and wait until all is delivered or waits."""
    rig = bench.rig
    rig.seen(reset=True)
    loads = [
        load.start(rig.settings.redis_url, rig.settings.shards, rate, seconds, projects)
        for rate, projects in groups
    ]
    for publisher in loads:
        publisher.communicate()
    until(lambda: rig.unread() == 0, "the intake is read")


def idle(bench: Bench) -> Figures:
    """A quiet service: what it uses, and how long one event takes."""
    rig, seconds = bench.rig, bench.size(4, 15)
    source = Source(bench.hooks("hook", 50))
    intakes = [Keys(shard_of(p, rig.settings.shards)).intake for p in source.projects]
    time.sleep(1)
    cpu, drain, began = bench.worker.cpu(), bench.worker.drain_cpu(), time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    used = (bench.worker.cpu() - cpu) / passed
    drained = (bench.worker.drain_cpu() - drain) / passed
    rig.seen(reset=True)
    for _ in range(bench.size(20, 100)):
        index, raw = source.next()
        rig.redis.xadd(intakes[index], {"event": raw})
        time.sleep(0.05)
    until(lambda: rig.waiting()["intake"] == 0, "all is delivered")
    return {
        "cpu_percent": round(100 * used, 2),
        "drain_cpu_percent": round(100 * drained, 2),
        **{f"{name}_ms": value for name, value in rig.seen()["ms"]["ok"].items()},
    }


def neighbours(bench: Bench) -> Figures:
    """One pipeline that hangs and 100 that are dead among healthy ones, at a steady load.

    Before, as many more that are well get the load that they get then: what counts is that they are
    bad. In several turns, each with others that go bad only then: those before are suspended.
    """
    rig, healthy = bench.rig, bench.many(bench.size(100, 1_000))
    seconds = bench.size(6, 10)
    rate = 0.25 * bench.highest
    well = bench.hooks("well", 101, "well")
    turns: list[Figures] = []
    for number in range(bench.size(1, 3)):
        dead = rig.webhooks(f"dead{number}", 100, "dead")
        bad = [*dead, *rig.webhooks(f"hang{number}", 1, "hang")]
        time.sleep(3)  # they are known
        more = rate * len(bad) / len(healthy)
        _loaded(bench, seconds, (rate, healthy), (more, well))
        before = rig.seen()
        _loaded(bench, seconds, (rate, healthy), (more, bad))
        beside = rig.seen()
        turns.append(
            {
                "healthy": before["ms"]["ok"],
                "beside": beside["ms"]["ok"],
                "rate": beside["requests"]["ok"] / before["requests"]["ok"],
                "hanging_requests": beside["requests"].get("hang", 0),
            }
        )
    return {
        "turns": turns,
        "ratio_rate": round(min(turn["rate"] for turn in turns), 3),
        "ratio_p99": _times(turns, "beside", "healthy"),
    }


def tenant(bench: Bench) -> Figures:
    """One project with 100 times the load of each of 50 others; and that load, spread evenly.

    The latter says how much of it is due to the load, and no unfairness.
    """
    others, noisy = bench.hooks("hook", 50), bench.hooks("noisy", 1, "noisy")
    quiet = 0.15 * bench.highest
    loads = {
        "alone": (quiet, others),
        "beside": (quiet * 3, [*others, f"{noisy[0]}*100"]),
        "even": (quiet * 3, others),
    }
    turns = []
    for _ in range(bench.size(1, 3)):
        turn: Figures = {}
        for name, group in loads.items():
            _loaded(bench, 5, group)
            turn[name] = bench.rig.seen()["ms"]["ok"]
        turns.append(turn)
    return {
        "turns": turns,
        "ratio_p99": _times(turns, "beside", "alone"),
        "ratio_p99_even": _times(turns, "even", "alone"),
    }


def _times(turns: list[Figures], name: str, base: str) -> float:
    """Return how many times its p99 in `base` it is, in the middle one of the turns."""
    ratios: list[float] = [turn[name]["p99"] / turn[base]["p99"] for turn in turns]
    return round(median(ratios), 2)


def backlogs(bench: Bench) -> Figures:
    """Does a large backlog slow it down? And what an event costs in Redis while it waits."""
    projects = bench.hooks("hook", 50)
    sizes = (1_000, 10_000) if bench.quick else (1_000, 10_000, 100_000)
    points = [{"events": size, **bench.drained(projects, size).summary()} for size in sizes]
    few, many = points[1]["cpu_us"], points[-1]["cpu_us"]  # 1,000 are over too soon to compare
    return {"points": points, "ratio_cpu": round(many / few, 2)}


def sizes(bench: Bench) -> Figures:
    """What waits and what is kept, in bytes: what `onward plan` reckons with."""
    from tests.worker.store.databases import postgres_url  # it takes seconds to start

    rig, count = bench.rig, bench.size(5_000, 20_000)
    intake, lane = _waiting_bytes(bench, count)
    redis = _spare(rig)
    _fill_journal(redis, count)
    journal = sum(redis.memory_usage(key, samples=0) for key in redis.scan_iter())
    engine = make_engine(postgres_url())
    before = _table_bytes(engine)
    _recorded(rig, engine, count)
    return {
        "intake_bytes_ratio": round(intake, 2),
        "lane_bytes_ratio": round(lane, 2),
        "journal_bytes": round(journal / count),
        "event_id_bytes": round(_event_id_bytes(rig)),
        "row_bytes": round((_table_bytes(engine) - before) / count),
    }


def _event_id_bytes(rig: Rig) -> float:
    keys = list(rig.redis.scan_iter("onward:{*}:seen:*"))
    used = sum(rig.redis.memory_usage(key, samples=0) for key in keys)
    return float(used / max(sum(rig.redis.hlen(key) for key in keys), 1))


def _table_bytes(engine: Engine) -> int:
    upgrade(engine)
    query = text(
        "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c "
        "WHERE relname LIKE 'deliveries%' AND relkind = 'r'"
    )
    with engine.connect() as connection:
        return int(connection.execute(query).scalar() or 0)


def _waiting_bytes(bench: Bench, count: int) -> tuple[float, float]:
    """Return the bytes of Redis an event takes in the intake and in a lane, by its JSON's."""
    rig = bench.rig
    size = fill(rig.redis, Source(["parked"]), count, OTHER_SHARDS)
    parked = Keys(shard_of("parked", OTHER_SHARDS)).intake
    waiting = rig.redis.memory_usage(parked, samples=0)
    rig.redis.delete(parked)
    (project,) = rig.webhooks("held", 1, "dead")
    others = set(rig.redis.scan_iter("onward:{*}:lane:*"))

    def formed() -> set[bytes]:
        fill(rig.redis, Source([project]), 1, rig.settings.shards)
        time.sleep(0.5)
        mine = Keys(shard_of(project, rig.settings.shards)).lane("*")
        return set(rig.redis.scan_iter(mine)) - others

    lane = until(formed, "a lane forms").pop()
    empty, entries = rig.redis.memory_usage(lane, samples=0), rig.redis.xlen(lane)
    lane_size = fill(rig.redis, Source([project]), count, rig.settings.shards)
    until(lambda: rig.redis.xlen(lane) == entries + count, "all is in the lane")
    return waiting / size, (rig.redis.memory_usage(lane, samples=0) - empty) / lane_size


def pipelines(bench: Bench) -> Figures:
    """The same events spread over 10 to 10,000 integrations."""
    count = bench.size(6_000, 10_000)
    numbers = (10, 1_000) if bench.quick else (10, 100, 1_000, 10_000)
    points = []
    for number in numbers:
        projects, most = bench.many(number), max(count, 2 * number)
        # twice: the worker's parent reads new integrations once, when it next shows their gauges
        measured = min([bench.drained(projects, most) for _ in range(2)], key=lambda one: one.cpu)
        points.append({"pipelines": number, **measured.summary()})
    few = bench.drained(bench.many(numbers[0]), count).microseconds  # again: minutes have passed
    ratio = round(points[-1]["cpu_us"] / mean([points[0]["cpu_us"], few]), 2)
    return {"points": points, "ratio_cpu": ratio}


def memory(bench: Bench) -> Figures:
    """A worker's memory under load at 1,000 pipelines, each with a connection of its own."""
    return bench.drained(bench.many(1_000), bench.size(6_000, 20_000)).summary()


def second(bench: Bench) -> Figures:
    """A second worker process: the CPU a delivery takes should not change. In several turns.

    With free cores: two get twice the load of one. And with a backlog, which leaves none free where
    there are two: whoever shares a core with Redis and the sink finds its caches cold.
    """
    rig, worker = bench.rig, bench.worker
    projects, count = bench.hooks("hook", 50), bench.size(6_000, 15_000)
    rate = 0.2 * bench.highest
    turns: list[Figures] = []
    for _ in range(bench.size(1, 3)):
        alone = bench.drained(projects, count)
        one = _steady_cpu(bench, rate, projects)
        with rig.worker() as other:
            until(lambda: worker.draining() and other.draining(), "both drain")
            time.sleep(2)  # they share the shards
            both = worker.drained(Source(projects), count, other)
            two = _steady_cpu(bench, 2 * rate, projects, other)
        until(lambda: len(rig.redis.zrange(OWNERS, 0, -1)) == 1, "the other is gone")
        turns.append(
            {
                "one_us": one,
                "two_us": two,
                "ratio_cpu": two / one,
                "backlog_one": alone.summary(),
                "backlog_two": both.summary(),
                "ratio_backlog_cpu": both.microseconds / alone.microseconds,
            }
        )
    ratios = ("ratio_cpu", "ratio_backlog_cpu")
    return {"turns": turns} | {r: round(median(turn[r] for turn in turns), 2) for r in ratios}


def _steady_cpu(bench: Bench, rate: float, projects: list[str], *others: Worker) -> float:
    """Return the CPU of a delivery at so many a second, µs."""
    workers, seconds = (bench.worker, *others), bench.size(3, 5)
    cpu = sum(worker.cpu() for worker in workers)
    _loaded(bench, seconds, (rate, projects))
    until(lambda: bench.rig.waiting()["journal"] == 0, "all is recorded")
    spent = sum(worker.cpu() for worker in workers) - cpu
    delivered: int = bench.rig.seen()["requests"]["ok"]
    return round(spent / delivered * 1e6, 1)


def record(bench: Bench) -> Figures:
    """Rows a second of one core from the journal into the database."""
    from tests.worker.store.databases import postgres_url  # it takes seconds to start

    rows = bench.size(40_000, 100_000)
    urls = {"postgresql": postgres_url(), "sqlite": f"sqlite:///{bench.rig.folder / 'rows.db'}"}
    return {
        f"{kind}_rows_per_core": round(_recorded(bench.rig, make_engine(url), rows))
        for kind, url in urls.items()
    }


def _spare(rig: Rig) -> Any:
    """Return a client of an empty database of the rig's Redis."""
    redis = rig.redis.__class__.from_url(rig.settings.redis_url[:-1] + "2", protocol=2)
    redis.flushdb()
    return redis


def _fill_journal(redis: Any, rows: int) -> None:
    moment, entries = int(time.time() * 1000), 100
    for number in range(rows // entries):
        page = Page(
            [
                Row(
                    f"i{row % 50:07d}", "project", f"event-{number}-{row}", "subscription_renewed",
                    "delivered", "", "", 200, 1, moment, moment + row, f"{moment}-{row}",
                )
                for row in range(entries)
            ]
        )  # fmt: skip
        redis.xadd(Keys(number % 4).journal, {PAGE: pack(page)})


def _recorded(rig: Rig, engine: Engine, rows: int) -> float:
    """Return the rows a second of CPU from a full journal into a database."""
    upgrade(engine)
    redis = _spare(rig)
    _fill_journal(redis, rows)
    cpu = time.process_time()
    written = record_journal(redis, engine, 4)
    cpu = time.process_time() - cpu
    engine.dispose()
    return written / cpu


QUICK: dict[str, Callable[[Bench], Figures]] = {
    "single": single, "batch": batch, "latency": latency, "idle": idle,
}  # fmt: skip
ALL: dict[str, Callable[[Bench], Figures]] = {  # what leaves much behind comes late
    **QUICK, "memory": memory, "tls": tls, "one_host": one_host, "slow": slow, "backlogs": backlogs,
    "second": second, "tenant": tenant, "neighbours": neighbours, "pipelines": pipelines,
    "record": record, "sizes": sizes,
}  # fmt: skip


def temporary(folder: Path, *, quick: bool) -> Rig:
    """Return a rig for the scenarios."""
    return Rig(folder, **({} if quick else {"ONWARD_HOLD_EVENTS": "10000000"}))
