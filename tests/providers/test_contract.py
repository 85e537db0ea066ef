"""What every adapter promises, asked of each one found."""

import json
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from providers.kit import (
    Context,
    Event,
    Gone,
    InvalidSettings,
    Misconfigured,
    Partial,
    Plan,
    Provider,
    Rejected,
    Response,
    Retry,
    plan,
    read_settings,
)
from providers.kit.catalogue import EVENTS, NO_MONEY
from tests.providers.samples import FULL, NOW, event
from worker.registry import all_providers
from worker.sandbox.upstream import Call, Upstream

PROVIDERS = all_providers()
every_provider = pytest.mark.parametrize("slug", PROVIDERS)
SOME_EFFORT = effort(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
PROPERTIES = {
    "_q_email": "mira.okafor@example.com",
    "_q_adjust_adid": "5f3c9a1e7b2d4c6e8f0a1b2c3d4e5f60",
    "_q_appsflyer_user_id": "1767225000123-4567890123456789012",
    "_q_kochava_device_id": "KI1767225000t3c9a1e7b2d4c6e8f0a1b2c3d4e5f60",
    "_q_tenjin_aiid": "7c0e5b7f2a9d4c13b6a1f0d2e3948576",
    "_q_firebase_instance_id": "4f1b0c2d3e4f5a6b7c8d9e0f1a2b3c4d",
    "_q_appmetrica_device_id": "1757762239877245682",
    "_q_pushwoosh_hwid": "9D2F7C31-5B1E-4B63-8D90-2C6E1F7A0B44",
    "_q_asa_token": "q9YxBASE64AAABBEQQBQA=",
}
ATTRIBUTION = {
    "attributed": True,
    "org_id": "40669111",
    "campaign_id": "542370111",
    "ad_group_id": "542317222",
    "country_or_region": "GB",
}


def upstream_of(slug: str) -> Upstream:
    upstream = import_module(f"worker.sandbox.upstreams.{slug}").upstream
    assert isinstance(upstream, Upstream)
    return upstream


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    count = draw(st.integers(1, 12))
    made = []
    for number in range(count):
        name = draw(st.sampled_from(list(EVENTS)))
        sign = -1 if name.endswith("refunded") else 1
        cents = sign * draw(st.integers(0, 10**7))
        money = {
            "value": cents / 100,
            "value_usd": cents / 100,
            "currency": draw(st.sampled_from(["USD", "JPY", "KWD"])),
        }
        value: dict[str, Any] = {
            **FULL,
            "id": f"evt-{number}",
            "event_name": name,
            "platform": draw(st.sampled_from(["iOS", "Android", "Stripe"])),
            "user_id": f"QON_{draw(st.integers(0, 5))}_user",
            "identity_id": draw(st.one_of(st.none(), st.text(max_size=256))),
            "product_id": draw(st.text(max_size=256)),
            "revenue": draw(st.one_of(st.none(), st.just(money))),
            "properties": PROPERTIES
            if draw(st.booleans())
            else {"note": draw(st.text(max_size=900))},
            "asa_attribution": draw(st.one_of(st.none(), st.just(ATTRIBUTION))),
            "ip": draw(st.sampled_from(["8.8.8.8", "10.0.0.1", "2a00:1450::1", ""])),
            "device": draw(
                st.sampled_from(
                    [None, {"os_version": "17.5", "app_id": "com.acme.app", "att_status": 3}]
                )
            ),
        }
        clean = {k: v.replace("\0", "") if isinstance(v, str) else v for k, v in value.items()}
        clean["properties"] = {k: v.replace("\0", "") for k, v in value["properties"].items()}
        made.append(event(**clean))
    return made


def planned(provider: Provider[Any], settings: Any, some: list[Event]) -> Plan:
    token = dict(provider.token.sample) if provider.token else {}
    context = Context(
        now=datetime.fromtimestamp(NOW, UTC),
        project_id="prj_acme",
        integration_id="c9VdLs3H",
        batch_at=datetime.fromtimestamp(NOW, UTC),
        token=token,
    )
    return plan(provider, some, settings, context)


@every_provider
def test_is_declared_as_its_module(slug: str) -> None:
    provider = PROVIDERS[slug]
    assert provider.slug == slug
    doc = import_module(f"providers.{slug}").__doc__ or ""
    assert all(f"\n{word}" in doc for word in ("Source:", "Batch:", "Dedup:", "Errors:"))
    assert provider.title
    assert provider.stores
    assert provider.identifiers
    for name, field in provider.settings.model_fields.items():
        assert field.description, f"{name} has no description"


@every_provider
def test_names_every_setting_that_is_missing(slug: str) -> None:
    provider = PROVIDERS[slug]
    required = [k for k, f in provider.settings.model_fields.items() if f.is_required()]
    with pytest.raises(InvalidSettings) as caught:
        read_settings(provider.title, provider.settings, {"unheard_of": 1})
    named = {key for key, _ in caught.value.faults}
    assert {*required, "unheard_of"} <= named


@every_provider
@SOME_EFFORT
@given(some=events())
def test_plans_within_limits_and_accounts_for_every_event(slug: str, some: list[Event]) -> None:
    provider = PROVIDERS[slug]
    settings = read_settings(provider.title, provider.settings, upstream_of(slug).settings)
    limits = provider.limits_of(settings) if provider.limits_of else provider.limits
    first = planned(provider, settings, some)
    assert first == planned(provider, settings, some), "encoding twice gives other bytes"
    sent = {position for request in first.requests for position in request.events}
    assert sent | first.unsent.keys() == set(range(len(some)))
    assert not sent & first.unsent.keys()
    for request in first.requests:
        assert request.events
        assert len(request.body) <= limits.bytes
        assert set(request.refs.values()) <= set(range(len(request.events)))
        assert request.url.isascii()
        assert request.url.startswith("https://")
        assert not any(
            c in part for name, value in request.headers for part in (name, value) for c in "\r\n\0"
        )


@every_provider
def test_of_an_event_that_moves_no_money_only_those_that_pass_it_on_send_an_amount(
    slug: str,
) -> None:
    provider = PROVIDERS[slug]
    settings = read_settings(provider.title, provider.settings, upstream_of(slug).settings)
    known = {"properties": PROPERTIES, "asa_attribution": ATTRIBUTION}

    def sent(**change: Any) -> Plan:
        some = [event(id=f"evt-{name}", event_name=name, **known, **change) for name in NO_MONEY]
        return planned(provider, settings, some)

    passes_on = slug in ("amazon_s3", "google_cloud_storage", "webhooks")
    assert (sent() != sent(revenue=None)) == passes_on


@every_provider
@SOME_EFFORT
@given(
    status=st.integers(100, 999),
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "location", "content-type"]), st.text(max_size=40)
    ),
    body=st.one_of(
        st.binary(max_size=300),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=12),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "error",
                            "errors",
                            "code",
                            "status",
                            "message",
                            "index",
                            "failed_records",
                            "result",
                            "success",
                            "response",
                            "status_code",
                            "record",
                            "unprocessed",
                            "input_array",
                            "type",
                        ]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_classify_answers_anything(
    slug: str, status: int, headers: dict[str, str], body: bytes
) -> None:
    provider = PROVIDERS[slug]
    settings = read_settings(provider.title, provider.settings, upstream_of(slug).settings)
    sample = event(properties=PROPERTIES, asa_attribution=ATTRIBUTION, revenue=None)
    for request in planned(provider, settings, [sample, sample]).requests:
        verdict = provider.classify(request, Response(status, headers, body), settings)
        named = verdict.named if isinstance(verdict, Partial) else {}
        assert all(index >= 0 for index in named)
        for outcome in (verdict.rest if isinstance(verdict, Partial) else verdict, *named.values()):
            assert len(getattr(outcome, "message", "")) <= 900
            reason = getattr(outcome, "reason", "ok")
            assert reason.replace("_", "").isalnum()
            assert reason == reason.lower()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b'"\x80"', b'{"a": 1}}'])
def test_an_answer_that_is_no_json_is_none(body: bytes) -> None:
    assert Response(200, {}, body).json is None


@pytest.mark.parametrize(
    ("body", "page"),
    [
        (b"\n<!doctype html>\n<title>Sign in", True),
        (b"<!-- down --> <HTML lang=en>", True),
        (b"<Error><Message>html</Message></Error>", False),
        (b'{"page": "<html>"}', False),
        (b"<htmlx>", False),
        (b"ok", False),
        (b"", False),
    ],
)
def test_a_web_page_is_known_by_its_first_words(body: bytes, page: bool) -> None:
    assert Response(200, {}, body).is_page == page


@every_provider
def test_shows_no_secret(slug: str) -> None:
    provider = PROVIDERS[slug]
    settings = read_settings(provider.title, provider.settings, upstream_of(slug).settings)
    secrets = list(settings.secrets())
    assert secrets, "no setting is a secret"
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert not [secret for secret in secrets if secret in shown]


@every_provider
def test_sandbox_takes_what_it_sends_and_refuses_wrong_credentials(slug: str) -> None:
    provider, upstream = PROVIDERS[slug], upstream_of(slug)
    settings = read_settings(provider.title, provider.settings, upstream.settings)
    sample = event(properties=PROPERTIES, asa_attribution=ATTRIBUTION, revenue=None)
    if slug == "searchads":
        sample = event(properties=PROPERTIES, revenue=None)
    requests = planned(provider, settings, [sample]).requests
    assert requests
    for request in requests:
        host, _, target = request.url.removeprefix("https://").partition("/")
        call = Call(
            request.method,
            host,
            f"/{target}",
            {k.lower(): v for k, v in request.headers},
            request.body,
        )
        assert upstream.serves(host)
        reply = upstream.answer(call)
        headers = {name.lower(): value for name, value in reply.headers.items()}
        verdict = provider.classify(
            request, Response(reply.status, headers, reply.payload()[0]), settings
        )
        assert type(verdict).__name__ == "Delivered", (reply, verdict)
    refusal = Response(
        upstream.refusal.status, upstream.refusal.headers, upstream.refusal.payload()[0]
    )
    verdict = provider.classify(requests[0], refusal, settings)
    assert isinstance(verdict, Misconfigured | Gone | Rejected | Retry)
