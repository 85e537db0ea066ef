"""Whose turn it is, of all workers, at what one at a time must do."""

from itertools import count
from typing import Any

_taken = count(1)


class Turn:
    """A key that says who acts. It lapses, in ms, where its holder hangs or was killed.

    `node` names this worker among those that might act.
    """

    def __init__(self, redis: Any, key: str, node: str, ms: int) -> None:
        self._redis = redis
        self._key = key
        self._node = node
        self._ms = ms
        self._mark = ""

    def take(self) -> bool:
        """Take the turn if nobody has it; one of our own that hung is somebody else's."""
        self._mark = f"{self._node}:{next(_taken)}"
        return bool(self._redis.set(self._key, self._mark, nx=True, px=self._ms))

    def keep(self) -> bool:
        """Return whether the turn is still ours; then it is for as long again."""
        return self._is_ours() and bool(self._redis.pexpire(self._key, self._ms))

    def end(self, rest_ms: int = 0) -> None:
        """Give the turn up if it is still ours; nobody has one in the next `rest_ms`."""
        if self._is_ours():
            self._redis.pexpire(self._key, rest_ms)

    def _is_ours(self) -> bool:
        return bool(self._redis.get(self._key) == self._mark.encode())
