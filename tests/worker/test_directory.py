"""What the delivery loop makes of an integration's row."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from worker.directory import Integration, compile_integration
from worker.settings import load_settings
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
        "epoch": 3, "probation_epoch": None, "settings": sealed,
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


@pytest.mark.parametrize(("epoch", "probation"), [(3, True), (2, False), (None, False)])
def test_probation_is_of_one_epoch(epoch: int | None, *, probation: bool) -> None:
    assert compiled(URL, probation_epoch=epoch).on_probation is probation
