"""What a worker refuses to start on."""

from pathlib import Path

import pytest
from redis import Redis

from tests.stack import free_port
from worker.checks import UnfitRedis, check_redis
from worker.supervisor import valkey, wait_for_redis

pytestmark = pytest.mark.processes


def _refusal(folder: Path, *options: str) -> str:
    port = free_port()
    server = valkey(folder, port)
    server.command += [*options, "--cluster-port", str(free_port())]  # else 10,000 more: too high?
    (folder / "log").mkdir(parents=True, exist_ok=True)
    server.start(folder / "log" / "valkey.log")
    assert server.process is not None
    try:
        url = f"redis://127.0.0.1:{port}/0"
        wait_for_redis(url)
        with Redis.from_url(url) as redis:
            try:
                check_redis(redis)
            except UnfitRedis as error:
                return str(error)
            return ""
    finally:
        server.process.kill()
        server.process.wait()


def test_our_own_server_will_do(tmp_path: Path) -> None:
    assert _refusal(tmp_path) == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cluster-enabled", "yes"), "it is a Cluster"),
        (("--appendonly", "no"), "append-only file is off"),
        (("--maxmemory-policy", "allkeys-lru"), "set `noeviction`"),
    ],
)
def test_what_could_lose_events_is_refused(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    assert said in _refusal(tmp_path, *options)
