"""A TCP proxy that plays faults of a link, in a thread of its own: silence, cuts, resets, drips."""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self, TypeAlias

Play: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Proxy:
    """Passes connections on to `target`, a port or the path of a Unix socket.

    What is set here changes at once, also for connections that are there.
    """

    def __init__(self, target: int | str) -> None:
        self.target = target
        self.port = 0
        self.silent = False  # nothing passes, either way, and nobody is told
        self.delay = 0.0  # s, before each piece of an answer
        self.cut_after: int | None = None  # bytes of answers until the connection is reset
        self.play: Play | None = None  # answers new connections instead of the target
        self.tls: ssl.SSLContext | None = None  # spoken with whoever connects, from `open` on
        self.accepted = 0  # connections so far
        self._streams: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.reset()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def open(self) -> None:
        """Listen, on the same port as before."""
        start = asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**20, ssl=self.tls)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Refuse new connections."""
        self._loop.call_soon_threadsafe(self._server.close)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Break off every connection and refuse new ones for the block."""
        self.close()
        self.reset()
        try:
            yield
        finally:
            self.open()

    def reset(self) -> None:
        """Break off every connection with a reset."""

        async def all_of_them() -> None:
            for writer in list(self._streams):
                reset(writer)

        asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result(10)

    async def _end(self) -> None:
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._streams.add(writer)
        self.accepted += 1
        try:
            if self.play is not None:
                await self.play(reader, writer)
            else:
                await self._forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            self._streams.discard(writer)
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await self._dial()
        except OSError:
            reset(writer)
            return
        self._streams.add(far_writer)
        ways = [
            asyncio.create_task(self._pass(reader, far_writer, answer=False)),
            asyncio.create_task(self._pass(far_reader, writer, answer=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self._streams.discard(far_writer)
            far_writer.close()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, str):
            return await asyncio.open_unix_connection(self.target)
        return await asyncio.open_connection("127.0.0.1", self.target)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answer: bool
    ) -> None:
        while piece := await reader.read(65_536):
            while self.silent:  # noqa: ASYNC110  set from another thread
                await asyncio.sleep(0.02)
            if answer and self.delay:
                await asyncio.sleep(self.delay)
            if answer and self.cut_after is not None:
                left, self.cut_after = self.cut_after, max(self.cut_after - len(piece), 0)
                if left < len(piece):
                    self.cut_after = None
                    writer.write(piece[:left])
                    await writer.drain()
                    reset(writer)
                    return
            writer.write(piece)
            await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            no_linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    writer.transport.abort()
