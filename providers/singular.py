"""Singular, S2S EVENT endpoint, V1 and V2.

Source: https://support.singular.net/hc/en-us/articles/31496864868635
Batch:  none: one event a request.
Dedup:  none, so a retry after a timeout may count an event twice.
Errors: every answer is 200; `status` in the body tells, and `reason` what is wrong.
"""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from providers.kit import (
    Context,
    Delivered,
    Event,
    Limits,
    Misconfigured,
    Partial,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    Secret,
    Settings,
    Skipped,
    Verdict,
    advertising_id,
    amount_of,
    android_id,
    by_status,
    dump_text,
    known,
    name_of,
    one_each,
    plain,
    property_of,
    public_ip,
    reason_of,
    revenue_of,
    store_of,
    text_at,
    user_id,
    vendor_id,
)

URL = "https://s2s.singular.net/api/{version}/evt"
SDID_PROPERTIES = ("singular_device_id", "sdid")  # where the settings name none
NAME = re.compile(r"[\x20-\x7e]{1,32}")
WRONG_KEY = re.compile(r"missing argument: *a\W*$|\b(?:sdk|api)?[ _-]?key\b", re.IGNORECASE)
WRONG_PARAMETER = re.compile(
    r"missing argument|invalid platform|no device id|should have an? ", re.IGNORECASE
)


class SingularSettings(Settings):
    """An SDK key, and app ids by platform."""

    sdk_key: Secret = Field(description="SDK Key (neither the SDK Secret nor the reporting key)")
    sandbox_sdk_key: Secret | None = Field(
        None, description="SDK Key for sandbox events; blank: they are skipped"
    )
    app_id_ios: str | None = Field(None, description="Bundle id of the iOS app: com.acme.app")
    app_id_android: str | None = Field(None, description="Package name of the Android app")
    api_version: Literal["auto", "v1", "v2"] = Field(
        "auto", description="v2 goes by Singular Device ID; auto: v2 where it is known, else v1"
    )
    revenue_basis: Literal["usd", "local"] = Field("usd", description="Currency of `amt`")
    user_property_for_sdid: str | None = Field(
        None, description="Property with the Singular Device ID; absent: singular_device_id, sdid"
    )

    name_pattern: ClassVar = NAME
    name_rule: ClassVar = "names are 1 to 32 ASCII characters"

    @model_validator(mode="after")
    def _has_an_app(self) -> Self:
        if not self.app_id_ios and not self.app_id_android:
            raise ValueError("app_id_ios or app_id_android is needed: bundle id or package name")
        return self


def encode(events: Sequence[Event], settings: SingularSettings, context: Context) -> Plan:
    """Return one form request per event."""
    return one_each(events, lambda event: _request(event, settings))


def _request(event: Event, settings: SingularSettings) -> Request | Skipped:
    ios = event.platform == "iOS"
    app = settings.app_id_ios if ios else settings.app_id_android
    if not app:
        return Skipped("not_configured", f"no Singular app id for {event.platform}")
    version, ids = _identity(event, settings)
    if not ids:
        return Skipped("no_identity", "no Singular device id (sdid, idfa/idfv, aifa/andi)")
    name = name_of(event, settings, {}) or ""
    if not NAME.fullmatch(name):
        return Skipped("no_mapping", f"{name} will not do ({settings.name_rule}): set event_names")
    key = (settings.sandbox_sdk_key if event.sandbox else None) or settings.sdk_key
    status = event.device.att_status
    address = public_ip(event, 4)
    time = {"utime": str(event.time)} if version == "v1" else {"umilisec": f"{event.time}000"}
    values: dict[str, str] = known(
        a=key.get_secret_value(),
        p=event.platform,
        i=app,
        n=name,
        **ids,
        ip=address,
        country="" if address else event.country,
        ve=event.device.os_version,
        **time,
        att_authorization_status=str(status or 0) if ios else "",
        **_money(event, settings),
        custom_user_id=user_id(event),
        e=dump_text(_attributes(event)),
        data_sharing_options='{"limit_data_sharing":true}'
        if event.device.limit_ad_tracking
        else "",
    )
    return Request.form(URL.format(version=version), values)


def _identity(event: Event, settings: SingularSettings) -> tuple[str, dict[str, str]]:
    """Return the version to use and the ids it goes by, {} where there are none."""
    named = settings.user_property_for_sdid
    sdid = property_of(event, *([named] if named else SDID_PROPERTIES))
    version = settings.api_version
    if version == "v2" or (version == "auto" and sdid):
        return "v2", known(sdid=sdid)
    ios = event.platform == "iOS"
    advertising = advertising_id(event)
    return "v1", known(
        idfa=advertising if ios else "",
        idfv=vendor_id(event),
        aifa="" if ios else advertising,
        andi=android_id(event),
        asid="" if ios else property_of(event, "_q_app_set_id"),
    )


def _money(event: Event, settings: SingularSettings) -> dict[str, str]:
    money = revenue_of(event, settings)
    if money is None:
        return {}
    amount, currency = amount_of(money, settings.revenue_basis)
    if not amount:
        return {}
    return {
        "is_revenue_event": "true",
        "amt": plain(amount),
        "cur": currency,
        "purchase_product_id": event.product_id,
        "purchase_transaction_id": event.transaction.transaction_id,
    }


def _attributes(event: Event) -> dict[str, str]:
    return known(
        event_id=event.stable_id,
        product_id=event.product_id,
        original_transaction_id=event.transaction.original_transaction_id,
        store=store_of(event),
        environment=event.environment,
    )


def classify(request: Request, response: Response, settings: SingularSettings) -> Verdict:
    """Return what the answer means: the body's `status` and `reason` decide within 200."""
    status = response.status
    told = text_at(response.json, "status").lower()
    reason = text_at(response.json, "reason")
    message = reason or response.text
    if status // 100 != 2:
        if status == 400 and WRONG_KEY.search(reason):
            return Misconfigured("unauthorized", message)
        if status == 413:
            return Rejected(reason_of(status), message)
        return by_status(response, message, throttle=timedelta(seconds=2))
    if told == "ok":
        return Delivered()
    if not told:
        return Retry("unexpected_answer", message)
    if WRONG_KEY.search(reason):
        return Misconfigured("unauthorized", message)
    if re.search(r"missing argument: *ip\W*$", reason, re.IGNORECASE):
        return Rejected("no_user_ip", f"no user IP ({message})")
    if WRONG_PARAMETER.search(reason):
        return Rejected("bad_request", message)
    return Partial({0: Retry("refused", message)})  # a few times; the others go on


provider = Provider(
    slug="singular",
    title="Singular",
    category="Attribution",
    stores=("iOS", "Android"),
    settings=SingularSettings,
    encode=encode,
    classify=classify,
    limits=Limits(concurrency=10),
    identifiers=(
        "a Singular Device ID (user_property_for_sdid)",
        "or IDFA or IDFV on iOS; AAID, Android id or app set id on Android",
    ),
    notes=(
        "A wrong but well-formed SDK key may still be answered ok: look at Singular's export logs.",
        'Switch off "Reject IAP without receipt" in Singular, else revenue is dropped there.',
        "If the app tracks purchases with Singular's SDK too, revenue is counted twice.",
        "Accounts made from 15 July 2026 on take V2 only: each user needs a Singular Device ID.",
        "A retry after a timeout may count an event twice: Singular knows no event ids.",
    ),
)
