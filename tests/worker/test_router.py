"""Events for which there is no integration yet, as far as the worker knows."""

import json
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stack import Stack, eventually
from worker.router import MOST_UNROUTED, Router
from worker.sample import events
from worker.settings import load_settings
from worker.shard import Shard
from worker.state import Keys
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
        settings=load_settings({}, dedupe_seconds=0),
        directory=directory,
        state=None,
        clock=None,
        offer=lambda _shard, _entry, _integration, event, _raw: offered.append(event.id),
        offered=lambda: None,
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
