"""`onward demo`: the whole story against the sandbox, in a folder of its own, and its proof.

It runs what a user runs, `onward up` and `onward sandbox`, and looks at what everybody can see: the
record, the audit, and the upstreams' own counts.
"""

import os
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from worker.audit import Balance, balance
from worker.changing import changing
from worker.intake import publish
from worker.proof import record_faults, upstream_faults, users_out_of_order
from worker.registry import all_providers
from worker.sample import NAMES, events, integration
from worker.sandbox.app import all_upstreams
from worker.servers import connect
from worker.settings import STATE_FILE, load_settings
from worker.state import OWNERS
from worker.store import integrations, projects
from worker.store.database import make_engine, reading
from worker.store.deliveries import list_deliveries
from worker.store.models import Delivery
from worker.store.schema import upgrade
from worker.supervisor import (
    STOP_SECONDS,
    Part,
    Supervisor,
    ending_signals,
    onward,
    wait_for_http,
)

PROJECT = "prj_demo"
USERS = 24
VICTIM = "webhooks"  # whose upstream refuses for a while; the first slug where there is none
STEP_SECONDS = 180.0  # no step takes so long, on the busiest machine
LOOK_SECONDS = 0.5
UP_SECONDS = 4 * STOP_SECONDS  # it waits for its own parts, one after the other
TOKENED = "trial_started"  # the event that brings a user's Apple Ads token
ENVIRONMENT = {"ONWARD_RETRY_SCHEDULE": "0.5,1,1,1.5", "ONWARD_METRICS_PORT": "0"}
ATTRIBUTION = {
    "attributed": True,
    "org_id": "40669111",
    "campaign_id": "542370111",
    "ad_group_id": "542317222",
    "keyword_id": "87675333",
    "country_or_region": "PT",
    "conversion_type": "Download",
    "claim_type": "Click",
}


@dataclass
class Line:
    """One pipeline, as it is shown."""

    slug: str
    title: str
    state: str = "active"
    sent: int = 0
    delivered: int = 0
    skipped: int = 0
    rejected: int = 0
    held: int = 0
    why: str = ""


class Stage(Protocol):
    """Where the story is shown."""

    def say(self, text: str, mood: str = "") -> None:
        """Tell what happens; `mood` is good, bad or empty."""

    def show(self, lines: Sequence[Line]) -> None:
        """Show how the pipelines stand now."""


class TooSlow(RuntimeError):
    """Something did not come about in time."""


def play(count: int, stage: Stage) -> bool:
    """Play the story with `count` events; return whether every one is accounted for."""
    try:
        with _service(stage) as demo:
            _told(demo, count)
    except KeyboardInterrupt:
        stage.say("Interrupted.", "bad")
        return False
    return not demo.faults


def _told(demo: "Demo", count: int) -> None:
    """Play it, and say what is off."""
    try:
        demo.run(count)
    except (TooSlow, TimeoutError) as error:
        demo.faults += [str(error), *demo.last_words()]
    else:
        demo.check()
    for fault in demo.faults:
        demo.stage.say(f"  {fault}", "bad")


# --- the service --------------------------------------------------------------------------------


@contextmanager
def _service(stage: Stage) -> Iterator["Demo"]:
    """Give a service of our own with nothing in it; leave no process and no file."""
    with ExitStack() as stack:
        stack.enter_context(_own_environment())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onward-demo-")))
        port = _free_port()
        demo = Demo(stage, f"http://127.0.0.1:{port}", folder)
        stack.callback(demo.close)
        demo.found(PROJECT)
        keeper = Supervisor(demo.logs, stage.say)
        stack.callback(keeper.stop)
        stage.say("Starting a service of its own: Valkey, SQLite, workers, API, and the sandbox …")
        keeper.add(Part("sandbox", onward("sandbox", "--port", str(port))))
        command = onward("up", "--port", "0")
        keeper.add(Part("up", command, demo.environment, patience=UP_SECONDS))
        yield demo


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide the settings of another service, and take whatever tells to end like Ctrl-C."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith("ONWARD_")}
    for name in hidden:
        del os.environ[name]
    told = (signal.SIGINT, *ending_signals())
    before = {number: signal.signal(number, _stop) for number in told}
    try:
        yield
    finally:
        os.environ.update(hidden)
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(_number: int, _frame: object) -> None:
    for number in (signal.SIGINT, *ending_signals()):  # once is enough; what follows is tidying up
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- the events ---------------------------------------------------------------------------------


def story_events(count: int, stores: Sequence[str]) -> list[dict[str, Any]]:
    """Return the events: of three users one came with an Apple Ads record, one with a token.

    With every other event of a user's the token would make Asapty and SplitMetrics wait for an
    answer that is there in no time; it comes with one kind of event, which they do not get.
    """
    made = list(events(count, project=PROJECT, users=USERS))
    for number, event in enumerate(made):
        event["platform"] = stores[number % len(stores)]
        user = int(event["identity_id"].rpartition("-")[2])
        if user % 3 == 0:
            event["asa_attribution"] = ATTRIBUTION
        elif user % 3 == 1 and event["event_name"] == TOKENED:
            event["properties"]["_q_asa_token"] = f"dG9rZW4{user:05d}="
    return made


# --- the story ----------------------------------------------------------------------------------


@dataclass
class Demo:
    """The story and what it found."""

    stage: Stage
    sandbox: str  # its base URL
    folder: Path
    redis: Any = None
    pipelines: dict[str, str] = field(default_factory=dict)  # slug → integration
    stores: dict[str, str] = field(default_factory=dict)  # slug → store
    sent: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    account: Balance = field(default_factory=Balance)

    def __post_init__(self) -> None:
        self.logs = self.folder / "log"
        self.environment = {
            **ENVIRONMENT,
            "ONWARD_DATA_DIR": str(self.folder),
            "ONWARD_UPSTREAM": self.sandbox,
        }
        self.settings = load_settings(self.environment)
        upgrade(self.settings.database_url)
        self.engine = make_engine(self.settings.database_url)
        self.http = httpx.Client(base_url=self.sandbox)

    def connect(self) -> None:
        """Wait until everything is up and a worker drains."""
        wait_for_http(f"{self.sandbox}/_sandbox/", STEP_SECONDS)
        self.until((self.folder / STATE_FILE).exists, "the service to start")
        self.settings = load_settings(self.environment)  # of the service that runs now
        self.redis = connect(self.settings.redis_url, protocol=2)
        self.until(lambda: self.redis.zcard(OWNERS), "a worker to take its shards")

    def close(self) -> None:
        """Let go of the databases."""
        if self.redis is not None:
            self.redis.close()
        self.http.close()
        self.engine.dispose()

    def last_words(self) -> list[str]:
        """Return what the processes said last: the folder is gone when the demo is over."""
        words = []
        for path in sorted(self.logs.glob("*.log")):
            words += [f"{path.name}: {line[:300]}" for line in path.read_text().splitlines()[-3:]]
        return words

    def found(self, project: str) -> None:
        """Make the project, with one integration of every slug that the sandbox plays."""
        with self.engine.begin() as connection:
            projects.create_project(connection, "Demo", project)
            for slug, provider in all_providers().items():
                if slug not in all_upstreams():
                    self.stage.say(f"The sandbox does not play {slug}: left out")
                    continue
                store = "iOS" if "iOS" in provider.stores else provider.stores[0]
                changes: dict[str, Any] = {}
                if provider.needs_attribution:
                    changes["events"] = [name for name in NAMES if name != TOKENED]
                self.stores[slug] = store
                self.pipelines[slug] = integration(
                    connection, self.settings, project, slug, provider.title, store=store, **changes
                )

    def run(self, count: int) -> None:
        """Play it."""
        self.connect()
        victim = VICTIM if VICTIM in self.pipelines else next(iter(self.pipelines))
        made = story_events(count, sorted(set(self.stores.values())))
        first, second = count // 2, count * 3 // 4
        self.stage.say(f"1. {first:,} events through {len(self.pipelines)} pipelines")
        self.publish(made[:first])
        self.until(self.settled, "all of them to arrive")
        self.stage.say(f"2. {victim}: its upstream refuses our credentials from now on")
        self._fault(mode="refuse", slug=victim)
        self.publish(made[first:second])
        self.until(lambda: self._state(victim).active == 2, f"{victim} to be suspended")
        row = self._state(victim)
        self.stage.say(f"   suspended (active=2): {row.last_error_message!r}", "bad")
        self.stage.say("3. More events: the others get theirs, those of the suspended are held")
        self.publish(made[second:])
        held = sum(event["platform"] == self.stores[victim] for event in made[first:])
        self.until(lambda: self.settled(held), f"{held:,} events to be held")
        self.stage.say(f"4. The upstream is put right; {victim} is activated again")
        self.http.delete("/_sandbox/faults").raise_for_status()
        with changing(self.engine, self.settings) as connection:
            integrations.set_status(connection, self.pipelines[victim], 1, "demo")
        self.until(self.settled, "the held events to arrive")
        self._check_order(victim)

    def publish(self, made: Sequence[dict[str, Any]]) -> None:
        """Put events into the intake."""
        publish(self.redis, made, self.settings.shards)
        self.sent += made

    def _fault(self, **fault: Any) -> None:
        self.http.post("/_sandbox/faults", json=fault).raise_for_status()

    def _state(self, slug: str) -> Any:
        with reading(self.engine) as connection:
            return integrations.get(connection, self.pipelines[slug])

    def until(self, done: Callable[[], Any], what: str) -> None:
        """Show how it stands until `done`; raise TooSlow if that takes too long."""
        deadline = time.monotonic() + STEP_SECONDS
        while True:
            if self.redis is not None:
                self.look()
                self.stage.show(self.lines())
            if done():
                return
            if time.monotonic() > deadline:
                raise TooSlow(f"waited {STEP_SECONDS:.0f} s in vain for {what}")
            time.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Take the present account."""
        self.account = balance(self.redis, self.engine, self.settings.shards)

    def settled(self, held: int = 0) -> bool:
        """Whether every event has come to its end and is recorded, but for `held` deliveries."""
        account = self.account
        waiting = sum(line.waiting for line in account.lines)
        ready = not account.intake and not account.journal and not account.unaccounted
        accepted = {line.integration_id: line.accepted for line in account.lines}
        whole = all(
            accepted.get(self.pipelines[slug], 0) >= len(self.expected(slug))
            for slug in self.pipelines
        )
        return ready and whole and waiting == held

    def expected(self, slug: str) -> list[str]:
        """Return the ids of the events that are for a pipeline, in the order sent."""
        return [event["id"] for event in self.sent if event["platform"] == self.stores[slug]]

    # --- what is shown --------------------------------------------------------------------------

    def lines(self) -> list[Line]:
        """Return how the pipelines stand."""
        by_id = {line.integration_id: line for line in self.account.lines}
        with reading(self.engine) as connection:
            rows = {row.id: row for row in integrations.list_of(connection, PROJECT)}
        shown = []
        for slug, id_ in self.pipelines.items():
            line = Line(slug, rows[id_].title, "SUSPENDED" if rows[id_].active == 2 else "active")
            if id_ in by_id:
                ended = Counter(by_id[id_].ended)
                line.sent = by_id[id_].accepted
                line.held = by_id[id_].waiting
                line.delivered, line.skipped = ended["delivered"], ended["skipped"]
                line.rejected = ended["rejected"] + ended["expired"]
            shown.append(line)
        return shown

    # --- the proof ------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare what was sent, the record, the audit, and what the upstreams say they have."""
        self.look()
        lines = self.lines()
        deliveries = 0
        for line in lines:
            rows = self._rows(line.slug)
            deliveries += len(rows)
            self._check_pipeline(line.slug, rows)
            reasons = Counter(r.message or r.reason or "" for r in rows if r.outcome != "delivered")
            line.why = reasons.most_common(1)[0][0] if reasons else ""
        self.stage.show(lines)
        if self.account.unaccounted:
            self.faults.append(f"the audit misses {self.account.unaccounted:,} deliveries")
        if self.faults:
            self.stage.say("NOT everything is accounted for:", "bad")
            return
        self.stage.say(
            f"Every event is accounted for: {len(self.sent):,} events x {len(lines)} pipelines "
            f"= {deliveries:,} deliveries, all recorded; the upstreams count the same.",
            "good",
        )

    def _check_pipeline(self, slug: str, rows: Sequence[Delivery]) -> None:
        expected = self.expected(slug)
        delivered = {row.event_id for row in rows if row.outcome == "delivered"}
        self.faults += record_faults(slug, expected, [row.event_id for row in rows])
        self.faults += upstream_faults(
            slug, expected, delivered, self._taken(slug), answered=self._answered(slug)
        )

    def _rows(self, slug: str) -> list[Delivery]:
        with reading(self.engine) as connection:
            return list_deliveries(
                connection, integration_id=self.pipelines[slug], limit=3 * len(self.sent)
            )

    def _taken(self, slug: str) -> dict[str, int]:
        answer = self.http.get("/_sandbox/taken", params={"slug": slug}).json()
        ids: dict[str, int] = answer["ids"]
        return ids

    def _answered(self, slug: str) -> bool:
        params: dict[str, Any] = {"slug": slug, "last": 200}
        calls = self.http.get("/_sandbox/calls", params=params).json()["calls"]
        return any(str(call["status"]).startswith("2") for call in calls)

    def _check_order(self, slug: str) -> None:
        sent = [(event["user_id"], event["id"]) for event in self.sent]
        wrong = users_out_of_order(sent, list(self._taken(slug)))
        if wrong:
            self.faults.append(f"{slug}: events of {len(wrong)} users arrived out of order")
        else:
            self.stage.say("   the held events arrived, in order for each user", "good")
