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

DIGITS = 19  # of -10000000000.000000
NO_TRANSACTION = Transaction()
NO_DEVICE = Device()

# The few there are come again and again; all are short, so that what is remembered stays small.
_is_project = lru_cache(4096)(PROJECT.fullmatch)
_is_property = lru_cache(4096)(PROPERTY.fullmatch)
_is_currency = lru_cache(1024)(CURRENCY.fullmatch)
_is_country = lru_cache(1024)(COUNTRY.fullmatch)


class Unusual(ValueError):
    """The event, if it is one, is for the careful reading."""


@lru_cache(4096)
def _name(written: str) -> str:
    name = ALIASES.get(written, written)
    if not NAME.fullmatch(name) or name == "test":
        raise Unusual
    return name


@lru_cache(512)  # 7 MB at worst
def _check_properties(keys: tuple[str, ...]) -> None:
    if not all(map(_is_property, keys)):
        raise Unusual


@lru_cache(8192)
def _decimal(digits: str) -> Decimal:
    """Return an amount in its own digits (a rate of the usual form is one too); raise Unusual."""
    number = amount(Decimal(digits)) if len(digits) <= DIGITS else None
    if number is None:
        raise Unusual
    return number


class _Price(Struct, forbid_unknown_fields=True, gc=False):
    value: Any  # of `_decimal`, or int: where Decimal is asked for, text passes too
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


class _ButForExtras(_Usual, forbid_unknown_fields=False, gc=False):
    pass


_decoder = msgspec.json.Decoder(_Usual, float_hook=_decimal)
_decoder_but_for_extras = msgspec.json.Decoder(_ButForExtras, float_hook=_decimal)


def usual_event(raw: bytes, now: int) -> Event:
    """Return the event in `raw`, which has no U+0000; raise Unusual."""
    try:
        return _event(_decoder.decode(raw), now, {})
    except (msgspec.DecodeError, UnicodeDecodeError, ArithmeticError, RecursionError) as error:
        raise Unusual from error


def usual_but_for_extras(raw: bytes, value: dict[str, Any], now: int) -> Event:
    """Return the event in `raw`, which is read as `value`, whatever its extras; raise Unusual."""
    try:
        return _event(_decoder_but_for_extras.decode(raw), now, extras_of(value))
    except msgspec.DecodeError as error:
        raise Unusual from error


def _event(usual: _Usual, now: int, extras: dict[str, Any]) -> Event:
    name = _name(usual.event_name)
    revenue = _revenue(usual.revenue) if usual.revenue else None
    price = _money(usual.price) if usual.price else None
    properties = usual.properties or {}
    _check_properties(tuple(properties))
    attribution = usual.asa_attribution
    latest = now + DAY
    if (
        not ID.fullmatch(usual.id)
        or not _is_project(usual.project_id)
        or (usual.country and not _is_country(usual.country))
        or (usual.ip and not is_address(usual.ip))
        or (revenue and wrong_sign(name, revenue))
        or (price and price.value.is_signed())
        or usual.time > latest
        or (usual.created_at and usual.created_at > latest)
        or (usual.installed_at and usual.installed_at > latest)
    ):
        raise Unusual
    return Event(  # by position, as below: by name takes four times as long
        usual.id,
        usual.project_id,
        name,
        usual.platform,
        usual.environment,
        usual.time,
        usual.created_at or now,
        usual.user_id or "",
        usual.identity_id or "",
        usual.custom_user_id or "",
        usual.advertiser_id or "",
        usual.device_id or "",
        usual.product_id or "",
        usual.old_product_id or "",
        revenue,
        price,
        _transaction(usual.transaction) if usual.transaction else NO_TRANSACTION,
        properties,
        usual.ip or "",
        usual.country or "",
        _device(usual.device) if usual.device else NO_DEVICE,
        usual.installed_at,
        None if attribution is None else attribution_from(attribution),
        extras,
    )


def _revenue(read: _Revenue) -> Money:
    percent = read.proceeds_rate
    if percent is not None:
        percent = rate(percent)
        if percent is None:
            raise Unusual
    return _money(read, bool(read.is_proceed), percent)


def _money(read: _Price, is_proceed: bool = False, percent: Decimal | None = None) -> Money:
    value, usd = read.value, read.value_usd
    if type(value) is not Decimal:
        value = amount(value)
    if type(usd) is not Decimal:
        usd = amount(usd)
    if (
        value is None
        or usd is None
        or value.is_signed() != usd.is_signed()
        or not _is_currency(read.currency)
    ):
        raise Unusual
    return Money(value, usd, read.currency, is_proceed, percent)


def _transaction(made: _Transaction) -> Transaction:
    first, own = made.original_transaction_id, made.transaction_id
    return Transaction(
        "" if own is None else str(own),
        "" if first is None else str(first),
        made.transaction_date,
        made.expires,
        made.grace_period_expires,
    )


def _device(device: _Device) -> Device:
    return Device(
        device.model or "",
        device.brand or "",
        device.os_version or "",
        device.app_version or "",
        device.app_id or "",
        device.locale or "",
        device.timezone or "",
        device.user_agent or "",
        device.att_status,
        device.limit_ad_tracking,
    )
