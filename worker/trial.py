"""A test event to one integration: what is sent, what is answered, what it means."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import msgspec

from providers.kit import (
    EVENTS,
    Context,
    Delivered,
    Event,
    Misconfigured,
    Outcome,
    Request,
    Response,
    Unsent,
    plan,
    screen,
)
from worker.attempt import transport_outcome
from worker.directory import Integration
from worker.tokens import Tokens
from worker.transport import Transport, TransportError
from worker.verdict import outcomes_of, worst

PROPERTIES = {  # an invented user, known to every upstream
    "_q_email": "onward-test@example.com",
    "_q_name": "Onward Test",
    "_q_adjust_adid": "00000000000000000000000000e57e57",
    "_q_appsflyer_user_id": "1767225000000-1234567890123456789",
    "_q_kochava_device_id": "KI1767225000t00000000000000000000000000e57e57",
    "_q_tenjin_aiid": "00000000000000000000000000e57e57",
    "_q_firebase_instance_id": "00000000000000000000000000e57e57",
    "_q_appmetrica_device_id": "1767225000123456789",
    "_q_pushwoosh_hwid": "0E57E570-0000-4000-8000-00000E57E57E",
    "_q_asa_token": "b253YXJkLXRlc3Q=",
}
ATTRIBUTION = {
    "attributed": True,
    "org_id": "1",
    "campaign_id": "1",
    "ad_group_id": "1",
    "country_or_region": "US",
}


@dataclass(frozen=True)
class Exchange:
    """A request that was sent, its answer (None: none came), and what became of the event."""

    request: Request
    response: Response | None
    outcome: Outcome


@dataclass(frozen=True)
class Trial:
    """What came of a test event. Without exchanges the outcome says why nothing was sent."""

    event: Event
    exchanges: tuple[Exchange, ...]
    outcome: Outcome | Unsent


async def send_test(integration: Integration, transport: Transport) -> Trial:
    """Send one event, marked by its id `test-…`, and return what came of it.

    It passes by the pipeline: nothing is counted, and no state changes.
    """
    now = datetime.now(UTC)
    event = _event(integration, now)
    if integration.settings is None:
        return Trial(event, (), Misconfigured("settings", integration.fault))
    token = await Tokens(transport).values(integration, now.timestamp() * 1000)
    if not isinstance(token, Mapping):
        return Trial(event, (), replace(token, message=f"no token: {token.message}"))
    context = Context(
        now=now,
        project_id=integration.project_id,
        integration_id=integration.id,
        batch_at=now,
        token=token,
    )
    every = integration.settings.model_copy(update={"events": None})
    planned = plan(integration.provider, [event], every, context)
    if planned.unsent:
        return Trial(event, (), planned.unsent[0])
    exchanges: list[Exchange] = []
    for request in sorted(planned.requests, key=lambda request: request.step):
        exchanges.append(await _sent(request, integration, transport))
        if not (request.optional or isinstance(exchanges[-1].outcome, Delivered)):
            break
    decisive = (e.outcome for e in exchanges if not e.request.optional)
    return Trial(event, tuple(exchanges), worst(decisive))


async def _sent(request: Request, integration: Integration, transport: Transport) -> Exchange:
    provider, settings = integration.provider, integration.settings
    try:
        response = await transport.send(request, pool=integration.id, timeout=integration.timeout)
    except TransportError as error:
        return Exchange(request, None, transport_outcome(error))
    verdict = provider.classify(request, response, settings)
    return Exchange(request, response, outcomes_of(request, verdict, integration.mask)[0])


def _event(integration: Integration, now: datetime) -> Event:
    """Return an event of an invented user with every identifier, and no revenue.

    Sinks get it under the reserved name `test`, the others under the first name they send.
    """
    seconds = int(now.timestamp())
    event = Event(
        id=f"test-{secrets.token_hex(8)}",
        project_id=integration.project_id,
        name="test",
        platform=integration.platform,
        environment="production",
        time=seconds,
        created_at=seconds,
        user_id="QON_onward_test",
        identity_id="onward-test-user",
        custom_user_id="onward-test-user",
        advertiser_id="0E57E570-0000-4000-8000-00000E57E571",
        device_id="0E57E570-0000-4000-8000-00000E57E572",
        product_id="onward.test.product",
        properties=PROPERTIES,
        asa_attribution=None if integration.slug == "searchads" else ATTRIBUTION,
    )
    if integration.provider.category == "Server" or integration.settings is None:
        return event
    every = integration.settings.model_copy(update={"events": None})
    named = [msgspec.structs.replace(event, name=name) for name in EVENTS]
    takes = (e for e in named if screen(integration.provider, e, every, now) is None)
    return next(takes, named[0])
