"""The event: one thing that happened to one user. Immutable, the same for every adapter.

Texts are "" and objects None where the producer did not know. Amounts keep the producer's digits.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from hashlib import sha1
from typing import Any
from uuid import NAMESPACE_URL

import msgspec

_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_NAMESPACE = sha1(NAMESPACE_URL.bytes + b"onward:", usedforsecurity=False)
_VARIANTS = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))  # RFC 9562's, by hex digit


class Money(msgspec.Struct, frozen=True, gc=False):
    """An amount in major units of `currency` (ISO 4217), and the same in US dollars.

    Refunds are negative. `is_proceed`: the value is already after commission; `proceeds_rate` is
    the percentage the developer keeps, None where unknown.
    """

    value: Decimal
    value_usd: Decimal
    currency: str
    is_proceed: bool = False
    proceeds_rate: Decimal | None = None


class Transaction(msgspec.Struct, frozen=True, gc=False):
    """The store's transaction; times are Unix seconds, None where unknown or not applicable."""

    transaction_id: str = ""
    original_transaction_id: str = ""
    transaction_date: int | None = None
    expires: int | None = None
    grace_period_expires: int | None = None


class Device(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The user's device. `att_status`: 0 not determined, 1 restricted, 2 denied, 3 authorised."""

    model: str = ""
    brand: str = ""
    os_version: str = ""
    app_version: str = ""
    app_id: str = ""
    locale: str = ""
    timezone: str = ""
    user_agent: str = ""
    att_status: int | None = None
    limit_ad_tracking: bool | None = None

    @property
    def language(self) -> str:
        """The first part of the locale: "pt" of "pt_PT"."""
        return re.split(r"[_-]", self.locale)[0]


class Event(msgspec.Struct, frozen=True, gc=False):
    """An accepted event; see the field table of the event reference in the README.

    `name` is canonical. `time` and `created_at` are Unix seconds. `extras` are the members the
    catalogue does not know; only the webhook and the buckets pass them on.
    """

    id: str
    project_id: str
    name: str
    platform: str
    environment: str
    time: int
    created_at: int
    user_id: str = ""
    identity_id: str = ""
    custom_user_id: str = ""
    advertiser_id: str = ""
    device_id: str = ""
    product_id: str = ""
    old_product_id: str = ""
    revenue: Money | None = None
    price: Money | None = None
    transaction: Transaction = Transaction()
    properties: Mapping[str, str] = {}
    ip: str = ""
    country: str = ""
    device: Device = Device()
    installed_at: int | None = None
    asa_attribution: Mapping[str, Any] | None = None
    extras: Mapping[str, Any] = {}

    @property
    def sandbox(self) -> bool:
        """Whether it is a purchase in a store's test environment: no real money."""
        return self.environment == "sandbox"

    @property
    def stable_id(self) -> str:
        """A UUID for upstreams that want one: the same on every attempt, other for a refund."""
        if len(self.id) == 36 and _UUID.fullmatch(self.id):
            return self.id.lower()
        return _uuid5(f"{self.project_id}/{self.id}")

    @property
    def user_key(self) -> str:
        """What tells users of a project apart, for order and attribution; "" without any id."""
        return self.user_id or self.identity_id or self.custom_user_id or self.device_id


def _uuid5(name: str) -> str:
    """Return what `str(uuid.uuid5(NAMESPACE_URL, "onward:" + name))` does, many times as fast."""
    digest = _NAMESPACE.copy()
    digest.update(name.encode())
    text = digest.hexdigest()
    variant = _VARIANTS[text[16]]
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{variant}{text[17:20]}-{text[20:32]}"
