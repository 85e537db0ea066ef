"""From the producer's bytes to an `Event`, or every fault that stands in the way."""

import ipaddress
import re
from decimal import Decimal
from typing import Any, TypeAlias

import msgspec

from providers.kit.catalogue import ALIASES, MONEY_IN, MONEY_OUT
from providers.kit.event import Device, Event, Money, Transaction

EVENT_BYTES = 65_536
DEPTH = 8
EARLIEST = 1_199_145_600  # 2008-01-01, before any app store
LATEST_EXPIRY = 4_102_444_800  # 2100-01-01
DAY = 86_400
AMOUNT = Decimal(10**10)
PROPERTIES = 100
PROPERTY_BYTES = 4096

Fault: TypeAlias = dict[str, str]
_decoder = msgspec.json.Decoder(float_hook=Decimal)

_ID = re.compile(r"[A-Za-z0-9_:-]{1,128}")
_PROJECT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_COUNTRY = re.compile(r"[A-Z]{2}")
_PROPERTY = re.compile(r"(?=.*[A-Za-z])[-a-zA-Z0-9_.:]{1,80}")
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
_KNOWN = frozenset(
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


class InvalidEvent(ValueError):
    """The event is refused; `faults` are all of them, as {"path", "message"}."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("; ".join(f"{f['path'] or 'event'} {f['message']}" for f in faults))


def decode(raw: bytes, now: int) -> Event:
    """Return the event in `raw` (JSON, UTF-8); `now` is Unix seconds of its reading.

    Raises:
        InvalidEvent: with every fault, each naming its path and what would be right.
    """
    return event_from(parse(raw), now)


def parse(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`, floats as Decimal; raise InvalidEvent if there is none."""
    if len(raw) > EVENT_BYTES:
        raise _refusal(f"is {len(raw):,} bytes; at most {EVENT_BYTES:,}")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _refusal("begins with a byte order mark; send plain UTF-8")
    if raw.count(b"{") + raw.count(b"[") > DEPTH and _depth(raw) > DEPTH:
        raise _refusal(f"is nested deeper than {DEPTH}")
    try:
        value = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(f"is not JSON in UTF-8 ({error})") from None
    if not isinstance(value, dict):
        raise _refusal("must be a JSON object")
    return value


def event_from(value: dict[str, Any], now: int) -> Event:
    """Return the event of a decoded object; raise InvalidEvent with every fault."""
    return _Reader(value, now).event()


def _refusal(message: str) -> InvalidEvent:
    return InvalidEvent([{"path": "", "message": message}])


def _depth(raw: bytes) -> int:
    deepest = depth = 0
    for part in re.finditer(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]', raw, re.DOTALL):
        token = part[0]
        if token in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif token in b"}]":
            depth -= 1
    return deepest


def _shown(value: Any) -> str:
    return msgspec.json.encode(value, order=None)[:60].decode("utf-8", "replace")


class _Reader:
    """One pass over one decoded object; collects faults instead of stopping at the first."""

    def __init__(self, value: dict[str, Any], now: int) -> None:
        self.value = value
        self.now = now
        self.faults: list[Fault] = []

    def event(self) -> Event:
        value = self.value
        self._clean_text(value)
        name = self._matching("event_name", _NAME, "lower-case letters, digits and _, at most 64")
        name = ALIASES.get(name, name)
        if name == "test":
            self._fault("event_name", '"test" is reserved for the settings test')
        fields: dict[str, Any] = {
            "id": self._matching("id", _ID, "1 to 128 of letters, digits, _, : and -"),
            "project_id": self._matching(
                "project_id", _PROJECT, "1 to 64 of letters, digits, _, -"
            ),
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
            "extras": {key: value[key] for key in value.keys() - _KNOWN},
        }
        for key, longest in _TEXTS.items():
            fields[key] = self._text(value, key, key, longest)
        self._signs(name, fields)
        if self.faults:
            raise InvalidEvent(self.faults)
        return Event(**fields)

    def _fault(self, path: str, message: str) -> None:
        self.faults.append({"path": path, "message": message})

    def _clean_text(self, value: Any, path: str = "") -> None:
        """Refuse U+0000 and lone surrogates anywhere: databases and upstreams cannot hold them."""
        if isinstance(value, str):
            if "\0" in value:
                self._fault(path, "contains U+0000")
            elif not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
                self._fault(path, "contains a lone surrogate")
        elif isinstance(value, dict):
            for key, part in value.items():
                self._clean_text(key, path or "key")
                self._clean_text(part, f"{path}.{key}" if path else key)
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
            and number.is_finite()
            and abs(number) < 10**15
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
        if number > 99_999_999_999:
            self._fault(key, "looks like milliseconds; send seconds")
        elif number < EARLIEST:
            self._fault(key, f"is before 2008, got {number}; send Unix seconds")
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
        amount = self._amount(value, key, "value")
        usd = self._amount(value, key, "value_usd")
        currency = value.get("currency")
        if not isinstance(currency, str) or not _CURRENCY.fullmatch(currency):
            self._fault(
                f"{key}.currency",
                f"must be three capital letters (ISO 4217), got {_shown(currency)}",
            )
            currency = ""
        if amount is not None and usd is not None and amount * usd < 0:
            self._fault(f"{key}.value_usd", "must have the sign of value")
        if key == "price" and (amount or 0) < 0:
            self._fault("price.value", "must not be negative")
        return Money(
            value=amount or Decimal(0),
            value_usd=usd or Decimal(0),
            currency=currency,
            is_proceed=self._flag(value, key) if key == "revenue" else False,
            proceeds_rate=self._rate(value, key) if key == "revenue" else None,
        )

    def _amount(self, parent: dict[str, Any], path: str, key: str) -> Decimal | None:
        number = parent.get(key)
        if isinstance(number, bool) or not isinstance(number, int | Decimal):
            self._fault(
                f"{path}.{key}",
                "is required: a number"
                if number is None
                else f"must be a number, got {_shown(number)}",
            )
            return None
        number = Decimal(number)
        if not abs(number) <= AMOUNT:
            self._fault(f"{path}.{key}", "must be between -10^10 and 10^10")
            return None
        exponent = number.as_tuple().exponent
        if not isinstance(exponent, int) or exponent < -6:
            if number != round(number, 6):
                self._fault(f"{path}.{key}", f"must have at most 6 decimals, got {_shown(number)}")
                return None
            number = round(number, 6).normalize()
        return Decimal(f"{number:f}")

    def _flag(self, parent: dict[str, Any], path: str) -> bool:
        flag = parent.get("is_proceed")
        if flag in (None, ""):
            return False
        if isinstance(flag, str) or flag not in (0, 1):
            self._fault(f"{path}.is_proceed", f"must be 0 or 1, got {_shown(flag)}")
        return bool(flag)

    def _rate(self, parent: dict[str, Any], path: str) -> Decimal | None:
        rate = parent.get("proceeds_rate")
        if rate in (None, ""):
            return None
        if isinstance(rate, bool) or not isinstance(rate, int | Decimal) or not 0 <= rate <= 100:
            self._fault(
                f"{path}.proceeds_rate", f"must be a number from 0 to 100, got {_shown(rate)}"
            )
            return None
        return Decimal(rate)

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
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            return str(number)  # Apple's exceed 2^53: never through a float
        return self._text(parent, key, f"transaction.{key}", 255)

    def _date(self, parent: dict[str, Any], key: str) -> int | None:
        path = f"transaction.{key}"
        number = self._integer(parent, key, path)
        if number is not None and not 0 <= number <= LATEST_EXPIRY:
            milliseconds = number > 99_999_999_999
            self._fault(
                path,
                "looks like milliseconds; send seconds"
                if milliseconds
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
            path = f"properties.{key[:80]}"
            if part is None:
                continue
            if not _PROPERTY.fullmatch(key) or (key.startswith("_") and not key.startswith("_q_")):
                self._fault(
                    path,
                    "is not a property key: 1 to 80 of letters, digits, - _ . :, with a letter, "
                    "and no leading _ but for _q_",
                )
                continue
            if isinstance(part, dict | list):
                self._fault(path, "must be text")
                continue
            text = part if isinstance(part, str) else _shown(part)
            if len(text.encode("utf-8", "surrogatepass")) > PROPERTY_BYTES:
                self._fault(path, f"must be at most {PROPERTY_BYTES} bytes")
                continue
            read[key] = text
        return read

    def _ip(self) -> str:
        text = self._text(self.value, "ip", "ip", 64)
        if text:
            try:
                ipaddress.ip_address(text)
            except ValueError:
                self._fault("ip", f"must be an IPv4 or IPv6 address, got {_shown(text)}")
        return text

    def _country(self) -> str:
        text = self._text(self.value, "country", "country", 64)
        if text and not _COUNTRY.fullmatch(text):
            self._fault("country", f"must be two capital letters (ISO 3166), got {_shown(text)}")
        return text

    def _device(self) -> Device:
        value = self._object("device")
        if value is None:
            return Device()
        status = self._integer(value, "att_status", "device.att_status")
        if status is not None and not 0 <= status <= 3:
            self._fault("device.att_status", f"must be 0 to 3, got {status}")
        limited = value.get("limit_ad_tracking")
        if limited is not None and not isinstance(limited, bool):
            self._fault("device.limit_ad_tracking", f"must be true or false, got {_shown(limited)}")
        texts = {key: self._text(value, key, f"device.{key}", 512) for key in _DEVICE_TEXTS}
        return Device(att_status=status, limit_ad_tracking=limited, **texts)

    def _attribution(self) -> dict[str, Any] | None:
        value = self._object("asa_attribution")
        return None if value is None else attribution_from(value)

    def _signs(self, name: str, fields: dict[str, Any]) -> None:
        revenue = fields["revenue"]
        if revenue is None:
            return
        if name in MONEY_OUT and revenue.value > 0:
            self._fault("revenue.value", f"must not be positive: {name} gives money back")
        if name in MONEY_IN - {"subscription_upgraded"} and revenue.value < 0:
            self._fault("revenue.value", f"must not be negative for {name}")


def attribution_from(value: dict[str, Any]) -> dict[str, Any]:
    """Return an Apple Ads attribution in our form, from ours or from Apple's own.

    Integers become text (they exceed 2^53), unknown keys are kept, and without a flag it counts as
    attributed if it has a campaign.
    """
    read: dict[str, Any] = {}
    for key, part in value.items():
        whole = isinstance(part, int) and not isinstance(part, bool)
        read[_APPLE_KEYS.get(key, key)] = str(part) if whole else part
    if not isinstance(read.get("attributed"), bool):
        read["attributed"] = bool(read.get("campaign_id"))
    return read
