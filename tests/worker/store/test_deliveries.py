"""The record: a page once, counted, with what an operator sees of each integration."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine, select

from tests.worker.store.rows import record_rows
from worker.store.audit import list_rows
from worker.store.database import now, reading
from worker.store.dead_letters import get_dead_letter, list_dead_letters, mark_replayed
from worker.store.deliveries import last_recorded, list_deliveries, list_tallies, prune
from worker.store.errors import NotFound
from worker.store.integrations import get, set_status, suspend
from worker.store.models import Attribution, Integration

AT = datetime(2026, 6, 1, 11, 20, 36, 125000, tzinfo=UTC)


def row(event_id: str, **more: Any) -> dict[str, Any]:
    return {
        "integration_id": "i1",
        "project_id": "prj_a",
        "event_id": event_id,
        "event_name": "trial_started",
        "outcome": "delivered",
        "status": 200,
        "attempts": 1,
        "accepted_at": AT,
        "finished_at": AT,
        "entry_id": "1-1",
        **more,
    }


def letter(**more: Any) -> dict[str, Any]:
    return {"reason": "malformed", "body": b"\xff\x00{", "created_at": AT, **more}


def test_a_page_is_read_back_as_it_was(engine: Engine) -> None:
    message = 'tab\tback\\slash\nnew "line" é 😀'
    assert record_rows(
        engine, 3, None, "5-0", deliveries=[row("e1", message=message), row("e2", status=None)]
    )
    with reading(engine) as connection:
        second, first = list_deliveries(connection)
        assert last_recorded(connection, [3, 4]) == {3: "5-0"}
    assert (first.event_id, first.message, first.status) == ("e1", message, 200)
    assert (first.accepted_at, first.finished_at) == (AT, AT)
    assert (second.event_id, second.message, second.status, second.attempts) == (
        "e2",
        None,
        None,
        1,
    )


def test_a_page_is_recorded_once(engine: Engine) -> None:
    page: dict[str, Any] = {"deliveries": [row("e1")], "tallies": {("i1", "delivered"): 1}}
    assert record_rows(engine, 0, None, "1-0", **page)
    assert not record_rows(engine, 0, None, "1-0", **page)
    assert not record_rows(engine, 0, "0-9", "2-0", **page)
    assert record_rows(engine, 0, "1-0", "2-0", **page)
    with reading(engine) as connection:
        assert len(list_deliveries(connection)) == 2
        assert list_tallies(connection) == {("i1", "delivered"): 2}


def test_of_eight_recorders_at_once_one_writes(engine: Engine) -> None:
    together = Barrier(8)

    def race(_: int) -> bool:
        together.wait()
        return record_rows(
            engine, 0, None, "1-0", deliveries=[row("e1")], tallies={("i1", "delivered"): 1}
        )

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(race, range(8))) == [False] * 7 + [True]
    with reading(engine) as connection:
        assert list_tallies(connection) == {("i1", "delivered"): 1}


def test_what_fails_moves_nothing(engine: Engine) -> None:
    with pytest.raises(Exception, match="finished_at"):
        record_rows(engine, 0, None, "1-0", deliveries=[row("e1"), row("e2", finished_at=None)])
    with reading(engine) as connection:
        assert list_deliveries(connection) == []
        assert last_recorded(connection, [0]) == {}


def test_filters(engine: Engine) -> None:
    rows = [
        row("e1"),
        row("e2", integration_id="i2", outcome="rejected"),
        row("e1", integration_id="i2", project_id="prj_b"),
    ]
    record_rows(engine, 0, None, "1-0", deliveries=rows)
    with reading(engine) as connection:

        def ids(**filters: Any) -> list[int]:
            return [found.id for found in list_deliveries(connection, **filters)]

        newest_first = ids()
        assert newest_first == sorted(newest_first, reverse=True)
        assert len(ids(integration_id="i2")) == 2
        assert len(ids(event_id="e1", project_id="prj_a")) == 1
        assert len(ids(outcome="rejected")) == 1
        assert ids(limit=1) == newest_first[:1]
        assert ids(before_id=newest_first[0]) == newest_first[1:]


@pytest.mark.parametrize(
    "faults", [[{"path": "id", "message": "no"}], '[{"path":"id","message":"no"}]']
)
def test_a_dead_letter_keeps_its_bytes_and_faults(engine: Engine, faults: Any) -> None:
    bad = letter(faults=faults, event_id="nul\0 \ud800", project_id="prj_a")
    record_rows(engine, 0, None, "1-0", dead_letters=[bad, letter()])
    with reading(engine) as connection:
        plain, found = list_dead_letters(connection)
        assert found.body == plain.body == b"\xff\x00{"
        assert found.faults == [{"path": "id", "message": "no"}]
        assert (plain.faults, plain.attempts, plain.project_id) == (None, 0, None)
        assert found.event_id == "nul? ?"
        assert get_dead_letter(connection, found.id, "prj_a").id == found.id
        with pytest.raises(NotFound):
            get_dead_letter(connection, found.id, "prj_b")
        with pytest.raises(NotFound):
            get_dead_letter(connection, plain.id, "prj_a")


def test_replayed_letters_are_told_apart(engine: Engine) -> None:
    record_rows(engine, 0, None, "1-0", dead_letters=[letter(), letter()])
    with engine.begin() as connection:
        newest, oldest = list_dead_letters(connection)
        mark_replayed(connection, [oldest.id], AT)
        assert [x.id for x in list_dead_letters(connection, replayed=True)] == [oldest.id]
        assert [x.id for x in list_dead_letters(connection, replayed=False)] == [newest.id]


def note(
    engine: Engine, before: str | None, to: str, integration_id: str, **seen: Any
) -> Integration:
    assert record_rows(engine, 0, before, to, health={integration_id: seen})
    with reading(engine) as connection:
        return get(connection, integration_id)


def test_failures_add_up_until_a_delivery(engine: Engine, integration_id: str) -> None:
    one = {"last_error_at": AT, "last_error_message": "503", "last_error_reason": "down"}
    found = note(engine, None, "1", integration_id, failures=2, **one)
    assert (found.delivery_error_count, found.first_error_at) == (2, AT)
    later = AT + timedelta(minutes=1)
    found = note(engine, "1", "2", integration_id, failures=1, **{**one, "last_error_at": later})
    assert (found.delivery_error_count, found.first_error_at) == (3, AT)
    assert (found.last_error_at, found.last_error_message) == (later, "503")
    found = note(engine, "2", "3", integration_id, delivered=True, last_delivery_at=later)
    assert (found.delivery_error_count, found.first_error_at) == (0, None)
    assert (found.last_delivery_at, found.last_error_message) == (later, "503")


def test_an_older_failure_does_not_hide_a_newer_one(engine: Engine, integration_id: str) -> None:
    note(engine, None, "1", integration_id, failures=1, last_error_at=AT, last_error_message="new")
    before = AT - timedelta(minutes=1)
    found = note(
        engine, "1", "2", integration_id, failures=1, last_error_at=before, last_error_message="old"
    )
    assert (found.last_error_message, found.last_error_at) == ("new", AT)


def test_while_suspended_the_words_of_the_suspension_stand(
    engine: Engine, integration_id: str
) -> None:
    with engine.begin() as connection:
        set_status(connection, integration_id, 1, "op")
        suspend(connection, integration_id, 0, message="401: no", reason="unauthorized", at=AT)
    later = AT + timedelta(minutes=1)
    found = note(
        engine,
        None,
        "1",
        integration_id,
        failures=1,
        last_error_at=later,
        last_error_message="late",
    )
    assert (found.last_error_message, found.last_error_at) == ("401: no", AT)
    assert found.delivery_error_count == 1


def test_a_delivery_since_its_activation_ends_the_probation(
    engine: Engine, integration_id: str
) -> None:
    with engine.begin() as connection:
        epoch = get(connection, integration_id).epoch
        set_status(connection, integration_id, 1, "test")
        assert suspend(connection, integration_id, epoch, message="no", reason="settings", at=AT)
        activated = set_status(connection, integration_id, 1, "test")
    assert activated.probation_epoch == activated.epoch
    late = activated.updated_at - timedelta(seconds=1)
    seen = note(engine, None, "1", integration_id, delivered=True, last_delivery_at=late)
    assert seen.probation_epoch == seen.epoch, "it was in flight before"
    after = activated.updated_at + timedelta(seconds=1)
    seen = note(engine, "1", "2", integration_id, delivered=True, last_delivery_at=after)
    assert seen.probation_epoch is None


def test_health_does_not_move_updated_at(engine: Engine, integration_id: str) -> None:
    with reading(engine) as connection:
        before = get(connection, integration_id).updated_at
    found = note(engine, None, "1", integration_id, delivered=True, last_delivery_at=AT)
    assert found.updated_at == before


def test_attributions_are_replaced(engine: Engine) -> None:
    def learn(before: str | None, to: str, record: str) -> None:
        known = {"project_id": "prj_a", "user_key": "u1", "record": record, "state": "resolved"}
        record_rows(engine, 0, before, to, learned=[{**known, "updated_at": AT}])

    learn(None, "1", "{}")
    learn("1", "2", '{"campaign_id":"7"}')
    with reading(engine) as connection:
        (found,) = connection.execute(select(Attribution.table()))
    assert (found.project_id, found.user_key) == ("prj_a", "u1")
    assert found.record == '{"campaign_id":"7"}'


def test_prune_takes_the_old_and_leaves_the_young(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.store.deliveries.PRUNED_AT_ONCE", 2)
    moment = now()
    old, young = moment - timedelta(days=31), moment - timedelta(days=29)
    rows = [row(f"e{n}", finished_at=old) for n in range(5)] + [row("young", finished_at=young)]
    letters = [
        letter(created_at=young, event_id="kept"),
        letter(created_at=old),
        letter(created_at=young, expires_at=young),
        letter(created_at=old, expires_at=moment + timedelta(days=1), event_id="kept too"),
    ]
    record_rows(engine, 0, None, "1", deliveries=rows, dead_letters=letters)
    assert prune(engine, moment - timedelta(days=30), moment) == 7
    assert prune(engine, moment - timedelta(days=30), moment) == 0
    with reading(engine) as connection:
        assert [found.event_id for found in list_deliveries(connection)] == ["young"]
        assert {found.event_id for found in list_dead_letters(connection)} == {"kept", "kept too"}
        (told,) = list_rows(connection)
    assert (told.action, told.before) == ("deadletters.expire", '{"count": 2}')
