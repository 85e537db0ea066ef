"""Every Redis key, script and transaction; nothing else names a key.

All keys of a shard carry its number as a hash tag, as for a Cluster; but what is done for several
shards in one call is nothing a Cluster takes (docs/operations.md).
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError, ResponseError

from worker.connection import Command, Dedicated

GROUP = "drain"
UNSHARDED = "onward:intake"
OWNERS = "onward:owners"
RECORDING = "onward:recording"
KEEPING = "onward:keeping"
INCIDENTS = "onward:incidents"  # slug → when its incident was last seen (store clock, ms)
CHANGES = "onward:changes"  # projects (`p`) whose integrations were changed; stream without a group
MOST_CHANGES = 1_000  # are kept, about: who is so far behind has read the database since
KEEPING_MS = 60_000  # a keeper that hangs keeps others out for so long
RECORDING_MS = 10_000  # a recorder that was killed keeps others out for so long
LEASE_MS = 10_000
PIPE_DAYS = 7
AT_ONCE = 1_000  # entries of a stream a read

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one shard."""

    shard: int

    def _key(self, name: str) -> str:
        return f"onward:{{{self.shard}}}:{name}"

    @property
    def intake(self) -> str:
        """Accepted events as the producer wrote them; stream with the group `drain`."""
        return self._key("intake")

    @property
    def lease(self) -> str:
        """Token of the process that drains this shard; expires."""
        return self._key("lease")

    @property
    def progress(self) -> str:
        """Entry → its targets and those already done; only while it is unfinished."""
        return self._key("progress")

    @property
    def due(self) -> str:
        """Integrations with a lane, by when (store clock, ms) it wants attention."""
        return self._key("due")

    @property
    def grown(self) -> str:
        """Integration → deliveries put into its lane from outside, not yet noted by the owner."""
        return self._key("grown")

    @property
    def wanted(self) -> str:
        """Integration → the suspension it should get, until the database agrees."""
        return self._key("wanted")

    @property
    def journal(self) -> str:
        """Outcomes, packed a commit each, on their way to the database."""
        return self._key("journal")

    @property
    def tally(self) -> str:
        """Counters `<integration>|<accepted or outcome>`, moved with the acknowledgement."""
        return self._key("tally")

    @property
    def solo(self) -> str:
        """Entry → times its process died while it was alone in flight."""
        return self._key("solo")

    @property
    def committed(self) -> str:
        """Number of the last commit and what it added; who took the lease last, until released."""
        return self._key("committed")

    def replay(self, name: str) -> str:
        """One replay into a lane: that it was done."""
        return self._key(f"replay:{name}")

    def seen(self, bucket: int) -> str:
        """Event ids of one dedupe window → the entry that has it."""
        return self._key(f"seen:{bucket}")

    def users(self, project: str) -> str:
        """What providers told about a project's users: user key → record."""
        return self._key(f"users:{project}")

    def lane(self, integration: str) -> str:
        """Deliveries of one integration that wait, in order; stream without a group."""
        return self._key(f"lane:{integration}")

    def tries(self, integration: str) -> str:
        """Lane entry → attempts, own due time, step and note of a delivery that was tried."""
        return self._key(f"tries:{integration}")

    def pipe(self, integration: str, epoch: int) -> str:
        """Consecutive failures of an integration in one epoch."""
        return self._key(f"pipe:{integration}:{epoch}")


def fares_of(slug: str) -> str:
    """Return the key of how a slug's pipelines fare, in all processes; hash by integration."""
    return f"onward:fares:{slug}"


def entries_of(redis: Any, stream: str) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """Yield a stream's entries, some at a time; `redis` is a blocking client."""
    cursor = b"-"
    while entries := redis.xrange(stream, min=cursor, count=AT_ONCE):
        yield from entries
        cursor = b"(" + entries[-1][0]


def shard_of(project_id: str, shards: int) -> int:
    """Return the shard of a project."""
    return zlib.crc32(project_id.encode()) % shards


# Goes before the scripts that need leases. ARGV: token, ms of the lease. `known` is the number of
# the last commit we know to be written.
# A lease that lapsed while the store was away is still ours if nobody has taken it since: what we
# have in hand need not be sent again. Where the store has gone back to a copy older than `known`,
# it does not hold what we have in hand: then even a lease that stands is lost.
_LEASE = """
local function ours(lease, committed, known)
  local holder = redis.pcall('GET', lease) -- nobody's where it is spoilt
  if (holder or redis.pcall('HGET', committed, 'taker')) ~= ARGV[1] then return false end
  local number = redis.pcall('HGET', committed, 'number')
  if type(number) == 'table' then return true end -- no hash: whoever writes to it says so
  return (tonumber(number) or 0) >= tonumber(known)
end
local function lengthen(lease)
  if redis.call('PEXPIRE', lease, ARGV[2]) == 0 then -- a first write that a full server allows
    redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
  end
end
"""

# Several shards' commits, each all or nothing: a call for each would cost more than what it writes.
# KEYS: of each shard lease, committed, intake, tally. ARGV, behind those of the lease: group, then
# for each shard a packed list (`known`, this commit's number, acknowledgements, counts, how many
# commands follow) and each command, preceded by how many words it has.
# A command of ours is EMPTIED lane due integration: a lane that is empty is due no more.
# A commit whose answer was lost is sent again under its number, and answered from `committed`.
_COMMIT = """
local KINDS = {XDEL='stream', XADD='stream', EMPTIED='stream', HSET='hash', HDEL='hash',
               HINCRBY='hash', ZADD='zset', ZREM='zset'}
local function check(kind, key)
  local is = redis.call('TYPE', key).ok
  if is ~= kind and is ~= 'none' then
    error({err = 'WRONGTYPE ' .. key .. ' is a ' .. is .. ', not a ' .. kind})
  end
end
local function commit(n, known, number, acks, counts, commands)
  local lease, committed, intake, tally = unpack(KEYS, n, n + 3)
  if not ours(lease, committed, known) then return false end
  local written = tonumber(redis.call('HGET', committed, 'number')) or 0
  if written == number then return cmsgpack.unpack(redis.call('HGET', committed, 'added')) end
  if written > number then return {} end -- a copy that comes late
  check('stream', intake) -- all or nothing: a script that stops midway is not undone
  check('hash', tally)
  local checked = {}
  for _, command in ipairs(commands) do
    local kind, key = KINDS[command[1]], command[2]
    if kind and not checked[key] then check(kind, key) end
    checked[key] = true
  end
  lengthen(lease)
  for first = 1, #acks, 1000 do
    local past = math.min(first + 999, #acks)
    redis.call('XACK', intake, ARGV[3], unpack(acks, first, past))
    redis.call('XDEL', intake, unpack(acks, first, past))
  end
  local added = {}
  for _, command in ipairs(commands) do
    if command[1] ~= 'EMPTIED' then
      local reply = redis.call(unpack(command))
      if command[1] == 'XADD' then added[#added + 1] = reply end
    elseif redis.call('XLEN', command[2]) == 0 then -- else it has grown from outside since
      redis.call('ZREM', command[3], command[4])
    end
  end
  for name, count in pairs(counts) do redis.call('HINCRBY', tally, name, count) end
  redis.call('HSET', committed, 'number', number, 'added', cmsgpack.pack(added))
  return added
end
local replies = {}
local at = 4 -- what of ARGV is read next
for n = 1, #KEYS, 4 do
  local known, number, acks, counts, follow = unpack(cmsgpack.unpack(ARGV[at]))
  local commands = {}
  at = at + 1
  for c = 1, follow do
    local words = tonumber(ARGV[at])
    commands[c] = {unpack(ARGV, at + 1, at + words)}
    at = at + words + 1
  end
  local ok, reply = pcall(commit, n, known, number, acks, counts, commands)
  if not ok then reply = redis.error_reply(type(reply) == 'table' and reply.err or reply) end
  replies[#replies + 1] = reply
end
return replies
"""

# KEYS: lease, intake, committed. ARGV: token, ms, group, when it is too late (store clock, ms): a
# question that waited while the store was away must not take what its owner still has; and its
# number, as of a commit: one of our last lease that comes late is not written under this one.
# The group starts at 0: what is there counts.
_TAKE = """
local time = redis.call('TIME')
if time[1] * 1000 + time[2] / 1000 > tonumber(ARGV[4]) then return false end
local is = redis.call('TYPE', KEYS[2]).ok
if is ~= 'stream' and is ~= 'none' then
  return redis.error_reply('WRONGTYPE ' .. KEYS[2] .. ' is a ' .. is .. ', not a stream')
end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return false end -- our own is what we lost with an older copy
redis.call('DEL', KEYS[1]) -- a first write that a full server allows
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local before = redis.pcall('HMGET', KEYS[3], 'taker', 'number') -- neither where it is spoilt
if before[1] ~= ARGV[1] or (tonumber(before[2]) or 0) < tonumber(ARGV[5]) then
  redis.pcall('HSET', KEYS[3], 'taker', ARGV[1], 'number', ARGV[5])
end
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[3], '0', 'MKSTREAM')
return before[1] and before[1] ~= ARGV[1] and 'lapsed' or 'free'
"""

# KEYS: of each shard lease, committed. ARGV, behind those of the lease: of each `known`.
_RENEW = """
local kept = {}
for n = 1, #KEYS / 2 do
  local lease, committed = KEYS[2 * n - 1], KEYS[2 * n]
  kept[n] = ours(lease, committed, ARGV[n + 2]) and 1 or 0
  if kept[n] == 1 then lengthen(lease) end
end
return kept
"""

# KEYS: lease, committed. ARGV: token, number of the last commit that is: where a later one is ours,
# we took the lease again since.
_RELEASE = """
if (tonumber(redis.pcall('HGET', KEYS[2], 'number')) or 0) > tonumber(ARGV[2]) then return end
if redis.pcall('HGET', KEYS[2], 'taker') == ARGV[1] then redis.call('HDEL', KEYS[2], 'taker') end
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

# Puts deliveries at the end of a lane from outside the loop, accounted like any other; once, though
# the client asks again where no answer comes, and a server that hung does all it was asked.
# KEYS: lane, tally, due, grown, journal, replay. ARGV: integration, journal page, event, event …
REPLAY = """
if not redis.call('SET', KEYS[6], '', 'NX', 'EX', 3600) then return end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 3, #ARGV do redis.call('XADD', KEYS[1], '*', 'e', ARGV[i], 't', now) end
redis.call('HINCRBY', KEYS[2], ARGV[1] .. '|accepted', #ARGV - 2)
redis.call('ZADD', KEYS[3], 'NX', now, ARGV[1])
redis.call('HINCRBY', KEYS[4], ARGV[1], #ARGV - 2)
redis.call('XADD', KEYS[5], '*', 'p', ARGV[2])
"""

# Drops a wish that was carried out; not a newer one, though it comes late.
# KEYS: wanted. ARGV: integration, the wish.
CARRIED_OUT = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
"""

# Of several shards at once: a call of its own each costs as much as an event.
# KEYS: of each shard this window's ids, the window's before. ARGV: ttl, then of each shard packed
# lists of the ids and their entries.
_REPEATED = """
local answers = {}
for n = 1, #KEYS / 2 do
  local present, before = KEYS[2 * n - 1], KEYS[2 * n]
  local kept = redis.call('EXPIRE', present, ARGV[1]) -- a first write that a full server allows
  local ids, entries = unpack(cmsgpack.unpack(ARGV[n + 1]))
  local now = redis.call('HMGET', present, unpack(ids))
  local past = redis.call('HMGET', before, unpack(ids))
  local owners, noted, repeated = {}, {}, {}
  for i, id in ipairs(ids) do
    local owner = now[i] or past[i] or owners[id]
    if not owner then
      owners[id] = entries[i]
      noted[#noted + 1] = id
      noted[#noted + 1] = entries[i]
    elseif owner ~= entries[i] then
      repeated[#repeated + 1] = entries[i]
    end
  end
  if #noted > 0 then
    redis.call('HSET', present, unpack(noted))
    if kept == 0 then redis.call('EXPIRE', present, ARGV[1]) end
  end
  answers[n] = repeated
end
return answers
"""

# KEYS: intake. ARGV: group, who stays. In one step: of a reader that was found to have nothing, and
# has read when it is deleted, entries would be left that are neither new nor anybody's.
_FORGET_READERS = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local found = {}
  for i = 1, #consumer, 2 do found[consumer[i]] = consumer[i + 1] end
  if found.pending == 0 and found.name ~= ARGV[2] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], found.name)
  end
end
"""

# KEYS: a stream, then for each entry the intake it belongs to. ARGV: group, entry, entry …
# Each is acknowledged first, which a full server allows; it need not hold two of any, either.
_MOVE = """
local wrong
for n = 2, #KEYS do
  local id, is = ARGV[n], redis.call('TYPE', KEYS[n]).ok
  if is == 'stream' or is == 'none' then
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1] -- none: somebody else has moved it
    redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('XDEL', KEYS[1], id)
    if entry then -- of one with more fields than Lua can hand on, what comes first
      redis.call('XADD', KEYS[n], '*', unpack(entry[2], 1, math.min(#entry[2], 1000)))
    end
  else
    wrong = 'WRONGTYPE ' .. KEYS[n] .. ' is a ' .. is .. ', not a stream'
  end
end
return wrong and redis.error_reply(wrong)
"""

_OWNERS = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[2] == '0' then redis.call('ZREM', KEYS[1], ARGV[1])
elseif ARGV[1] ~= '' then redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1]) end
local owners = redis.call('ZRANGE', KEYS[1], 0, -1)
return {now, owners}
"""


class LeaseLost(Exception):
    """The shard is somebody else's now; nothing was committed."""


class Commit(msgspec.Struct):
    """What one flush of a shard writes, in the order it is written."""

    acks: list[bytes] = []
    commands: list[Command] = []
    counts: dict[str, int] = {}  # to be added to the tally

    def __bool__(self) -> bool:
        return bool(self.acks or self.commands or self.counts)


class State:
    """The events' Redis. Every method is one round trip unless it says otherwise."""

    def __init__(self, redis: Redis, reader: Redis | None = None) -> None:
        self.redis: Any = redis  # its stubs return every command's type for both protocols
        self._reading = Dedicated(reader or redis)  # must not repeat one whose answer was lost
        self._looking, self._writing = Dedicated(redis), Dedicated(redis)
        self._renewing = Dedicated(redis)  # leases: what else is asked may hang
        self._heard: str | bytes = "0"  # the last of the changes
        self._commit = redis.register_script(_LEASE + _COMMIT)
        self._take = redis.register_script(_TAKE)
        self._renew = redis.register_script(_LEASE + _RENEW)
        self._release = redis.register_script(_RELEASE)
        self._repeated = redis.register_script(_REPEATED)
        self._owners = redis.register_script(_OWNERS)
        self._forget_readers = redis.register_script(_FORGET_READERS)
        self._move = redis.register_script(_MOVE)

    async def owners(self, token: str, ttl_ms: int) -> tuple[int, list[str]]:
        """Note `token` as alive for `ttl_ms` (0: gone); return (store clock in ms, who lives)."""
        now, owners = await self._owners(keys=[OWNERS], args=[token, ttl_ms])
        return int(now), [owner.decode() for owner in owners]

    async def take(self, keys: Keys, token: str, until_ms: float, number: int = 0) -> str:
        """Take the shard's lease if it is free, until then, and see to its group.

        `number` is of the same count as the commits': what is sent under it is sent after it.
        Returns "lapsed" where its last owner did not give it back, else "free"; "" if it is taken.
        """
        taken = await self._take(
            keys=[keys.lease, keys.intake, keys.committed],
            args=[token, LEASE_MS, GROUP, int(until_ms), number],
        )
        return taken.decode() if taken else ""

    async def read(
        self, streams: Sequence[bytes], token: str, count: int, block_ms: int
    ) -> tuple[dict[bytes, list[Any]], list[str]]:
        """Return the new entries of each stream that has any, at most `count` of each.

        And the projects that were changed since the last time: Redis looks for them when it has the
        entries, so that every change an entry came after is among them.
        """
        group = ("GROUP", GROUP, token, "COUNT", count, "BLOCK", block_ms)
        new = (">",) * len(streams)
        command: Command = ("XREADGROUP", *group, "STREAMS", *streams, *new)
        reply, told = await self._reading.ask(command, self._changes)
        _certain([reply])
        return dict(reply or ()), self._hear(told)

    async def changes(self) -> list[str]:
        """Return the projects that were changed since the last time."""
        (told,) = await self._looking.ask(self._changes)
        return self._hear(told)

    def hear_from(self, ms: float) -> None:
        """Begin with the changes since then (store clock, ms)."""
        self._heard = str(int(ms))

    @property
    def _changes(self) -> Command:
        return ("XREAD", "STREAMS", CHANGES, self._heard)

    def _hear(self, told: Any) -> list[str]:
        """Return the projects of an answer. An error is no reason not to deliver: none."""
        if not told or isinstance(told, RedisError):
            return []
        ((_, entries),) = told
        self._heard = entries[-1][0]
        return [fields.get(b"p", b"").decode() for _, fields in entries]

    async def ensure_group(self, stream: str) -> None:
        """Create the stream's group at 0, never at `$`: what is there already counts."""
        try:
            await self.redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def pending(self, shards: Sequence[Keys]) -> list[tuple[bytes, set[str]]]:
        """Return of each shard the first entry that is read and not acknowledged, and who has any.

        Nobody where that cannot be told: whoever reads such a shard says what is wrong with it.
        """
        async with self.redis.pipeline(transaction=False) as pipe:
            for keys in shards:
                pipe.xpending(keys.intake, GROUP)
            replies = await pipe.execute(raise_on_error=False)
        return [
            (b"", set())
            if isinstance(reply, ResponseError)
            else (reply["min"] or b"", {who["name"].decode() for who in reply["consumers"] or ()})
            for reply in replies
        ]

    async def move(self, stream: str, entries: Sequence[tuple[bytes, int]]) -> None:
        """Move entries that were read to the intake of each one's shard, also in a full server."""
        intakes = [Keys(shard).intake for _, shard in entries]
        ids = [entry_id for entry_id, _ in entries]
        await self._move(keys=[stream, *intakes], args=[GROUP, *ids])

    async def forget_readers(self, keys: Keys, token: str) -> None:
        """Forget who has read of a shard and has nothing of it left, but for `token`."""
        await self._forget_readers(keys=[keys.intake], args=[GROUP, token])

    async def renew(self, shards: Iterable[tuple[Keys, int]], token: str) -> list[bool]:
        """Lengthen the leases of shards with their last commit's number; False where one is lost.

        One that lapsed and that nobody took is not lost.
        """
        held = list(shards)
        names = [name for keys, _ in held for name in (keys.lease, keys.committed)]
        known = [last for _, last in held]
        kept = await self._run(self._renewing, self._renew, names, [token, LEASE_MS, *known])
        return [bool(still) for still in kept]

    async def release(self, keys: Keys, token: str, committed: int) -> None:
        """Give the lease up, if it is still ours, and the one with this last commit."""
        await self._release(keys=[keys.lease, keys.committed], args=[token, committed])

    async def commit(
        self, token: str, commits: Sequence[tuple[Keys, int, int, Commit]]
    ) -> list[list[bytes] | RedisError | LeaseLost]:
        """Write shards' commits, each all or nothing, in one round trip.

        `commits` are (keys, number of the last commit known to be written, this one's number,
        commit). Returns for each the ids of what it added, in order; or why nothing was written:
        `LeaseLost` where the shard is another's. Sent again under its number, it is written once.
        """
        names = [
            name
            for keys, *_ in commits
            for name in (keys.lease, keys.committed, keys.intake, keys.tally)
        ]
        arguments: list[Any] = [token, LEASE_MS, GROUP]
        for _, known, number, what in commits:
            acks = [*map(bytes.decode, what.acks)]  # Lua's msgpack has text only
            arguments.append(_encode((known, number, acks, what.counts, len(what.commands))))
            for command in what.commands:  # not packed, for they hold bytes
                arguments += (len(command), *command)
        replies = await self._run(self._writing, self._commit, names, arguments)
        return [LeaseLost() if reply is None else reply for reply in replies]

    async def grown(self, shards: Sequence[Keys]) -> list[dict[bytes, int]]:
        """Return what was put into each shard's lanes from outside: integration → how many.

        Nothing of a shard where that cannot be told.
        """
        async with self.redis.pipeline(transaction=False) as pipe:
            for keys in shards:
                pipe.hgetall(keys.grown)
            replies = await pipe.execute(raise_on_error=False)
        return [
            {}
            if isinstance(reply, ResponseError)
            else {integration: int(count) for integration, count in reply.items() if int(count)}
            for reply in replies
        ]

    async def attributions(
        self, keys: Keys, project: str, users: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Return the Apple Ads attribution of those users whose is resolved."""
        if not users:
            return {}
        found = await self.redis.hmget(keys.users(project), list(users))
        return {
            user: msgspec.json.decode(raw) for user, raw in zip(users, found, strict=True) if raw
        }

    async def repeated(
        self, read: Sequence[tuple[Keys, Sequence[str], Sequence[str]]], seconds: int, now_ms: int
    ) -> list[set[bytes]]:
        """Return of each shard the entries that are not the first of their event id in `seconds`.

        `read` has of each shard event ids and their entries, few thousand at most; asked again, it
        answers the same.
        """
        bucket = now_ms // 1000 // seconds
        asked = [(keys, (ids, entries)) for keys, ids, entries in read if ids]
        seen = [key for keys, _ in asked for key in (keys.seen(bucket), keys.seen(bucket - 1))]
        packed = [_encode(lists) for _, lists in asked]
        found = iter(await self._run(self._looking, self._repeated, seen, [2 * seconds, *packed]))
        return [set(next(found)) if ids else set() for _, ids, _ in read]

    async def _run(
        self, connection: Dedicated, script: AsyncScript, keys: list[str], arguments: list[Any]
    ) -> Sequence[Any]:
        """Return a script's answer to each of those its keys are of; none where there are none.

        Raises:
            RedisError: it has given none.
        """
        if not keys:
            return []
        command: Command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
        replies = await connection.ask(command)
        if isinstance(replies[0], NoScriptError):
            await self.redis.script_load(script.script)
            replies = await connection.ask(command)
        (answers,) = _certain(replies)
        return answers  # type: ignore[no-any-return]


def _certain(replies: list[Any]) -> list[Any]:
    """Return the replies; raise the first error among them."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
    return replies
