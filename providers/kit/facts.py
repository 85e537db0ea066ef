"""What an event tells about its user's state: for upstreams that keep tags or fields of a user."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import TypeAlias

from providers.kit.event import Event, Money
from providers.kit.identity import user_id
from providers.kit.money import revenue_of
from providers.kit.plan import name_of
from providers.kit.settings import Settings

Fact: TypeAlias = str | bool | Decimal | datetime | None

_STORES = {"iOS": "app_store", "Android": "play_store", "Stripe": "stripe"}
_STATUS = {
    "trial_started": "trial",
    "trial_still_active": "trial",
    "trial_canceled": "canceled",
    "trial_billing_retry": "billing_retry",
    "trial_expired": "expired",
    "trial_converted": "active",
    "subscription_started": "active",
    "subscription_renewed": "active",
    "subscription_upgraded": "active",
    "subscription_downgraded": "active",
    "subscription_product_changed": "active",
    "subscription_canceled": "canceled",
    "subscription_billing_retry": "billing_retry",
    "subscription_expired": "expired",
    "subscription_refunded": "refunded",
}


def fact_of(event: Event, name: str, settings: Settings) -> Fact:
    """Return what the event tells under `name`: a name of `FACTS`, else a user property.

    `transaction.expires` is `expires`, and so on. Amounts follow the settings' revenue switches.
    None or "" where it is not known.
    """
    fact = FACTS.get(name.removeprefix("transaction.").removeprefix("revenue."))
    return fact(event, settings) if fact else event.properties.get(name.removeprefix("properties."))


def store_of(event: Event) -> str:
    """Return the store's usual name: `app_store`, `play_store`, `stripe`."""
    return _STORES[event.platform]


def is_active(event: Event) -> bool | None:
    """Return whether the user has access after the event; None where it does not tell.

    A cancelled subscription runs to its end, and one in billing retry while its grace lasts.
    """
    status = _STATUS.get(event.name)
    if status in ("active", "trial"):
        return True
    if status in ("expired", "refunded"):
        return False
    ends = event.transaction.grace_period_expires or event.transaction.expires
    if status is None or (ends is None and status == "canceled"):
        return None
    return ends is not None and ends > event.time


def _period(event: Event) -> str:
    if event.name.startswith("trial_") and event.name != "trial_converted":
        return "trial"
    return "normal" if event.name in _STATUS else ""


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _money(event: Event, settings: Settings) -> Money | None:
    return revenue_of(event, settings, getattr(settings, "revenue_basis", "as_is"))


def _name(event: Event, settings: Settings) -> Fact:
    return name_of(event, settings, {})


def _status(event: Event, _: Settings) -> Fact:
    return _STATUS.get(event.name)


def _product(event: Event, _: Settings) -> Fact:
    return event.product_id


def _expires(event: Event, _: Settings) -> Fact:
    return _time(event.transaction.expires)


def _grace(event: Event, _: Settings) -> Fact:
    return _time(event.transaction.grace_period_expires)


def _bought(event: Event, _: Settings) -> Fact:
    return _time(event.transaction.transaction_date)


def _value(event: Event, rules: Settings) -> Fact:
    return m.value if (m := _money(event, rules)) else None


def _usd(event: Event, rules: Settings) -> Fact:
    return m.value_usd if (m := _money(event, rules)) else None


def _currency(event: Event, rules: Settings) -> Fact:
    return m.currency if (m := _money(event, rules)) else None


FACTS: Mapping[str, Callable[[Event, Settings], Fact]] = MappingProxyType(
    {
        "event_id": lambda event, _: event.stable_id,
        "event_name": _name,
        "last_event_type": _name,
        "time": lambda event, _: _time(event.time),
        "last_event_at": lambda event, _: _time(event.time),
        "installed_at": lambda event, _: _time(event.installed_at),
        "product_id": _product,
        "vendor_product_id": _product,
        "old_product_id": lambda event, _: event.old_product_id,
        "active_subscription": lambda event, _: is_active(event),
        "status": _status,
        "subscription_status": _status,
        "period_type": lambda event, _: _period(event),
        "expires": _expires,
        "expiration_at": _expires,
        "subscription_expires_at": _expires,
        "grace_period_expires": _grace,
        "grace_period_expiration_at": _grace,
        "transaction_date": _bought,
        "purchase_date": _bought,
        "purchased_at": _bought,
        "transaction_id": lambda event, _: event.transaction.transaction_id,
        "original_transaction_id": lambda e, _: e.transaction.original_transaction_id,
        "store": lambda event, _: store_of(event),
        "platform": lambda event, _: event.platform,
        "environment": lambda event, _: event.environment,
        "country": lambda event, _: event.country,
        "app_version": lambda event, _: event.device.app_version,
        "app_user_id": lambda event, _: user_id(event),
        "customer_user_id": lambda event, _: user_id(event, anonymous=False),
        "profile_id": lambda event, _: event.user_id,
        "user_id": lambda event, _: event.user_id,
        "identity_id": lambda event, _: event.identity_id,
        "custom_user_id": lambda event, _: event.custom_user_id,
        "revenue": _value,
        "value": _value,
        "revenue_usd": _usd,
        "value_usd": _usd,
        "currency": _currency,
    }
)
