"""Kochava, server-to-server post-install events.

Source: https://support.kochava.com/server-to-server-integration/post-install-event-setup/
Batch:  none: one event a request.
Dedup:  none documented, so a retry after a timeout may count an event twice.
Errors: 200 to nearly everything; `success` is "1", and a non-empty `error` is a refusal.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, Self
from urllib.parse import quote

from pydantic import Field, model_validator

from providers.kit import (
    MB,
    Context,
    Delivered,
    Event,
    Json,
    Limits,
    Misconfigured,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Secret,
    Settings,
    Skipped,
    Verdict,
    advertising_id,
    amount_of,
    android_id,
    at,
    by_status,
    dump,
    known,
    name_of,
    one_each,
    one_line,
    property_of,
    public_ip,
    reason_of,
    revenue_of,
    store_of,
    text_at,
    user_id,
    vendor_id,
)

URL = "https://control.kochava.com/track/json"
WRONG_APP = re.compile(r"guid|app[ _-]?id", re.IGNORECASE)


class KochavaSettings(Settings):
    """App GUIDs by platform; key and secret only for apps with strict authentication."""

    app_guid_ios: str | None = Field(None, description="App GUID of the iOS app: ko…")
    app_guid_android: str | None = Field(None, description="App GUID of the Android app: ko…")
    sandbox_app_guid_ios: str | None = Field(
        None, description="App GUID for iOS sandbox events; blank: they are skipped"
    )
    sandbox_app_guid_android: str | None = Field(
        None, description="App GUID for Android sandbox events; blank: they are skipped"
    )
    api_key: Secret | None = Field(None, description="API key, for strict authentication")
    api_secret: Secret | None = Field(None, description="Its secret, from Kochava's account team")
    revenue_basis: Literal["usd", "local"] = Field("usd", description="Currency of `sum`")

    pairs = (("api_key", "api_secret"),)

    @model_validator(mode="after")
    def _has_an_app(self) -> Self:
        if not self.app_guid_ios and not self.app_guid_android:
            raise ValueError("app_guid_ios or app_guid_android is needed: the app's GUID, ko…")
        return self


def encode(events: Sequence[Event], settings: KochavaSettings, context: Context) -> Plan:
    """Return one JSON request per event."""
    return one_each(events, lambda event: _request(event, settings))


def _request(event: Event, settings: KochavaSettings) -> Request | Skipped:
    app = _app(event, settings)
    if not app:
        kind = "sandbox app GUID" if event.sandbox else "app GUID"
        return Skipped("not_configured", f"no Kochava {kind} for {event.platform}")
    ids = _ids(event)
    kochava_id = property_of(event, "_q_kochava_device_id")
    if not ids and not kochava_id:
        return Skipped("no_identity", "no Kochava device id and no advertising id")
    body = dump(
        {
            "action": "event",
            "kochava_app_id": app,
            "kochava_device_id": kochava_id,
            "data": _data(event, ids, settings),
        }
    )
    if settings.api_key is None or settings.api_secret is None:
        return Request.json(URL, body)
    key, secret = settings.api_key.get_secret_value(), settings.api_secret.get_secret_value()
    body = body.replace(b"/", b"\\/")  # the form that Kochava hashes; the same JSON
    return Request.json(
        URL,
        body,
        headers={"Kochava-Api-Key": key, "Kochava-Auth-Token": _token(body, key, secret)},
    )


def _token(body: bytes, key: str, secret: str) -> str:
    """Return the token of strict authentication for exactly these bytes."""
    signed = secret + hashlib.sha1(body).hexdigest()  # noqa: S324  Kochava's scheme
    return hmac.new(key.encode(), signed.encode(), hashlib.sha256).hexdigest()


def _app(event: Event, settings: KochavaSettings) -> str | None:
    ios = event.platform == "iOS"
    own = settings.app_guid_ios if ios else settings.app_guid_android
    if not event.sandbox:
        return own
    sandbox = settings.sandbox_app_guid_ios if ios else settings.sandbox_app_guid_android
    return sandbox or (own if settings.send_sandbox else None)


def _ids(event: Event) -> dict[str, str]:
    ios = event.platform == "iOS"
    advertising = advertising_id(event)
    return known(
        idfa=advertising if ios else "",
        idfv=vendor_id(event),
        adid="" if ios else advertising,
        android_id=android_id(event),
    )


def _data(event: Event, ids: dict[str, str], settings: KochavaSettings) -> dict[str, Json]:
    device = event.device
    version = device.model and device.os_version
    money = _money(event, settings)
    tracking = device.att_status if event.platform == "iOS" else None
    return {
        "device_ids": ids,
        "device_ua": quote(device.user_agent, safe=""),
        "device_ver": f"{device.model}-{event.platform}-{device.os_version}" if version else "",
        "origination_ip": public_ip(event),
        "usertime": event.time,  # epoch, s
        "event_name": name_of(event, settings, {}),
        **known(
            app_tracking_transparency=None if tracking is None else {"att": tracking == 3},
            device_limit_tracking=device.limit_ad_tracking,
            app_version=device.app_version,
            currency=money.get("currency"),
            event_data=known(
                **money,
                name=event.product_id,
                content_id=event.product_id,
                order_id=event.transaction.transaction_id,
                original_transaction_id=event.transaction.original_transaction_id,
                user_id=user_id(event),
                event_id=event.stable_id,
                store=store_of(event),
                environment=event.environment,
            ),
        ),
    }


def _money(event: Event, settings: KochavaSettings) -> dict[str, Any]:
    money = revenue_of(event, settings)
    if money is None:
        return {}
    amount, currency = amount_of(money, settings.revenue_basis)
    return {"sum": amount, "price": amount, "currency": currency} if amount else {}


def classify(request: Request, response: Response, settings: KochavaSettings) -> Verdict:
    """Return what the answer means: `success` and `error` decide within 200."""
    status, body = response.status, response.json
    error = _error(body)
    message = error or response.text
    if status // 100 == 2:
        success = at(body, "success")
        if not at(body, "error") and success in (None, 1, "1", "true"):
            return Delivered("" if isinstance(body, dict) else message)
    elif status not in (400, 404, 413, 422):
        return by_status(response, message, throttle=timedelta(seconds=7))
    if status == 404 or (status != 413 and WRONG_APP.search(message)):
        return Misconfigured("unknown_app", message)
    return Rejected("refused" if status // 100 == 2 else reason_of(status), message)


def _error(body: Json) -> str:
    """Return the words of `error`: text, a list of texts, or an object of them."""
    error = at(body, "error")
    if isinstance(error, dict):
        return one_line("; ".join(f"{key}: {text_at(error, key)}" for key in error))
    if isinstance(error, list):
        texts = (text_at(error, index) for index in range(len(error)))
        return one_line("; ".join(text for text in texts if text))
    return text_at(body, "error")


provider = Provider(
    slug="kochava",
    title="Kochava",
    category="Attribution",
    stores=("iOS", "Android"),
    settings=KochavaSettings,
    encode=encode,
    classify=classify,
    limits=Limits(bytes=2 * MB, concurrency=10),
    identifiers=("a Kochava device id (`_q_kochava_device_id`), IDFA or IDFV, AAID or Android id",),
    notes=(
        "Kochava answers success to wrong GUIDs and free accounts: check the first event there.",
        "If the app tracks purchases with Kochava's SDK too, revenue is counted twice.",
        "Without device.att_status Kochava assumes no consent and drops the IDFA.",
        "A retry after a timeout may count an event twice: Kochava knows no event ids.",
    ),
)
