"""Four workers on one machine: they share the shards evenly, and take over a dead one's."""

from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest

from tests.faults.scene import WINDOW, Make, Scene
from tests.stack import eventually
from worker.state import Keys, shard_of

pytestmark = pytest.mark.processes
PROJECTS = 24
WORKERS = 4


@pytest.mark.slow
@pytest.mark.row("N", "four workers share the load; one dies, and its shards move")
def test_four_workers(scene: Make) -> None:
    with scene() as s, ExitStack() as load:
        projects = [s.project(f"prj_scale_{number}") for number in range(PROJECTS)]
        for number, project in enumerate(projects):
            s.hook(f"host-{number}", project)
        workers = [s.worker(ONWARD_CONCURRENCY="1") for _ in range(WORKERS)]
        fair = [8, 8, 8, 8]
        eventually(lambda: sorted(_held(s).values()) == fair, 60, "each holds a fourth")
        for project in projects:
            load.enter_context(s.load(rate=10, project=project))
        s.moving(100)
        busy = {_holder(s, project) for project in projects}
        assert len(busy) == WORKERS, "each has projects to drain"
        s.kill_all(workers[0])
        eventually(lambda: sorted(_held(s).values()) == [10, 11, 11], 60, "its shards move")
        s.moving(100)
        load.close()
        s.check(duplicates=WINDOW)


def _held(s: Scene) -> Counter[str]:
    """Return how many shards each living owner holds."""
    keys = [Keys(number).lease for number in range(s.settings.shards)]
    redis: Any = s.redis
    return Counter(token.decode() for token in redis.mget(keys) if token)


def _holder(s: Scene, project: str) -> bytes:
    redis: Any = s.redis
    lease: bytes = redis.get(Keys(shard_of(project, s.settings.shards)).lease)
    return lease
