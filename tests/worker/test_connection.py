"""What a connection says that was closed under its user."""

import asyncio
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostConnection

from worker.connection import losable


def test_a_connection_that_was_closed_is_lost_in_redis_words() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(silent, "127.0.0.1")
        client = losable(Redis(port=server.sockets[0].getsockname()[1], protocol=2))
        pool: Any = client.connection_pool
        connection = pool.make_connection()
        await connection._connect()
        connection._writer.transport.abort()
        await asyncio.sleep(0.05)
        try:
            with pytest.raises(LostConnection, match="closed"):
                await connection.send_command("PING")
        finally:
            await client.aclose()
            server.close()
            await server.wait_closed()

    uvloop.run(ask())
