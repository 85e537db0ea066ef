"""Apple Search Ads: which calls are made, and what each answer teaches."""

from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from providers.kit import (
    Delivered,
    InvalidSettings,
    Misconfigured,
    Partial,
    Rejected,
    Request,
    Response,
    Retry,
    Skipped,
    Token,
    Verdict,
    read_settings,
)
from providers.searchads import SearchAdsSettings, provider
from tests.providers.samples import NOW, classified, context, event, fault, planned, trial
from worker.sandbox.upstreams.searchads import ATTRIBUTED, TEST, upstream
from worker.settings import WorkerSettings

TOKEN = {"properties": {"_q_asa_token": "q9YxBASE64AAABBEQQBQA="}}
NAMES = dict(upstream.settings)
USER = "QON_5b1f0c9e7a3d4d22"
RECORD = {
    "attributed": True,
    "org_id": "40669111",
    "campaign_id": "542370111",
    "conversion_type": "Download",
    "claim_type": "Click",
    "ad_group_id": "542317222",
    "country_or_region": "GB",
    "keyword_id": "87675333",
    "ad_id": "542319444",
    "supply_placement": "APPSTORE_SEARCH_RESULTS",
}
DAY = 86_400


def later(seconds: float, tries: int) -> Retry:
    wait = timedelta(seconds=seconds)
    return Retry("not_ready", "no attribution record yet", wait, note=str(tries))


def test_exchanges_a_user_s_token_once_for_all_its_events() -> None:
    other = event(id="e-3", user_id="QON_other", properties={"_q_asa_token": '"QUJD\nRA=="'})
    plan = planned(provider, {}, event(**TOKEN), other, trial(**TOKEN))
    first, second = plan.requests
    assert first == Request(
        "POST",
        "https://api-adservices.apple.com/api/v1/",
        (("Content-Type", "text/plain"),),
        b"q9YxBASE64AAABBEQQBQA=",
        events=(0, 2),
        refs={"0": 0},
    )
    assert (second.body, second.events) == (b"QUJDRA==", (1,))


@pytest.mark.parametrize(
    ("settings", "change", "more", "message"),
    [
        ({}, {}, {}, "no AdServices token for this user (set _q_asa_token)"),
        ({}, TOKEN, {"attributions": {USER: RECORD}}, "attribution already resolved"),
        ({}, TOKEN, {"attributions": {USER: {"attributed": False}}}, "already resolved"),
        ({}, TOKEN | {"asa_attribution": RECORD}, {}, "attribution already resolved"),
        ({"resolve_tokens": False}, TOKEN, {}, "tokens are not resolved"),
        ({}, TOKEN | {"platform": "Android"}, {}, "takes events of iOS only"),
        (
            {},
            TOKEN | {"user_id": None, "identity_id": None, "device_id": None},
            {},
            "no user id to keep the attribution of",
        ),
    ],
)
def test_skips(
    settings: dict[str, Any], change: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    plan = planned(provider, settings, event(**change), **more)
    (skipped,) = plan.unsent.values()
    assert isinstance(skipped, Skipped)
    assert message in skipped.message
    assert plan.requests == ()


def test_looks_up_one_name_after_another_where_told() -> None:
    paths = []
    record: dict[str, Any] = dict(RECORD)
    for learned in ("Brand", "Exact", "premium app"):
        more = {"attributions": {USER: record}, "token": {"access_token": "abc"}}
        (request,) = planned(provider, NAMES, event(**TOKEN), **more).requests
        assert dict(request.headers) == {
            "Authorization": "Bearer abc",
            "X-AP-Context": "orgId=40669111",
        }
        paths.append(request.url.removeprefix("https://api.searchads.apple.com/api/v5"))
        key = "text" if "targetingkeywords" in request.url else "name"
        answer = Response(200, {}, b'{"data":{"%b":"%b"}}' % (key.encode(), learned.encode()))
        read = read_settings(provider.title, provider.settings, NAMES)
        verdict = provider.classify(request, answer, read)
        assert isinstance(verdict, Delivered)
        record = dict(verdict.learned or {})
    assert paths == [
        "/campaigns/542370111",
        "/campaigns/542370111/adgroups/542317222",
        "/campaigns/542370111/adgroups/542317222/targetingkeywords/87675333",
    ]
    names = {"campaign_name": "Brand", "ad_group_name": "Exact", "keyword": "premium app"}
    assert record == RECORD | names
    plan = planned(provider, NAMES, event(**TOKEN), attributions={USER: record})
    assert plan.requests == ()


@pytest.mark.parametrize(
    ("note", "status", "body", "verdict"),
    [
        (
            "",
            401,
            '{"error":{"errors":[{"messageCode":"UNAUTHORIZED","message":"expired"}]}}',
            Retry("unauthorized", "UNAUTHORIZED: expired", timedelta(0), note="new_token"),
        ),
        ("new_token", 401, "", Misconfigured("unauthorized")),
        (
            "",
            403,
            '{"error":{"errors":[{"messageCode":"FORBIDDEN","message":"no"}]}}',
            Misconfigured("forbidden", "FORBIDDEN: no"),
        ),
        ("", 404, "", Delivered("", RECORD | {"campaign_name": ""})),
        ("", 429, "", Retry("throttled", "", timedelta(minutes=1), throttled=True)),
        ("", 500, "", Retry("server_error")),
        ("", 200, "<html>", Delivered()),
    ],
)
def test_classifies_a_look_up(note: str, status: int, body: str, verdict: Verdict) -> None:
    more = {"attributions": {USER: RECORD}, "notes": {event().id: note}}
    (request,) = planned(provider, NAMES, event(**TOKEN), **more).requests
    read = read_settings(provider.title, provider.settings, NAMES)
    assert provider.classify(request, Response(status, {}, body.encode()), read) == verdict


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, ATTRIBUTED, Delivered("", RECORD | {"resolved_at": NOW})),
        (
            200,
            {"attribution": False},
            Delivered("not attributed to an ad", {"attributed": False, "resolved_at": NOW}),
        ),
        (
            200,
            TEST,
            Delivered(
                "Apple's test attribution, ignored", {"attributed": False, "resolved_at": NOW}
            ),
        ),
        (200, "<html>", Retry("unexpected_answer", "<html>")),
        (200, "", Retry("unexpected_answer", "empty answer")),
        (200, {"orgId": 1}, Retry("unexpected_answer", '{"orgId": 1}')),
        (400, "", Rejected("invalid_token", "attribution token invalid")),
        (404, "", Partial({0: later(5, 1)})),
        (429, "", Retry("throttled", "", timedelta(seconds=60), throttled=True)),
        (500, "", Retry("server_error")),
        (503, "", Retry("unavailable")),
    ],
)
def test_classify(status: int, body: Any, verdict: Verdict) -> None:
    assert classified(provider, {}, status, body, event(**TOKEN)) == verdict


def test_keeps_the_test_attribution_where_told() -> None:
    verdict = classified(provider, {"drop_test_payload": False}, 200, TEST, event(**TOKEN))
    assert isinstance(verdict, Delivered)
    assert (verdict.learned or {})["campaign_id"] == "1234567890"


@pytest.mark.parametrize(
    ("tries", "wait"),
    [("", 5), ("1", 5), ("2", 60), ("3", 600), ("4", 3600), ("5", 10_800), ("8", 28_800)],
)
def test_waits_longer_for_a_record_each_time(tries: str, wait: int) -> None:
    given = event(**TOKEN)
    (request,) = planned(provider, {}, given, trial(**TOKEN), notes={given.id: tries}).requests
    verdict = provider.classify(request, Response(404), SearchAdsSettings())
    assert isinstance(verdict, Partial)
    assert verdict == Partial(dict.fromkeys((0, 1), later(wait, int(tries or 0) + 1)))


def test_asks_until_the_token_is_too_old_within_the_attempts_of_an_event() -> None:
    given = event(**TOKEN)
    gone = 0.0
    for tries in range(1, WorkerSettings().event_attempts):
        (request,) = planned(provider, {}, given, notes={given.id: str(tries - 1)}).requests
        verdict = provider.classify(request, Response(404), SearchAdsSettings())
        assert isinstance(verdict, Partial)
        retry = verdict.named[0]
        assert isinstance(retry, Retry)
        assert retry.after
        gone += retry.after.total_seconds()
    assert gone > DAY


@pytest.mark.parametrize(
    "change",
    [
        {"time": NOW - 2 * DAY},
        {"installed_at": NOW - 2 * DAY},
        {"properties": TOKEN["properties"] | {"_q_asa_token_time": str(NOW - DAY)}},
        {"properties": TOKEN["properties"] | {"requested_at": f"{NOW - DAY}000"}},
    ],
)
def test_gives_up_on_an_old_token(change: dict[str, Any]) -> None:
    verdict = classified(provider, {}, 404, "", event(**(TOKEN | change)))
    assert verdict == Rejected("expired_token", "attribution token expired")


def test_asks_for_an_access_token_only_where_names_are_looked_up() -> None:
    assert provider.token
    read = read_settings(provider.title, provider.settings, NAMES)
    now = datetime.now(UTC).replace(microsecond=0)
    call = provider.token.request(read, now)
    assert call
    assert call.url == "https://appleid.apple.com/auth/oauth2/token"
    form = dict(part.split("=") for part in call.body.decode().split("&"))
    assert (form["grant_type"], form["scope"]) == ("client_credentials", "searchadsorg")
    assert jwt.get_unverified_header(form["client_secret"])["kid"] == NAMES["key_id"]
    assert jwt.get_unverified_header(form["client_secret"])["alg"] == "ES256"
    claims = jwt.decode(form["client_secret"], options={"verify_signature": False})
    assert (claims["sub"], claims["iss"]) == (NAMES["client_id"], NAMES["team_id"])
    assert claims["aud"] == "https://appleid.apple.com"
    assert 0 < claims["exp"] - claims["iat"] <= 180 * DAY
    assert provider.token.request(SearchAdsSettings(), now) is None


@pytest.mark.parametrize(
    ("status", "body", "read"),
    [
        (
            200,
            b'{"access_token":"abc","token_type":"Bearer","expires_in":3600}',
            Token({"access_token": "abc"}, timedelta(seconds=3540)),
        ),
        (400, b'{"error":"invalid_client"}', Misconfigured("invalid_client", "invalid_client")),
        (
            401,
            b'{"error":"invalid_scope","error_description":"no"}',
            Misconfigured("invalid_client", "invalid_scope: no"),
        ),
        (200, b"<html>", Retry("unexpected_answer", "<html>")),
        (503, b"", Retry("unavailable")),
    ],
)
def test_reads_the_access_token(status: int, body: bytes, read: Any) -> None:
    assert provider.token
    assert provider.token.read(Response(status, {}, body)) == read


def test_checks_the_credentials_where_there_are_some() -> None:
    assert provider.check
    read = read_settings(provider.title, provider.settings, NAMES)
    known = context(token={"access_token": "abc"})
    assert provider.check.request(read, known).url.endswith("/api/v5/acls")
    assert provider.check.request(SearchAdsSettings(), context()).method == "POST"
    assert provider.check.read(Response(200)) == Delivered()
    assert provider.check.read(Response(400)) == Delivered("Apple's attribution service answers")
    denied = b'{"error":{"errors":[{"messageCode":"FORBIDDEN"}]}}'
    assert provider.check.read(Response(403, {}, denied)) == Misconfigured("forbidden", "FORBIDDEN")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"client_id": "27478e71-3bb0-4588-998c-182e2b405577"}, "client_id"),
        ({"key_id": "ABC123"}, "key_id"),
        (
            {"private_key": "-----BEGIN PRIVATE KEY-----\nMIG\n-----END PRIVATE KEY-----"},
            "private_key",
        ),
        ({"team_id": None}, ""),
        ({"org_id": 0}, "org_id"),
    ],
)
def test_names_faults_of_settings(change: dict[str, Any], key: str) -> None:
    where, _ = fault(provider, NAMES | change)
    assert where == key


def test_names_need_credentials() -> None:
    with pytest.raises(InvalidSettings, match="resolve_names needs an API user"):
        read_settings(provider.title, provider.settings, {"resolve_names": True})
