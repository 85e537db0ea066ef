"""A steady load: events at a rate, for some seconds, stamped with when they were sent.

`python -m tests.bench.load <redis url> <shards> <events a second> <seconds> <project> …`; a
project may be given as `name*weight`.
"""

import subprocess
import sys
import time
from typing import Any

from redis import Redis

from tests.bench.events import Source
from worker.state import Keys, shard_of

TICK = 0.002  # s


def publish(redis: Any, shards: int, rate: float, seconds: float, projects: list[str]) -> int:
    """Publish, and return how many."""
    names, turns = weighed(projects)
    source = Source(names)
    intakes = [Keys(shard_of(name, shards)).intake for name in names]
    began = time.monotonic()
    sent = 0
    while (passed := time.monotonic() - began) < seconds:
        due = int(passed * rate) - sent
        if due > 0:
            pipeline = redis.pipeline(transaction=False)
            for number in range(sent, sent + due):
                which = turns[number % len(turns)]
                pipeline.xadd(intakes[which], {"event": source.next(which)[1]})
            pipeline.execute()
            sent += due
        time.sleep(TICK)
    return sent


def weighed(projects: list[str]) -> tuple[list[str], list[int]]:
    """Return the names, and whose turn it is: each as often as its weight, well mixed."""
    pairs = [project.partition("*")[::2] for project in projects]
    weights = [int(weight or 1) for _, weight in pairs]
    turns = [
        (step / weight, which) for which, weight in enumerate(weights) for step in range(weight)
    ]
    return [name for name, _ in pairs], [which for _, which in sorted(turns)]


def start(url: str, shards: int, rate: float, seconds: float, projects: list[str]) -> Any:
    """Start a process that publishes; it prints how many."""
    arguments = [url, str(shards), str(rate), str(seconds), *projects]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench.load", *arguments], stdout=subprocess.PIPE, text=True
    )


if __name__ == "__main__":
    _, url_, shards_, rate_, seconds_, *projects_ = sys.argv
    client = Redis.from_url(url_, protocol=2)
    print(publish(client, int(shards_), float(rate_), float(seconds_), projects_))  # noqa: T201
