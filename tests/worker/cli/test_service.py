"""What `onward up` says once it is up."""

from pathlib import Path

import pytest

from worker.cli.output import failure_of, print_failure
from worker.cli.service import _announce
from worker.servers import without_password
from worker.settings import load_settings
from worker.supervisor import wait_for_redis


def test_the_banner_shows_no_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is on a screen, and in the journal of whatever runs the service."""
    urls = {
        "redis_url": "redis://:s3cret@127.0.0.1:6379/0",
        "database_url": "postgresql://onward:s3cret@127.0.0.1/onward",
    }
    _announce(load_settings({}, data_dir=str(tmp_path), **urls), 8080, 0, tmp_path, "")
    told = capsys.readouterr().out
    assert "redis://:***@127.0.0.1:6379/0" in told
    assert "onward:***@127.0.0.1/onward" in told
    assert "s3cret" not in told


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////var/lib/onward.db", "sqlite:////var/lib/onward.db"),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://me:a:b@c@h:1/0?password=x&a=b", "rediss://me:***@h:1/0?password=***&a=b"),
        ("postgresql://me:a/b@h/onward", "postgresql://me:***@h/onward"),  # SQLAlchemy takes it
        ("sentinel://me:pw@a,b:1/0?name=onward", "sentinel://me:***@a,b:1/0?name=onward"),
    ],
)
def test_a_server_s_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_part_that_does_not_come_up_is_told_of_with_the_place_to_look(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(TimeoutError) as raised:
        wait_for_redis("redis://:s3cret@127.0.0.1:1/0", seconds=0)
    failure = failure_of(raised.value)
    assert failure is not None
    print_failure(failure, as_json=False)
    told = capsys.readouterr().err
    assert "`log` of the data folder" in told
    assert "no Redis answers at redis://:***@127.0.0.1:1/0: Error 111" in told
    assert "s3cret" not in told


@pytest.mark.parametrize("upstream", ["", "http://127.0.0.1:9000"])
def test_the_banner_says_who_plays_the_upstreams(
    upstream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings({}, data_dir=str(tmp_path), upstream=upstream)
    _announce(settings, 8080, 0, tmp_path, "")
    played = f"Upstreams all played by the sandbox at {upstream}: your own receivers get"
    assert (played in capsys.readouterr().out) == bool(upstream)
