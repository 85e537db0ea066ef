"""The way to a Redis: to a server, or to the one that Sentinels name as the primary at the time.

`redis://…` and `rediss://…` are the client's own URLs. The other form is
`sentinel://[USER:PASSWORD@]HOST[:26379],HOST[:26379]…[/DATABASE]?name=NAME`: the hosts are the
Sentinels', which are asked without a password; user and password are the server's.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

SCHEME = "sentinel"
PORT = 26_379
ASKING = {"socket_timeout": 2, "socket_connect_timeout": 2, "protocol": 2}  # one that hangs costs 2


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Who knows the primary, and how to enter there."""

    hosts: tuple[tuple[str, int], ...]
    name: str
    options: dict[str, Any]  # database, user, password


def sentinels_of(url: str) -> Sentinels | None:
    """Return what a `sentinel://` URL says, None of another; raise ValueError if it will not do."""
    parts = urlsplit(url)
    if parts.scheme != SCHEME:
        return None
    who, _, hosts = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    (name,) = parse_qs(parts.query).get("name", [""])
    found = tuple(_host(host) for host in hosts.split(",") if host)
    database = parts.path.strip("/") or "0"
    if not (name and found and database.isdigit()):
        raise ValueError("must be sentinel://HOST,HOST/DATABASE?name=NAME")
    options = {"username": unquote(user), "password": unquote(password)}
    given = {key: value for key, value in options.items() if value}
    return Sentinels(found, name, {"db": int(database), **given})


def _host(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    return host, int(port or PORT)


def without_password(url: str) -> str:
    """Return the URL of a server as it may be shown."""
    shown = re.sub(r"(?<=://)([^/@:]*):.*@", r"\1:***@", url)
    return re.sub(r"(?<=password=)[^&]*", "***", shown)


def connect(url: str, **options: Any) -> "Redis":
    """Return a blocking client."""
    from redis import Redis, Sentinel  # noqa: PLC0415  who reads settings needs no client
    from redis.retry import Retry  # noqa: PLC0415

    client: Redis = _client(url, Redis, Sentinel, Retry, options)
    return client


def connect_async(url: str, **options: Any) -> "AsyncRedis":
    """Return a client for the running loop."""
    from redis.asyncio import Redis, Sentinel  # noqa: PLC0415  as above
    from redis.asyncio.retry import Retry  # noqa: PLC0415

    client: Redis = _client(url, Redis, Sentinel, Retry, options)
    return client


def _client(url: str, plain: Any, sentinel: Any, retry: Any, options: dict[str, Any]) -> Any:
    from redis.backoff import NoBackoff  # noqa: PLC0415  as above

    known = sentinels_of(url)
    if known is None:
        return plain.from_url(url, **options)
    asking = {name: min(most, options.get(name, most)) for name, most in ASKING.items()}
    # there are others to ask; of itself the client asks one that is away for seven seconds
    asking["retry"] = retry(NoBackoff(), 0)
    asked = sentinel(known.hosts, sentinel_kwargs=asking)
    return asked.master_for(known.name, **{**known.options, **options})


def broker(url: str) -> tuple[str, dict[str, Any]]:
    """Return a broker's URL as Celery reads it, and what belongs to it in its transport options."""
    known = sentinels_of(url)
    if known is None:
        return url, {}
    who, _, _ = urlsplit(url).netloc.rpartition("@")
    enter = f"{who}@" if who else ""
    places = [
        f"sentinel://{enter}{host}:{port}/{known.options['db']}" for host, port in known.hosts
    ]
    return ";".join(places), {"master_name": known.name, "sentinel_kwargs": ASKING}
