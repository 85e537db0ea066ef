"""What the events' Redis must be like before a worker starts on it."""

import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import BusyLoadingError, ResponseError
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as NoAnswer

OLDEST = (7, 0)
CLOCK_SECONDS = 5.0
PATIENCE_SECONDS = 20.0  # one that restarts, or reads its file, is back by then


class UnfitRedis(RuntimeError):
    """Events could be lost on this Redis; the message says how to mend it."""


def wait_and_check(redis: Any, say: Callable[[str], object]) -> list[str]:
    """Return what `check_redis` does, as soon as there is a Redis to ask.

    Raises redis-py's error where there is none for that long.
    """
    deadline, silent = time.monotonic() + PATIENCE_SECONDS, True
    while True:
        try:
            return check_redis(redis)
        except (LostConnection, NoAnswer) as error:
            if time.monotonic() > deadline:
                raise
            if silent:
                say(f"waiting for Redis: {error}")
            silent = False
            time.sleep(0.5)


def check_redis(redis: Any) -> list[str]:
    """Raise UnfitRedis where events could be lost; return warnings of what could not be checked."""
    persistence = redis.info("persistence")
    if persistence.get("loading"):  # then it says of its append-only file that it is off
        raise BusyLoadingError("it is reading its file")
    faults, warnings = [], []
    server = redis.info("server")
    version = str(server.get("valkey_version") or server["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        faults.append(f"version {version} is older than {OLDEST[0]}.{OLDEST[1]}")
    if persistence.get("aof_enabled") != 1:
        faults.append("its append-only file is off: set `appendonly yes`")
    try:
        policy = redis.config_get("maxmemory-policy").get("maxmemory-policy")
    except ResponseError:
        warnings.append("it does not show its eviction policy; it must be `noeviction`")
    else:
        if policy not in (None, "noeviction"):
            faults.append(f"its maxmemory-policy is {policy}: set `noeviction`")
    if redis.info("cluster").get("cluster_enabled") == 1:
        faults.append(
            "it is a Cluster, and one reading of the intake spans its slots: use one server, "
            "with a replica (docs/operations.md)"
        )
    seconds, micro = redis.time()
    drift = time.time() - (seconds + micro / 1e6)
    if abs(drift) > CLOCK_SECONDS:
        faults.append(f"its clock differs from this machine's by {drift:+.0f} s: set both by NTP")
    if faults:
        raise UnfitRedis("Redis is not fit to hold events: " + "; ".join(faults))
    return warnings
