"""What is an event and what is not: every rule, both readings, and whatever bytes may come."""

import json
import pickle
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.kit import Device, Event, Money, Transaction, dump
from providers.kit.decode import InvalidEvent, decode, event_from, parse
from providers.kit.usual import usual_but_for_extras, usual_event

NOW = 1767350500
DAY = 86_400
YEAR_2008 = 1_199_145_600
SMALLEST: dict[str, Any] = {
    "id": "evt-000417",
    "project_id": "prj_lumen",
    "event_name": "trial_canceled",
    "platform": "Android",
    "environment": "production",
    "time": 1767350415,
}
FULL: dict[str, Any] = {
    "id": "7d0a0c3e-52a4-4b0e-9a52-2f5d1c7f9b10",
    "project_id": "prj_lumen",
    "event_name": "subscription_renewed",
    "platform": "iOS",
    "environment": "production",
    "time": 1767350415,
    "created_at": 1767350431,
    "user_id": "QON_5b1f0c9e7a3d4d22",
    "identity_id": "acct-58213",
    "custom_user_id": "58213",
    "advertiser_id": "3F2C8A10-7B64-4E0B-9C1D-5A7E44D0B9F2",
    "device_id": "B1E9D0A4-60C7-4E55-8F3A-0C2D9E7711AB",
    "product_id": "app.lumen.premium.year",
    "old_product_id": None,
    "revenue": {
        "value": 41.65,
        "value_usd": 45.1,
        "currency": "EUR",
        "is_proceed": 0,
        "proceeds_rate": 85,
    },
    "price": {"value": 41.65, "value_usd": 45.1, "currency": "EUR"},
    "transaction": {
        "transaction_id": "2000000719284455",
        "original_transaction_id": "2000000318840021",
        "transaction_date": 1767350415,
        "expires": 1798886415,
        "grace_period_expires": None,
    },
    "properties": {"_q_email": "ines@example.org", "cohort": "winter"},
    "ip": "203.0.113.24",
    "country": "PT",
    "device": {
        "model": "iPhone15,3",
        "os_version": "18.2",
        "app_version": "5.4.1",
        "app_id": "app.lumen",
        "locale": "pt_PT",
        "timezone": "Europe/Lisbon",
        "user_agent": None,
        "att_status": 3,
    },
    "installed_at": 1764579600,
    "asa_attribution": {"attributed": True, "org_id": "51200934", "ad_id": None},
}
EUR = {"value": 41.65, "value_usd": 45.1, "currency": "EUR"}


def raw_of(base: dict[str, Any], /, *literals: str, **changes: Any) -> bytes:
    """Return the event's JSON with `changes`; `literals` are members as they stand in the text."""
    whole = json.dumps({**base, **changes})
    return "".join([whole[:-1], *(f", {literal}" for literal in literals), "}"]).encode()


def outcome(raw: bytes) -> Event | list[dict[str, str]]:
    """Return the event or its faults, after seeing that both readings agree on it."""
    found = _outcome(lambda: decode(raw, NOW))
    careful = _outcome(lambda: event_from(parse(raw), NOW))
    assert found == careful
    assert repr(found) == repr(careful)  # to the digit
    return found


def _outcome(read: Callable[[], Event]) -> Event | list[dict[str, str]]:
    try:
        return read()
    except InvalidEvent as error:
        return error.faults


def read(*literals: str, **changes: Any) -> Event:
    found = outcome(raw_of(SMALLEST, *literals, **changes))
    assert isinstance(found, Event), found
    return found


def faults(*literals: str, **changes: Any) -> dict[str, str]:
    found = outcome(raw_of(SMALLEST, *literals, **changes))
    assert isinstance(found, list), found
    return {fault["path"]: fault["message"] for fault in found}


# --- what is read -------------------------------------------------------------------------------


def test_full_example() -> None:
    assert outcome(raw_of(FULL)) == Event(
        id="7d0a0c3e-52a4-4b0e-9a52-2f5d1c7f9b10",
        project_id="prj_lumen",
        name="subscription_renewed",
        platform="iOS",
        environment="production",
        time=1767350415,
        created_at=1767350431,
        user_id="QON_5b1f0c9e7a3d4d22",
        identity_id="acct-58213",
        custom_user_id="58213",
        advertiser_id="3F2C8A10-7B64-4E0B-9C1D-5A7E44D0B9F2",
        device_id="B1E9D0A4-60C7-4E55-8F3A-0C2D9E7711AB",
        product_id="app.lumen.premium.year",
        old_product_id="",
        revenue=Money(
            value=Decimal("41.65"),
            value_usd=Decimal("45.1"),
            currency="EUR",
            is_proceed=False,
            proceeds_rate=Decimal(85),
        ),
        price=Money(value=Decimal("41.65"), value_usd=Decimal("45.1"), currency="EUR"),
        transaction=Transaction(
            transaction_id="2000000719284455",
            original_transaction_id="2000000318840021",
            transaction_date=1767350415,
            expires=1798886415,
        ),
        properties={"_q_email": "ines@example.org", "cohort": "winter"},
        ip="203.0.113.24",
        country="PT",
        device=Device(
            model="iPhone15,3",
            os_version="18.2",
            app_version="5.4.1",
            app_id="app.lumen",
            locale="pt_PT",
            timezone="Europe/Lisbon",
            att_status=3,
        ),
        installed_at=1764579600,
        asa_attribution={"attributed": True, "org_id": "51200934", "ad_id": None},
    )


def test_smallest_example() -> None:
    assert read() == Event(
        id="evt-000417",
        project_id="prj_lumen",
        name="trial_canceled",
        platform="Android",
        environment="production",
        time=1767350415,
        created_at=NOW,  # when the intake read it
    )


@pytest.mark.parametrize("key", sorted(FULL.keys() - SMALLEST.keys()))
def test_null_and_absent_and_empty_are_unknown(key: str) -> None:
    assert read(**{key: None}) == read(**{key: ""}) == read()


@pytest.mark.parametrize("outer", ["device", "transaction"])
def test_null_and_empty_are_unknown_inside(outer: str) -> None:
    keys = {"device": Device, "transaction": Transaction}[outer].__struct_fields__
    for blank in (None, ""):
        assert read(**{outer: dict.fromkeys(keys, blank)}) == read()


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("trial_billing_retry_entered", "trial_billing_retry"),
        ("subscription_billing_retry_entered", "subscription_billing_retry"),
        ("inapp_purchase", "in_app_purchase"),
        ("in_app_purchase_refunded", "in_app_refunded"),
        ("trial_cancelled", "trial_canceled"),
        ("subscription_cancelled", "subscription_canceled"),
        ("subscription_paused", "subscription_paused"),
    ],
)
def test_names(alias: str, name: str) -> None:
    assert read(event_name=alias).name == name


@pytest.mark.parametrize("platform", ["iOS", "Android", "Stripe"])
def test_platforms(platform: str) -> None:
    assert read(platform=platform).platform == platform


@pytest.mark.parametrize(
    ("written", "environment"),
    [("production", "production"), ("prod", "production"), ("sandbox", "sandbox")],
)
def test_environments(written: str, environment: str) -> None:
    event = read(environment=written)
    assert event.environment == environment
    assert event.sandbox == (environment == "sandbox")


TIMES = pytest.mark.parametrize("key", ["time", "created_at", "installed_at"])


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (YEAR_2008, YEAR_2008),
        (NOW, NOW),
        (NOW + DAY, NOW + DAY),
        (1767350415.0, 1767350415),
    ],
)
@TIMES
def test_times(key: str, written: float, seconds: int) -> None:
    event = read(**{key: written})
    assert getattr(event, key) == seconds
    assert isinstance(getattr(event, key), int)


@pytest.mark.parametrize(
    ("literal", "words"),
    [
        (str(YEAR_2008 - 1), "before 2008"),
        ("0", "before 2008"),
        ("-" + "9" * 300, "before 2008"),
        (str(NOW + DAY + 1), "more than a day ahead"),
        ("99999999999", "more than a day ahead"),
        ("100000000000", "milliseconds"),
        (f"{NOW}000", "milliseconds"),
        (str(2**64), "milliseconds"),
        ("1e13", "milliseconds"),
        ("1e18", "must be an integer"),
        ("1e300", "must be an integer"),
        ("1e-1000000", "must be an integer"),
        ("1767350415.5", "must be an integer, got 1767350415.5"),
        ('"1767350415"', 'must be an integer, got "1767350415"'),
        ('"yesterday"', "must be an integer"),
        ('"2026-01-02T10:00:00"', "must be an integer"),
        ("true", "must be an integer, got true"),
        ("[1767350415]", "must be an integer"),
    ],
)
@TIMES
def test_times_that_will_not_do(key: str, literal: str, words: str) -> None:
    assert words in faults(f'"{key}": {literal}')[key]


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("user_id", 256),
        ("identity_id", 256),
        ("custom_user_id", 256),
        ("advertiser_id", 64),
        ("device_id", 128),
        ("product_id", 256),
        ("old_product_id", 256),
        ("transaction.transaction_id", 255),
        ("transaction.original_transaction_id", 255),
        *((f"device.{key}", 512) for key in ("model", "brand", "os_version", "app_version")),
        *((f"device.{key}", 512) for key in ("app_id", "locale", "timezone", "user_agent")),
    ],
)
def test_texts(path: str, most: int) -> None:
    outer, _, inner = path.rpartition(".")

    def nested(value: Any) -> dict[str, Any]:
        return {outer: {inner: value}} if outer else {inner: value}

    longest = "ж" * most  # characters, not bytes
    event = read(**nested(longest))
    assert getattr(getattr(event, outer) if outer else event, inner) == longest
    assert faults(**nested(longest + "ж")) == {
        path: f"must be at most {most} characters, got {most + 1}"
    }
    for other in (1.5, -1, True, {"a": 1}, ["a"]):
        assert "must be text" in faults(**nested(other))[path]


@pytest.mark.parametrize(
    ("digits", "read_as"),
    [
        ("41.65", "41.65"),
        ("9.9", "9.9"),
        ("9.90", "9.90"),
        ("0.1", "0.1"),
        ("1200000", "1200000"),
        ("0.000001", "0.000001"),
        ("1.2300000000", "1.23"),
        ("1e2", "100"),
        ("1.5E-3", "0.0015"),
        ("12345678.9", "12345678.9"),
        ("1234567.123456", "1234567.123456"),
        ("10000000000", "10000000000"),
        ("10000000000.000000", "10000000000.000000"),
        ("0.0000010000000000000000", "0.000001"),
        ("0", "0"),
        ("0.00", "0"),
        ("-0.0", "0"),
        ("0e-99999999999", "0"),
        ("0e99999999", "0"),
    ],
)
def test_amounts_keep_their_digits(digits: str, read_as: str) -> None:
    event = read(f'"price": {{"value": {digits}, "value_usd": {digits}, "currency": "EUR"}}')
    assert event.price is not None
    assert str(event.price.value) == str(event.price.value_usd) == read_as
    assert dump(event.price.value) == read_as.encode()


@pytest.mark.parametrize(
    ("literal", "words"),
    [
        ("null", "is required: a number"),
        ('"41.65"', 'must be a number, got "41.65"'),
        ('"1,00"', "must be a number"),
        ("true", "must be a number"),
        ("[1]", "must be a number"),
        ("{}", "must be a number"),
        ("10000000000.01", "between"),
        ("10000000001", "between"),
        ("1e300", "between"),
        ("-1e300", "between"),
        ("9" * 29 + "e271", "between"),
        ("18446744073709551616", "between"),
        ("0.0000001", "at most 6 decimals"),
        ("0.1234567", "at most 6 decimals, got 0.1234567"),
        ("12345.1234567", "at most 6 decimals"),
        ("1e-400", "at most 6 decimals"),
        ("1e-1000000", "at most 6 decimals"),
        ("1." + "0" * 50 + "1", "at most 6 decimals"),
    ],
)
@pytest.mark.parametrize("key", ["value", "value_usd"])
@pytest.mark.parametrize("money", ["revenue", "price"])
def test_amounts_that_will_not_do(money: str, key: str, literal: str, words: str) -> None:
    other = "value_usd" if key == "value" else "value"
    found = faults(f'"{money}": {{"{key}": {literal}, "{other}": 0, "currency": "EUR"}}')
    assert list(found) == [f"{money}.{key}"]
    assert words in found[f"{money}.{key}"]


@pytest.mark.parametrize(
    "currency", [None, "", "eur", "EURO", "EU", "E1R", "EUR\n", 978, "\uff25UR"]
)
@pytest.mark.parametrize("money", ["revenue", "price"])
def test_currencies(money: str, currency: Any) -> None:
    found = faults(**{money: {**EUR, "currency": currency}})
    assert "three capital letters (ISO 4217)" in found[f"{money}.currency"]


def test_a_currency_nobody_knows_is_taken() -> None:
    event = read(price={**EUR, "currency": "XXX"})
    assert event.price is not None
    assert event.price.currency == "XXX"


@pytest.mark.parametrize(
    ("written", "flag"),
    [(0, False), (1, True), (False, False), (True, True), (None, False), ("", False), (1.0, True)],
)
def test_is_proceed(written: Any, flag: bool) -> None:
    event = read(revenue={**EUR, "is_proceed": written})
    assert event.revenue is not None
    assert event.revenue.is_proceed is flag


@pytest.mark.parametrize("written", [2, -1, "1", "yes", 0.5, [], {}, 2**64])
def test_is_proceed_that_will_not_do(written: Any) -> None:
    found = faults(revenue={**EUR, "is_proceed": written})
    assert "must be 0 or 1" in found["revenue.is_proceed"]


@pytest.mark.parametrize(
    ("literal", "read_as"),
    [
        ("85", "85"),
        ("0", "0"),
        ("100", "100"),
        ("84.5", "84.5"),
        ("84.99999999999999", "85"),
        ("1e-1000000", "0"),
        ("1e2", "100"),
    ],
)
def test_proceeds_rate(literal: str, read_as: str) -> None:
    event = read(
        f'"revenue": {{"value": 1, "value_usd": 1, "currency": "EUR", "proceeds_rate": {literal}}}'
    )
    assert event.revenue is not None
    assert str(event.revenue.proceeds_rate) == read_as


@pytest.mark.parametrize("rate", [-1, 100.1, 101, "85", True, [], 2**64, -0.1])
def test_proceeds_rate_that_will_not_do(rate: Any) -> None:
    found = faults(revenue={**EUR, "proceeds_rate": rate})
    assert "from 0 to 100" in found["revenue.proceeds_rate"]


def test_a_price_knows_no_proceeds() -> None:
    assert read(price={**EUR, "is_proceed": 7, "proceeds_rate": "x"}) == read(price=EUR)


IN = ("trial_converted", "subscription_started", "subscription_renewed", "in_app_purchase")
OUT = ("subscription_refunded", "in_app_refunded", "in_app_purchase_refunded")


@pytest.mark.parametrize(
    ("names", "value", "words"),
    [
        (IN, 5, None),
        (IN, 0, None),
        (IN, -5, "must not be negative"),
        (OUT, -5, None),
        (OUT, 0, None),
        (OUT, 5, "must not be positive"),
        (("subscription_upgraded", "subscription_paused"), 5, None),
        (("subscription_upgraded", "subscription_paused"), -5, None),
    ],
)
def test_signs_of_revenue(names: tuple[str, ...], value: int, words: str | None) -> None:
    money = {"value": value, "value_usd": value, "currency": "EUR"}
    for name in names:
        if words is None:
            assert read(event_name=name, revenue=money).revenue is not None
        else:
            assert words in faults(event_name=name, revenue=money)["revenue.value"]


@pytest.mark.parametrize(
    ("value", "usd", "fine"),
    [(1, 1, True), (-1, -1, True), (0, 1, True), (-1, 0, True), (1, -1, False), (-1, 1, False)],
)
def test_dollars_have_the_sign_of_the_value(value: int, usd: int, fine: bool) -> None:
    money = {"value": value, "value_usd": usd, "currency": "EUR"}
    if fine:
        assert read(event_name="subscription_upgraded", revenue=money).revenue is not None
    else:
        found = faults(event_name="subscription_upgraded", revenue=money)
        assert found == {"revenue.value_usd": "must have the sign of value"}


@pytest.mark.parametrize(("value", "usd"), [(-1, -1), (0, -1)])
def test_a_price_is_never_negative(value: int, usd: int) -> None:
    found = faults(price={"value": value, "value_usd": usd, "currency": "EUR"})
    assert "must not be negative" in found["price.value"]


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ("2000000719284455", "2000000719284455"),
        ("9007199254740993", "9007199254740993"),  # 2^53 + 1
        ("18446744073709551617", "18446744073709551617"),  # 2^64 + 1
        ("0", "0"),
        ("9" * 255, "9" * 255),
        ('"GPA.3391-1-2"', "GPA.3391-1-2"),
        ('""', ""),
    ],
)
@pytest.mark.parametrize("key", ["transaction_id", "original_transaction_id"])
def test_transaction_ids(key: str, literal: str, text: str) -> None:
    assert getattr(read(f'"transaction": {{"{key}": {literal}}}').transaction, key) == text


@pytest.mark.parametrize("literal", ["-1", "true", "1.0", "1e3", "[]", "{}", "9" * 256])
def test_transaction_ids_that_will_not_do(literal: str) -> None:
    found = faults(f'"transaction": {{"transaction_id": {literal}}}')
    assert "must be text" in found["transaction.transaction_id"]


@pytest.mark.parametrize("key", ["transaction_date", "expires", "grace_period_expires"])
def test_dates_of_a_transaction(key: str) -> None:
    for seconds in (0, 4_102_444_800, 1767350415.0):  # the end of a period may be far away
        assert getattr(read(transaction={key: seconds}).transaction, key) == int(seconds)
    for other, words in (
        (4_102_444_801, "up to the year 2100"),
        (-1, "up to the year 2100"),
        (NOW * 1000, "milliseconds"),
        ("1767350415", "must be an integer"),
        (1.5, "must be an integer"),
        (True, "must be an integer"),
    ):
        assert words in faults(transaction={key: other})[f"transaction.{key}"]


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ('"winter"', "winter"),
        ('""', ""),
        ("31", "31"),
        ("18446744073709551617", "18446744073709551617"),
        ("1.50", "1.50"),
        ("1e300", "1E+300"),
        ("true", "true"),
        ("false", "false"),
        (f'"{"x" * 4096}"', "x" * 4096),
        (f'"{"ж" * 2048}"', "ж" * 2048),
        (r'"a\nb\"c\u00e9\ud83d\ude00"', 'a\nb"cé😀'),
        ('"<script>alert(1)</script>"', "<script>alert(1)</script>"),
        ('"\'; DROP TABLE users; --"', "'; DROP TABLE users; --"),
        ('"{{7*7}}"', "{{7*7}}"),
        ('"${jndi:ldap://x}"', "${jndi:ldap://x}"),
    ],
)
def test_property_values(literal: str, text: str) -> None:
    assert read(f'"properties": {{"cohort": {literal}}}').properties == {"cohort": text}


def test_null_drops_a_property() -> None:
    assert read(properties={"a": None, "b": "1"}).properties == {"b": "1"}


@pytest.mark.parametrize("key", ["a", "A-1_.:z", "_q_email", "_q_unknown", "x" * 80, "1a"])
def test_property_keys(key: str) -> None:
    assert read(properties={key: "1"}).properties == {key: "1"}


@pytest.mark.parametrize(
    "key",
    ["", "1", "_own", "_Q_email", "__proto__", "a b", "$set", "é", "a\n", "x" * 81, "x" * 9999],
)
def test_property_keys_that_will_not_do(key: str) -> None:
    (message,) = faults(properties={key: "1"}).values()
    assert "is not a property key" in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": ["x"]}, "must be text"),
        ({"a": {"b": "c"}}, "must be text"),
        ({"a": "x" * 4097}, "at most 4096 bytes"),
        ({"a": "ж" * 2049}, "at most 4096 bytes"),
        ({f"k{n}": "1" for n in range(101)}, "at most 100 keys, got 101"),
        ({f"k{n}": "1" for n in range(4000)}, "at most 100 keys, got 4000"),
        ([], "must be an object"),
        ("x", "must be an object"),
        (7, "must be an object"),
    ],
)
def test_properties_that_will_not_do(value: Any, words: str) -> None:
    (message,) = faults(properties=value).values()
    assert words in message


def test_a_hundred_properties() -> None:
    assert len(read(properties={f"k{n}": "1" for n in range(100)}).properties) == 100


@pytest.mark.parametrize(
    "address",
    [
        "203.0.113.24",
        "10.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "2001:db8::1",
        "::1",
        "::ffff:1.2.3.4",
    ],
)
def test_addresses(address: str) -> None:
    assert read(ip=address).ip == address


@pytest.mark.parametrize(
    "address",
    ["256.1.1.1", "1.2.3", "1.2.3.4.5", "1.2.3.4.", "1..3.4", "01.2.3.4", "1.2.3.4\n", "1.2.3.4/8",
     "localhost", "2130706433", "fe80::1%eth0", "2001:db8::1%\r\nX: y", "\uff11.2.3.4",
     "x" * 65, 7],
)  # fmt: skip
def test_addresses_that_will_not_do(address: Any) -> None:
    assert "ip" in faults(ip=address)


@pytest.mark.parametrize("country", ["pt", "PRT", "P1", "Portugal", "P\n", 351, "\uff30T"])
def test_countries_that_will_not_do(country: Any) -> None:
    assert "country" in faults(country=country)


@pytest.mark.parametrize(
    ("device", "path"),
    [
        ({"att_status": 4}, "device.att_status"),
        ({"att_status": -1}, "device.att_status"),
        ({"att_status": True}, "device.att_status"),
        ({"att_status": "3"}, "device.att_status"),
        ({"att_status": 2**64}, "device.att_status"),
        ({"limit_ad_tracking": 1}, "device.limit_ad_tracking"),
        ({"limit_ad_tracking": "true"}, "device.limit_ad_tracking"),
        ("iPhone", "device"),
        ([], "device"),
    ],
)
def test_devices_that_will_not_do(device: Any, path: str) -> None:
    assert list(faults(device=device)) == [path]


def test_unknown_members_of_a_device_are_ignored() -> None:
    given = {"model": "Pixel 9", "limit_ad_tracking": False, "att_status": 2.0, "battery": [1]}
    known = Device(model="Pixel 9", limit_ad_tracking=False, att_status=2)
    assert read(device=given).device == known


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        (
            {"attribution": True, "orgId": 40669820, "campaignId": 542370539,
             "adGroupId": 9007199254740993, "keywordId": 87675432, "adId": None,
             "countryOrRegion": "US", "conversionType": "Download", "claimType": "Click",
             "clickDate": "2025-12-01T08:57Z"},
            {"attributed": True, "org_id": "40669820", "campaign_id": "542370539",
             "ad_group_id": "9007199254740993", "keyword_id": "87675432", "ad_id": None,
             "country_or_region": "US", "conversion_type": "Download", "claim_type": "Click",
             "click_date": "2025-12-01T08:57Z"},
        ),
        ({"attribution": False}, {"attributed": False}),
        ({"attributed": True, "org_id": "1"}, {"attributed": True, "org_id": "1"}),
        ({"campaign_id": 5}, {"campaign_id": "5", "attributed": True}),
        ({"campaignId": "5"}, {"campaign_id": "5", "attributed": True}),
        ({"org_id": "1"}, {"org_id": "1", "attributed": False}),
        ({}, {"attributed": False}),
        ({"attributed": "yes", "campaign_id": "5"}, {"attributed": True, "campaign_id": "5"}),
        ({"attributed": True, "extra": {"a": [1]}}, {"attributed": True, "extra": {"a": [1]}}),
    ],
)  # fmt: skip
def test_attribution(given: dict[str, Any], ours: dict[str, Any]) -> None:
    assert read(asa_attribution=given).asa_attribution == ours


def test_what_nobody_knows_is_kept() -> None:
    extras = {
        "name": "x",
        "extras": {"y": [1, {"z": None}]},
        "__proto__": {"polluted": True},
        "version": 99,
        "": "",
        "big": 18446744073709551617,
    }
    event = read('"rate": 0.10', **extras)
    assert event.extras == {**extras, "rate": Decimal("0.10")}
    assert event == read('"rate": 0.10', **dict(reversed(extras.items())))
    assert json.loads(dump(event.extras)) == {**extras, "rate": 0.1}


def test_of_a_repeated_key_the_last_counts() -> None:
    assert read('"time": 1767350400', '"time": 1767350401').time == 1767350401
    assert read('"properties": {"a": "1", "a": "2"}').properties == {"a": "2"}
    assert "time" in faults('"time": 1767350400', '"time": 1')


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is not JSON"),
        (b"   ", "is not JSON"),
        (b"hello", "is not JSON"),
        (raw_of(FULL)[:-20], "is not JSON"),
        (raw_of(FULL) + b"x", "is not JSON"),
        (raw_of(FULL) * 2, "is not JSON"),
        (b"null", "must be a JSON object"),
        (b"[" + raw_of(FULL) + b"]", "must be a JSON object"),
        (b"12", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"[" * 100_000, "is 100,000 bytes; at most 65,536"),
        (b"[" * 60_000, "is nested deeper than 8"),
        (b'{"a":' * 10_000, "is nested deeper than 8"),
        (bytes(256 * 1024 + 1), "is 262,145 bytes"),
        (bytes(100 << 20), "is 104,857,600 bytes"),
        (raw_of(SMALLEST, user_id="?").replace(b"?", b"\xff"), "is not JSON in UTF-8"),
        (raw_of(SMALLEST, user_id="?").replace(b"?", b"\xed\xa0\x80"), "is not JSON in UTF-8"),
        (raw_of(SMALLEST, user_id="?").replace(b"?", b"\x00"), "is not JSON in UTF-8"),
        (b"\xef\xbb\xbf" + raw_of(SMALLEST), "byte order mark"),
        (raw_of(SMALLEST).decode().encode("utf-16"), "byte order mark"),
        (raw_of(SMALLEST).decode().encode("utf-16-be"), "is not JSON"),
        (raw_of(SMALLEST, '"user_id": "\\ud800"'), "lone surrogate"),
        (raw_of(SMALLEST, '"x": {"\\udfff": 1}'), "lone surrogate"),
        (raw_of(SMALLEST, '"x": NaN'), "is not JSON"),
        (raw_of(SMALLEST, '"x": -Infinity'), "is not JSON"),
        (raw_of(SMALLEST, '"x": 1e999999999999999999999'), "number too large"),
        (raw_of(SMALLEST, '"x": {"y": [1e400]}'), "number too large"),
        (raw_of(SMALLEST, '"asa_attribution": {"x": -1e400}'), "number too large"),
        (raw_of(SMALLEST, f'"x": {"9" * 5000}'), "is not JSON"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "is not JSON"),  # gzip
        (b"[" * 9 + b'"' + b'\\"' * 30_000, "is not JSON"),
        (raw_of(SMALLEST, f'"{"k" * (1 << 20)}": 1'), "at most 65,536"),
        (raw_of(SMALLEST, **{f"k{n}": 1 for n in range(100_000)}), "at most 65,536"),
    ],
    ids=range(33),
)
def test_no_event_at_all(raw: bytes, words: str) -> None:
    (fault,) = found if isinstance(found := outcome(raw), list) else [{}]
    assert fault["path"] == ""
    assert words in fault["message"]


def test_sizes() -> None:
    room = 65_536 - len(raw_of(SMALLEST, x=""))
    assert len(raw_of(SMALLEST, x="y" * room)) == 65_536
    assert read(x="y" * room).extras == {"x": "y" * room}
    assert faults(x="y" * (room + 1)) == {"": "is 65,537 bytes; at most 65,536"}


def test_depths() -> None:
    def nested(levels: int) -> str:
        return '"x": ' + "[" * (levels - 1) + "1" + "]" * (levels - 1)  # the event is the first

    assert "x" in read(nested(8)).extras
    assert faults(nested(9)) == {"": "is nested deeper than 8"}
    assert "x" in read('"x": "[[[[[[[[[[{{{{{{{{{{"').extras
    assert len(read(f'"x": [{", ".join(["{}"] * 50)}]').extras["x"]) == 50


@pytest.mark.parametrize("key", SMALLEST)
def test_required(key: str) -> None:
    assert "is required" in faults(**{key: None})[key]
    assert "is required" in faults(**{key: ""})[key]
    absent = {other: value for other, value in SMALLEST.items() if other != key}
    assert [fault["path"] for fault in cast_faults(outcome(raw_of(absent)))] == [key]


def cast_faults(found: Event | list[dict[str, str]]) -> list[dict[str, str]]:
    assert isinstance(found, list), found
    return found


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("id", "a.b", "1 to 128 of letters"),
        ("id", "a/b", "1 to 128 of letters"),
        ("id", "a\r\nX: y", "1 to 128 of letters"),
        ("id", "a\n", "1 to 128 of letters"),
        ("id", "é", "1 to 128 of letters"),
        ("id", "x" * 129, "1 to 128 of letters"),
        ("id", "x" * 10_240, "1 to 128 of letters"),
        ("id", 417, "must be text, got 417"),
        ("project_id", "a:b", "1 to 64 of letters"),
        ("project_id", "x" * 65, "1 to 64 of letters"),
        ("project_id", "../x", "1 to 64 of letters"),
        ("project_id", {"a": 1}, "must be text"),
        ("event_name", "Trial Started", "lower-case letters"),
        ("event_name", "_x", "lower-case letters"),
        ("event_name", "1x", "lower-case letters"),
        ("event_name", "x\n", "lower-case letters"),
        ("event_name", "x" * 65, "lower-case letters"),
        ("event_name", "x" * 10_240, "lower-case letters"),
        ("event_name", "trial\u202estarted", "lower-case letters"),
        ("event_name", "test", "reserved"),
        ("event_name", ["x"], "must be text"),
        ("platform", "ios", "iOS, Android, Stripe"),
        ("platform", "apple", "iOS, Android, Stripe"),
        ("platform", "Web", "iOS, Android, Stripe"),
        ("platform", 1, "must be text"),
        ("environment", "Sandbox", "production, sandbox"),
        ("environment", "PROD", "production, sandbox"),
        ("environment", False, "must be text"),
        ("user_id", {"id": "x"}, 'must be text, got {"id":"x"}'),
        ("revenue", "9.99", "must be an object"),
        ("price", 9.99, "must be an object"),
        ("transaction", ["x"], "must be an object"),
        ("asa_attribution", True, "must be an object"),
    ],
)
def test_wrong_members(key: str, value: Any, words: str) -> None:
    found = faults(**{key: value})
    assert list(found) == [key]
    assert words in found[key]


@pytest.mark.parametrize("key", ["id", "project_id", "event_name"])
def test_longest_names(key: str) -> None:
    most = {"id": 128, "project_id": 64, "event_name": 64}[key]
    event = read(**{key: "x" * most})
    assert "x" * most in (event.id, event.project_id, event.name)


@pytest.mark.parametrize(
    ("literal", "path"),
    [
        ('"user_id": "a\\u0000"', "user_id"),
        ('"device": {"unknown": "\\u0000"}', "device.unknown"),
        ('"x": [{"y": ["\\u0000"]}]', "x.y"),
        ('"x\\u0000y": 1', '"x\\u0000y"'),
        ('"properties": {"a": "\\u0000"}', "properties.a"),
    ],
)
def test_no_nul(literal: str, path: str) -> None:
    assert faults(literal)[path] == "contains U+0000"


def test_an_escaped_backslash_is_no_nul() -> None:
    assert read(r'"user_id": "\\u0000"').user_id == r"\u0000"


def test_all_faults_are_told() -> None:
    raw = raw_of(
        FULL,
        id="a b",
        time="now",
        platform="ios",
        revenue={"value": "1", "value_usd": -1, "currency": "eur", "is_proceed": 2},
        price={"value": -1, "value_usd": -1, "currency": "EUR"},
        properties={"_x": "1", "y": []},
        ip="x",
        country="Portugal",
        user_id="x" * 257,
    )
    assert sorted(fault["path"] for fault in cast_faults(outcome(raw))) == [
        "country",
        "id",
        "ip",
        "platform",
        "price.value",
        "properties._x",
        "properties.y",
        "revenue.currency",
        "revenue.is_proceed",
        "revenue.value",
        "time",
        "user_id",
    ]
    with pytest.raises(InvalidEvent, match=r"id must be .*; platform must be"):
        decode(raw, NOW)


def test_faults_are_short_and_can_be_stored() -> None:
    found = faults(
        id="x" * 9000, user_id=["y" * 9000], properties={"\0" * 9000: "\0", "z" * 9000: 1}
    )
    for path, message in found.items():
        assert len(path) < 200
        assert len(message) < 300
        assert (path + message).isprintable()


def test_the_same_event_twice_is_read_twice() -> None:
    assert read(product_id="a") != read(product_id="b")  # which of them counts is the intake's


# --- the event itself ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("project", "event_id", "stable"),
    [
        ("prj_acme", "evt_01JGF3", "cfa0b5f9-6061-57d3-bc45-1695febf1a0f"),
        (
            "prj_acme",
            "7D0A0C3E-52A4-4B0E-9A52-2F5D1C7F9B10",
            "7d0a0c3e-52a4-4b0e-9a52-2f5d1c7f9b10",
        ),
    ],
)
def test_stable_id(project: str, event_id: str, stable: str) -> None:
    event = read(project_id=project, id=event_id)
    assert event.stable_id == event.stable_id == stable


@pytest.mark.parametrize("event_id", [*map(str, range(50)), "x" * 36])  # of every variant
def test_stable_id_is_a_uuid_of_version_5(event_id: str) -> None:
    name = f"onward:prj_lumen/{event_id}"
    assert read(id=event_id).stable_id == str(uuid5(NAMESPACE_URL, name))


def test_events_are_values() -> None:
    event = read(**FULL)
    assert event.stable_id
    copy = pickle.loads(pickle.dumps(event))
    assert copy == event == read(**FULL)
    assert copy.stable_id == event.stable_id
    assert event != read(**{**FULL, "id": "other"})
    with pytest.raises(AttributeError):
        event.id = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("ids", "key"),
    [
        ({"user_id": "u", "identity_id": "i"}, "u"),
        ({"identity_id": "i", "custom_user_id": "c"}, "i"),
        ({"custom_user_id": "c", "device_id": "d"}, "c"),
        ({"device_id": "d"}, "d"),
        ({}, ""),
    ],
)
def test_user_key(ids: dict[str, str], key: str) -> None:
    assert read(**ids).user_key == key


@pytest.mark.parametrize(
    ("locale", "language"), [("pt_PT", "pt"), ("zh-Hant-TW", "zh"), ("en", "en"), ("", "")]
)
def test_language(locale: str, language: str) -> None:
    assert read(device={"locale": locale}).device.language == language


# --- whatever may come --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        raw_of(FULL),
        raw_of(SMALLEST),
        raw_of(FULL, user_id="", device_id=None, revenue=None, device=None, transaction=None),
        raw_of(FULL, event_name="in_app_refunded", revenue={**EUR, "value": -1, "value_usd": -2}),
        raw_of(FULL, asa_attribution={"attribution": True, "orgId": 40669820}),
    ],
)  # fmt: skip
def test_the_usual_form_needs_no_careful_reading(raw: bytes) -> None:
    assert usual_event(raw, NOW) == event_from(parse(raw), NOW)
    more = raw[:-1] + b', "plan": {"tier": 2}}'
    assert usual_but_for_extras(more, parse(more), NOW) == event_from(parse(more), NOW)


LITERALS = [
    "null", "true", "false", "0", "1", "-1", "3", "85", "1e2", "-0.0", "0.10", "1.5", "1.0000000",
    "0.0000001", "1767350415", "1767350415.0", "1798886415", "1e400", "1e1000000", "-1e1000000",
    "1e-1000000", "1e999999999999999999999", "0e99999999", "18446744073709551616", "9" * 400, "NaN",
    '""', '"x"', '"EUR"', '"eur"', '"iOS"', '"prod"', '"test"', '"PT"', '"::1"', '"1.2.3.4"',
    '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u00e9\\n"', '"__proto__"',
    '"in_app_refunded"',
    "[]", "{}", "[[]]", "[" * 9 + "]" * 9, '{"a": 1}', '{"a": "b", "_q_x": "y"}',
    '{"value": 1.50, "value_usd": 2, "currency": "EUR"}',
    '{"value": -1, "value_usd": -2, "currency": "EUR", "proceeds_rate": 70.5, "is_proceed": true}',
    '{"value": 0, "value_usd": -2, "currency": "EUR"}', '{"attribution": true, "orgId": 1}',
    '{"transaction_id": 9007199254740993, "expires": 1798886415}', '{"model": "x", "y": 1}',
]  # fmt: skip
KEYS = sorted([*FULL, "extra", "name", "extras", "__proto__", ""])
texts = st.text(st.characters(exclude_categories=()), max_size=300)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
literals = st.sampled_from(LITERALS) | json_values.map(json.dumps)
inner_members = st.dictionaries(
    st.sampled_from(
        sorted({key for part in FULL.values() if isinstance(part, dict) for key in part})
    ),
    literals,
    max_size=5,
).map(lambda members: "{" + ", ".join(f'"{key}": {text}' for key, text in members.items()) + "}")
changed_members = st.lists(
    st.tuples(st.sampled_from(KEYS), literals | inner_members).map(lambda m: f'"{m[0]}": {m[1]}'),
    max_size=4,
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([SMALLEST, FULL]), changed_members)
def test_both_readings_agree_on_changed_events(base: dict[str, Any], members: list[str]) -> None:
    found = outcome(raw_of(base, *members))
    if isinstance(found, Event):
        assert dump(found.extras)
        assert pickle.loads(pickle.dumps(found)) == found


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_name(raw: bytes) -> None:
    assert isinstance(outcome(raw), list)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_events_are_read_or_refused_by_name(data: st.DataObject) -> None:
    raw = raw_of(FULL, '"plan": {"tier": [1, 2.5]}')
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw)))
        length = data.draw(st.integers(0, 30))
        raw = raw[:start] + data.draw(st.binary(max_size=6)) + raw[start + length :]
    outcome(raw)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=1500),
        max_size=20,
    ),
    st.decimals(0, 10**10, places=6),
)
def test_what_is_right_comes_through_unchanged(texts: dict[str, str], amount: Decimal) -> None:
    money = f'"price": {{"value": {amount:f}, "value_usd": {amount:f}, "currency": "EUR"}}'
    event = read(money, properties=texts)
    assert event.properties == texts
    assert event.price is not None
    assert event.price.value == amount
    assert not re.search("[eE]|^-0", dump(event.price.value).decode())
