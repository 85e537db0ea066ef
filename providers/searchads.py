"""Apple Search Ads: resolves who came through an ad; no event goes out.

Source: https://developer.apple.com/documentation/adservices/aaattribution/attributiontoken()
Batch:  none: one token a request, for all events of the user that wait for it.
Dedup:  a user is resolved once; the same token gives the same answer.
Errors: a 404 may mean that Apple's record is not ready yet, while the token is young.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec.structs import replace
from pydantic import AfterValidator, Field, SecretStr, model_validator

from providers.kit import (
    NEW_TOKEN,
    Check,
    Context,
    Delivered,
    Event,
    Json,
    Limits,
    Misconfigured,
    Outcome,
    Partial,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Retry,
    SecretText,
    Settings,
    Skipped,
    Token,
    TokenSource,
    Verdict,
    at,
    attributed,
    attribution_from,
    by_status,
    dump_text,
    matching,
    property_of,
    reason_of,
    seconds,
    text_at,
)
from providers.kit.attribution import TEST_CAMPAIGN

RESOLVER = "https://api-adservices.apple.com/api/v1/"
AUTHORITY = "https://appleid.apple.com"
API = "https://api.searchads.apple.com/api/v5"  # ends on 2027-01-26
TOKEN_LIFE = timedelta(hours=24)
HOUR = 3600  # seconds
# Apple: three attempts, five seconds apart. Then as long as the token lives, in the ten attempts
# that an event which fails alone is given.
WAITS = (5, 5, 60, 600, HOUR, 3 * HOUR, 5 * HOUR, 7 * HOUR, 8 * HOUR)
MINUTE = timedelta(minutes=1)
NAMES = {  # what is learned, and where from
    "campaign_name": "/campaigns/{campaign_id}",
    "ad_group_name": "/campaigns/{campaign_id}/adgroups/{ad_group_id}",
    "keyword": "/campaigns/{campaign_id}/adgroups/{ad_group_id}/targetingkeywords/{keyword_id}",
}


def _p256(secret: SecretStr) -> SecretStr:
    remedy = "must be the PEM of an EC private key on the curve P-256 (prime256v1)"
    try:
        key = load_pem_private_key(secret.get_secret_value().encode(), None)
    except (ValueError, TypeError) as error:
        raise ValueError(remedy) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ValueError(remedy)
    return secret


_UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
AppleId = Annotated[str, matching(rf"SEARCHADS\.{_UUID}", "must be SEARCHADS. and a UUID")]
KeyId = Annotated[str, matching(_UUID, "must be the key's id, a UUID")]
PrivateKey = Annotated[SecretText, AfterValidator(_p256)]


class SearchAdsSettings(Settings):
    """What to resolve; the API user's credentials only turn ids into names."""

    resolve_tokens: bool = Field(True, description="Exchange attribution tokens; no credentials")
    client_id: AppleId | None = Field(None, description="Client ID of an Apple Ads API user")
    team_id: AppleId | None = Field(None, description="Team ID of the API user")
    key_id: KeyId | None = Field(None, description="Key ID of the API user")
    private_key: PrivateKey | None = Field(None, description="Private key (EC P-256, PEM)")
    org_id: int | None = Field(
        None, ge=1, description="Apple Ads account; default: that of each attribution"
    )
    resolve_names: bool = Field(False, description="Look up names of campaigns and keywords")
    drop_test_payload: bool = Field(True, description="Ignore attributions of development builds")

    @model_validator(mode="after")
    def _credentials_are_whole(self) -> Self:
        keys = ("client_id", "team_id", "key_id", "private_key")
        missing = [key for key in keys if getattr(self, key) is None]
        if 0 < len(missing) < len(keys):
            raise ValueError(f"{', '.join(keys)} belong together: set {', '.join(missing)} too")
        if missing and self.resolve_names:
            raise ValueError(f"resolve_names needs an API user: set {', '.join(keys)}")
        return self


def encode(events: Sequence[Event], settings: SearchAdsSettings, context: Context) -> Plan:
    """Return one call for each user: the exchange of the token, or the look-up of a name."""
    unsent: dict[int, Skipped] = {}
    users: dict[str, list[int]] = {}
    for position, event in enumerate(events):
        if why := _settled(event, settings, context):
            unsent[position] = why
        else:
            users.setdefault(event.user_key, []).append(position)
    requests = []
    for user, positions in users.items():
        waiting = [events[position] for position in positions]
        record = context.attributions.get(user)
        request = (
            _exchange(waiting, context)
            if record is None
            else _look_up(record, waiting, settings, context)
        )
        requests.append(replace(request, events=tuple(positions)))
    return Plan(tuple(requests), unsent)


def _settled(event: Event, settings: SearchAdsSettings, context: Context) -> Skipped | None:
    record = context.attributions.get(event.user_key)
    if record is not None and _lacking(record, settings):
        return None
    if record is not None or event.asa_attribution is not None:
        return Skipped("resolved", "attribution already resolved")
    if not settings.resolve_tokens:
        return Skipped("switched_off", "tokens are not resolved (resolve_tokens is off)")
    if not _token(event):
        return Skipped("no_identity", "no AdServices token for this user (set _q_asa_token)")
    if not event.user_key:
        return Skipped("no_identity", "no user id to keep the attribution of")
    return None


def _token(event: Event) -> str:
    text = property_of(event, "_q_asa_token", "apple_adservices_token")
    return "".join(text.split()).strip("\"'")


def _made(event: Event) -> int:
    """Return when the token was made, as far as is known."""
    text = property_of(event, "_q_asa_token_time", "_q_asa_token_requested_at", "requested_at")
    if not re.fullmatch(r"[0-9]{10}([0-9]{3})?(\.[0-9]+)?", text):
        return event.installed_at or event.time
    return int(text[:10])  # seconds, also of milliseconds


def _exchange(waiting: Sequence[Event], context: Context) -> Request:
    event = max(waiting, key=lambda event: event.time)
    young = context.now.timestamp() - _made(event) < TOKEN_LIFE.total_seconds()
    notes = [context.notes.get(event.id, "") for event in waiting]
    tries = max((int(note) for note in notes if note.isdecimal()), default=0)
    return Request(
        "POST",
        RESOLVER,
        (("Content-Type", "text/plain"),),
        _token(event).encode(),
        refs={str(tries): 0} if young else {},  # for how long a 404 may be waited out
    )


def _lacking(record: Mapping[str, Json], settings: SearchAdsSettings) -> tuple[str, str] | None:
    """Return the first name not looked up yet, and its path; None where there is none."""
    if not settings.resolve_names or record.get("attributed") is not True:
        return None
    ids = {key: attributed(record, key) for key in ("campaign_id", "ad_group_id", "keyword_id")}
    for name, path in NAMES.items():
        needed = [ids[key] for key in re.findall(r"\{(\w+)\}", path)]
        if name not in record and all(re.fullmatch("[0-9]+", number) for number in needed):
            return name, path.format(**ids)
    return None


def _look_up(
    record: Mapping[str, Json],
    waiting: Sequence[Event],
    settings: SearchAdsSettings,
    context: Context,
) -> Request:
    name, path = _lacking(record, settings) or ("", "")
    org = settings.org_id or attributed(record, "org_id")
    again = any(context.notes.get(event.id) == NEW_TOKEN for event in waiting)
    # The answer is a name alone, and what is learned is the whole record.
    known = dump_text({"record": record, "name": name, "again": again})
    headers = _bearer(context) + ((("X-AP-Context", f"orgId={org}"),) if org else ())
    return Request("GET", f"{API}{path}", headers, refs={known: 0})


def _bearer(context: Context) -> tuple[tuple[str, str], ...]:
    return (("Authorization", f"Bearer {context.token.get('access_token', '')}"),)


def classify(request: Request, response: Response, settings: SearchAdsSettings) -> Verdict:
    """Return what the answer means; an attribution is learned for the user of the events."""
    if request.url.startswith(API):
        return _named(request, response)
    tries = next(iter(request.refs), None)
    match response.status:
        case status if 200 <= status < 300:
            return _resolved(response, settings)
        case 400:
            return Rejected("invalid_token", f"attribution token invalid {response.text}".strip())
        case 404 if tries is None:
            return Rejected("expired_token", "attribution token expired")
        case 404:
            return _not_ready(request, int(tries or 0))
        case 401 | 403:  # there are no credentials that could be wrong
            return Retry(reason_of(response.status), response.text)
        case _:
            return by_status(response, throttle=MINUTE)


def _not_ready(request: Request, tries: int) -> Partial:
    wait = timedelta(seconds=WAITS[min(tries, len(WAITS) - 1)])
    later = Retry("not_ready", "no attribution record yet", wait, note=str(tries + 1))
    return Partial(dict.fromkeys(range(len(request.events)), later))  # other users go on


def _resolved(response: Response, settings: SearchAdsSettings) -> Outcome:
    body = response.json
    found = at(body, "attribution")
    if not isinstance(found, bool):
        return Retry("unexpected_answer", response.text or "empty answer")
    record = attribution_from(body)
    message = "" if found else "not attributed to an ad"
    if settings.drop_test_payload and attributed(record, "campaign_id") == TEST_CAMPAIGN:
        record, message = {"attributed": False}, "Apple's test attribution, ignored"
    return Delivered(message, record | {"resolved_at": int(response.at.timestamp())})


def _named(request: Request, response: Response) -> Outcome:
    asked = json.loads(next(iter(request.refs)))
    error = at(response.json, "error", "errors", 0)
    message = ": ".join(filter(None, (text_at(error, k) for k in ("messageCode", "message"))))
    data = at(response.json, "data")
    name = text_at(data, "name") or text_at(data, "text")
    match response.status:
        case 401 if not asked["again"]:
            return Retry("unauthorized", message or response.text, timedelta(0), note=NEW_TOKEN)
        case 401 | 403 | 429:
            return by_status(response, message, throttle=MINUTE)
        case status if status >= 500:
            return by_status(response, message)
        case 404:  # of another account, or deleted: there are the ids
            return Delivered(message, asked["record"] | {asked["name"]: ""})
        case _ if name:
            return Delivered("", asked["record"] | {asked["name"]: name})
        case _:
            return Delivered(message)


# --- the API's access token, and the check ------------------------------------------------------


def _ask_token(settings: SearchAdsSettings, now: datetime) -> Request | None:
    """Return the call for an access token; None where no names are looked up.

    https://developer.apple.com/documentation/apple_ads/implementing-oauth-for-the-apple-search-ads-api
    """
    if not settings.resolve_names or settings.private_key is None:
        return None
    import jwt  # noqa: PLC0415  two megabytes, for few

    claims = {
        "sub": settings.client_id,
        "iss": settings.team_id,
        "aud": AUTHORITY,
        "iat": now,
        "exp": now + 10 * MINUTE,  # it is used at once
    }
    secret = jwt.encode(
        claims,
        settings.private_key.get_secret_value(),
        algorithm="ES256",
        headers={"kid": settings.key_id},
    )
    return Request.form(
        f"{AUTHORITY}/auth/oauth2/token",
        {
            "grant_type": "client_credentials",
            "client_id": settings.client_id or "",
            "client_secret": secret,
            "scope": "searchadsorg",
        },
    )


def _read_token(response: Response) -> Token | Outcome:
    token = text_at(response.json, "access_token")
    error = [text_at(response.json, key) for key in ("error", "error_description")]
    message = ": ".join(filter(None, error)) or response.text
    if response.status == 200 and token:
        lives = seconds(at(response.json, "expires_in")) or timedelta(hours=1)
        return Token({"access_token": token}, max(lives - MINUTE, MINUTE))
    if response.status in (400, 401, 403):
        return Misconfigured("invalid_client", message)
    if response.status == 200:
        return Retry("unexpected_answer", message)
    return by_status(response, message, throttle=MINUTE)


def _check(settings: SearchAdsSettings, context: Context) -> Request:
    if settings.resolve_names:
        return Request("GET", f"{API}/acls", _bearer(context))
    return Request("POST", RESOLVER, (("Content-Type", "text/plain"),), b"onward-settings-check")


def _read_check(response: Response) -> Outcome:
    if response.status in (400, 404):
        return Delivered("Apple's attribution service answers")
    error = at(response.json, "error", "errors", 0)
    return by_status(response, text_at(error, "message") or text_at(error, "messageCode"))


provider = Provider(
    slug="searchads",
    title="Apple Search Ads",
    category="Attribution",
    stores=("iOS",),
    settings=SearchAdsSettings,
    encode=encode,
    classify=classify,
    limits=Limits(events=10, concurrency=5, linger=timedelta(seconds=0.2)),
    identifiers=("an AdServices attribution token in _q_asa_token, less than 24 hours old",),
    notes=(
        "No event goes out: the user's attribution is resolved, for Asapty and SplitMetrics too.",
        "Names of campaigns and keywords follow later, one with each further event of the user.",
        "Tokens are personal data until they are resolved.",
    ),
    token=TokenSource(_ask_token, _read_token, {"access_token": "access-token"}),
    check=Check(_check, _read_check),
)
