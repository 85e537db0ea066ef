"""The careful reading of an event: every rule of the field table, and every fault by its path.

`decode.py` comes here with what `usual.py` did not take; the rules are the same for both.
"""

import ipaddress
import re
from decimal import Decimal
from typing import Any, TypeAlias

import msgspec

from providers.kit.catalogue import ALIASES, MONEY_IN, MONEY_OUT
from providers.kit.event import Device, Event, Money, Transaction

EARLIEST = 1_199_145_600  # 2008-01-01, before any app store
LATEST_EXPIRY = 4_102_444_800  # 2100-01-01
DAY = 86_400
MILLISECONDS = 99_999_999_999  # as seconds, the year 5138: anything above was meant otherwise
AMOUNT = 10**10
MICRO = Decimal("0.000001")
PROPERTIES = 100
PROPERTY_BYTES = 4096

Fault: TypeAlias = dict[str, str]

ID = re.compile(r"[A-Za-z0-9_:-]{1,128}")
PROJECT = re.compile(r"[A-Za-z0-9_-]{1,64}")
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
CURRENCY = re.compile(r"[A-Z]{3}")
COUNTRY = re.compile(r"[A-Z]{2}")
PROPERTY = re.compile(r"(?!_(?!q_))(?=.*[A-Za-z])[-a-zA-Z0-9_.:]{1,80}")
_OCTETS = frozenset(map(str, range(256)))
_STORES = ("iOS", "Android", "Stripe")
_ENVIRONMENTS = ("production", "sandbox")
_TEXTS = {  # field: longest, in characters
    "user_id": 256,
    "identity_id": 256,
    "custom_user_id": 256,
    "advertiser_id": 64,
    "device_id": 128,
    "product_id": 256,
    "old_product_id": 256,
}
_DEVICE_TEXTS = (
    "model",
    "brand",
    "os_version",
    "app_version",
    "app_id",
    "locale",
    "timezone",
    "user_agent",
)
_APPLE_KEYS = {
    "attribution": "attributed",
    "orgId": "org_id",
    "campaignId": "campaign_id",
    "adGroupId": "ad_group_id",
    "keywordId": "keyword_id",
    "adId": "ad_id",
    "countryOrRegion": "country_or_region",
    "conversionType": "conversion_type",
    "claimType": "claim_type",
    "clickDate": "click_date",
    "impressionDate": "impression_date",
    "supplyPlacement": "supply_placement",
}
KNOWN = frozenset(
    {
        "id",
        "project_id",
        "event_name",
        "platform",
        "environment",
        "time",
        "created_at",
        *_TEXTS,
        "revenue",
        "price",
        "transaction",
        "properties",
        "ip",
        "country",
        "device",
        "installed_at",
        "asa_attribution",
    }
)

_encode = msgspec.json.Encoder(decimal_format="number").encode


def fault_text(fault: Fault) -> str:
    """Return a fault as a sentence: what it is about, and what would be right."""
    return f"{fault['path'] or 'event'} {fault['message']}"


class InvalidEvent(ValueError):
    """The event is refused; `faults` are all of them, as {"path", "message"}."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("; ".join(map(fault_text, faults)))


# --- rules both readings share ------------------------------------------------------------------


def plain_digits(number: Decimal) -> Decimal:
    """Return the number in its own digits, but no exponent, no -0 and no more than 6 decimals."""
    text = str(number)
    if number and "E" not in text and len(text.partition(".")[2]) <= 6:
        return number
    return Decimal(f"{(number.quantize(MICRO) + 0).normalize():f}")


def amount(number: Any) -> Decimal | None:
    """Return an amount of money with its own digits, or None where it will not do."""
    if type(number) is int:
        return Decimal(number) if -AMOUNT <= number <= AMOUNT else None
    if type(number) is not Decimal:
        return None
    text = str(number)
    if len(text) <= 8 and number and "E" not in text:  # too few digits to break any rule
        return number
    if not -AMOUNT <= number <= AMOUNT:
        return None
    plain = plain_digits(number)
    return plain if plain == number else None


def rate(number: Any) -> Decimal | None:
    """Return a percentage to 6 decimals, or None where it will not do."""
    if type(number) not in (int, Decimal) or not 0 <= number <= 100:
        return None
    return Decimal(number) if type(number) is int else plain_digits(number)


def is_address(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address, without a zone."""
    octets = text.split(".", 4)
    if len(octets) == 4 and _OCTETS.issuperset(octets):
        return True
    try:
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False


def extras_of(value: dict[str, Any]) -> dict[str, Any]:
    """Return the members the field table does not know."""
    return {key: part for key, part in value.items() if key not in KNOWN}


def wrong_sign(name: str, revenue: Money | None) -> str | None:
    """Return what is wrong with the sign of an event's revenue."""
    if revenue is None:
        return None
    if name in MONEY_OUT and revenue.value > 0:
        return f"must not be positive: {name} gives money back"
    if name in MONEY_IN and name != "subscription_upgraded" and revenue.value < 0:
        return f"must not be negative for {name}"
    return None


def attribution_from(value: dict[str, Any]) -> dict[str, Any]:
    """Return an Apple Ads attribution in our form, from ours or from Apple's own.

    Integers become text (they exceed 2^53), unknown keys are kept, and without a flag it counts as
    attributed if it has a campaign.
    """
    ours = _APPLE_KEYS.get
    read = {ours(k, k): str(part) if type(part) is int else part for k, part in value.items()}
    if not isinstance(read.get("attributed"), bool):
        read["attributed"] = bool(read.get("campaign_id"))
    return read


def event_from(value: dict[str, Any], now: int) -> Event:
    """Return the event of a decoded object; raise InvalidEvent with every fault."""
    return _Reader(value, now).event()


def _shown(value: Any) -> str:
    text = _encode(value).decode("utf-8", "replace")
    return text if len(text) <= 60 else f"{text[:60]}…"


def _path(*steps: str) -> str:
    return ".".join(s if len(s) <= 80 and s.isprintable() else _shown(s) for s in steps if s)


def _amount_fault(number: Any) -> str:
    if number is None:
        return "is required: a number"
    if isinstance(number, bool) or not isinstance(number, int | Decimal):
        return f"must be a number, got {_shown(number)}"
    if not -AMOUNT <= number <= AMOUNT:
        return "must be between -10^10 and 10^10"
    return f"must have at most 6 decimals, got {_shown(number)}"


class _Reader:
    """One pass over one decoded object; collects faults instead of stopping at the first."""

    def __init__(self, value: dict[str, Any], now: int) -> None:
        self.value = value
        self.now = now
        self.faults: list[Fault] = []

    def event(self) -> Event:
        value = self.value
        self._clean_text(value)
        name = self._matching("event_name", NAME, "lower-case letters, digits and _, at most 64")
        name = ALIASES.get(name, name)
        if name == "test":
            self._fault("event_name", '"test" is reserved for the settings test')
        fields: dict[str, Any] = {
            "id": self._matching("id", ID, "1 to 128 of letters, digits, _, : and -"),
            "project_id": self._matching("project_id", PROJECT, "1 to 64 of letters, digits, _, -"),
            "name": name,
            "platform": self._one_of("platform", _STORES),
            "environment": self._one_of("environment", _ENVIRONMENTS),
            "time": self._time("time", required=True) or 0,
            "created_at": self._time("created_at") or self.now,
            "revenue": self._money("revenue"),
            "price": self._money("price"),
            "transaction": self._transaction(),
            "properties": self._properties(),
            "ip": self._ip(),
            "country": self._country(),
            "device": self._device(),
            "installed_at": self._time("installed_at"),
            "asa_attribution": self._attribution(),
            "extras": extras_of(value),
        }
        for key, longest in _TEXTS.items():
            fields[key] = self._text(value, key, key, longest)
        sign = wrong_sign(name, fields["revenue"])
        if sign:
            self._fault("revenue.value", sign)
        if self.faults:
            raise InvalidEvent(self.faults)
        return Event(**fields)

    def _fault(self, path: str, message: str) -> None:
        self.faults.append({"path": path, "message": message})

    def _clean_text(self, value: Any, path: str = "") -> None:
        """Refuse U+0000 anywhere: databases and upstreams cannot hold it."""
        if isinstance(value, str):
            if "\0" in value:
                self._fault(path, "contains U+0000")
        elif isinstance(value, dict):
            for key, part in value.items():
                self._clean_text(key, _path(path, key))
                self._clean_text(part, _path(path, key))
        elif isinstance(value, list):
            for part in value:
                self._clean_text(part, path)

    def _text(self, parent: dict[str, Any], key: str, path: str, longest: int) -> str:
        text = parent.get(key)
        if text is None:
            return ""
        if not isinstance(text, str):
            self._fault(path, f"must be text, got {_shown(text)}")
            return ""
        if len(text) > longest:
            self._fault(path, f"must be at most {longest} characters, got {len(text)}")
        return text

    def _required(self, key: str) -> str:
        text = self.value.get(key)
        if text is None or text == "":
            self._fault(key, "is required")
        elif not isinstance(text, str):
            self._fault(key, f"must be text, got {_shown(text)}")
        else:
            return text
        return ""

    def _matching(self, key: str, pattern: re.Pattern[str], words: str) -> str:
        text = self._required(key)
        if text and not pattern.fullmatch(text):
            self._fault(key, f"must be {words}, got {_shown(text)}")
        return text

    def _one_of(self, key: str, allowed: tuple[str, ...]) -> str:
        text = self._required(key)
        if key == "environment" and text == "prod":
            text = "production"
        if text and text not in allowed:
            self._fault(
                key, f"must be one of {', '.join(allowed)} (case-sensitive), got {_shown(text)}"
            )
        return text

    def _integer(self, parent: dict[str, Any], key: str, path: str) -> int | None:
        number = parent.get(key)
        if number is None or number == "":
            return None
        if (
            isinstance(number, Decimal)
            and -(10**15) < number < 10**15
            and number == number.to_integral_value()
        ):
            return int(number)
        if isinstance(number, bool) or not isinstance(number, int):
            self._fault(path, f"must be an integer, got {_shown(number)}")
            return None
        return number

    def _time(self, key: str, *, required: bool = False) -> int | None:
        number = self._integer(self.value, key, key)
        if number is None:
            if required and self.value.get(key) in (None, ""):
                self._fault(key, "is required: Unix seconds")
            return None
        if number > MILLISECONDS:
            self._fault(key, "looks like milliseconds; send seconds")
        elif number < EARLIEST:
            self._fault(key, f"is before 2008, got {_shown(number)}; send Unix seconds")
        elif number > self.now + DAY:
            self._fault(key, f"is more than a day ahead of our clock, got {number}")
        return number

    def _object(self, key: str) -> dict[str, Any] | None:
        value = self.value.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, dict):
            self._fault(key, f"must be an object, got {_shown(value)}")
            return None
        return value

    def _money(self, key: str) -> Money | None:
        value = self._object(key)
        if value is None:
            return None
        own = self._amount(value, key, "value")
        usd = self._amount(value, key, "value_usd")
        currency = value.get("currency")
        if not isinstance(currency, str) or not CURRENCY.fullmatch(currency):
            self._fault(
                f"{key}.currency",
                f"must be three capital letters (ISO 4217), got {_shown(currency)}",
            )
            currency = ""
        if own is not None and usd is not None and own * usd < 0:
            self._fault(f"{key}.value_usd", "must have the sign of value")
        if key == "price" and min(own or 0, usd or 0) < 0:
            self._fault("price.value", "must not be negative, nor value_usd")
        return Money(
            value=own or Decimal(0),
            value_usd=usd or Decimal(0),
            currency=currency,
            is_proceed=self._flag(value, key) if key == "revenue" else False,
            proceeds_rate=self._rate(value, key) if key == "revenue" else None,
        )

    def _amount(self, parent: dict[str, Any], path: str, key: str) -> Decimal | None:
        read = amount(parent.get(key))
        if read is None:
            self._fault(f"{path}.{key}", _amount_fault(parent.get(key)))
        return read

    def _flag(self, parent: dict[str, Any], path: str) -> bool:
        flag = parent.get("is_proceed")
        if flag in (None, ""):
            return False
        if isinstance(flag, str) or flag not in (0, 1):
            self._fault(f"{path}.is_proceed", f"must be 0 or 1, got {_shown(flag)}")
        return bool(flag)

    def _rate(self, parent: dict[str, Any], path: str) -> Decimal | None:
        number = parent.get("proceeds_rate")
        if number in (None, ""):
            return None
        read = rate(number)
        if read is None:
            self._fault(
                f"{path}.proceeds_rate", f"must be a number from 0 to 100, got {_shown(number)}"
            )
        return read

    def _transaction(self) -> Transaction:
        value = self._object("transaction")
        if value is None:
            return Transaction()
        dates = {
            key: self._date(value, key)
            for key in ("transaction_date", "expires", "grace_period_expires")
        }
        return Transaction(
            transaction_id=self._store_id(value, "transaction_id"),
            original_transaction_id=self._store_id(value, "original_transaction_id"),
            **dates,
        )

    def _store_id(self, parent: dict[str, Any], key: str) -> str:
        number = parent.get(key)
        if type(number) is int and 0 <= number < 10**255:
            return str(number)  # Apple's exceed 2^53: never through a float
        return self._text(parent, key, f"transaction.{key}", 255)

    def _date(self, parent: dict[str, Any], key: str) -> int | None:
        path = f"transaction.{key}"
        number = self._integer(parent, key, path)
        if number is not None and not 0 <= number <= LATEST_EXPIRY:
            self._fault(
                path,
                "looks like milliseconds; send seconds"
                if number > MILLISECONDS
                else "must be Unix seconds up to the year 2100",
            )
        return number

    def _properties(self) -> dict[str, str]:
        value = self._object("properties") or {}
        if len(value) > PROPERTIES:
            self._fault("properties", f"must have at most {PROPERTIES} keys, got {len(value)}")
            return {}
        read = {}
        for key, part in value.items():
            path = _path("properties", key)
            if part is None:
                continue
            if not PROPERTY.fullmatch(key):
                self._fault(
                    path,
                    "is not a property key: 1 to 80 of letters, digits, - _ . :, with a letter, "
                    "and no leading _ but for _q_",
                )
                continue
            if isinstance(part, dict | list):
                self._fault(path, "must be text")
                continue
            text = part if isinstance(part, str) else _encode(part).decode()
            if len(text.encode()) > PROPERTY_BYTES:
                self._fault(path, f"must be at most {PROPERTY_BYTES} bytes")
                continue
            read[key] = text
        return read

    def _ip(self) -> str:
        text = self._text(self.value, "ip", "ip", 64)
        if text and not is_address(text):
            self._fault("ip", f"must be an IPv4 or IPv6 address, got {_shown(text)}")
        return text

    def _country(self) -> str:
        text = self._text(self.value, "country", "country", 64)
        if text and not COUNTRY.fullmatch(text):
            self._fault("country", f"must be two capital letters (ISO 3166), got {_shown(text)}")
        return text

    def _device(self) -> Device:
        value = self._object("device")
        if value is None:
            return Device()
        status = self._integer(value, "att_status", "device.att_status")
        if status is not None and not 0 <= status <= 3:
            self._fault("device.att_status", f"must be 0 to 3, got {_shown(status)}")
        limited = value.get("limit_ad_tracking")
        if limited == "":
            limited = None
        if limited is not None and not isinstance(limited, bool):
            self._fault("device.limit_ad_tracking", f"must be true or false, got {_shown(limited)}")
        texts = {key: self._text(value, key, f"device.{key}", 512) for key in _DEVICE_TEXTS}
        return Device(att_status=status, limit_ad_tracking=limited, **texts)

    def _attribution(self) -> dict[str, Any] | None:
        value = self._object("asa_attribution")
        return None if value is None else attribution_from(value)
