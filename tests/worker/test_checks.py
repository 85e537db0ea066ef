"""What a worker refuses to start on."""

from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as LostConnection

from tests.stack import free_port
from worker.checks import UnfitRedis, check_redis, wait_and_check
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


def test_one_that_reads_its_file_is_not_said_to_have_none() -> None:
    """While it does it says `aof_enabled:0`."""

    class Loading:
        def info(self, _section: str) -> dict[str, Any]:
            return {"loading": 1, "aof_enabled": 0}

    with pytest.raises(BusyLoadingError):
        check_redis(Loading())


def test_one_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([LostConnection("gone"), LostConnection("gone"), None])

    def check(_redis: Any) -> list[str]:
        if error := next(answers):
            raise error
        return ["fit"]

    said: list[str] = []
    monkeypatch.setattr("worker.checks.check_redis", check)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    assert wait_and_check(None, said.append) == ["fit"]
    assert said == ["waiting for Redis: gone"]
