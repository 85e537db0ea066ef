"""What a connection says that was closed under its user, and one that is kept."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import ResponseError

from worker.connection import Dedicated, losable


@pytest.mark.parametrize("check_health", [True, False])
def test_a_connection_that_was_closed_is_lost_in_redis_words(check_health: bool) -> None:
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
                await connection.send_command("PING", check_health=check_health)
        finally:
            await client.aclose()
            server.close()
            await server.wait_closed()

    uvloop.run(ask())


@pytest.fixture
async def other(valkey: str) -> AsyncIterator[Any]:
    client = Redis.from_url(valkey, protocol=2)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def client(valkey: str) -> AsyncIterator[Any]:
    made = losable(Redis.from_url(valkey, protocol=2, retry=Retry(NoBackoff(), 0)))
    yield made
    await made.aclose()


async def close_all_but(other: Any) -> None:
    """Have the server close every connection but this one."""
    await other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def test_errors_stand_among_the_replies(client: Any, other: Any) -> None:
    kept = Dedicated(client)
    first, wrong, last = await kept.ask(("SET", "a", "1"), ("XLEN", "a"), ("GET", "a"))
    assert isinstance(wrong, ResponseError)
    assert (first, last) == (True, b"1")
    assert await kept.ask(("GET", "a")) == [b"1"]


async def test_who_asks_at_once_waits_and_gets_ones_own_reply(client: Any, other: Any) -> None:
    kept = Dedicated(client)
    replies = await asyncio.gather(*(kept.ask(("ECHO", n)) for n in range(50)))
    assert replies == [[b"%d" % n] for n in range(50)]


async def test_a_connection_that_ended_while_idle_is_made_anew(client: Any, other: Any) -> None:
    kept = Dedicated(client)
    await kept.ask(("PING",))
    await close_all_but(other)
    await until(kept._connection.can_read)
    assert await kept.ask(("ECHO", "still")) == [b"still"]


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_question_is_asked_again_as_the_client_would(
    valkey: str, other: Any, retries: int
) -> None:
    client = losable(Redis.from_url(valkey, protocol=2, retry=Retry(NoBackoff(), retries)))
    kept = Dedicated(client)
    asking = asyncio.ensure_future(kept.ask(("BLPOP", "list", 0)))
    await until(partial(blocked, other))
    await close_all_but(other)
    if retries:
        await until(partial(blocked, other))
        await other.rpush("list", "it")
        assert await asking == [(b"list", b"it")]
    else:
        with pytest.raises(LostConnection):
            await asking
    await client.aclose()


async def test_the_reply_to_who_went_away_is_nobody_elses(client: Any, other: Any) -> None:
    kept = Dedicated(client)
    asking = asyncio.ensure_future(kept.ask(("BLPOP", "list", 0)))
    await until(partial(blocked, other))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await other.rpush("list", "it")
    assert await kept.ask(("ECHO", "mine")) == [b"mine"]


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait until that is so."""
    while not await true():  # noqa: ASYNC110  the server does not call us
        await asyncio.sleep(0.001)


async def blocked(other: Any) -> bool:
    """Whether somebody waits for a reply."""
    return bool((await other.info("clients"))["blocked_clients"])
