"""Bad events through the real intake: each has a clear answer; none is lost, none breaks anything.

The numbers are those of the list in the design.
"""

import copy
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from providers.kit.decode import InvalidEvent, decode
from tests.faults.scene import PROJECT, Make, Scene
from worker.sample import events
from worker.state import UNSHARDED, Keys, shard_of
from worker.store.database import reading
from worker.store.models import DeadLetter

pytestmark = pytest.mark.processes
INTAKE = Keys(shard_of(PROJECT, 32)).intake
Change = Callable[[dict[str, Any]], None]


def event(seed: int) -> dict[str, Any]:
    return next(events(1, seed=10_000 + seed, project=PROJECT))


def changed(seed: int, change: Change) -> bytes:
    made = copy.deepcopy(event(seed))
    change(made)
    return json.dumps(made).encode()


def put(*path: str, value: Any) -> Change:
    def change(made: dict[str, Any]) -> None:
        for name in path[:-1]:
            made = made[name]
        made[path[-1]] = value

    return change


def raw(old: bytes, new: bytes) -> bytes:
    return json.dumps(event(0)).encode().replace(old, new, 1)


GOOD = json.dumps(event(0)).encode()
MALFORMED: dict[str, bytes] = {
    "1 empty": b"",
    "2 not JSON": b"hello",
    "3 truncated": GOOD[: len(GOOD) // 2],
    "4 null": b"null",
    "5 array": b"[1, 2]",
    "6 number": b"17",
    "7 string": b'"event"',
    "8 nested 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "8 nested within": raw(b'"_q_email"', b'"deep": ' + b"[" * 30_000 + b"]" * 30_000 + b', "x"'),
    "9 256 KiB and a byte": raw(b'"user', b'"big": "' + b"x" * 262_145 + b'", "user'),
    "10 8 MiB": b'{"id": "' + b"x" * 2**23 + b'"}',
    "11 not UTF-8": raw(b"iPhone", b"i\xff\xfePhone"),
    "12 UTF-16": json.dumps(event(0)).encode("utf-16"),
    "13 lone surrogate": raw(b"iPhone", b"\\ud800"),
    "15 NaN": raw(b'"value": ', b'"value": NaN, "x": '),
    "16 1e400": raw(b'"value": ', b'"value": 1e400, "x": '),
    "22 no id": changed(22, lambda e: e.pop("id")),
    "23 id of 10 KiB": changed(23, put("id", value="x" * 10_240)),
    "23 id with CR LF": changed(23, put("id", value="a\r\nb")),
    "26 no event name": changed(26, lambda e: e.pop("event_name")),
    "27 name of 10 KiB": changed(27, put("event_name", value="x" * 10_240)),
    "28 time of 1e18": changed(28, put("time", value=10**18)),
    "28 negative time": changed(28, put("time", value=-5)),
    "28 time in words": changed(28, put("time", value="yesterday")),
    "33 amount in words": changed(33, put("price", "value", value="1,00")),
    "14 NUL in a string": changed(14, put("device", "model", value="a\x00b")),
    "19 __proto__": changed(19, put("properties", "__proto__", value="x")),
    "21 long key": changed(21, put("properties", "k" * 20_000, value="x")),
    "27 right to left": changed(27, put("event_name", value="\u202egnp.exe")),
    "35 reserved names": changed(35, put("properties", "$set", value="x")),
    "20 100,000 keys": json.dumps({f"k{n}": n for n in range(100_000)}).encode(),
    "31 user key as an object": changed(31, put("user_id", value={"id": 1})),
    "39 compressed": b"\x1f\x8b\x08\x00" + b"\x00" * 40,
}
FINE: dict[str, bytes] = {  # delivered, or answered for by the provider; accounted either way
    "17 2^64": changed(17, put("properties", "n", value=2**64)),
    "18 duplicate keys": raw(b'"country": ', b'"country": "DE", "country": '),
    "32 e-mail malformed": changed(32, put("properties", "_q_email", value="@@")),
    "34 currency XXX": changed(34, put("price", "currency", value="XXX")),
    "36 templates": changed(36, put("properties", "t", value="{{7*7}}${jndi:ldap://x}<script>'--")),
    "37 future version": changed(37, put("version", value=99)),
    "40 an unknown name": changed(40, put("event_name", value="never_heard_of")),
}
FOR_NOBODY: dict[str, bytes] = {
    "29 unknown project": changed(29, put("project_id", value="prj_unknown")),
    "30 another store": changed(30, put("platform", value="Android")),
}


def letters(s: Scene) -> list[tuple[str, bytes]]:
    table = DeadLetter.table()
    query = select(table.c.reason, table.c.body).where(table.c.integration_id.is_(None))
    with reading(s.engine) as connection:
        return [(row[0], row[1]) for row in connection.execute(query)]


@pytest.mark.row(37, "malformed events: dead letters with their exact bytes")
def test_malformed_events(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("a")
        worker = s.worker()
        for number, body in enumerate(MALFORMED.values()):
            s.redis.xadd(UNSHARDED if number % 2 else INTAKE, {"event": body})
        s.redis.xadd(INTAKE, {"evnt": "38 no such field"})
        s.redis.xadd(UNSHARDED, {"evnt": "38 no such field"})
        s.send(100)
        found = s.check()
        assert found[hook].count("delivered") == 100
        kept = letters(s)
        assert {reason for reason, _ in kept} == {"malformed"}
        bodies = [body for _, body in kept]
        assert [name for name, body in MALFORMED.items() if body not in bodies] == []
        assert len(bodies) == len(MALFORMED) + 2
        assert worker.running


@pytest.mark.slow
@pytest.mark.row(37, "odd but valid events: delivered or answered for, one place each")
def test_odd_events(scene: Make) -> None:
    with scene() as s:
        s.hook("a"), s.other("amplitude"), s.other("mixpanel"), s.other("appsflyer")
        worker = s.worker()
        for body in FINE.values():
            s.redis.xadd(INTAKE, {"event": body})
            s.sent[PROJECT].append(json.loads(body))
        for body in FOR_NOBODY.values():
            s.redis.xadd(INTAKE, {"event": body})
        s.send(50)
        s.check()
        assert letters(s) == []
        assert s.balance().dropped.get("unrouted") == len(FOR_NOBODY)
        assert worker.running


@pytest.mark.row(37, "the same id: another body, 1,000 times, in both intakes: first wins")
def test_the_same_id(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("a")
        s.worker()
        (first,) = s.send(1)
        other = json.dumps({**first, "event_name": "refund"}).encode()
        pipe = s.redis.pipeline(transaction=False)
        for number in range(1_000):
            pipe.xadd(UNSHARDED if number % 10 == 0 else INTAKE, {"event": other})
        pipe.execute()
        (accounts,) = s.check().values()
        assert accounts.taken == {first["id"]: 1}
        assert s.balance().dropped["duplicate"] == 1_000
        assert s.recorded(hook) == {"delivered": 1}


@pytest.mark.slow
@pytest.mark.row(37, "an event of 100 MiB: a dead letter, and the others pass")
def test_an_enormous_event(scene: Make) -> None:
    with scene() as s:
        hook = s.hook("a")
        worker = s.worker()
        body = b'{"id": "' + b"x" * (100 * 2**20) + b'"}'  # 10
        s.redis.xadd(INTAKE, {"event": body})
        s.send(100)
        found = s.check()
        assert found[hook].count("delivered") == 100
        assert letters(s) == [("malformed", body)]
        assert worker.running


def damaged(chance: random.Random, good: bytes) -> bytes:
    """Return the bytes of an event with a few of them lost, doubled or changed."""
    raw = bytearray(good)
    at = chance.randrange(len(raw))
    match chance.randrange(4):
        case 0:
            raw[at] = chance.randrange(256)
        case 1:
            del raw[at : at + chance.randrange(1, 20)]
        case 2:
            raw[at:at] = raw[at : at + 30]
        case _:
            raw[at] = ord(chance.choice('"{}[]:,\\0-'))
    return bytes(raw)


@pytest.mark.slow
@pytest.mark.row(37, "3,000 damaged events: each delivered or a dead letter")
def test_damaged_events(scene: Make) -> None:
    chance, known, malformed = random.Random(37), set(), 0
    bodies = [damaged(chance, json.dumps(event(number)).encode()) for number in range(3_000)]
    with scene() as s:
        s.hook("a")
        worker = s.worker()
        for number, body in enumerate(bodies):
            s.redis.xadd(UNSHARDED if number % 2 else INTAKE, {"event": body})
            try:
                read = decode(body, int(time.time()))
            except InvalidEvent:
                malformed += 1
                continue
            if (read.project_id, read.platform) == (PROJECT, "iOS") and read.id not in known:
                known.add(read.id)
                s.sent[PROJECT].append({"id": read.id, "user_id": read.user_id})
        s.check()
        assert len(letters(s)) == malformed > 500
        assert len(known) > 500
        assert worker.running
