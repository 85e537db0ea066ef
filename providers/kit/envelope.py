"""Parts of the event as JSON, as the platform's own webhook spells them."""

from providers.kit.event import Device, Event, Money
from providers.kit.interface import Json

NO_DEVICE = Device()


def money_body(money: Money | None) -> dict[str, Json] | None:
    """Return a price: amount, the same in US dollars, currency."""
    if money is None:
        return None
    return {"value": money.value, "value_usd": money.value_usd, "currency": money.currency}


def revenue_body(money: Money | None) -> dict[str, Json] | None:
    """Return a price and how it relates to the proceeds."""
    if money is None:
        return None
    return {
        "value": money.value,
        "value_usd": money.value_usd,
        "currency": money.currency,
        "is_proceed": int(money.is_proceed),
        "proceeds_rate": money.proceeds_rate,
    }


def transaction_body(event: Event) -> dict[str, Json]:
    """Return the store's transaction; ids are text, "" where unknown, times Unix seconds."""
    made = event.transaction
    return {
        "transaction_id": made.transaction_id,
        "original_transaction_id": made.original_transaction_id,
        "expires": made.expires,
        "grace_period_expires": made.grace_period_expires,
        "transaction_date": made.transaction_date,
    }


def additions(event: Event, own: dict[str, Json]) -> dict[str, Json]:
    """Return what is known beyond the platform's contract: country, device, extras.

    An extra never takes the place of a member of `own`.
    """
    found: dict[str, Json] = {}
    if event.country:
        found["country"] = event.country
    if event.device != NO_DEVICE:
        found["device"] = event.device  # without what is not known
    if event.installed_at:
        found["installed_at"] = event.installed_at
    for key in sorted(event.extras):
        if key not in own:
            found[key] = event.extras[key]
    return found
