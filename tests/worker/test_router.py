"""Events that wait until the configuration is known that they are to be treated by."""

import json
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stack import PROJECT, Stack, eventually
from worker import router as routing
from worker.router import MOST_NAMED, MOST_UNROUTED, Router
from worker.sample import events
from worker.settings import load_settings
from worker.shard import Shard
from worker.state import Keys, shard_of
from worker.store.projects import create_project

Known = dict[tuple[str, str], tuple[Any, ...]]


class Directory:
    """A configuration of which `known` is known, read last at `holds_from`."""

    def __init__(self) -> None:
        self.known: Known = {}
        self.holds_from = 0.0
        self.asked = 0

    def targets(self, project: str, platform: str) -> tuple[Any, ...]:
        return self.known.get((project, platform), ())

    def ask(self) -> None:
        self.asked += 1


@pytest.fixture
def directory() -> Directory:
    return Directory()


@pytest.fixture
def offered() -> list[str]:
    """Ids of the events that went to a pipeline, in their order."""
    return []


@pytest.fixture
def router(directory: Directory, offered: list[str]) -> Router:
    dispatcher: Any = SimpleNamespace(
        settings=load_settings({}, dedupe_seconds=0, shards=1),
        directory=directory,
        state=None,
        clock=None,
        offer=lambda _shard, _entry, _integration, event, _raw: offered.append(event.id),
    )
    return Router(dispatcher)


@pytest.fixture
def shard() -> Shard:
    return Shard(Keys(0), opening=False)


def entries(count: int, project: str = "prj_a", seed: int = 1) -> list[Any]:
    return [
        (b"%d-%d" % (time.time() * 1000 + seed, number), {b"event": json.dumps(event).encode()})
        for number, event in enumerate(events(count, project=project, seed=seed))
    ]


def become_known(directory: Directory, project: str = "prj_a") -> None:
    """Let an integration be known that was there all the time."""
    directory.known[project, "iOS"] = (SimpleNamespace(id="int_a"),)
    directory.holds_from = float("inf")


def become_known_and_change(directory: Directory, router: Router, read_at: float) -> None:
    """Let an integration be known that is changed after it was read."""
    become_known(directory)
    directory.holds_from = read_at
    router.changed(["prj_a"])


async def test_they_wait_until_the_configuration_was_read_since(
    router: Router, directory: Directory, shard: Shard, offered: list[str]
) -> None:
    first, second = entries(2), entries(2, seed=2)
    await router.accept([(shard, first)])
    assert directory.asked == 2
    router.route_late()
    assert (offered, shard.acks) == ([], []), "nothing is known that was not known before"

    become_known(directory)
    await router.accept([(shard, second)])
    assert len(offered) == 4
    assert list(shard.entries) == [entry_id for entry_id, _ in [*first, *second]], "in order"
    assert not shard.acks


async def test_then_they_are_for_nobody(
    router: Router, directory: Directory, shard: Shard, offered: list[str]
) -> None:
    await router.accept([(shard, entries(3))])
    assert len(shard.entries) == 3, "until then they are in hand"
    directory.holds_from = float("inf")
    router.route_late()
    assert (offered, len(shard.acks), shard.entries) == ([], 3, {})
    assert shard.tallies["*", "unrouted"] == 3


async def test_so_many_wait_and_no_more(router: Router, shard: Shard, directory: Directory) -> None:
    await router.accept([(shard, entries(MOST_UNROUTED + 5))])
    router.route_late()
    assert (len(shard.entries), len(shard.acks)) == (MOST_UNROUTED, 5)


async def test_those_of_a_lost_shard_are_anothers(
    router: Router, directory: Directory, shard: Shard, offered: list[str]
) -> None:
    await router.accept([(shard, entries(1))])
    shard.lost = True
    become_known(directory)
    router.route_late()
    assert (offered, shard.acks) == ([], [])


async def test_an_entry_that_is_read_again_before_it_is_routed_is_offered_once(
    router: Router, shard: Shard, directory: Directory, offered: list[str]
) -> None:
    """A store that went back to an older copy hands it out again; reads are looked at ahead."""
    become_known(directory)
    arrived = [(shard, entries(3))]
    first, again = await router.look(arrived), await router.look(arrived)
    await router.route(first)
    await router.route(again)
    assert len(offered) == 3


async def test_a_later_one_does_not_overtake_one_that_waits(
    router: Router, directory: Directory, shard: Shard, offered: list[str]
) -> None:
    first, second = entries(2), entries(2, seed=2)
    await router.accept([(shard, first)])
    directory.known["prj_a", "iOS"] = (SimpleNamespace(id="int_a"),)  # taken, and not said so yet
    await router.accept([(shard, second)])
    router.route_late()
    assert offered == ids_of([*first, *second])


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("raw", "project", "event"),
    [
        (b'{"id": "evt-3", "project_id": "prj_a"}', "prj_a", "evt-3"),
        (b'{"id": "evt-3", "project_id": "prj_a", "properties": "' + b"x" * 70_000 + b'"}',
         "prj_a", "evt-3"),
        (b'{"id": "evt-3", "project_id": 5}', None, "evt-3"),
        (b'{"id": "evt 3", "project_id": "prj_a"}', "prj_a", None),
        (b'{"id": "' + b"e" * 129 + b'", "project_id": "prj/a"}', None, None),
        (b'{"id": "evt-3", "project_id": "prj_a"', None, None),
        (b'["evt-3"]', None, None),
        (b"\xff\x00", None, None),
        (b"", None, None),
        (b'{"id": ' + b"9" * 10_000 + b"}", None, None),
        (b'{"id": ' + DEEP, None, None),
        (b'{"x": ' + DEEP, None, None),
        (b'{"id": "evt-3", "x": "' + b"x" * MOST_NAMED + b'"}', None, None),
    ],
)  # fmt: skip
async def test_a_malformed_event_is_kept_by_what_name_it_has(
    router: Router, shard: Shard, raw: bytes, project: str | None, event: str | None
) -> None:
    await router.accept([(shard, [(b"1-0", {b"event": raw})])])
    (letter,) = shard.page.letters
    assert (letter.reason, letter.body) == ("malformed", raw)
    assert (letter.project_id, letter.integration_id, letter.event_id) == (project, None, event)


async def test_an_entry_without_an_event_says_so(router: Router, shard: Shard) -> None:
    await router.accept([(shard, [(b"1-0", {b"evt": b"{}"})])])
    (letter,) = shard.page.letters
    assert letter.message == 'event is missing: the entry has no field "event"'


def ids_of(found: list[Any]) -> list[str]:
    return [json.loads(fields[b"event"])["id"] for _, fields in found]


async def test_those_of_a_changed_project_wait_until_it_was_read_since(
    router: Router, directory: Directory, shard: Shard, offered: list[str]
) -> None:
    become_known(directory)
    become_known(directory, "prj_b")
    directory.holds_from = time.monotonic()
    router.changed(["prj_a"])
    first, other, second = entries(2), entries(2, "prj_b", seed=2), entries(2, seed=3)
    await router.accept([(shard, first), (shard, other)])
    router.route_late()
    assert offered == ids_of(other), "it is another project"
    assert directory.asked
    directory.holds_from = time.monotonic()
    await router.accept([(shard, second)])
    assert offered == ids_of([*other, *first, *second])
    assert len(shard.entries) == 6


async def test_who_is_changed_again_and_again_does_not_wait_for_ever(
    router: Router, directory: Directory, shard: Shard, offered: list[str]
) -> None:
    become_known(directory)
    first, second = entries(2), entries(2, seed=2)
    for some in first, second:
        directory.holds_from = time.monotonic()
        router.changed(["prj_a"])
        await router.accept([(shard, some)])
    assert offered == ids_of(first), "it was read since they came"


async def test_a_changed_project_may_be_for_nobody(
    router: Router, directory: Directory, shard: Shard, offered: list[str]
) -> None:
    become_known_and_change(directory, router, read_at=time.monotonic())
    await router.accept([(shard, entries(2))])
    directory.known.clear()
    directory.holds_from = float("inf")
    router.route_late()
    assert (offered, len(shard.acks), shard.entries) == ([], 2, {})


async def test_while_the_database_is_away_a_change_delays_and_stops_nothing(
    router: Router,
    directory: Directory,
    shard: Shard,
    offered: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    become_known_and_change(directory, router, read_at=0.0)
    nobody, first, second = entries(1, "prj_b"), entries(2, seed=2), entries(2, seed=3)
    await router.accept([(shard, nobody), (shard, first)])
    assert not offered
    monkeypatch.setattr(routing, "CHANGED_SECONDS", 0)
    await router.accept([(shard, second)])
    assert offered == ids_of([*first, *second])
    assert (len(shard.entries), shard.acks) == (5, []), "who seems for nobody waits on"


async def test_so_many_of_a_changed_project_wait_and_no_more(
    router: Router, directory: Directory, shard: Shard, offered: list[str]
) -> None:
    become_known_and_change(directory, router, read_at=0.0)
    many = entries(MOST_UNROUTED + 5)
    await router.accept([(shard, many)])
    assert offered == ids_of(many[:5])


async def test_who_floods_pushes_out_its_own(
    router: Router, directory: Directory, shard: Shard, offered: list[str]
) -> None:
    become_known_and_change(directory, router, read_at=0.0)
    few, flood = entries(2), entries(MOST_UNROUTED + 3, "prj_b", seed=2)
    await router.accept([(shard, few), (shard, flood)])
    assert (offered, shard.acks) == ([], [entry_id for entry_id, _ in flood[:5]])


async def test_one_that_was_begun_waits_too_and_keeps_its_targets(
    router: Router, directory: Directory, shard: Shard, offered: list[str]
) -> None:
    """Its integration may be younger than what we know: it would seem deleted."""
    young = SimpleNamespace(id="int_young")
    directory.get = {"int_young": young}.get  # type: ignore[attr-defined]
    ((entry_id, _),) = begun = entries(1)
    shard.progress[entry_id] = (["int_old", "int_young"], ["int_old"])
    router.state = SimpleNamespace(changes=told_of("prj_a"))  # type: ignore[assignment]
    await router.hear()
    await router.accept([(shard, begun)])
    assert (offered, list(shard.entries)) == ([], [entry_id])
    directory.holds_from = float("inf")
    router.route_late()
    assert offered == ids_of(begun)
    assert shard.entries[entry_id].targets == ["int_old", "int_young"]


def told_of(*projects: str) -> Any:
    async def changes() -> list[str]:
        return list(projects)

    return changes


@pytest.mark.processes
def test_an_event_for_an_integration_of_this_moment_is_delivered(tmp_path: Path) -> None:
    with Stack(tmp_path / "s") as stack:
        stack.worker()
        for number in range(5):
            project = f"prj_{number}"
            with stack.engine.begin() as connection:
                create_project(connection, "Young", project)
            hook = stack.integration(project=project)
            stack.publish(events(1, project=project))
            eventually(partial(stack.recorded, hook), 30, "it is recorded")
            assert stack.recorded(hook) == {"delivered": 1}
        assert not stack.balance().dropped


def delivered(stack: Stack, hook: str, count: int) -> bool:
    return stack.recorded(hook) == {"delivered": count}


def one_user(seed: int) -> list[dict[str, Any]]:
    return [{**event, "user_id": "QON_1"} for event in events(2, project=PROJECT, seed=seed)]


@pytest.mark.processes
def test_what_is_published_after_an_activation_goes_there_too(tmp_path: Path) -> None:
    with Stack(tmp_path / "s") as stack:
        stack.worker()
        for number in range(2):
            hooks: list[str] = []
            for step in range(5):
                hooks.append(stack.integration())
                stack.publish(one_user(seed=10 * number + step))
                eventually(partial(delivered, stack, hooks[0], 2 * step + 2), 30)
            eventually(stack.settled, 30, "all is recorded")
            expected = [{"delivered": 2 * (5 - step)} for step in range(5)]
            assert [stack.recorded(hook) for hook in hooks] == expected
            for hook in hooks:
                stack.activate(hook, 0)


@pytest.mark.processes
def test_changes_one_after_the_other_cost_no_event_and_no_order(tmp_path: Path) -> None:
    with Stack(tmp_path / "s") as stack:
        stack.worker()
        sent: list[str] = []
        for step in range(10):
            stack.integration(url=f"https://h{step}.example/onward")
            made = one_user(step)
            stack.publish(made)
            sent += [event["id"] for event in made]
        eventually(stack.settled, 30, "all is recorded")
        for step in range(10):
            arrived = list(stack.taken("webhooks", f"h{step}.example"))
            assert arrived[-len(sent[2 * step :]) :] == sent[2 * step :]


@pytest.mark.processes
def test_what_is_published_after_a_pause_is_not_sent(tmp_path: Path) -> None:
    with Stack(tmp_path / "s") as stack:
        always, at_times = stack.integration(), stack.integration()
        stack.worker()
        for number in range(6):
            stack.activate(at_times, number % 2)
            stack.publish(events(1, project=PROJECT, seed=number))
            eventually(partial(delivered, stack, always, number + 1), 30)
        eventually(stack.settled, 30, "all is recorded")
        assert stack.recorded(at_times) == {"delivered": 3}


@pytest.mark.processes
def test_what_is_published_after_new_settings_goes_by_them(tmp_path: Path) -> None:
    with Stack(tmp_path / "s", {"ONWARD_ALLOW_PRIVATE_UPSTREAMS": "1"}) as stack:
        hook = stack.integration(url="https://old.example/")
        stack.worker()
        for number in range(5):
            stack.settings_of(hook, {"url": f"https://n{number}.example/"})
            stack.publish(events(1, project=PROJECT, seed=number))
            eventually(partial(delivered, stack, hook, number + 1), 30)
        taken = [len(stack.taken("webhooks", f"n{number}.example")) for number in range(5)]
        assert taken == [1] * 5


async def test_what_was_put_into_another_shards_intake_is_moved_on(
    directory: Directory, offered: list[str]
) -> None:
    """There its integration would have a second lane, and what waits in the first is forgotten."""
    moved: list[Any] = []

    async def move(stream: str, strays: Any) -> None:
        moved.append((stream, strays))

    dispatcher: Any = SimpleNamespace(
        settings=load_settings({}, dedupe_seconds=0),
        directory=directory,
        state=SimpleNamespace(move=move),
        clock=None,
        offer=lambda _shard, _entry, _integration, event, _raw: offered.append(event.id),
    )
    become_known(directory)
    home, other = shard_of("prj_a", 32), shard_of("prj_a", 32) - 1
    arrived = entries(3)
    at_home, stray = Shard(Keys(home), opening=False), Shard(Keys(other), opening=False)
    stray.progress[arrived[1][0]] = (["gone"], ["gone"])  # begun with: moved, it is sent again
    await Router(dispatcher).accept([(stray, arrived[:2]), (at_home, arrived[2:])])
    assert moved == [(stray.keys.intake, [(arrived[0][0], home)])]
    assert (len(offered), len(at_home.entries)) == (1, 1)
    assert (stray.entries, stray.acks) == ({}, [arrived[1][0]])
