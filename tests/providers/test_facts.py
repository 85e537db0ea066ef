"""What the kit reads of a user's state from an event."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from providers.kit import RevenueSettings, fact_of, is_active
from tests.providers.samples import event

NOW = 1767225600


@pytest.mark.parametrize(
    ("name", "transaction", "active"),
    [
        ("trial_started", {}, True),
        ("subscription_renewed", {}, True),
        ("trial_canceled", {"expires": NOW + 1}, True),
        ("subscription_canceled", {"expires": NOW}, False),
        ("subscription_canceled", {}, None),
        ("subscription_billing_retry", {"expires": NOW}, False),
        ("subscription_billing_retry", {"grace_period_expires": NOW + 1}, True),
        ("subscription_billing_retry", {}, False),
        ("subscription_expired", {}, False),
        ("in_app_purchase", {}, None),
        ("subscription_paused", {}, None),
    ],
)
def test_access(name: str, transaction: dict[str, int], active: bool | None) -> None:
    assert is_active(event(event_name=name, transaction=transaction)) is active


@pytest.mark.parametrize(
    ("fact", "told"),
    [
        ("event_name", "Renewed"),
        ("store", "app_store"),
        ("period_type", "normal"),
        ("transaction.expires", datetime(2026, 2, 1, tzinfo=UTC)),
        ("purchase_date", datetime(2026, 1, 1, tzinfo=UTC)),
        ("revenue.value", Decimal("6.79")),
        ("revenue_usd", Decimal("8.49")),
        ("currency", "GBP"),
        ("properties.cohort", "winter"),
        ("cohort", "winter"),
        ("grace_period_expires", None),
        ("unheard_of", None),
    ],
)
def test_facts(fact: str, told: Any) -> None:
    settings = RevenueSettings(event_names={"subscription_renewed": "Renewed"}, revenue_basis="net")
    assert fact_of(event(properties={"cohort": "winter"}), fact, settings) == told


def test_tells_no_amount_where_it_is_switched_off() -> None:
    assert fact_of(event(), "revenue", RevenueSettings(send_revenue=False)) is None
