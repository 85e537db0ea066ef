"""Integrations change in one way each, and every change leaves a row."""

import json
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import IntegrityError

from worker.store import audit, notifications
from worker.store.database import now, reading
from worker.store.errors import Invalid, NotFound, UnreadableSettings
from worker.store.integrations import (
    Saved,
    config_rows,
    config_version,
    create_integration,
    delete,
    get,
    list_of,
    roll_secret,
    save_settings,
    set_status,
    suspend,
)
from worker.store.models import AuditRow, Integration
from worker.store.projects import create_project
from worker.store.secrets import KeyRing

BEGINNING = datetime.min.replace(tzinfo=UTC)

AT = datetime(2026, 6, 1, 11, 20, 36, tzinfo=UTC)
RING = KeyRing.of("correct horse battery staple")


def read(engine: Engine, integration_id: str) -> Integration:
    with reading(engine) as connection:
        return get(connection, integration_id)


def status(engine: Engine, integration_id: str, value: int) -> Integration:
    with engine.begin() as connection:
        return set_status(connection, integration_id, value, "op")


def stop(engine: Engine, integration_id: str, epoch: int) -> bool:
    with engine.begin() as connection:
        return suspend(
            connection, integration_id, epoch, message="401: no", reason="unauthorized", at=AT
        )


def actions(engine: Engine, integration_id: str) -> list[str]:
    with reading(engine) as connection:
        rows = audit.list_rows(connection, integration_id=integration_id)
    return [row.action for row in reversed(rows)]


def test_a_new_one_is_paused_and_never_failed(engine: Engine, integration_id: str) -> None:
    made = read(engine, integration_id)
    assert (made.active, made.epoch, made.delivery_error_count) == (0, 0, 0)
    assert [made.settings, made.last_error_at, made.last_delivery_at, made.deleted_at] == [None] * 4
    assert made.created_at.utcoffset() == timedelta(0)
    assert len(made.id) == 8
    assert made.id.isalnum()


def test_every_fault_of_a_new_one_is_named(engine: Engine, integration_id: str) -> None:
    with engine.begin() as connection, pytest.raises(Invalid) as caught:
        create_integration(
            connection, "prj_a", title=" ", slug="amplitud", platform="ios", actor="test"
        )
    assert caught.value.faults == [
        ("title", "Must not be blank"),
        ("integration", 'Unknown provider "amplitud". Did you mean "amplitude"?'),
        ("target_platform", "Must be one of iOS, Android, Stripe (case-sensitive)"),
    ]


def test_list_is_by_creation_and_by_project(engine: Engine, integration_id: str) -> None:
    with engine.begin() as connection:
        create_project(connection, "B", "prj_b")
        more = [
            create_integration(
                connection, project, title=str(n), slug="webhooks", platform="iOS", actor="test"
            ).id
            for n, project in enumerate(["prj_a", "prj_b", "prj_a"])
        ]
        assert [i.id for i in list_of(connection, "prj_a")] == [integration_id, more[0], more[2]]
        assert [i.id for i in list_of(connection, "prj_b")] == [more[1]]
        assert len(list_of(connection)) == 4
        with pytest.raises(NotFound):
            get(connection, more[1], "prj_a")


@pytest.mark.parametrize("value", [2, -1, 3])
def test_only_0_and_1_can_be_set(engine: Engine, integration_id: str, value: int) -> None:
    with pytest.raises(Invalid):
        status(engine, integration_id, value)


def test_the_present_state_again_changes_nothing(engine: Engine, integration_id: str) -> None:
    first = status(engine, integration_id, 1)
    again = status(engine, integration_id, 1)
    assert (again.active, again.updated_at) == (1, first.updated_at)
    assert actions(engine, integration_id) == ["integration.create", "integration.status"]


def test_activating_what_fails_has_it_tried_at_once_and_resets_nothing(
    engine: Engine, integration_id: str
) -> None:
    first = status(engine, integration_id, 1)
    with engine.begin() as connection:
        failing = {"delivery_error_count": 7, "probation_epoch": 0, "first_error_at": AT}
        connection.execute(update(Integration).values(failing))
    again = status(engine, integration_id, 1)
    assert again.updated_at > first.updated_at
    assert (again.active, again.epoch, again.probation_epoch) == (1, 0, 0)
    assert (again.delivery_error_count, again.first_error_at) == (7, AT)
    assert actions(engine, integration_id)[-1] == "integration.try"


def test_suspending_tells_why_and_moves_the_epoch(engine: Engine, integration_id: str) -> None:
    status(engine, integration_id, 1)
    assert stop(engine, integration_id, 0)
    found = read(engine, integration_id)
    assert (found.active, found.epoch, found.probation_epoch) == (2, 1, 1)
    assert (found.last_error_message, found.last_error_reason) == ("401: no", "unauthorized")
    assert found.last_error_at == AT
    with reading(engine) as connection:
        (notice,) = notifications.unsent(connection, BEGINNING)
    assert (notice.kind, notice.integration_id) == ("integration.suspended", integration_id)
    assert json.loads(notice.payload)["message"] == "401: no"


@pytest.mark.parametrize(
    ("before", "epoch"), [(0, 0), (1, 1), (2, 1)], ids=["paused", "stale epoch", "suspended"]
)
def test_suspending_needs_active_and_the_epoch(
    engine: Engine, integration_id: str, before: int, epoch: int
) -> None:
    if before:
        status(engine, integration_id, 1)
    if before == 2:
        stop(engine, integration_id, 0)
    state = read(engine, integration_id)
    assert not stop(engine, integration_id, epoch)
    after = read(engine, integration_id)
    assert after.active == state.active
    assert after.epoch == state.epoch + (state.epoch == epoch), "failures of then count no more"


def test_of_eight_that_suspend_at_once_one_does(engine: Engine, integration_id: str) -> None:
    status(engine, integration_id, 1)
    together = Barrier(8)

    def race(_: int) -> bool:
        together.wait()
        return stop(engine, integration_id, 0)

    with ThreadPoolExecutor(8) as pool:
        flips = list(pool.map(race, range(8)))
    assert sorted(flips) == [False] * 7 + [True]
    assert actions(engine, integration_id).count("integration.suspend") == 1
    with reading(engine) as connection:
        assert len(notifications.unsent(connection, BEGINNING)) == 1


def test_late_failures_can_not_suspend_a_reactivated_one(
    engine: Engine, integration_id: str
) -> None:
    status(engine, integration_id, 1)
    stop(engine, integration_id, 0)
    again = status(engine, integration_id, 1)
    assert (again.active, again.epoch, again.probation_epoch) == (1, 2, 2)
    assert again.delivery_error_count == 0
    assert again.last_error_message == "401: no"  # history, until the next failure
    assert not stop(engine, integration_id, 0)
    assert not stop(engine, integration_id, 1)
    assert stop(engine, integration_id, 2)


def test_plain_sql_reactivates_cleanly_too(engine: Engine, integration_id: str) -> None:
    status(engine, integration_id, 1)
    stop(engine, integration_id, 0)
    with engine.begin() as connection:
        connection.execute(text("UPDATE integrations SET active = 1"))
    found = read(engine, integration_id)
    assert found.probation_epoch == found.epoch
    assert not stop(engine, integration_id, 0)


def test_plain_sql_can_not_set_a_state_there_is_not(engine: Engine, integration_id: str) -> None:
    with engine.begin() as connection, pytest.raises(IntegrityError):
        connection.execute(text("UPDATE integrations SET active = 3"))


def test_deleting_is_soft_and_final(engine: Engine, integration_id: str) -> None:
    with engine.begin() as connection:
        delete(connection, integration_id, "op")
        for call in (
            lambda: get(connection, integration_id),
            lambda: delete(connection, integration_id, "op"),
            lambda: set_status(connection, integration_id, 1, "op"),
        ):
            with pytest.raises(NotFound):
                call()
        assert list_of(connection, "prj_a") == list(config_rows(connection)) == []
        kept = text("SELECT count(*) FROM integrations WHERE id = :id")
        assert connection.execute(kept, {"id": integration_id}).scalar() == 1


def settings(engine: Engine, integration_id: str, data: dict[str, Any]) -> Integration:
    with engine.begin() as connection:
        return save_settings(connection, integration_id, data, RING, actor="op").integration


def test_settings_are_encrypted_and_audited_masked(engine: Engine, integration_id: str) -> None:
    found = settings(engine, integration_id, {"api_key": "s3cr3t-key", "region": "eu"})
    assert found.settings is not None
    assert "s3cr3t" not in found.settings
    assert json.loads(RING.decrypt(found.settings, integration_id))["api_key"] == "s3cr3t-key"
    with reading(engine) as connection:
        row = audit.list_rows(connection, integration_id=integration_id)[0]
    assert row.after is not None
    assert json.loads(row.after)["api_key"]["set"] is True
    settings(engine, integration_id, {"api_key": "an0ther", "region": "us"})
    with reading(engine) as connection:
        later = audit.list_rows(connection, integration_id=integration_id)[0]
    assert (json.loads(row.before or ""), later.before) == ({"set": False}, row.after)
    assert "s3cr3t" not in row.after


def test_a_secret_given_as_shown_keeps_its_value(engine: Engine, integration_id: str) -> None:
    settings(engine, integration_id, {"api_key": "s3cr3t-key", "region": "us"})
    found = settings(engine, integration_id, {"api_key": {"set": True}, "region": "eu"})
    assert found.settings is not None
    kept = json.loads(RING.decrypt(found.settings, integration_id))
    assert kept == {"api_key": "s3cr3t-key", "region": "eu"}


@pytest.fixture
def hook(engine: Engine, integration_id: str) -> Integration:
    with engine.begin() as connection:
        return create_integration(
            connection, "prj_a", title="H", slug="webhooks", platform="iOS", actor="test"
        )


def opened(row: Integration) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RING.decrypt(row.settings or "", row.id))
    return found


def test_a_secret_inside_a_map_keeps_its_value_too(engine: Engine, hook: Integration) -> None:
    one = {"url": "https://a.example.org/", "custom_headers": {"X-Key": "s3cr3t", "X-B": "b"}}
    settings(engine, hook.id, one)
    two = {"url": "https://b.example.org/", "custom_headers": {"X-Key": {"set": True}}}
    kept = opened(settings(engine, hook.id, two))
    assert kept["url"] == "https://b.example.org/"
    assert kept["custom_headers"] == {"X-Key": "s3cr3t"}


GIVEN = "whsec_" + "A" * 43 + "="
URL = {"url": "https://a.example.org/"}


def save(engine: Engine, hook: Integration, ring: KeyRing = RING, **data: Any) -> Saved:
    with engine.begin() as connection:
        return save_settings(connection, hook.id, URL | data, ring, actor="op")


def test_a_signing_secret_is_made_once_and_kept(engine: Engine, hook: Integration) -> None:
    first = save(engine, hook)
    secret = first.made["signing_secret"]
    assert opened(first.integration)["signing_secret"] == secret
    assert len(b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    unset: tuple[dict[str, Any], ...] = (
        {}, {"signing_secret": None}, {"signing_secret": " "}, {"signing_secret": {"set": True}},
    )  # fmt: skip
    for data in unset:
        again = save(engine, hook, **data)
        assert again.made == {}
        assert opened(again.integration)["signing_secret"] == secret
    assert save(engine, hook, signing_secret=GIVEN).made == {}
    assert opened(save(engine, hook).integration)["signing_secret"] == GIVEN
    with reading(engine) as connection:
        assert secret not in str(list(connection.execute(select(AuditRow.before, AuditRow.after))))


def test_where_the_key_is_lost_another_secret_is_made(engine: Engine, hook: Integration) -> None:
    secret = save(engine, hook).made["signing_secret"]
    other = KeyRing.of("another")
    assert save(engine, hook, other).made["signing_secret"] != secret
    with pytest.raises(UnreadableSettings):
        save(engine, hook, auth_token={"set": True})


@pytest.mark.parametrize(("hours", "valid"), [(24, True), (0, False)])
def test_rolling_leaves_the_old_one_valid_for_a_while(
    engine: Engine, hook: Integration, hours: int, valid: bool
) -> None:
    save(engine, hook, auth_token="t", signing_secret=GIVEN)
    for _ in range(2):  # of three the oldest is out
        before = opened(read(engine, hook.id))["signing_secret"]
        with engine.begin() as connection:
            rolled = roll_secret(connection, hook.id, RING, keep=timedelta(hours=hours), actor="op")
        kept = opened(rolled.integration)
        assert kept["signing_secret"] == rolled.made["signing_secret"] not in ("", before, GIVEN)
        assert kept["auth_token"] == "t"
        assert kept["previous_signing_secret"] == (before if valid else None)
        ends = kept["previous_secret_expires_at"]
        left = datetime.fromisoformat(ends) - now() if valid else timedelta()
        assert abs(left - timedelta(hours=hours)) < timedelta(minutes=1)


def test_there_may_be_nothing_to_roll(
    engine: Engine, hook: Integration, integration_id: str
) -> None:
    settings(engine, integration_id, {"api_key": "k"})
    for id_ in (hook.id, integration_id):
        with engine.begin() as connection, pytest.raises(NotFound, match="no signing secret"):
            roll_secret(connection, id_, RING, keep=timedelta(0), actor="op")


def test_every_faulty_setting_is_named_and_none_is_saved(
    engine: Engine, integration_id: str
) -> None:
    with pytest.raises(Invalid) as caught:
        settings(engine, integration_id, {"region": "mars", "colour": "red"})
    assert {field for field, _ in caught.value.faults} == {"api_key", "region", "colour"}
    assert read(engine, integration_id).settings is None


@pytest.mark.parametrize("url", ["https://127.0.0.1/hook", "http://example.org", "https://[::1]/"])
def test_urls_to_where_nothing_may_be_sent_are_refused(
    engine: Engine, hook: Integration, url: str
) -> None:
    with pytest.raises(Invalid) as caught:
        settings(engine, hook.id, {"url": url})
    assert [field for field, _ in caught.value.faults] == ["url"]
    with engine.begin() as connection:
        save_settings(connection, hook.id, {"url": url}, RING, actor="op", allow_private=True)


def test_the_workers_cache_gets_paused_ones_too(engine: Engine, integration_id: str) -> None:
    with reading(engine) as connection:
        (row,) = config_rows(connection)
    assert (row.id, row.project_id, row.slug, row.platform) == (
        integration_id, "prj_a", "amplitude", "iOS",
    )  # fmt: skip
    assert (row.active, row.epoch, row.probation_epoch, row.settings) == (0, 0, None, None)


def test_each_change_moves_the_version_of_the_configuration(
    engine: Engine, integration_id: str, hook: Integration
) -> None:
    def version() -> tuple[Any, ...]:
        with reading(engine) as connection:
            return config_version(connection)

    def remove() -> None:
        with engine.begin() as connection:
            delete(connection, hook.id, "op")

    seen = [version()]
    assert version() == seen[0]
    for change in (
        lambda: settings(engine, hook.id, {"url": "https://customer.example/other"}),
        lambda: status(engine, hook.id, 1),
        lambda: status(engine, integration_id, 1),
        lambda: stop(engine, hook.id, 0),
        lambda: status(engine, hook.id, 1),
        lambda: status(engine, hook.id, 0),
        lambda: stop(engine, hook.id, 2),  # only its epoch moves
        remove,
    ):
        change()
        seen.append(version())
        assert seen.count(seen[-1]) == 1


def test_of_two_changes_at_once_the_later_commit_is_seen_too(
    engine: Engine, integration_id: str, hook: Integration
) -> None:
    def save(id_: str, updated_at: datetime) -> tuple[Any, ...]:
        with engine.begin() as connection:
            same = update(Integration.table()).where(Integration.id == id_)
            connection.execute(same.values(updated_at=updated_at))
            return config_version(connection)

    newer = save(hook.id, now() + timedelta(seconds=5))
    assert save(integration_id, now() + timedelta(seconds=1)) != newer  # from a slower clock
