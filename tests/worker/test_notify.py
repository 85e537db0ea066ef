"""Notices: each in its receiver's form, kept while that fails, in order, and sent once."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, update
from standardwebhooks import Webhook

from worker.notify import LONGEST_SECONDS, message_of, send_notices
from worker.settings import WorkerSettings, load_settings
from worker.store import notifications, rotation
from worker.store.database import now, reading
from worker.store.models import Notification
from worker.store.projects import Receiver, create_project, receivers, set_receiver
from worker.store.secrets import KeyRing, keyring_of

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
OTHER = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
EVERYBODYS, OWN = "https://ops.example/hook", "https://team.example/hook"
SLACK = "https://hooks.slack.com/services/T/B/x"
TEXT = (
    "Suspended: CRM (braze, c9VdLs3H) of prj_a. 401 from Braze: no. Events are held. "
    "When it is mended: onward integrations activate c9VdLs3H"
)


class Wire(httpx.AsyncBaseTransport):
    """Receivers that answer as told, by host; what they got is kept."""

    def __init__(self, answers: Callable[[str], int]) -> None:
        self.answers = answers
        self.got: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.got.append(request)
        status = self.answers(request.url.host)
        if status == 0:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(status)

    def ids(self, host: str) -> list[str]:
        return [one.headers["webhook-id"] for one in self.got if one.url.host == host]


@pytest.fixture
def engine(empty_database: Engine) -> Engine:
    with empty_database.begin() as connection:
        create_project(connection, "B", "prj_b")
    return empty_database


def suspended(
    engine: Engine, project: str = "prj_a", words: dict[str, str] | None = None, **more: Any
) -> None:
    told = {"active": 2, "reason": "unauthorized", "message": "401 from Braze: no"}
    with engine.begin() as connection:
        notifications.add(
            connection,
            "integration.suspended",
            {**told, "slug": "braze", "title": "CRM", **(words or {})},
            project_id=project,
            integration_id="c9VdLs3H",
            **more,
        )


def settings(url: str = EVERYBODYS) -> WorkerSettings:
    return load_settings({}, notify_url=url, notify_secret=SECRET, secret_keys="k1" * 16)


def due_at_once(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(update(Notification.table()).values(next_at=None))


def waiting(engine: Engine) -> list[Notification]:
    with reading(engine) as connection:
        return list(notifications.unsent(connection, now() - timedelta(days=9)))


def test_sends_each_once_signed_and_keeps_what_was_refused(engine: Engine) -> None:
    suspended(engine)
    suspended(engine)
    answers = [200, 503, 204]
    wire = Wire(lambda _host: answers.pop(0))

    assert send_notices(engine, settings(), transport=wire) == 1
    assert send_notices(engine, settings(), transport=wire) == 0, "not before its time"
    due_at_once(engine)
    assert send_notices(engine, settings(), transport=wire) == 1
    assert send_notices(engine, settings(), transport=wire) == 0

    assert wire.ids("ops.example") == ["ntf_1", "ntf_2", "ntf_2"]
    body = Webhook(SECRET).verify(wire.got[0].content, dict(wire.got[0].headers))
    assert body["type"] == "integration.suspended"
    assert body["text"] == TEXT
    assert body["data"]["integration_id"] == "c9VdLs3H"


def test_a_slack_url_gets_a_slack_message(engine: Engine) -> None:
    suspended(engine)
    body, headers = message_of(waiting(engine)[0], Receiver(SLACK, SECRET), 0)
    assert json.loads(body) == {"text": TEXT}
    assert headers == {"Content-Type": "application/json"}


def test_what_others_wrote_calls_nobody_in_slack(engine: Engine) -> None:
    """A customer's title, an upstream's words: `<!channel>` wakes everybody, `<url|text>` links."""
    evil = "<!channel> & <https://evil.example|Sign in>"
    suspended(engine, words={"title": evil, "message": evil})
    body, _ = message_of(waiting(engine)[0], Receiver(SLACK, None), 0)
    text = json.loads(body)["text"]
    assert text.count("&lt;!channel&gt; &amp; &lt;https://evil.example|Sign in&gt;") == 2
    assert "<" not in text


def test_a_project_with_a_receiver_of_its_own_is_told_there(engine: Engine) -> None:
    with engine.begin() as connection:
        keyring = keyring_of(settings())
        set_receiver(connection, "prj_b", Receiver(OWN, OTHER), keyring)
    suspended(engine, "prj_a")
    suspended(engine, "prj_b")
    wire = Wire(lambda _host: 200)

    assert send_notices(engine, settings(), transport=wire) == 2

    assert wire.ids("ops.example") == ["ntf_1"]
    assert wire.ids("team.example") == ["ntf_2"]
    Webhook(OTHER).verify(wire.got[1].content, dict(wire.got[1].headers))


def test_a_receiver_that_is_down_keeps_order_and_costs_others_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        set_receiver(connection, "prj_b", Receiver(OWN, OTHER), keyring_of(settings()))
    for project in ("prj_b", "prj_a", "prj_b", "prj_a"):
        suspended(engine, project)
    down = Wire(lambda host: 0 if host == "team.example" else 200)

    assert send_notices(engine, settings(), transport=down) == 2
    assert down.ids("ops.example") == ["ntf_2", "ntf_4"]
    assert down.ids("team.example") == ["ntf_1"], "what is behind the first waits"
    assert [one.attempts for one in waiting(engine)] == [1, 0]

    due_at_once(engine)
    up = Wire(lambda _host: 200)
    assert send_notices(engine, settings(), transport=up) == 2
    assert up.ids("team.example") == ["ntf_1", "ntf_3"]


def test_it_is_tried_ever_more_seldom_for_a_day(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = now()
    monkeypatch.setattr("worker.notify.now", lambda: at)
    suspended(engine)
    down = Wire(lambda _host: 500)
    waits = []
    for _ in range(14):
        send_notices(engine, settings(), transport=down)
        (one,) = waiting(engine)
        assert one.next_at is not None
        waits.append((one.next_at - at).total_seconds())
        due_at_once(engine)
    assert waits[:4] == [5, 10, 20, 40]
    assert waits[-1] == LONGEST_SECONDS

    with engine.begin() as connection:
        yesterday = now() - timedelta(days=1, minutes=1)
        connection.execute(update(Notification.table()).values(at=yesterday))
    got = len(down.got)
    assert send_notices(engine, settings(), transport=down) == 0
    assert len(down.got) == got, "it is no news"


def test_one_that_is_another_workers_by_now_is_left_to_it(engine: Engine) -> None:
    suspended(engine)
    wire = Wire(lambda _host: 200)
    assert send_notices(engine, settings(), lambda: False, wire) == 0
    assert wire.got == []


def test_of_a_kind_there_is_one_in_a_while(engine: Engine) -> None:
    hour = timedelta(hours=1)
    for _ in range(3):
        suspended(engine, unless_within=hour)
    suspended(engine, unless_within=hour, at=now() + 2 * hour)
    assert len(waiting(engine)) == 2


def test_a_receiver_is_kept_encrypted_and_goes_over_to_a_new_key(engine: Engine) -> None:
    old, new = "a" * 40, "b" * 40
    with engine.begin() as connection:
        set_receiver(connection, "prj_b", Receiver(OWN, OTHER), KeyRing.of(old))
        raw = connection.exec_driver_sql("SELECT notify FROM projects").scalar()
    assert "team" not in str(raw)

    *_, done = rotation.rotate(engine, KeyRing.of(f"{new},{old}"))

    assert (done.done, done.damaged) == (1, ())
    with reading(engine) as connection:
        assert dict(receivers(connection, KeyRing.of(new))) == {"prj_b": Receiver(OWN, OTHER)}
        assert rotation.keys_in_use(connection, KeyRing.of(old)).lost
