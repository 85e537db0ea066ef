"""Notices: each is sent in its receiver's form, kept while the receiver fails, and sent once."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from worker.notify import message_of, send_notices
from worker.settings import load_settings
from worker.store import notifications
from worker.store.database import make_engine, reading, upgrade

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
SUSPENDED = {
    "active": 2,
    "reason": "unauthorized",
    "message": "401 from Braze: no",
    "slug": "braze",
    "title": "CRM",
}


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    made = make_engine(f"sqlite:///{tmp_path / 'notices.db'}")
    upgrade(made)
    with made.begin() as connection:
        for _ in range(2):
            notifications.add(
                connection,
                "integration.suspended",
                SUSPENDED,
                project_id="prj_a",
                integration_id="c9VdLs3H",
            )
    yield made
    made.dispose()


def settings(url: str) -> Any:
    return load_settings({}, notify_url=url, notify_secret=SECRET)


def client(answers: list[int], got: list[httpx.Request]) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        got.append(request)
        return httpx.Response(answers.pop(0))

    return httpx.Client(transport=httpx.MockTransport(answer))


def test_sends_each_once_signed_and_keeps_what_was_refused(engine: Any) -> None:
    got: list[httpx.Request] = []
    url = "https://ops.example/hook"
    assert send_notices(engine, settings(url), client([200, 503], got)) == 1
    assert send_notices(engine, settings(url), client([204], got)) == 1
    assert send_notices(engine, settings(url), client([], got)) == 0
    assert len({request.headers["webhook-id"] for request in got}) == 2
    body = Webhook(SECRET).verify(got[0].content, dict(got[0].headers))
    assert body["type"] == "integration.suspended"
    assert body["text"] == "Suspended: CRM (braze) of prj_a. 401 from Braze: no"
    assert body["data"]["integration_id"] == "c9VdLs3H"


def test_a_slack_url_gets_a_slack_message(engine: Any) -> None:
    with reading(engine) as connection:
        notice = notifications.unsent(connection)[0]
    body, headers = message_of(notice, "https://hooks.slack.com/services/T/B/x", settings("x"), 0)
    assert json.loads(body) == {"text": "Suspended: CRM (braze) of prj_a. 401 from Braze: no"}
    assert headers == {"Content-Type": "application/json"}


def test_a_receiver_that_is_down_costs_nothing(engine: Any) -> None:
    def down(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    http = httpx.Client(transport=httpx.MockTransport(down))
    assert send_notices(engine, settings("https://ops.example/hook"), http) == 0
    with reading(engine) as connection:
        assert [notice.attempts for notice in notifications.unsent(connection)] == [1, 0]
