"""An upstream that counts by itself: which event arrived where, when, in which order, how often.

It knows nothing of our code but what is on the wire: a webhook's `webhook-id`, and the `insert_id`
of each of a batch's events. What it is told to do wrong is by receiver, and changes at once.
"""

import asyncio
import json
import re
import threading
import time
from collections import Counter as Counts
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Self

from tests.faults.proxy import reset

ANSWERS = {
    "take": b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"code":200}',
    "fail": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "throttle": b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    "refuse": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
}  # fmt: skip
USUAL_SECONDS = 0.01  # until an answer; so that something is in flight at any moment
SLOW_SECONDS = 0.5
COMMIT_SECONDS = 0.2  # an answer is committed long before; with a busy processor, too
_WEBHOOK_ID = re.compile(rb"\r\nwebhook-id: *([^\r]+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass
class Receiver:
    """What one host saw. `mode` is what it does with a request from now on:

    take · slow (takes at once, answers late) · cut (takes, then resets) · fail · throttle ·
    refuse · hang (takes nothing, says nothing) · reset (takes nothing).
    """

    mode: str = "take"
    first: dict[str, float] = field(default_factory=dict)  # id: when, in order (monotonic)
    again: list[tuple[str, float]] = field(default_factory=list)
    answered: dict[str, float] = field(default_factory=dict)  # id: when it was last
    cut: Counts[str] = field(default_factory=Counts)  # whose answer was cut off: they come again

    def take(self, ids: list[str]) -> None:
        now = time.monotonic()
        for id_ in ids:
            self.answered.pop(id_, None)
            if id_ in self.first:
                self.again.append((id_, now))
            else:
                self.first[id_] = now

    def counts(self) -> "Counts[str]":
        """Return how often each event arrived, in the order of first arrivals."""
        counted = Counts(dict.fromkeys(self.first, 1))
        counted.update(id_ for id_, _ in self.again)
        return counted

    def in_hand(self) -> int:
        """Return how many have arrived of which the sender cannot have kept that they did."""
        since = time.monotonic() - COMMIT_SECONDS
        return sum(self.answered.get(id_, since) >= since for id_ in list(self.first))


class Counter:
    """Listens on `port`, in a thread of its own, for requests to `/<host>/…`."""

    def __init__(self) -> None:
        self.port = 0
        self.receivers: dict[str, Receiver] = defaultdict(Receiver)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None] | None] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", limit=2**20)
        server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def in_hand(self) -> int:
        """Return how many deliveries nobody could know the end of, were it all to stop now."""
        return sum(receiver.in_hand() for receiver in list(self.receivers.values()))

    async def _end(self) -> None:
        tasks = [task for task in self._tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether another may follow on the connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        receiver = self.receivers[head.split(b" ", 2)[1].split(b"/")[1].decode()]
        mode = receiver.mode
        ids = _ids(head, body) if mode in {"take", "slow", "cut"} else []
        receiver.take(ids)
        if mode == "hang":
            await reader.read(1)  # until the sender gives up
            return False
        if mode in {"reset", "cut"}:
            receiver.cut.update(ids)
            reset(writer)
            return False
        await asyncio.sleep(SLOW_SECONDS if mode == "slow" else USUAL_SECONDS)
        writer.write(ANSWERS.get(mode, ANSWERS["take"]))
        await writer.drain()
        receiver.answered.update(dict.fromkeys(ids, time.monotonic()))
        return True


def _ids(head: bytes, body: bytes) -> list[str]:
    if found := _WEBHOOK_ID.search(head):
        return [found[1].decode()]
    return [event["insert_id"] for event in json.loads(body)["events"]]
