"""Who asks: a project by its secret key, or the operator by the admin key."""

import hmac
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Lock
from typing import Annotated

from fastapi import Depends, Request
from redis import Redis
from sqlalchemy import Connection, Engine

from worker import changing
from worker.api.errors import forbidden, too_many_requests, unauthorized
from worker.settings import WorkerSettings
from worker.store.database import now, reading
from worker.store.errors import NotFound
from worker.store.projects import USED_EVERY, project_of_key, touch_key
from worker.store.secrets import KeyRing

KEY_LENGTH = 256  # characters; nothing longer is looked up
KEYS = 10_000  # whose rate is remembered
BURST_SECONDS = 5  # of the rate may come at once


class RateLimit:
    """A token bucket for each key, in this process. `rate` is requests a second; 0: no limit."""

    def __init__(
        self, rate: float, burst: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst or max(1, int(rate * BURST_SECONDS))
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, at

    def wait(self, key: str) -> float:
        """Take a token; return 0.0, or the seconds until there is one."""
        if not self._rate:
            return 0.0
        at = self._clock()
        tokens, since = self._left.pop(key, (float(self._burst), at))
        tokens = min(self._burst, tokens + (at - since) * self._rate)
        taken = tokens >= 1
        self._left[key] = (tokens - taken, at)
        if len(self._left) > KEYS:
            self._left.popitem(last=False)
        return 0.0 if taken else (1 - tokens) / self._rate


class Busy:
    """Places for what lasts: few in all, fewer for one project. Threads may take them at once."""

    def __init__(self, most: int = 8, each: int = 2) -> None:
        self._most = most
        self._each = each
        self._taken: Counter[str] = Counter()
        self._lock = Lock()

    @contextmanager
    def place(self, project_id: str) -> Iterator[None]:
        """Hold a place; raise ApiError 429 where none is free."""
        with self._lock:
            if self._taken[project_id] >= self._each or self._taken.total() >= self._most:
                raise too_many_requests(1)
            self._taken[project_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[project_id] -= 1


@dataclass(frozen=True)
class Services:
    """What the routes work with."""

    settings: WorkerSettings
    engine: Engine
    keyring: KeyRing
    redis: "Redis"
    limit: RateLimit = field(default_factory=lambda: RateLimit(0))
    busy: Busy = field(default_factory=Busy)

    def changing(self) -> AbstractContextManager[Connection]:
        """Give a transaction in which integrations change."""
        return changing.changing(self.engine, self.settings)


def services_of(request: Request) -> Services:
    """Return the app's services."""
    found = request.app.state.services
    assert isinstance(found, Services)  # noqa: S101  create_app puts them there
    return found


Here = Annotated[Services, Depends(services_of)]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and the one project it may reach (None: all)."""

    actor: str
    project_id: str | None

    def reach(self, project: str | None) -> str | None:
        """Return the project to look in (None: all); raise NotFound for another's."""
        if self.project_id and project not in (None, self.project_id):
            raise NotFound(f"No project {project}")
        return self.project_id or project


def project_of_request(request: Request, here: Here) -> Principal:
    """Return the project of the request's secret key.

    Raises:
        ApiError: 401 for no such key, 403 for one that is not secret, 429 for one too busy.
    """
    return _of_project(_bearer(request), here)


def principal_of_request(request: Request, here: Here) -> Principal:
    """Return who asks under /ops/v1: the admin key reaches all projects, a project's its own."""
    key = _bearer(request)
    admin = here.settings.admin_key
    if admin and hmac.compare_digest(_digest(key), _digest(admin.get_secret_value())):
        _take_token(here, "admin")
        return Principal("admin", None)
    return _of_project(key, here)


def _bearer(request: Request) -> str:
    values = request.headers.getlist("authorization")
    scheme, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    key = key.strip()
    if scheme.lower() != "bearer" or not key or len(key) > KEY_LENGTH:
        raise unauthorized()
    return key


def _of_project(key: str, here: Services) -> Principal:
    with reading(here.engine) as connection:
        row = project_of_key(connection, key)
    if row is None:
        raise unauthorized()
    if row.kind != "secret":
        raise forbidden("This is not a secret key")
    _take_token(here, row.digest)
    if row.last_used_at is None or now() - row.last_used_at > USED_EVERY:
        with here.engine.begin() as connection:
            touch_key(connection, row)
    return Principal(f"key {row.prefix}…", row.project_id)


def _take_token(here: Services, key: str) -> None:
    if wait := here.limit.wait(key):
        raise too_many_requests(wait)


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


Caller = Annotated[Principal, Depends(project_of_request)]
Operator = Annotated[Principal, Depends(principal_of_request)]
