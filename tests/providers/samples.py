"""Events and calls that every provider's tables share."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from providers.kit import (
    Context,
    Event,
    InvalidSettings,
    Plan,
    Provider,
    Response,
    Verdict,
    plan,
    read_settings,
)
from providers.kit.decode import event_from, parse

NOW = 1767225900  # 2026-01-01T00:05:00Z
PAGE = "<!DOCTYPE html><html><title>Sign in</title>"  # of a proxy, or of another site
FULL: dict[str, Any] = {
    "id": "6a6527b6-e423-53db-a794-7a4b9dbea32f",
    "project_id": "prj_acme",
    "event_name": "subscription_renewed",
    "platform": "iOS",
    "environment": "production",
    "time": 1767225600,
    "created_at": 1767225616,
    "user_id": "QON_5b1f0c9e7a3d4d22",
    "identity_id": "acct-40001",
    "advertiser_id": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
    "device_id": "2C1D0E9F-8A7B-4C6D-9E5F-4A3B2C1D0E9F",
    "product_id": "com.acme.pro.month",
    "revenue": {
        "value": 7.99,
        "value_usd": 9.99,
        "currency": "GBP",
        "is_proceed": 0,
        "proceeds_rate": 85,
    },
    "price": {"value": 7.99, "value_usd": 9.99, "currency": "GBP"},
    "transaction": {
        "transaction_id": 2000000812345678,
        "original_transaction_id": 2000000700000001,
        "transaction_date": 1767225600,
        "expires": 1769904000,
    },
    "country": "GB",
}


def event(**changes: Any) -> Event:
    """Return the sample renewal with `changes`; a value of None takes the member away."""
    raw = json.dumps({**FULL, **changes}).encode()
    return event_from(parse(raw), NOW)


def refund(**changes: Any) -> Event:
    """Return a refund of the sample renewal."""
    money = {"value": -7.99, "value_usd": -9.99, "currency": "GBP"}
    return event(
        **{
            "id": "f2b1d1d4-5a0e-5d4e-8f30-0c8a8a3f9b21",
            "event_name": "subscription_refunded",
            "revenue": money,
            **changes,
        }
    )


def trial(**changes: Any) -> Event:
    """Return a trial start: no revenue."""
    return event(
        **{
            "id": "0d2f8c7e-5b1b-5f6c-9b6a-2a54f5f1f7aa",
            "event_name": "trial_started",
            "revenue": None,
            **changes,
        }
    )


def context(**changes: Any) -> Context:
    """Return the context of an attempt at NOW."""
    fixed = {"project_id": "prj_acme", "integration_id": "c9VdLs3H"}
    return Context(now=datetime.fromtimestamp(NOW, UTC), **{**fixed, **changes})


def planned(
    provider: Provider[Any], settings: dict[str, Any], *events: Event, **changes: Any
) -> Plan:
    """Return what the worker would send."""
    read = read_settings(provider.title, provider.settings, settings)
    return plan(provider, events, read, context(**changes))


def classified(
    provider: Provider[Any],
    settings: dict[str, Any],
    status: int,
    body: Any = b"",
    /,
    *events: Event,
    headers: dict[str, str] | None = None,
    request: int = 0,
) -> Verdict:
    """Return what an answer to the (`request`-th) request for `events` means."""
    read = read_settings(provider.title, provider.settings, settings)
    sent = plan(provider, events or (event(),), read, context()).requests[request]
    raw = (
        body
        if isinstance(body, bytes)
        else body.encode()
        if isinstance(body, str)
        else json.dumps(body).encode()
    )
    answer = Response(status, headers or {}, raw, datetime.fromtimestamp(NOW, UTC))
    return provider.classify(sent, answer, read)


def fault(provider: Provider[Any], settings: dict[str, Any]) -> tuple[str, str]:
    """Return the one fault of settings that will not do: its key, and what is wrong."""
    with pytest.raises(InvalidSettings) as caught:
        read_settings(provider.title, provider.settings, settings)
    (only,) = caught.value.faults
    return only
