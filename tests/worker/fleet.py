"""Workers of one store in one process, which end as processes do: told to, or killed."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from random import Random
from typing import Any

from tests.worker.looped import Loop, Worker
from worker.drain import Drain
from worker.state import OWNERS, Keys

_whose: ContextVar[str] = ContextVar("whose", default="")  # a worker's name, in all its tasks


class Fleet:
    """Starts and ends workers. Each is a user to the store."""

    def __init__(self, loop: Loop, tell: Callable[[str], None]) -> None:
        self.loop = loop
        self.redis = loop.redis
        self.shards = [Keys(number) for number in range(loop.settings.shards)]
        self.workers: dict[str, Worker] = {}  # those that live
        self._tasks: dict[str, list[asyncio.Task[Any]]] = {"": []}
        self._tell = tell

    @property
    def drains(self) -> list[Drain]:
        """Return those of all workers."""
        return [one.drain for one in self.workers.values()]

    @contextmanager
    def tasks_known(self) -> Iterator[None]:
        """Know whose tasks are whose: those of who is killed end."""

        def make(loop: Any, work: Any, **more: Any) -> "asyncio.Task[Any]":
            task = asyncio.Task(work, loop=loop, **more)
            self._tasks[(more.get("context") or copy_context()).get(_whose, "")].append(task)
            return task

        asyncio.get_running_loop().set_task_factory(make)
        try:
            yield
        finally:
            asyncio.get_running_loop().set_task_factory(None)

    def counts(self) -> bool:
        """Whether what is done now is done by nobody who was killed."""
        return _whose.get() in {"", *self.workers}

    async def start(self) -> None:
        """Start one."""
        name = f"w{len(self._tasks)}"
        self._tell(f"{name} starts")
        self._tasks[name] = []
        await self.redis.execute_command("ACL SETUSER", name, "on", "nopass", "~*", "+@all")
        one = self.workers[name] = self.loop.worker(username=name)
        context = copy_context()
        context.run(_whose.set, name)
        await asyncio.create_task(one.begin(), context=context)

    async def leave(self, name: str) -> None:
        """Tell one to end."""
        self._tell(f"{name} leaves")
        await self.workers[name].leave()
        del self.workers[name]
        await self.redis.acl_deluser(name)

    async def kill(self, name: str, lease_ms: int = 1) -> None:
        """End one as SIGKILL does: the store takes nothing of it any more; its leases lapse."""
        self._tell(f"{name} dies")
        await self.redis.acl_deluser(name)  # which ends its connections
        one = self.workers.pop(name)
        one.drain.dispatcher.leaving = True
        while alive := [task for task in self._tasks[name] if not task.done()]:
            for task in alive:
                task.cancel()
            await asyncio.wait(alive, timeout=0.5)  # Redis' client loses a cancellation at times
        await one.state.redis.aclose()
        await self.redis.zrem(OWNERS, one.drain.token)
        for keys in self.shards:
            if await self.redis.get(keys.lease) == one.drain.token.encode():
                await self.redis.pexpire(keys.lease, lease_ms)

    async def steal(self, chance: Random) -> None:
        """Let a lease be somebody else's for a while, or lapse."""
        keys = chance.choice(self.shards)
        self._tell(f"steal {keys.lease}")
        if chance.random() < 0.5:
            await self.redis.set(keys.lease, "other", px=chance.choice([100, 700]))
            await self.redis.hset(keys.committed, mapping={"taker": "other", "number": 0})
        else:
            await self.redis.delete(keys.lease)

    async def cut(self, chance: Random) -> None:
        """Cut about half of the workers' connections."""
        self._tell("cut")
        for client in await self.redis.client_list():
            if client["user"] in self.workers and chance.random() < 0.5:
                await self.redis.client_kill_filter(_id=client["id"])
