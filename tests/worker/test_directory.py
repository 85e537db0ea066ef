"""What the delivery loop makes of an integration's row, and when it reads them."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker import directory
from worker.directory import Directory, Integration, compile_integration
from worker.settings import load_settings
from worker.store.database import make_engine
from worker.store.integrations import create_integration, set_status
from worker.store.projects import create_project
from worker.store.schema import upgrade
from worker.store.secrets import KeyRing
from worker.suspension import Thresholds

WORKER = load_settings({})
RING = KeyRing.of("a passphrase of this test")
URL = {
    "url": "https://customer.example/onward",
    "signing_secret": "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
}


def compiled(plain: dict[str, Any], **row: Any) -> Integration:
    sealed = RING.encrypt(json.dumps(plain), "c9VdLs3H")
    values = {
        "id": "c9VdLs3H", "project_id": "prj_1", "slug": "webhooks", "platform": "iOS", "active": 1,
        "epoch": 3, "probation_epoch": None, "settings": sealed, "updated_at": None,
    } | row  # fmt: skip
    return compile_integration(SimpleNamespace(**values), RING, WORKER)


def test_the_services_patience_is_the_default() -> None:
    found = compiled(URL)
    assert found.fault == ""
    assert found.policy.schedule == WORKER.retry_schedule
    assert found.policy.hold_seconds == WORKER.hold_seconds
    assert found.limits.concurrency == 5
    assert found.ordered


def test_an_integration_may_be_more_or_less_patient() -> None:
    own = {"retry_schedule": [1, 2], "reject_threshold": 7, "hold_events": 9, "concurrency": 40}
    found = compiled(URL | {"delivery": own, "ordering": "off"})
    assert found.policy.schedule == (1, 2)
    assert found.policy.thresholds == Thresholds(
        WORKER.retry_threshold, WORKER.credential_threshold, 7
    )
    assert found.policy.hold_events == 9
    assert found.limits.concurrency == 40
    assert not found.ordered


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"settings": None}, "Webhooks settings are not set"),
        ({"settings": RING.encrypt('{"url": "customer.example"}', "c9VdLs3H")}, "url"),
        ({"settings": RING.encrypt(json.dumps(URL), "another")}, "c9VdLs3H"),
        ({"settings": KeyRing.of("lost").encrypt(json.dumps(URL), "c9VdLs3H")}, "c9VdLs3H"),
        ({"slug": "unheard_of"}, "unheard_of"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_and_hurts_no_other(
    row: dict[str, Any], told: str
) -> None:
    found = compiled(URL, **row)
    assert told in found.fault
    assert found.settings is None


def test_settings_that_are_not_set_are_asked_for_but_not_what_saving_makes() -> None:
    fault = compiled(URL, settings=None).fault
    assert fault == "Webhooks settings are not set: url: Webhooks url is not set"
    fault = compiled(URL, settings=None, slug="slack").fault
    assert fault == "Slack settings are not set: mode incoming_webhook needs webhook_url"


@pytest.mark.parametrize(("epoch", "probation"), [(3, True), (2, False), (None, False)])
def test_probation_is_of_one_epoch(epoch: int | None, *, probation: bool) -> None:
    assert compiled(URL, probation_epoch=epoch).on_probation is probation


def test_all_is_read_where_something_changed_and_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'test.db'}")
    upgrade(engine)
    with engine.begin() as connection:
        create_project(connection, "A", "prj_a")
        made = create_integration(
            connection, "prj_a", title="A", slug="webhooks", platform="iOS", actor="op"
        )
    read = Directory(engine, RING, WORKER)
    read.refresh()
    first, seen = read.get(made.id), read.taken_at
    read.refresh()
    assert (read.get(made.id), read.taken_at) == (first, seen)
    assert read.read_at > seen
    assert not read.targets("prj_a", "iOS")
    with engine.begin() as connection:
        set_status(connection, made.id, 1, "op")
    read.refresh()
    assert read.taken_at > seen
    assert [one.id for one in read.targets("prj_a", "iOS")] == [made.id]
    seen = read.taken_at
    monkeypatch.setattr(directory, "WHOLE_SECONDS", 0)
    read.refresh()
    assert read.taken_at > seen
    engine.dispose()


def test_it_is_read_soon_where_somebody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "REFRESH_SECONDS", 600)
    engine = make_engine(f"sqlite:///{tmp_path / 'test.db'}")
    upgrade(engine)
    read = Directory(engine, RING, WORKER)
    read.refresh()
    read.start()
    before = time.monotonic()
    assert read.holds_from < before
    read.ask()
    while read.holds_from < before:
        assert time.monotonic() < before + 60
        time.sleep(0.01)
    read.stop()
    engine.dispose()
