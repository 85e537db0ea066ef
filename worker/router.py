"""Intake entries on their way to pipelines: decoded once, known as first or repeated, routed."""

import asyncio
import base64
import re
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from providers.kit import Event
from providers.kit.decode import InvalidEvent, decode
from providers.kit.interface import dump_text
from providers.kit.reader import ID, PROJECT, fault_text
from worker import metrics, traces
from worker.clock import accepted_at
from worker.dispatch import Dispatcher
from worker.journal import Letter, Row
from worker.shard import Entry, Shard
from worker.state import shard_of

A_TURN = 32  # events; then what came back meanwhile is seen to
MOST_UNROUTED = 1_024  # events of 8 KB each
MOST_NAMED = 1_048_576  # bytes; to look for a name takes 5 ms of these, in which others wait
CHANGED_SECONDS = 5.0  # a change is known after 2.3 at most; later the database is away
_Read: TypeAlias = tuple[bytes, int, bytes, Event]  # entry, accepted (ms), as it came, decoded
Looked: TypeAlias = list[tuple[Shard, list[_Read], set[bytes]]]  # the last: whose id is repeated
_Place: TypeAlias = tuple[str, str]  # project, store: what an integration gets events of
_Waiting: TypeAlias = tuple[float, Shard, _Read]  # since when (monotonic)


class Router:
    """Hands each entry to the pipelines of its project."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.settings = dispatcher.settings
        self.directory = dispatcher.directory
        self.state = dispatcher.state
        self.clock = dispatcher.clock
        self.progressed = time.monotonic()
        self._changed: dict[str, float] = {}  # project → when we heard of it (monotonic)
        self._unrouted: dict[_Place, deque[_Waiting]] = {}  # whose events wait; they do in order
        self._waiting = 0  # so many in all

    async def accept(self, arrived: Sequence[tuple[Shard, list[Any]]]) -> None:
        """Decode entries and hand them to their pipelines."""
        await self.route(await self.look(arrived))

    async def look(self, arrived: Sequence[tuple[Shard, list[Any]]]) -> Looked:
        """Decode entries, and ask which are not the first of their event."""
        self.progressed = time.monotonic()
        read = [(shard, self._decoded(shard, entries)) for shard, entries in arrived]
        for shard, found in read:
            await self._move_strays(shard, found)
        repeated = await self._repeated(read)
        return [(*one, ids) for one, ids in zip(read, repeated, strict=True)]

    async def route(self, looked: Looked) -> None:
        """Hand entries to their pipelines."""
        routed = 0  # since others had a turn
        for shard, found, repeated in looked:
            if shard.lost:  # since they were looked at
                continue
            taken = 0
            for one in found:
                entry_id = one[0]
                if shard.knows(entry_id):  # read again since it was looked at
                    continue
                if entry_id in repeated:
                    metrics.event("duplicate")
                    shard.tallies["*", "duplicate"] += 1
                    shard.ack(entry_id)
                else:
                    taken += self._begin(shard, one)
            metrics.event("accepted", taken)
            routed += len(found)
            if routed >= A_TURN:
                routed = 0
                await asyncio.sleep(0)

    def _decoded(self, shard: Shard, entries: list[Any]) -> list[_Read]:
        """Return the entries that are new and well formed; the malformed are dead letters."""
        found: list[_Read] = []
        for entry_id, fields in entries:
            if shard.knows(entry_id):
                continue
            raw = fields.get(b"event")
            if raw is None:
                fault = {"path": "", "message": 'is missing: the entry has no field "event"'}
                _malformed(shard, entry_id, _fields_text(fields), [fault])
                continue
            accepted = accepted_at(entry_id)
            try:
                event = decode(raw, accepted // 1000)
            except InvalidEvent as error:
                _malformed(shard, entry_id, raw, error.faults)
            else:
                found.append((entry_id, accepted, raw, event))
        return found

    async def _move_strays(self, shard: Shard, found: list[_Read]) -> None:
        """Move on what belongs to another shard: a pipeline has one, with its lane and its order.

        A producer reckoned wrongly, or `ONWARD_SHARDS` was changed. What somebody had begun with
        stays: moved, it would be sent again.
        """
        projects = {event.project_id for _, _, _, event in found}
        homes = {project: shard_of(project, self.settings.shards) for project in projects}
        if set(homes.values()) <= {shard.keys.shard}:
            return
        kept: list[_Read] = []
        strays: list[tuple[bytes, int]] = []
        for read in found:
            home = homes[read[3].project_id]
            if home == shard.keys.shard or read[0] in shard.progress:
                kept.append(read)
            else:
                strays.append((read[0], home))
        if strays:
            await self.state.move(shard.keys.intake, strays)
        found[:] = kept

    async def _repeated(self, read: Sequence[tuple[Shard, list[_Read]]]) -> Sequence[set[bytes]]:
        if not self.settings.dedupe_seconds:
            return [set()] * len(read)
        asked = [
            (
                shard.keys,
                [f"{event.project_id}/{event.id}" for _, _, _, event in found],
                [entry_id.decode() for entry_id, _, _, _ in found],
            )
            for shard, found in read
        ]
        return await self.state.repeated(
            asked, self.settings.dedupe_seconds, int(self.clock.now_ms())
        )

    def _begin(self, shard: Shard, read: _Read) -> bool:
        """Return whether an entry is for anybody, as far as is known."""
        entry_id, accepted, _, event = read
        if traces.on and entry_id not in shard.progress:
            traces.on.intake(event, accepted, self.clock.now_ms())
        must_wait = (self._unrouted or self._changed) and self._must_wait(event)
        if not must_wait and self._route(shard, read):
            return True
        shard.entries[entry_id] = Entry(entry_id, [], accepted)
        place = event.project_id, event.platform
        self._unrouted.setdefault(place, deque()).append((time.monotonic(), shard, read))
        self._waiting += 1
        self.directory.ask()
        if self._waiting > MOST_UNROUTED:  # who has most of them pays
            self._route_waiting(max(self._unrouted, key=lambda one: len(self._unrouted[one])))
        return False

    def _route(self, shard: Shard, read: _Read) -> bool:
        """Hand an entry to the pipelines of its project and store; False where there is none."""
        entry_id, accepted, raw, event = read
        if entry_id in shard.progress:
            self._resume(shard, read)
            return True
        targets = self.directory.targets(event.project_id, event.platform)
        if not targets:
            return False
        entry = Entry(entry_id, [integration.id for integration in targets], accepted)
        shard.entries[entry_id] = entry
        for integration in targets:
            self.dispatcher.offer(shard, entry, integration, event, raw)
        return True

    # --- what must be known first -----------------------------------------------------------

    async def hear(self) -> None:
        """Ask which projects were changed, before entries that were not just read are accepted."""
        self.changed(await self.state.changes())

    def changed(self, projects: Sequence[str]) -> None:
        """Let events of these projects wait until the configuration has been read since."""
        if projects:
            self._changed |= dict.fromkeys(projects, time.monotonic())
            self.directory.ask()

    def _must_wait(self, event: Event) -> bool:
        """Whether others of its place wait, or not enough is known; first, those before it go."""
        place = event.project_id, event.platform
        if place in self._unrouted:
            self._route_waiting(place)
        return place in self._unrouted or not self._knows(place[0], since=time.monotonic())

    def _knows(self, project: str, since: float) -> bool:
        """Whether an event that came then may be routed by what is known of its project.

        What was changed after it came need not be: else a project that is changed again and again
        would wait for ever.
        """
        at = min(self._changed.get(project, float("-inf")), since)
        return at < self.directory.holds_from or time.monotonic() > at + CHANGED_SECONDS

    def route_late(self) -> None:
        """Route the events that wait, once the configuration has been read since.

        Those of a project that was changed, and those that seemed for nobody: an integration may be
        younger than what we knew of it.
        """
        for place in list(self._unrouted):
            self._route_waiting(place)
        known = self.directory.holds_from
        self._changed = {name: at for name, at in self._changed.items() if at >= known}

    def _route_waiting(self, place: _Place) -> None:
        """Route the events that wait at a place, in order, until one must wait on."""
        waiting = self._unrouted[place]
        while waiting and (
            self._waiting > MOST_UNROUTED or self._knows(place[0], since=waiting[0][0])
        ):
            since, shard, read = first = waiting.popleft()
            must_end = self._waiting > MOST_UNROUTED or since < self.directory.holds_from
            self._waiting -= 1
            if shard.lost:
                continue
            if self._route(shard, read):
                metrics.event("accepted")
            elif must_end:
                metrics.event("unrouted")
                shard.tallies["*", "unrouted"] += 1
                shard.finish(shard.entries[read[0]])
            else:
                waiting.appendleft(first)
                self._waiting += 1
                break
        if not waiting:
            del self._unrouted[place]

    def _resume(self, shard: Shard, read: _Read) -> None:
        """Route an entry that somebody had begun with: its targets are fixed."""
        entry_id, accepted, raw, event = read
        targets, done = shard.progress.pop(entry_id)
        entry = Entry(entry_id, targets, accepted, list(done), noted=True)
        left = [target for target in targets if target not in done]
        if not left:
            shard.finish(entry)
            return
        shard.entries[entry_id] = entry
        for target in left:
            integration = self.directory.get(target)
            if integration is None:
                self._deleted(shard, entry, target, event)
            else:
                self.dispatcher.offer(shard, entry, integration, event, raw)

    def _deleted(self, shard: Shard, entry: Entry, target: str, event: Any) -> None:
        now = int(self.clock.now_ms())
        shard.page.rows.append(
            Row(
                target, event.project_id, event.id, event.name, "skipped", "deleted",
                "the integration was deleted", None, 0, entry.accepted, now, entry.id.decode(),
            )
        )  # fmt: skip
        shard.tallies[target, "skipped"] += 1
        shard.settle(entry, target)


def set_apart(  # noqa: PLR0917  a letter has that much to say
    shard: Shard,
    entry_id: bytes,
    raw: bytes,
    reason: str,
    message: str,
    faults: str | None = None,
) -> None:
    """Make a dead letter of an entry that is for no integration, by what name it has."""
    project_id, event_id = _name_of(raw)
    shard.page.letters.append(
        Letter(
            project_id, None, event_id, None, reason, message, faults, raw, None, None, None, 0,
            accepted_at(entry_id),
        )
    )  # fmt: skip
    shard.tallies["*", reason] += 1
    shard.ack(entry_id)


class _Named(msgspec.Struct):
    """What an event that will not do may still say of itself."""

    id: Any = None
    project_id: Any = None


def _name_of(raw: bytes) -> tuple[str | None, str | None]:
    """Return the project and the id in any bytes; None for each that is not well formed."""
    if len(raw) > MOST_NAMED:
        return None, None
    try:
        said = msgspec.json.decode(raw, type=_Named)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, None
    return _matching(PROJECT, said.project_id), _matching(ID, said.id)


def _matching(pattern: re.Pattern[str], text: Any) -> str | None:
    return text if isinstance(text, str) and pattern.fullmatch(text) else None


def _malformed(shard: Shard, entry_id: bytes, raw: bytes, faults: list[dict[str, str]]) -> None:
    metrics.event("malformed")
    message = "; ".join(map(fault_text, faults))[:1000]
    set_apart(shard, entry_id, raw, "malformed", message, dump_text(faults))


def _fields_text(fields: dict[bytes, bytes]) -> bytes:
    """Return an entry's fields as JSON, base64 where they are not text."""
    shown = {
        key.decode("utf-8", "replace"): base64.b64encode(value).decode()
        for key, value in fields.items()
    }
    return dump_text({"fields_base64": shown}).encode()
