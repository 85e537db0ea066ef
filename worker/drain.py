"""The loop under a lease: read the intake, route, commit; and see to lanes, leases and leaving.

One event loop per process. A slice ends when its time is up or the service stops; what is then
still in flight gets a short grace and is handed back through the lane.
"""

import asyncio
import base64
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias
from uuid import uuid4

from redis.exceptions import RedisError, ResponseError

from providers.kit import Event
from providers.kit.decode import InvalidEvent, decode
from providers.kit.interface import dump_text
from worker import lane, metrics
from worker.clock import StoreClock
from worker.directory import Directory
from worker.dispatch import Dispatcher
from worker.journal import Letter, Row
from worker.settings import WorkerSettings
from worker.shard import Entry, Shard, read_progress
from worker.state import GROUP, LEASE_MS, UNSHARDED, Keys, LeaseLost, State, shard_of
from worker.transport import Transport

log = logging.getLogger(__name__)

READ = 256  # entries a read, of all shards together
BUFFER = 4_096  # fresh deliveries in memory
BLOCK_MS = 250
BREATH_SECONDS = 0.005
FLUSH_SECONDS = 0.01
FLUSH_OUTCOMES = 50
RENEW_SECONDS = 2.0
BALANCE_SECONDS = 0.5
LEASE_SAFE_SECONDS = 5.0  # not renewed for so long: start nothing new
GRACE_SECONDS = 5.0
EXPIRE_SECONDS = 10.0
STRANDED_SECONDS = 5.0
NOTICE_SECONDS = 1.0
SOLO_DELIVERIES = 2  # an entry delivered more often is handled alone: it may kill the process
SOLO_DEATHS = 2
SUSPECTS = 64  # of those, so many together at first: all but a few are innocent
SUSPECT_SECONDS = 1.0  # what kills its process does so at once; a slow upstream is not waited for
STUCK_SECONDS = 0.5
LARGEST_REREAD = 20_000


_Read: TypeAlias = tuple[bytes, int, bytes, Event]  # entry, accepted (ms), as it came, decoded


class Drain:
    """Drains its share of the free shards until `until` (monotonic) or `stopping()`."""

    def __init__(
        self,
        settings: WorkerSettings,
        directory: Directory,
        transport: Transport,
        state: State,
        stopping: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.state = state
        self.clock = StoreClock()
        self.dispatcher = Dispatcher(settings, directory, transport, state, self.clock)
        self.dispatcher.safe = self._safe
        self.stopping = stopping
        self.token = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self.shards: dict[int, Shard] = {}
        self.owners: list[str] = []
        self.renewed = time.monotonic()
        self.progressed = self.beat = time.monotonic()  # for the watchdog
        self.leaving = False
        self._openings: set[asyncio.Task[None]] = set()
        self._committing = asyncio.Lock()
        self._reading: Sequence[Shard] = ()  # by the read in flight
        self._fruitful = settings.shards  # streams that had something to read, lately
        self._directory_seen = 0.0

    async def run(self, until: float) -> None:
        """Drain until it is time; release everything at the end."""
        await self._renew()
        jobs = [
            asyncio.create_task(self._every(FLUSH_SECONDS, self._flush_all), name="flush"),
            asyncio.create_task(self._every(RENEW_SECONDS, self._renew), name="renew"),
            asyncio.create_task(self._every(BALANCE_SECONDS, self._balance), name="balance"),
            asyncio.create_task(self._every(0.02, self._fire), name="timers"),
            asyncio.create_task(self._every(EXPIRE_SECONDS, self.dispatcher.expire), name="expire"),
            asyncio.create_task(self._every(NOTICE_SECONDS, self._notice), name="notice"),
            asyncio.create_task(self._every(STRANDED_SECONDS, self._stranded), name="stranded"),
        ]
        try:
            while time.monotonic() < until and not self.stopping():
                await self._turn()
        finally:
            await self._leave()
            while jobs:  # the client of Redis loses a cancellation now and then
                for job in jobs:
                    job.cancel()
                jobs = list((await asyncio.wait(jobs, timeout=1))[1])
            metrics.publish()

    async def _every(self, seconds: float, work: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except RedisError as error:
                log.warning("Redis did not answer (%s); trying again", error)
                await asyncio.sleep(0.5)
            except Exception:
                log.exception("A step of the delivery loop failed; it is tried again")
                await asyncio.sleep(0.5)

    async def _fire(self) -> None:
        self.beat = time.monotonic()
        if self.directory.read_at != self._directory_seen:
            self._directory_seen = self.directory.read_at
            self.dispatcher.reconcile()
        self.dispatcher.fire()

    # --- leases -----------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Keep our leases, and take the store's time."""
        held = list(self.shards.values())
        kept, (now_ms, self.owners) = await asyncio.gather(
            self.state.renew([shard.keys for shard in held], self.token),
            self.state.owners(self.token, 0 if self.leaving else LEASE_MS),
        )
        for shard, ours in zip(held, kept, strict=True):
            if not ours and not shard.lost:  # given back meanwhile
                self._lost(shard)
        self.clock.set(now_ms)
        self.renewed = time.monotonic()
        metrics.LEASES.set(len(self.shards))
        if self.dispatcher.paused:
            self.dispatcher.resume()

    def _safe(self) -> bool:
        """Whether our leases surely hold: else nothing new is started."""
        return time.monotonic() - self.renewed < LEASE_SAFE_SECONDS

    async def _balance(self) -> None:
        """Take free shards up to our share, give surplus ones back."""
        if self.leaving:
            return
        share = math.ceil(self.settings.shards / max(len(self.owners), 1))
        for number in self._candidates():
            if len(self.shards) >= share:
                break
            keys = Keys(number)
            if await self._take(keys):
                shard = self.shards[number] = Shard(keys, opening=True)
                self._openings.add(opening := asyncio.create_task(self._open(shard)))
                opening.add_done_callback(self._openings.discard)
        for shard in list(self.shards.values())[share:]:
            shard.leave(time.monotonic())
        for shard in [s for s in self.shards.values() if s.leaving]:
            if shard not in self._reading:  # what it brings is ours, and the next owner's no more
                await self._give_back(shard)

    async def _take(self, keys: Keys) -> bool:
        try:
            return await self.state.take(keys, self.token)
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            log.error("Shard %d cannot be drained: %s", keys.shard, error)  # noqa: TRY400  no bug
            return False

    def _candidates(self) -> list[int]:
        start = hash(self.token) % self.settings.shards
        numbers = [(start + step) % self.settings.shards for step in range(self.settings.shards)]
        return [number for number in numbers if number not in self.shards]

    def _lost(self, shard: Shard) -> None:
        log.warning(
            "Lost the lease of shard %d; what was in flight may be sent again", shard.keys.shard
        )
        shard.lost = True
        self.shards.pop(shard.keys.shard, None)
        self.dispatcher.forget(shard)

    async def _open(self, shard: Shard) -> None:
        """Take over a shard: its lanes, what its last owner left unfinished, then new entries."""
        try:
            await self._load(shard)
            await self._reclaim(shard)
        except Exception as error:
            known = isinstance(error, RedisError)
            log.warning(
                "Shard %d could not be taken over (%s); giving it back",
                shard.keys.shard, error, exc_info=not known,
            )  # fmt: skip
            self._lost(shard)
            with suppress(RedisError):
                await self.state.release(shard.keys, self.token)
            return
        shard.opening = False
        for pipeline in list(self.dispatcher.pipelines.values()):
            if pipeline.shard is shard:
                self.dispatcher.pump(pipeline)

    async def _load(self, shard: Shard) -> None:
        """Read what is kept of a shard's unfinished entries and lanes."""
        keys, redis = shard.keys, self.state.redis
        shard.progress = read_progress(await redis.hgetall(keys.progress))
        for raw in {*await redis.zrange(keys.due, 0, -1), *await redis.hkeys(keys.wanted)}:
            integration = self.directory.get(raw.decode())
            if integration is None:
                await self._orphan(shard, raw.decode())
                continue
            pipeline = self.dispatcher.pipeline_of(shard, integration)
            await lane.load(redis, pipeline)
        if keys.shard == 0:
            await self.state.ensure_group(UNSHARDED)
            await self._reclaim_unsharded()

    async def _orphan(self, shard: Shard, integration_id: str) -> None:
        """A lane without an integration: if it was deleted, what waits there has expired."""
        if not self.directory.usable:
            return
        keys, cursor = shard.keys, b"-"
        name = keys.lane(integration_id)
        while entries := await self.state.redis.xrange(name, min=cursor, count=1000):
            cursor = b"(" + entries[-1][0]
            self._expire(shard, integration_id, entries)
        shard.commands.append(("EMPTIED", name, keys.due, integration_id))
        shard.commands.append(("HDEL", keys.wanted, integration_id))

    def _expire(self, shard: Shard, integration_id: str, entries: list[Any]) -> None:
        keys, now = shard.keys, int(self.clock.now_ms())
        for lane_id, fields in entries:
            event = lane.event_of(fields[b"e"], int(fields[b"t"]))
            shard.page.rows.append(
                Row(
                    integration_id, event.project_id, event.id, event.name, "expired", "deleted",
                    "the integration was deleted", None, 0, int(fields[b"t"]), now,
                    lane_id.decode(),
                )
            )  # fmt: skip
            shard.tallies[integration_id, "expired"] += 1
            shard.commands.append(("XDEL", keys.lane(integration_id), lane_id))
            shard.commands.append(("HDEL", keys.tries(integration_id), lane_id))

    async def _reclaim(self, shard: Shard) -> None:
        """Make the pending entries of dead owners ours, oldest first."""
        redis, keys = self.state.redis, shard.keys
        cursor: bytes | str = "0-0"
        while not shard.lost:
            reply = await redis.xautoclaim(keys.intake, GROUP, self.token, 0, cursor, count=500)
            cursor, entries = reply[0], reply[1]
            if entries:
                ids = [entry_id for entry_id, _ in entries]
                pending = await redis.xpending_range(
                    keys.intake,
                    GROUP,
                    min=ids[0],
                    max=ids[-1],
                    count=len(ids),
                    consumername=self.token,
                )
                often = {p["message_id"]: p["times_delivered"] for p in pending}
                judged = [(often.get(e[0], 1) > SOLO_DELIVERIES, e) for e in entries]
                for suspect, some in groupby(judged, key=itemgetter(0)):
                    found = [entry for _, entry in some]
                    if suspect:
                        await self._suspects(shard, found)
                    else:
                        await self._accept([(shard, found)])
            if cursor in (b"0-0", "0-0"):
                break
        marked = await redis.hkeys(keys.solo)
        if gone := [entry_id for entry_id in marked if not shard.knows(entry_id)]:
            shard.commands.append(("HDEL", keys.solo, *gone))  # finished just before a death
        for consumer in await redis.xinfo_consumers(keys.intake, GROUP):
            name = consumer["name"]
            if consumer["pending"] == 0 and name != self.token.encode():
                await redis.xgroup_delconsumer(keys.intake, GROUP, name)

    async def _stranded(self) -> None:
        """Take what others read of our shards after they lost them, and will not come back to."""
        shards = [shard for shard in self.shards.values() if shard.reads]
        if not (shards and self.directory.usable and self._safe()):
            return
        counts = await self.state.pending([shard.keys for shard in shards])
        for shard, pending in zip(shards, counts, strict=True):
            for other in pending.keys() - {self.token}:
                await self._adopt(shard, other)

    async def _adopt(self, shard: Shard, other: str) -> None:
        redis, intake = self.state.redis, shard.keys.intake
        while shard.reads and (
            found := await redis.xpending_range(
                intake, GROUP, min="-", max="+", count=READ, consumername=other
            )
        ):
            ids = [p["message_id"] for p in found]
            entries = await redis.xclaim(intake, GROUP, self.token, 0, ids)
            await self._accept([(shard, entries)])

    async def _suspects(self, shard: Shard, entries: list[Any]) -> None:
        """Handle entries whose owners died more than once: one of them may be to blame.

        They go in small groups, marked while they are tried. Who was marked when a process died
        goes alone from then on, and is set apart once it did that alone.
        """
        marks = await self.state.redis.hmget(shard.keys.solo, [entry_id for entry_id, _ in entries])
        group: list[Any] = []
        for entry, mark in zip(entries, marks, strict=True):
            if mark is None:
                group.append(entry)
            if group and (mark is not None or len(group) == SUSPECTS):
                await self._try(shard, group)
                group = []
            if mark is not None and int(mark) > SOLO_DEATHS:
                self._poison(shard, *entry)
            elif mark is not None:
                await self._try(shard, [entry])
        if group:
            await self._try(shard, group)

    async def _try(self, shard: Shard, entries: list[Any]) -> None:
        """Accept entries under a mark, for as long as it may take them to kill the process."""
        ids = [entry_id for entry_id, _ in entries]
        async with self.state.redis.pipeline(transaction=False) as pipe:
            for entry_id in ids:
                pipe.hincrby(shard.keys.solo, entry_id, 1)
            await pipe.execute()
        await self._accept([(shard, entries)])
        until = time.monotonic() + SUSPECT_SECONDS
        while time.monotonic() < until and not (self.stopping() or shard.lost):
            if not any(entry_id in shard.entries for entry_id in ids):
                break
            await asyncio.sleep(FLUSH_SECONDS)
        shard.commands.append(("HDEL", shard.keys.solo, *ids))

    def _poison(self, shard: Shard, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        log.error("Entry %s of shard %d kills its process; set apart", entry_id, shard.keys.shard)
        message = f"its process died {SOLO_DEATHS} times while it was alone in flight"
        self._dead_letter(shard, entry_id, fields.get(b"event", b""), "poison", message, None)
        shard.tallies["*", "poison"] += 1
        shard.progress.pop(entry_id, None)
        shard.commands += [
            ("HDEL", shard.keys.solo, entry_id),
            ("HDEL", shard.keys.progress, entry_id),
        ]
        shard.ack(entry_id)

    async def _notice(self) -> None:
        """Wake the lanes that grew from outside: replayed dead letters."""
        shards = [shard for shard in self.shards.values() if shard.reads]
        if not shards or not self.directory.usable:
            return
        grown = await self.state.grown([shard.keys for shard in shards])
        for shard, counts in zip(shards, grown, strict=True):
            for raw, count in () if shard.lost else counts.items():
                integration = self.directory.get(raw.decode())
                if integration is None:
                    await self._orphan(shard, raw.decode())
                else:
                    pipeline = self.dispatcher.pipeline_of(shard, integration)
                    self.dispatcher.grew(pipeline, int(count))

    # --- reading ----------------------------------------------------------------------------

    async def _turn(self) -> None:
        """Read once and route what came."""
        if not await self._may_read():
            await asyncio.sleep(0.02)
            return
        try:
            for shard in [s for s in self.shards.values() if s.reads and s.unsure]:
                await self._sure(shard)
            await self._read()
        except RedisError as error:
            log.warning("The intake could not be read (%s); trying again", error)
            for shard in self.shards.values():
                shard.unsure = True
            if "NOGROUP" in str(error) or "WRONGTYPE" in str(error):
                with suppress(RedisError):
                    await self._mend()
            await asyncio.sleep(0.2)

    async def _read(self) -> None:
        shards = [shard for shard in self.shards.values() if shard.reads]
        names = {shard.keys.intake.encode(): shard for shard in shards}
        streams: dict[Any, Any] = dict.fromkeys(names, ">")
        if 0 in self.shards and self.shards[0].reads:
            streams[UNSHARDED] = ">"
        if not streams:
            await asyncio.sleep(0.02)
            return
        self._reading = shards
        try:
            reply = await self.state.reader.xreadgroup(
                GROUP, self.token, streams, count=max(READ // self._fruitful, 1), block=BLOCK_MS
            )
        finally:
            self._reading = ()
        self._fruitful = max(len(reply or ()), self._fruitful // 2, 1)
        arrived = dict(reply or ())
        if unsharded := arrived.pop(UNSHARDED.encode(), None):
            await self._spread(unsharded)
        kept = [(names[name], entries) for name, entries in arrived.items()]
        await self._accept([(shard, entries) for shard, entries in kept if not shard.lost])

    async def _sure(self, shard: Shard) -> None:
        try:
            await self._reread(shard)
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._stuck(shard, error)  # the other shards go on

    async def _reread(self, shard: Shard) -> None:
        """Take what was read for us in an answer that never came."""
        redis, keys = self.state.redis, shard.keys
        async with self._committing:  # no acknowledgement between the question and its answer
            pending = await redis.xpending_range(
                keys.intake, GROUP, min="-", max="+", count=LARGEST_REREAD, consumername=self.token
            )
            ids = [p["message_id"] for p in pending if not shard.knows(p["message_id"])]
        for start in range(0, len(ids), READ):
            async with redis.pipeline(transaction=False) as pipe:
                for entry_id in ids[start : start + READ]:
                    pipe.xrange(keys.intake, entry_id, entry_id)
                found = await pipe.execute()
            await self._accept([(shard, [entry for entries in found for entry in entries])])
        if keys.shard == 0:
            await self._reclaim_unsharded()
        shard.unsure = False

    async def _may_read(self) -> bool:
        """Whether we may start anything new: leases fresh, configuration known, room in memory."""
        if not (self.shards and self.directory.usable and self._safe()):
            return False
        if self.dispatcher.unsent < BUFFER:
            return True
        if self.dispatcher.uneven or not await self._busy():
            self.dispatcher.overflow()
            return True
        return False

    async def _busy(self) -> bool:
        """Whether it is this process that is too slow, rather than some upstreams."""
        began = time.monotonic()
        await asyncio.sleep(BREATH_SECONDS)
        return time.monotonic() - began > 2 * BREATH_SECONDS

    async def _mend(self) -> None:
        """See to what reading stumbled over: groups that are gone, a key that is no stream."""
        for shard in list(self.shards.values()):
            try:
                await self.state.ensure_group(shard.keys.intake)
            except ResponseError:
                self._lost(shard)
                await self.state.release(shard.keys, self.token)
        await self.state.ensure_group(UNSHARDED)

    async def _spread(self, entries: list[Any]) -> None:
        """Move entries of the unsharded intake on: append to the shard first, then acknowledge."""
        async with self.state.redis.pipeline(transaction=False) as pipe:
            for _, fields in entries:
                raw = fields.get(b"event", b"")
                pipe.xadd(Keys(self._shard_of(raw)).intake, fields or {b"empty": b""})
            added = await pipe.execute(raise_on_error=False)
        done = [entry[0] for entry, reply in zip(entries, added, strict=True) if _added(reply)]
        if done:
            async with self.state.redis.pipeline(transaction=False) as pipe:
                pipe.xack(UNSHARDED, GROUP, *done)
                pipe.xdel(UNSHARDED, *done)
                await pipe.execute()
        if len(done) < len(entries):
            raise next(reply for reply in added if not _added(reply))

    async def _reclaim_unsharded(self) -> None:
        """Move on what somebody read from the unsharded intake and did not move on."""
        cursor: bytes | str = "0-0"
        while True:
            cursor, entries, *_ = await self.state.redis.xautoclaim(
                UNSHARDED, GROUP, self.token, 0, cursor, count=READ
            )
            if entries:
                await self._spread(entries)
            if cursor in (b"0-0", "0-0"):
                return

    def _shard_of(self, raw: bytes) -> int:
        try:
            return shard_of(decode(raw, int(time.time())).project_id, self.settings.shards)
        except InvalidEvent:
            return 0

    async def _accept(self, arrived: Sequence[tuple[Shard, list[Any]]]) -> None:
        """Decode entries and hand them to their pipelines."""
        self.progressed = time.monotonic()
        read = [(shard, self._decoded(shard, entries)) for shard, entries in arrived]
        for (shard, found), firsts in zip(read, await self._firsts(read), strict=True):
            for (entry_id, accepted, raw, event), first in zip(found, firsts, strict=True):
                if not first:
                    metrics.event("duplicate")
                    shard.tallies["*", "duplicate"] += 1
                    shard.ack(entry_id)
                elif entry_id in shard.progress:
                    self._resume(shard, entry_id, accepted, raw, event)
                else:
                    self._route(shard, entry_id, accepted, raw, event)

    def _decoded(self, shard: Shard, entries: list[Any]) -> list[_Read]:
        """Return the entries that are new and well formed; the malformed are dead letters."""
        found: list[_Read] = []
        for entry_id, fields in entries:
            if shard.knows(entry_id):
                continue
            raw = fields.get(b"event")
            if raw is None:
                self._malformed(
                    shard,
                    entry_id,
                    _fields_text(fields),
                    [{"path": "", "message": 'the stream entry has no field "event"'}],
                )
                continue
            accepted = _accepted(entry_id)
            try:
                event = decode(raw, accepted // 1000)
            except InvalidEvent as error:
                self._malformed(shard, entry_id, raw, error.faults)
            else:
                found.append((entry_id, accepted, raw, event))
        return found

    async def _firsts(self, read: Sequence[tuple[Shard, list[_Read]]]) -> list[list[bool]]:
        if not self.settings.dedupe_seconds:
            return [[True] * len(found) for _, found in read]
        ids = [
            (shard.keys, [(f"{event.project_id}/{event.id}", id_) for id_, _, _, event in found])
            for shard, found in read
        ]
        return await self.state.first_seen(
            ids, self.settings.dedupe_seconds, int(self.clock.now_ms())
        )

    def _route(
        self, shard: Shard, entry_id: bytes, accepted: int, raw: bytes, event: Event
    ) -> None:
        targets = self.directory.targets(event.project_id, event.platform)
        entry = Entry(entry_id, [integration.id for integration in targets], accepted)
        if not targets:
            metrics.event("unrouted")
            shard.tallies["*", "unrouted"] += 1
            shard.finish(entry)
            return
        metrics.event("accepted")
        shard.entries[entry_id] = entry
        for integration in targets:
            self.dispatcher.offer(shard, entry, integration, event, raw)

    def _resume(
        self, shard: Shard, entry_id: bytes, accepted: int, raw: bytes, event: Event
    ) -> None:
        """Route an entry that somebody had begun with: its targets are fixed."""
        targets, done = shard.progress.pop(entry_id)
        metrics.event("accepted")
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

    def _malformed(
        self, shard: Shard, entry_id: bytes, raw: bytes, faults: list[dict[str, str]]
    ) -> None:
        metrics.event("malformed")
        message = "; ".join(f"{f['path'] or 'event'} {f['message']}" for f in faults)[:1000]
        self._dead_letter(shard, entry_id, raw, "malformed", message, dump_text(faults))
        shard.tallies["*", "malformed"] += 1
        shard.ack(entry_id)

    def _dead_letter(  # noqa: PLR0917  a letter has that much to say
        self,
        shard: Shard,
        entry_id: bytes,
        raw: bytes,
        reason: str,
        message: str,
        faults: str | None,
    ) -> None:
        shard.page.letters.append(
            Letter(
                None, None, None, None, reason, message, faults, raw, None, None, None, 0,
                _accepted(entry_id),
            )
        )  # fmt: skip

    # --- committing -------------------------------------------------------------------------

    async def _flush_all(self) -> None:
        now = time.monotonic()
        await self._flush([shard for shard in self.shards.values() if shard.retry_at <= now])

    async def _flush(self, shards: Sequence[Shard]) -> None:
        """Commit what shards have settled, all in one round trip.

        On trouble it stays, and is sent again unchanged; until then nothing new of that shard is
        started, for its outcomes could not be kept.
        """
        if not any(shard.unwritten or shard.dirty for shard in shards):
            return
        metrics.publish()
        async with self._committing:
            due = [s for s in shards if (s.unwritten or s.dirty) and not s.lost]
            for shard in due:
                shard.unwritten = shard.unwritten or shard.build()
            for shard, reply in zip(due, await self._commit(due), strict=True):
                if isinstance(reply, LeaseLost):
                    self._lost(shard)
                elif isinstance(reply, RedisError):
                    self._stuck(shard, reply)
                else:
                    self._written(shard, reply)

    async def _commit(self, shards: Sequence[Shard]) -> list[list[bytes] | RedisError | LeaseLost]:
        written = [(shard.keys, shard.unwritten) for shard in shards if shard.unwritten]
        commits = [(keys, w.number, w.commit) for keys, w in written if w.commit]
        try:
            given = await self.state.commit(self.token, commits) if commits else []
        except RedisError as error:
            given = [error] * len(commits)
        replies = iter(given)
        return [next(replies) if w.commit else [] for _, w in written]

    def _stuck(self, shard: Shard, error: RedisError) -> None:
        if not shard.stuck:
            log.error("Shard %d cannot be committed: %s", shard.keys.shard, error)
        shard.stuck, shard.retry_at = True, time.monotonic() + STUCK_SECONDS

    def _written(self, shard: Shard, added: list[bytes]) -> None:
        written, shard.unwritten = shard.unwritten, None
        assert written is not None  # noqa: S101  it was just committed
        shard.acked.difference_update(written.commit.acks)
        self.progressed = time.monotonic()
        for delivery, lane_id in zip(written.adding, added, strict=False):
            delivery.lane_id = lane_id
            if delivery in delivery.pipeline.flying or delivery.landed is not None:
                delivery.pipeline.live.add(lane_id)
        for callback in dict.fromkeys(written.after):
            callback()
        for pipeline in dict.fromkeys(delivery.pipeline for delivery in written.adding):
            self.dispatcher.lane_written(pipeline)
        if shard.stuck:
            shard.stuck = False
            self.dispatcher.resume()

    # --- leaving ----------------------------------------------------------------------------

    async def _leave(self) -> None:
        """Stop reading, let what is in flight land, hand the rest back, release the leases."""
        self.leaving = self.dispatcher.leaving = True
        with suppress(RedisError):
            await self.state.owners(self.token, 0)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.dispatcher.requests and time.monotonic() < deadline:  # noqa: ASYNC110  rare
            await asyncio.sleep(FLUSH_SECONDS)
        await self.dispatcher.cut_off()
        for shard in list(self.shards.values()):
            try:
                await self._give_back(shard, wait=False)
            except RedisError as error:
                told = "Shard %d could not be given back (%s); its lease will lapse"
                log.warning(told, shard.keys.shard, error)

    async def _give_back(self, shard: Shard, *, wait: bool = True) -> None:
        """Release a shard; its unsent entries are as if unread.

        What is in flight gets a short grace, then goes to its lane: a hanging upstream must not
        keep the shard's other projects waiting.
        """
        if wait and self.dispatcher.flying(shard):
            if time.monotonic() < shard.leaving_since + GRACE_SECONDS:
                return
            self.dispatcher.into_lanes(shard)
        while (shard.dirty or shard.unwritten) and not shard.lost:
            await self._flush([shard])
            if shard.stuck:
                raise RedisError("what came of its last deliveries could not be written")
        if shard.lost:
            return
        unread = list(shard.entries)
        keys, redis = shard.keys, self.state.redis
        for start in range(0, len(unread), 500):
            await redis.xclaim(
                keys.intake,
                GROUP,
                self.token,
                0,
                unread[start : start + 500],
                retrycount=0,
                justid=True,
            )
        shard.lost = True
        self.shards.pop(keys.shard, None)
        self.dispatcher.forget(shard)
        await self.state.release(keys, self.token)


def _added(reply: Any) -> bool:
    return not isinstance(reply, Exception)


def _accepted(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


def _fields_text(fields: dict[bytes, bytes]) -> bytes:
    """Return an entry's fields as JSON, base64 where they are not text."""
    shown = {
        key.decode("utf-8", "replace"): base64.b64encode(value).decode()
        for key, value in fields.items()
    }
    return dump_text({"fields_base64": shown}).encode()
