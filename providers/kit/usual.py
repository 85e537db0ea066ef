"""The quick reading: events of the usual form in one typed pass, all others left to `reader.py`.

It takes nothing the careful reading refuses, and reads what it takes the same. Members it does not
know are left too: what is skipped in a typed pass is not checked for being text at all.
"""

from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from providers.kit.catalogue import ALIASES
from providers.kit.event import Device, Event, Money, Transaction
from providers.kit.reader import (
    COUNTRY,
    CURRENCY,
    DAY,
    EARLIEST,
    ID,
    KNOWN,
    LATEST_EXPIRY,
    NAME,
    PROJECT,
    PROPERTIES,
    PROPERTY,
    amount,
    attribution_from,
    extras_of,
    is_address,
    rate,
    wrong_sign,
)

Text2: TypeAlias = Annotated[str, Meta(max_length=2)] | None
Text64: TypeAlias = Annotated[str, Meta(max_length=64)] | None
Text128: TypeAlias = Annotated[str, Meta(max_length=128)] | None
Text256: TypeAlias = Annotated[str, Meta(max_length=256)] | None
Text512: TypeAlias = Annotated[str, Meta(max_length=512)] | None
Whole: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
StoreId: TypeAlias = Annotated[str, Meta(max_length=255)] | Whole | None
Past: TypeAlias = Annotated[int, Meta(ge=EARLIEST)]
Date: TypeAlias = Annotated[int, Meta(ge=0, le=LATEST_EXPIRY)] | None
Key: TypeAlias = Annotated[str, Meta(max_length=80)]
Value: TypeAlias = Annotated[str, Meta(max_length=1024)]  # in characters: at most 4096 bytes

# The few there are come again and again; all are short, so that what is remembered stays small.
_is_project = lru_cache(4096)(PROJECT.fullmatch)
_is_name = lru_cache(4096)(NAME.fullmatch)
_is_property = lru_cache(4096)(PROPERTY.fullmatch)
_is_currency = lru_cache(1024)(CURRENCY.fullmatch)
_is_country = lru_cache(1024)(COUNTRY.fullmatch)


class _Price(Struct, forbid_unknown_fields=True, gc=False):
    value: Any  # Decimal or int: where Decimal is asked for, text passes too
    value_usd: Any
    currency: Annotated[str, Meta(max_length=3)]


class _Revenue(_Price, forbid_unknown_fields=True, gc=False):
    is_proceed: Literal[0, 1] | bool | None = None
    proceeds_rate: Any = None


class _Transaction(Struct, forbid_unknown_fields=True, gc=False):
    transaction_id: StoreId = None
    original_transaction_id: StoreId = None
    transaction_date: Date = None
    expires: Date = None
    grace_period_expires: Date = None


class _Device(Struct, forbid_unknown_fields=True, gc=False):
    model: Text512 = None
    brand: Text512 = None
    os_version: Text512 = None
    app_version: Text512 = None
    app_id: Text512 = None
    locale: Text512 = None
    timezone: Text512 = None
    user_agent: Text512 = None
    att_status: Literal[0, 1, 2, 3] | None = None
    limit_ad_tracking: bool | None = None


class _Usual(Struct, forbid_unknown_fields=True, gc=False):
    id: str
    project_id: Annotated[str, Meta(max_length=64)]
    event_name: Annotated[str, Meta(max_length=64)]
    platform: Literal["iOS", "Android", "Stripe"]
    environment: Literal["production", "sandbox"]
    time: Past
    created_at: Past | None = None
    user_id: Text256 = None
    identity_id: Text256 = None
    custom_user_id: Text256 = None
    advertiser_id: Text64 = None
    device_id: Text128 = None
    product_id: Text256 = None
    old_product_id: Text256 = None
    revenue: _Revenue | None = None
    price: _Price | None = None
    transaction: _Transaction | None = None
    properties: Annotated[dict[Key, Value], Meta(max_length=PROPERTIES)] | None = None
    ip: str | None = None
    country: Text2 = None
    device: _Device | None = None
    installed_at: Past | None = None
    asa_attribution: dict[str, str | int | bool | None] | None = None


_decoder = msgspec.json.Decoder(_Usual, float_hook=Decimal)


class Unusual(ValueError):
    """The event, if it is one, is for the careful reading."""


def usual_event(raw: bytes, now: int) -> Event:
    """Return the event in `raw`, which has no U+0000; raise Unusual."""
    try:
        return _event(_decoder.decode(raw), now, {})
    except (msgspec.DecodeError, UnicodeDecodeError, ArithmeticError, RecursionError) as error:
        raise Unusual from error


def usual_but_for_extras(value: dict[str, Any], now: int) -> Event:
    """Return the event of a decoded object, which may have members nobody knows; raise Unusual."""
    known = {key: part for key, part in value.items() if key in KNOWN}
    try:
        return _event(msgspec.convert(known, _Usual), now, extras_of(value))
    except msgspec.ValidationError as error:
        raise Unusual from error


def _event(usual: _Usual, now: int, extras: dict[str, Any]) -> Event:
    name = ALIASES.get(usual.event_name, usual.event_name)
    revenue = _revenue(usual.revenue) if usual.revenue else None
    properties = usual.properties or {}
    attribution = usual.asa_attribution
    latest = now + DAY
    if (
        not ID.fullmatch(usual.id)
        or not _is_project(usual.project_id)
        or not _is_name(name)
        or name == "test"
        or (usual.country and not _is_country(usual.country))
        or (usual.ip and not is_address(usual.ip))
        or (properties and not all(map(_is_property, properties)))
        or (revenue and wrong_sign(name, revenue))
        or usual.time > latest
        or (usual.created_at and usual.created_at > latest)
        or (usual.installed_at and usual.installed_at > latest)
    ):
        raise Unusual
    return Event(
        id=usual.id,
        project_id=usual.project_id,
        name=name,
        platform=usual.platform,
        environment=usual.environment,
        time=usual.time,
        created_at=usual.created_at or now,
        user_id=usual.user_id or "",
        identity_id=usual.identity_id or "",
        custom_user_id=usual.custom_user_id or "",
        advertiser_id=usual.advertiser_id or "",
        device_id=usual.device_id or "",
        product_id=usual.product_id or "",
        old_product_id=usual.old_product_id or "",
        revenue=revenue,
        price=_price(usual.price) if usual.price else None,
        transaction=_transaction(usual.transaction) if usual.transaction else Transaction(),
        properties=properties,
        ip=usual.ip or "",
        country=usual.country or "",
        device=_device(usual.device) if usual.device else Device(),
        installed_at=usual.installed_at,
        asa_attribution=None if attribution is None else attribution_from(attribution),
        extras=extras,
    )


def _amounts(money: _Price) -> tuple[Decimal, Decimal]:
    value, usd = amount(money.value), amount(money.value_usd)
    if value is None or usd is None or value.is_signed() != usd.is_signed():
        raise Unusual
    if not _is_currency(money.currency):
        raise Unusual
    return value, usd


def _price(money: _Price) -> Money:
    value, usd = _amounts(money)
    if value.is_signed():
        raise Unusual
    return Money(value=value, value_usd=usd, currency=money.currency)


def _revenue(money: _Revenue) -> Money:
    value, usd = _amounts(money)
    percent = money.proceeds_rate
    if percent is not None:
        percent = rate(percent)
        if percent is None:
            raise Unusual
    return Money(
        value=value,
        value_usd=usd,
        currency=money.currency,
        is_proceed=bool(money.is_proceed),
        proceeds_rate=percent,
    )


def _transaction(made: _Transaction) -> Transaction:
    first, own = made.original_transaction_id, made.transaction_id
    return Transaction(
        transaction_id="" if own is None else str(own),
        original_transaction_id="" if first is None else str(first),
        transaction_date=made.transaction_date,
        expires=made.expires,
        grace_period_expires=made.grace_period_expires,
    )


def _device(device: _Device) -> Device:
    return Device(
        model=device.model or "",
        brand=device.brand or "",
        os_version=device.os_version or "",
        app_version=device.app_version or "",
        app_id=device.app_id or "",
        locale=device.locale or "",
        timezone=device.timezone or "",
        user_agent=device.user_agent or "",
        att_status=device.att_status,
        limit_ad_tracking=device.limit_ad_tracking,
    )
