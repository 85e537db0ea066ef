"""Connections to the events' Redis: quick, and their end is always told in Redis' words."""

from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostConnection


def losable(client: Redis) -> Redis:
    """Return the client, whose connections raise redis-py's `ConnectionError` when they are gone.

    uvloop says RuntimeError to whoever writes to one that was closed meanwhile. No one expects that
    of a store that is away: a slice would end for it, a lane would not be read on.
    """
    pool: Any = client.connection_pool
    pool.connection_class = type("Losable", (_Losable, pool.connection_class), {})
    return client


class _Losable:
    def pack_command(self, name: str | bytes, *args: Any) -> list[bytes]:
        """Return a command as it is sent; the client looks at each argument's type first."""
        return [pack_command((*name.split(), *args))]

    async def send_packed_command(self, *args: Any, **more: Any) -> None:
        connection: Any = super()
        try:
            await connection.send_packed_command(*args, **more)
        except RuntimeError as error:
            await connection.disconnect(nowait=True)
            raise LostConnection(str(error)) from None
