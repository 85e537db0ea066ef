"""Providers of several steps, those that need a token, and what none of them may show."""

import json
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from msgspec import structs

from providers.kit import (
    Context,
    Event,
    Gone,
    Plan,
    Provider,
    Rejected,
    Request,
    Response,
    Secret,
    Settings,
    Skipped,
    Token,
    TokenSource,
    Verdict,
    by_status,
    one_each,
)
from worker.preview import Rehearsal, explain, preview, rehearse
from worker.sandbox import upstreams
from worker.trial import ATTRIBUTION, PROPERTIES

URL = "https://steps.example"


class StepsSettings(Settings):
    """One secret."""

    key: Secret


def encode(events: Sequence[Event], settings: StepsSettings, context: Context) -> Plan:
    def made(event: Event) -> list[Request] | Skipped:
        if not event.user_id:
            return Skipped("no_identity", "no user")
        bearer = {"Authorization": f"Bearer {context.token['access_token']}"}
        return [
            Request.json(f"{URL}/member", {}, headers=bearer),
            Request.json(f"{URL}/event", {}, headers=bearer, step=1),
            Request.json(f"{URL}/tags", {}, headers=bearer, step=1, optional=True),
        ]

    return one_each(events, made)


def classify(request: Request, response: Response, settings: StepsSettings) -> Verdict:
    if request.url.endswith("/tags"):
        return Gone("gone", "no tags")
    if request.url.endswith("/event") and response.status == 404:
        return Rejected("not_found", f"no such event for {settings.key.get_secret_value()}")
    return by_status(Response(204) if response.status == 404 else response)


PROVIDER: Provider[Any] = Provider(
    slug="steps",
    title="Steps",
    category="Server",
    stores=("iOS",),
    settings=StepsSettings,
    encode=encode,
    classify=classify,
    token=TokenSource(
        request=lambda settings, _now: Request.form(
            f"{URL}/token", {"client_secret": settings.key.get_secret_value()}
        ),
        read=lambda _response: Token({"access_token": "t"}, timedelta(hours=1)),
        sample={"access_token": "sample-token"},
    ),
)


def rehearsal(*events: bytes) -> Rehearsal:
    made = rehearse("amplitude", {"api_key": "k" * 32}, events)
    token = dict(PROVIDER.token.sample) if PROVIDER.token else {}
    context = structs.replace(made.context, token=token)
    return replace(
        made, provider=PROVIDER, settings=StepsSettings.model_validate({"key": "s3cret-key"}),
        context=context,
    )  # fmt: skip


USER = b'{"event_name":"trial_started","user_id":"QON_1"}'
NOBODY = b'{"event_name":"trial_started"}'


def test_shows_the_call_for_a_token_apart_and_masked() -> None:
    shown = preview(rehearsal(USER))
    assert [r["url"] for r in shown["requests"]] == [f"{URL}/member", f"{URL}/event", f"{URL}/tags"]
    assert shown["requests"][0]["headers"]["Authorization"] == "Bearer sample-token"
    (call,) = shown["authorization"]
    assert (call["url"], call["body"], call["events"]) == (f"{URL}/token", "client_secret=***", [])
    open_ = preview(rehearsal(USER), show_secrets=True)
    assert open_["authorization"][0]["body"] == "client_secret=s3cret-key"


def test_shows_no_call_for_a_token_where_nothing_is_sent() -> None:
    shown = preview(rehearsal(NOBODY))
    assert shown == {"requests": [], "skipped": [{"event": "evt-preview-1", "reason": "no user"}]}


def test_an_event_of_several_steps_gets_its_worst_outcome_and_optional_ones_do_not_count() -> None:
    told = explain(rehearsal(USER, NOBODY), Response(404))
    assert [o["outcome"] for o in told["outcomes"]] == ["rejected", "skipped"]
    assert told["outcomes"][0]["message"] == "no such event for ***"
    assert told["pipeline"] == "ok"
    assert explain(rehearsal(USER), Response(200))["outcomes"][0]["outcome"] == "delivered"
    assert explain(rehearsal(USER), Response(401))["pipeline"] == "misconfigured"
    assert explain(rehearsal(NOBODY), Response(401))["pipeline"] == "ok"


@pytest.mark.parametrize("slug", [m.name for m in pkgutil.iter_modules(upstreams.__path__)])
def test_no_provider_s_secret_is_shown(slug: str) -> None:
    upstream = import_module(f"{upstreams.__name__}.{slug}").upstream
    event: dict[str, Any] = {
        "event_name": "trial_started",
        "user_id": "QON_5b1f0c9e7a3d4d22",
        "advertiser_id": "7D0F1C9E-6A3B-4E55-9B1B-0B7E3E6C2A11",
        "identity_id": "acct-40001",
        "properties": PROPERTIES,
    }
    if slug != "searchads":
        event["asa_attribution"] = ATTRIBUTION
    made = rehearse(slug, dict(upstream.settings), [json.dumps(event).encode()])
    shown = preview(made)
    assert shown["requests"], shown["skipped"]
    refusal = upstream.refusal
    words = refusal.payload()[0] + b" " + " ".join(made.settings.secrets()).encode()
    told = explain(made, Response(refusal.status, dict(refusal.headers), words))
    for secret in made.settings.secrets():
        for text in (json.dumps(shown, ensure_ascii=False), json.dumps(told, ensure_ascii=False)):
            assert secret not in text
            assert json.dumps(secret)[1:-1] not in text


def test_zeros_stand_in_for_a_signing_secret_that_saving_would_make() -> None:
    for given in ({}, {"signing_secret": None}):
        read = rehearse("webhooks", {"url": "https://a.example/", **given}, [USER])
        (request,) = preview(read)["requests"]
        assert request["headers"]["webhook-signature"].startswith("v1,")
