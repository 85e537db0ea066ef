"""Settings from the environment: what is taken, and what is told of what is not."""

import pytest

from worker import servers
from worker.servers import Sentinels, sentinels_of
from worker.settings import InvalidEnvironment, load_settings, misspelt


def test_the_environment_is_read_by_prefix() -> None:
    found = load_settings({"ONWARD_SHARDS": "8", "ONWARD_RETRY_SCHEDULE": "1,2.5,", "SHARDS": "9"})
    assert (found.shards, found.retry_schedule) == (8, (1, 2.5))


@pytest.mark.parametrize(
    ("given", "broker"),
    [
        ({}, "redis://127.0.0.1:6379/1"),
        ({"ONWARD_REDIS_URL": "redis://r/4"}, "redis://r/5"),
        ({"ONWARD_REDIS_URL": "redis://r:7000"}, "redis://r:7000/1"),
        ({"ONWARD_REDIS_URL": "rediss://r/0?ssl_ca_certs=/a/b"}, "rediss://r/1?ssl_ca_certs=/a/b"),
        ({"ONWARD_REDIS_URL": "redis://r", "ONWARD_BROKER_URL": "redis://b/2"}, "redis://b/2"),
    ],
)
def test_the_broker_is_another_database_of_the_same_server(
    given: dict[str, str], broker: str
) -> None:
    assert load_settings(given).broker_url == broker


def test_sentinels_have_a_broker_too() -> None:
    found = load_settings({"ONWARD_REDIS_URL": "sentinel://u:p%40@a,b:7/0?name=onward"})
    assert found.broker_url == "sentinel://u:p%40@a,b:7/1?name=onward"
    assert sentinels_of(found.redis_url) == Sentinels(
        (("a", 26_379), ("b", 7)), "onward", {"db": 0, "username": "u", "password": "p@"}
    )
    assert servers.broker(found.broker_url) == (
        "sentinel://u:p%40@a:26379/1;sentinel://u:p%40@b:7/1",
        {"master_name": "onward", "sentinel_kwargs": servers.ASKING},
    )


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("ONWARD_REDIS_URL", "127.0.0.1:6379", "redis://"),
        ("ONWARD_REDIS_URL", "redis://:p4ss/word@a:6379/0", "%2F for / in a password"),
        ("ONWARD_DATABASE_URL", "mysql://a/b", "postgresql://"),
        ("ONWARD_DATABASE_URL", "var/onward.db", "sqlite:///FILE"),
        ("ONWARD_UPSTREAM", "127.0.0.1:9000", "http://"),
        ("ONWARD_NOTIFY_URL", "https:/hooks.example.com", "https://"),
        ("ONWARD_REDIS_URL", "sentinel://a:26379/0", "name=NAME"),
        ("ONWARD_REDIS_URL", "sentinel://?name=onward", "sentinel://HOST"),
        ("ONWARD_BROKER_URL", "sentinel://a:port/1?name=onward", "port"),
        ("ONWARD_SHARDS", "0", "greater than or equal to 1"),
        ("ONWARD_SHARDS", "many", "valid integer"),
        ("ONWARD_TRANSPORT", "curl", "'narrow' or 'httpx'"),
        ("ONWARD_RETRY_SCHEDULE", "5,soon", "valid number"),
        ("ONWARD_RETRY_SCHEDULE", ",", "at least 1 item"),
    ],
)
def test_a_value_that_will_not_do_is_named(variable: str, value: str, why: str) -> None:
    with pytest.raises(InvalidEnvironment, match=rf"{variable}: .*{why}"):
        load_settings({variable: value})


def test_times_that_do_not_nest_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.settings.SLICE_SECONDS", 280)
    with pytest.raises(InvalidEnvironment, match=r"attempt_timeout 30 s is too long"):
        load_settings({})


def test_a_misspelt_variable_is_told_of() -> None:
    given = {"ONWARD_REDIS_URI": "x", "ONWARD_XYZZY": "x", "ONWARD_SHARDS": "8", "HOME": "/"}
    assert misspelt(given) == [
        "ONWARD_REDIS_URI is no setting; is ONWARD_REDIS_URL meant?",
        "ONWARD_XYZZY is no setting",
    ]
