"""Connections to the events' Redis: quick, and their end is always told in Redis' words."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import ResponseError

Command: TypeAlias = tuple[str | bytes | int | float, ...]


def losable(client: Redis) -> Redis:
    """Return the client, whose connections raise redis-py's `ConnectionError` when they are gone.

    uvloop says RuntimeError to whoever writes to one that was closed meanwhile. No one expects that
    of a store that is away: a slice would end for it, a lane would not be read on.
    """
    pool: Any = client.connection_pool
    pool.connection_class = type("Losable", (_Losable, pool.connection_class), {})
    return client


class _Losable:
    _writer: Any

    def pack_command(self, name: str | bytes, *args: Any) -> list[bytes]:
        """Return a command as it is sent; the client looks at each argument's type first."""
        return [pack_command((*name.split(), *args))]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send; at once where nothing waits to be sent, for else the client starts a task."""
        connection: Any = super()
        writer = self._writer
        try:
            if writer and not (check_health or writer.transport.get_write_buffer_size()):
                writer.writelines(command)
            else:
                await connection.send_packed_command(command, check_health)
        except RuntimeError as error:
            await connection.disconnect(nowait=True)
            raise LostConnection(str(error)) from None


class Dedicated:
    """A connection of one's own: what the pool does around every command costs more than that."""

    def __init__(self, client: Redis) -> None:
        self._client: Any = client
        self._connection: Any = None
        self._asking = asyncio.Lock()

    async def ask(self, *commands: Command) -> list[Any]:
        """Return the commands' replies, the server's errors among them, in one round trip.

        Who asks meanwhile waits. Tried again as the client's `retry` says.

        Raises:
            RedisError: no reply came.
        """
        async with self._asking:
            if self._connection is None:
                self._connection = await self._client.connection_pool.get_connection()
            ask = partial(self._ask, commands)
            replies: list[Any] = await self._connection.retry.call_with_retry(ask, self._disconnect)
            return replies

    async def _ask(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        if not connection.is_connected or await connection.can_read():  # it has ended
            await self._disconnect()
            await connection.connect()
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        return [await self._reply(command[0]) for command in commands]

    async def _reply(self, command: Any) -> Any:
        try:
            return await self._client.parse_response(self._connection, command)
        except ResponseError as error:
            return error

    async def _disconnect(self, _: Exception | None = None) -> None:
        await self._connection.disconnect()
