"""Whose turn it is, of all workers, at what one at a time must do."""

from contextlib import suppress
from typing import Any

from redis.exceptions import LockNotOwnedError
from redis.lock import Lock


class Turn:
    """A lock nobody waits for. It lapses, in ms, where its holder hangs or was killed."""

    def __init__(self, redis: Any, key: str, ms: int) -> None:
        # the thread that keeps a turn need not be the one that took it
        self._lock = Lock(redis, key, timeout=ms / 1000, blocking=False, thread_local=False)

    def take(self) -> bool:
        """Take the turn if nobody has it; one of our own that hung is somebody else's."""
        return bool(self._lock.acquire())

    def keep(self) -> bool:
        """Return whether the turn is still ours; then it is for as long again."""
        try:
            return self._lock.reacquire()
        except LockNotOwnedError:
            return False

    def end(self, rest_ms: int = 0) -> None:
        """Give the turn up if it is still ours; nobody has one in the next `rest_ms`."""
        with suppress(LockNotOwnedError):
            self._lock.extend(rest_ms / 1000, replace_ttl=True)
