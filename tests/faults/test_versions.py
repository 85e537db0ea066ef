"""A rolling upgrade: what one version writes, the version before and the next can read.

The other versions are this one, changed at its edges: what they write is what these would.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.faults.scene import PROJECT, Make
from tests.faults.test_stuck import changed
from tests.stack import eventually
from worker.journal import PAGE
from worker.state import RECORDING, Keys, shard_of

pytestmark = pytest.mark.processes
KEYS = Keys(shard_of(PROJECT, 32))
NEXT = """
import worker.journal
from worker import journal, lane
class Row(journal.Row, array_like=True):
    region: str = "of the next version"
class Page(journal.Page, array_like=True):
    spans: list[str] = []
class Tried(lane.Tried, array_like=True):
    region: str = "of the next version"
journal.Row, journal.Page, lane.Tried = Row, Page, Tried
"""
BEFORE = """
import msgspec
from worker import journal
def pack(page):
    parts = msgspec.to_builtins(page, builtin_types=(bytes,))
    return msgspec.msgpack.encode(parts if page.nearing else parts[:5])
journal.pack = pack
"""


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


@pytest.mark.slow
@pytest.mark.row(42, "rolling upgrade and back under load: each reads what others wrote")
def test_versions_side_by_side(scene: Make, tmp_path: Path) -> None:
    before = changed(folder(tmp_path, "before"), BEFORE)
    after = changed(folder(tmp_path, "next"), NEXT)
    patient = {"ONWARD_RETRY_THRESHOLD": "1000", "ONWARD_EVENT_ATTEMPTS": "100"}
    with scene(patient) as s:  # on a busy machine half of the calls fail for minutes
        s.hook("a"), s.hook("b"), s.other("amplitude")
        workers = [s.worker(**before)]
        with s.load():
            for environment in (after, before, {}, after, {}):
                s.fault("half", slug="webhooks", status=503)  # some wait in lanes
                s.moving(100)
                workers.append(s.worker(**environment))
                s.moving(50)
                s.stop(workers.pop(0))
                s.no_faults()
                s.moving(100)
        assert not any("sitecustomize" in s.log(worker.name) for worker in s.workers)
        found = s.check(ordered=True)
        delivered = {name: accounts.count("delivered") for name, accounts in found.items()}
        assert delivered == {name: len(accounts.sent) for name, accounts in found.items()}


@pytest.mark.slow
@pytest.mark.row(42, "journal, lane and intake as other versions left them")
def test_what_other_versions_left(scene: Make, tmp_path: Path) -> None:
    with scene() as s:
        hook = s.hook("a")
        redis: Any = s.redis
        redis.set(RECORDING, "nobody")  # what they journal stays for ours
        for name, lines in (("before", BEFORE), ("next", NEXT)):
            sent = s.events(60)
            for event in sent:
                event |= {"version": 99, "of_the_next_version": {"a": [1]}}
            other = s.worker(**changed(folder(tmp_path, name), lines))
            s.publish(sent[:40])
            s.reached(len(s.sent[PROJECT]) - 20)
            eventually(lambda: not redis.xlen(KEYS.lane(hook)), 60, "what waited before is through")
            s.fault("fail", slug="webhooks", status=503)
            s.publish(sent[40:])
            eventually(lambda: redis.xlen(KEYS.lane(hook)) >= 20, 60, "all wait")
            eventually(lambda: redis.hlen(KEYS.tries(hook)), 60, "and one was tried")
            s.stop(other)
            s.no_faults()
            assert "sitecustomize" not in s.log(other.name), "it is as it should be"
        left = [msgspec.msgpack.decode(raw[PAGE]) for _, raw in redis.xrange(KEYS.journal)]
        assert {len(page) for page in left} >= {5, 7}, "of both versions"
        assert {len(row) for page in left for row in page[0]} >= {12, 13}
        assert redis.xlen(KEYS.lane(hook)) >= 20
        redis.delete(RECORDING)
        s.worker()
        (accounts,) = s.check(ordered=True).values()
        assert accounts.count("delivered") == 120
