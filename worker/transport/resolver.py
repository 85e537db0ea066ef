"""Names to addresses, cached, so that a slow name server holds up nobody else."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

Lookup: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]

FRESH_SECONDS = 60.0
STALE_SECONDS = 3600.0  # how long the last good answer stands in for a failing name server
PATIENCE_SECONDS = 1.0  # how long one waits for a new answer where there is an old one
MAX_NAMES = 10_000
THREADS = 16  # the loop's own pool has so few that one hanging name server fills it


class _Known(NamedTuple):
    addresses: Sequence[str]
    since: float


class Resolver:
    """Answers from memory for a minute; look-ups of one name at one time are one look-up.

    Nothing is checked here: whoever dials checks each address, cached or not.
    """

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="onward-dns")
        self._lookup = lookup or self._ask_system
        self._known: dict[str, _Known] = {}
        self._running: dict[str, asyncio.Task[Sequence[str]]] = {}

    async def addresses(self, host: str) -> Sequence[str]:
        """Return the addresses of `host`, at least one.

        Raises:
            OSError: `socket.gaierror` where the name has none or the name server does not say.
        """
        now = asyncio.get_running_loop().time()
        known = self._known.get(host)
        if known and now < known.since + FRESH_SECONDS:
            return known.addresses
        task = self._running.get(host) or self._start(host)
        if known and now < known.since + STALE_SECONDS:
            done, _ = await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
            if not done or task.exception():
                return known.addresses
        return await asyncio.shield(task)

    def close(self) -> None:
        """Forget the look-ups under way."""
        for task in self._running.values():
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, host: str) -> asyncio.Task[Sequence[str]]:
        task = self._running[host] = asyncio.create_task(self._learn(host))
        task.add_done_callback(lambda done: self._ended(host, done))
        return task

    def _ended(self, host: str, task: asyncio.Task[Sequence[str]]) -> None:
        self._running.pop(host, None)
        if not task.cancelled():
            task.exception()  # taken note of, even where nobody waits any more

    async def _learn(self, host: str) -> Sequence[str]:
        found = tuple(dict.fromkeys(await self._lookup(host)))
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        self._known.pop(host, None)
        while len(self._known) >= MAX_NAMES:
            del self._known[next(iter(self._known))]
        self._known[host] = _Known(found, asyncio.get_running_loop().time())
        return found

    async def _ask_system(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _getaddrinfo, host)


def _getaddrinfo(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return [str(sockaddr[0]) for *_, sockaddr in found]
    except UnicodeError:  # a label that no name can have
        raise socket.gaierror(socket.EAI_NONAME, "not a name") from None
