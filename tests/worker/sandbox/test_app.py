"""The sandbox over real connections: who answers, what is counted, and the faults."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from worker.sandbox.app import all_upstreams
from worker.sandbox.upstreams.amplitude import KEY

AMPLITUDE = "/api2.amplitude.com/2/httpapi"


@pytest.fixture
def client(sandbox: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sandbox, timeout=30) as client:
        client.delete("/_sandbox/faults")
        client.delete("/_sandbox/taken")
        yield client
        client.delete("/_sandbox/faults")


def send(client: httpx.Client, *ids: str, key: str = KEY, path: str = AMPLITUDE) -> httpx.Response:
    events = [
        {"event_type": "t", "user_id": "user-1", "time": 10**12, "insert_id": one} for one in ids
    ]
    return client.post(path, json={"api_key": key, "events": events})


def fault(client: httpx.Client, **given: Any) -> None:
    client.post("/_sandbox/faults", json=given).raise_for_status()


def taken(client: httpx.Client, **asked: str) -> dict[str, Any]:
    counts: dict[str, Any] = client.get("/_sandbox/taken", params=asked).json()
    return counts


def test_answers_as_the_upstream_of_the_host_and_counts_what_it_took(client: httpx.Client) -> None:
    assert send(client, "a", "b").json()["events_ingested"] == 2
    assert send(client, "a").status_code == 200
    refused = send(client, "c", key="nobody's")
    assert (refused.status_code, refused.json()["error"]) == (400, "Invalid API key: nobody's")
    assert taken(client, slug="amplitude") == {
        "total": 3,
        "distinct": 2,
        "duplicates": 1,
        "by_slug": {"amplitude": 3},
        "ids": {"a": 2, "b": 1},
    }
    assert taken(client, slug="amplitude", match="/batch")["total"] == 0
    assert taken(client, slug="adjust")["total"] == 0


def test_an_unknown_host_is_a_customer_s_webhook_and_a_word_is_nobody(
    client: httpx.Client,
) -> None:
    assert client.post("/shop.customer.example/x", json={}).status_code == 401
    assert client.post("/shop.customer.example:8443/x", json={}).status_code == 401
    assert client.post("/hooks.other.example/x", json={}).status_code == 422
    nobody = client.get("/localhost/")
    assert (nobody.status_code, nobody.text) == (
        502,
        "the sandbox plays no upstream at localhost\n",
    )


def test_plays_the_upstreams_it_finds(client: httpx.Client) -> None:
    about = client.get("/_sandbox/").json()
    assert about["slugs"] == list(all_upstreams())
    assert about["modes"].keys() >= {"refuse", "throttle", "fail", "hang"}


def test_shows_the_last_calls(client: httpx.Client) -> None:
    for name in "abc":
        send(client, name, path=f"{AMPLITUDE}?n=%7B{name}")
    calls = client.get("/_sandbox/calls", params={"slug": "amplitude", "last": "2"}).json()["calls"]
    assert [call["target"] for call in calls] == ["/2/httpapi?n=%7Bb", "/2/httpapi?n=%7Bc"]
    assert calls[0]["host"] == "api2.amplitude.com"
    assert json.loads(calls[0]["body"])["events"][0]["insert_id"] == "b"
    assert calls[0]["status"] == 200


def test_refuses_throttles_and_fails_until_told_otherwise(client: httpx.Client) -> None:
    fault(client, slug="amplitude", mode="refuse")
    assert send(client, "a").json()["error"] == "Invalid API key: wrong"
    fault(client, slug="amplitude", mode="throttle", seconds=7)
    throttled = send(client, "a")
    assert (throttled.status_code, throttled.headers["retry-after"]) == (429, "7")
    fault(client, slug="amplitude", mode="fail", status=503)
    assert send(client, "a").status_code == 503
    assert taken(client)["total"] == 0
    client.delete("/_sandbox/faults")
    assert send(client, "a").status_code == 200


def test_a_fault_may_be_for_one_integration_only_and_for_some_calls(client: httpx.Client) -> None:
    fault(client, slug="amplitude", mode="fail", match="user-1", count=2)
    assert [send(client, "a").status_code for _ in range(3)] == [500, 500, 200]
    fault(client, host="api.eu.amplitude.com", mode="fail")
    fault(client, slug="adjust", mode="fail")
    assert send(client, "b").status_code == 200
    fault(client, mode="fail")
    fault(client, slug="amplitude", match="insert_id", mode="ok")
    assert send(client, "c").status_code == 200
    assert client.get(AMPLITUDE).status_code == 500


def test_half_of_the_calls_fail(client: httpx.Client) -> None:
    fault(client, slug="amplitude", mode="half", status=502)
    assert [send(client, name).status_code for name in "abcd"] == [502, 200, 502, 200]


@pytest.mark.parametrize("mode", ["reset", "hang"])
def test_breaks_off_without_taking_anything(client: httpx.Client, mode: str) -> None:
    fault(client, slug="amplitude", mode=mode, seconds=0)
    with pytest.raises(httpx.TransportError):
        send(client, "a")
    assert taken(client)["total"] == 0
    assert client.get("/_sandbox/calls").json()["calls"][0]["status"] == mode


def test_a_cut_answer_leaves_the_event_taken(client: httpx.Client) -> None:
    fault(client, slug="amplitude", mode="cut")
    with pytest.raises(httpx.TransportError):
        send(client, "a")
    assert taken(client)["ids"] == {"a": 1}


def test_a_slow_answer_is_the_usual_one(client: httpx.Client) -> None:
    fault(client, slug="amplitude", mode="slow", seconds=0.01)
    assert send(client, "a").status_code == 200


async def test_a_hanging_call_does_not_hold_up_the_others(sandbox: str) -> None:
    async with httpx.AsyncClient(base_url=sandbox, timeout=30) as client:
        await client.post("/_sandbox/faults", json={"match": "stuck", "mode": "hang"})
        stuck = asyncio.create_task(client.post(AMPLITUDE, content=b"stuck"))
        for _ in range(3):
            assert (await client.post(AMPLITUDE, content=b"{}")).status_code == 400
        assert not stuck.done()
        stuck.cancel()
        await client.delete("/_sandbox/faults")


@pytest.mark.parametrize("given", [{"mode": "explode"}, {"mode": "fail", "slugs": "x"}, []])
def test_an_unheard_of_fault_is_refused(client: httpx.Client, given: Any) -> None:
    answer = client.post("/_sandbox/faults", json=given)
    assert answer.status_code == 400
    assert answer.json()["error"]["details"]
    assert client.get("/_sandbox/faults").json() == {"faults": []}
