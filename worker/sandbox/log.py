"""What the sandbox remembers: which events arrived where, how often, and the latest calls."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from typing import Any

from worker.preview import text_or_base64
from worker.sandbox.upstream import Call, Reply

CALLS = 200  # kept for each slug
BODY_BYTES = 16_384  # shown of a call's body


class Log:
    """Arrivals by slug and place (host and path), in order; and the last calls of each slug."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._calls: dict[str, deque[dict[str, Any]]] = defaultdict(lambda: deque(maxlen=CALLS))

    def taken(self, slug: str, call: Call, reply: Reply) -> None:
        """Note the events that were taken."""
        self._taken[slug, call.host + call.path].extend(reply.taken)

    def called(self, slug: str, call: Call, status: int | str) -> None:
        """Note the call and how it ended: the status, or the fault's mode where there is none."""
        body, encoding = text_or_base64(call.body[:BODY_BYTES])
        self._calls[slug].append(
            {
                "at": time.time(),
                "slug": slug,
                "method": call.method,
                "host": call.host,
                "target": call.target,
                "headers": dict(call.headers),
                "body": body,
                "body_encoding": encoding,
                "status": status,
            }
        )

    def forget(self, slug: str | None = None) -> None:
        """Forget arrivals and calls, of one slug or all."""
        for key in [key for key in self._taken if slug in (None, key[0])]:
            del self._taken[key]
        for name in [name for name in self._calls if slug in (None, name)]:
            del self._calls[name]

    def arrivals(self, slug: str | None, match: str = "") -> Iterator[str]:
        """Yield the ids taken, in order of arrival in each place whose name contains `match`."""
        for (name, place), ids in self._taken.items():
            if slug in (None, name) and match in place:
                yield from ids

    def counts(self, slug: str | None, match: str = "") -> dict[str, Any]:
        """Return how many arrived, how many of them again, and how often each id did, in order."""
        ids = Counter(self.arrivals(slug, match))
        total = ids.total()
        return {
            "total": total,
            "distinct": len(ids),
            "duplicates": total - len(ids),
            "by_slug": self._totals(match),
            "ids": ids,
        }

    def _totals(self, match: str) -> dict[str, int]:
        totals: dict[str, int] = defaultdict(int)
        for (name, place), ids in self._taken.items():
            if match in place:
                totals[name] += len(ids)
        return totals

    def calls(self, slug: str | None, last: int) -> list[dict[str, Any]]:
        """Return the last calls, of one slug or all, oldest first."""
        found = [
            call for name, calls in self._calls.items() if slug in (None, name) for call in calls
        ]
        return sorted(found, key=lambda call: call["at"])[-last:] if last > 0 else []
