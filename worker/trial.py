"""Trying an integration for real: a test event, or its provider's harmless check.

What is sent, what is answered, what it means. Both pass by the pipeline: nothing is counted, and no
state changes.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from providers.kit import (
    EVENTS,
    Context,
    Delivered,
    Event,
    Misconfigured,
    Outcome,
    Request,
    Response,
    Retry,
    Unsent,
    Verdict,
    one_line,
    plan,
    screen,
)
from worker.attempt import context_for, transport_outcome
from worker.clock import time_of
from worker.directory import Integration
from worker.mask import Mask
from worker.preview import outcome_shown, request_shown, text_or_base64
from worker.settings import WorkerSettings
from worker.tokens import Tokens
from worker.transport import Transport, TransportError, make_transport
from worker.verdict import outcomes_of, worst

TRIAL_SECONDS = 60  # all of its requests together

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
    """What came of it. Without exchanges the outcome says why nothing was sent.

    `event` is the test event's id, None for a check. `mask` knows the token, too.
    """

    event: str | None
    exchanges: tuple[Exchange, ...]
    outcome: Outcome | Unsent
    mask: Mask

    @property
    def refused(self) -> bool:
        """Whether the upstream takes nothing with these settings; not: it could not be asked."""
        return not isinstance(self.outcome, Delivered | Retry)


Send: TypeAlias = Callable[[Integration, Transport], Awaitable[Trial | None]]


def tried(send: Send, integration: Integration, worker: WorkerSettings) -> Trial | None:
    """Return what `send` returns, called on a loop of this thread's own with the worker's guard."""

    async def run() -> Trial | None:
        transport = make_transport(worker)
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                return await send(integration, transport)
        except TimeoutError:
            late = Retry("timeout", f"not done within {TRIAL_SECONDS} s")
            return Trial(None, (), late, integration.mask)
        finally:
            await transport.close()

    return asyncio.run(run())


async def send_check(integration: Integration, transport: Transport) -> Trial | None:
    """Make the call by which the provider proves settings; None where it has none."""
    check = integration.provider.check
    if check is None:
        return None
    context = await _context(integration, transport)
    if not isinstance(context, Context):
        return Trial(None, (), context, integration.mask)
    request = replace(check.request(integration.settings, context), events=(0,))

    def read(_request: Request, response: Response, _settings: Any) -> Outcome:
        return check.read(response)

    mask = _mask(integration, context)
    done = await _sent(request, integration, transport, read, mask)
    return Trial(None, (done,), done.outcome, mask)


async def send_test(integration: Integration, transport: Transport) -> Trial:
    """Send one event, marked by its id `test-…`, and return what came of it."""
    event = _event(integration, datetime.now(UTC))
    context = await _context(integration, transport)
    if not isinstance(context, Context):
        return Trial(event.id, (), context, integration.mask)
    mask = _mask(integration, context)
    assert integration.settings is not None  # noqa: S101  else there is no context
    every = integration.settings.model_copy(update={"events": None})
    planned = plan(integration.provider, [event], every, context)
    if planned.unsent:
        return Trial(event.id, (), planned.unsent[0], mask)
    exchanges: list[Exchange] = []
    for request in sorted(planned.requests, key=lambda request: request.step):
        classify = integration.provider.classify
        exchanges.append(await _sent(request, integration, transport, classify, mask))
        if not (request.optional or isinstance(exchanges[-1].outcome, Delivered)):
            break
    decisive = (e.outcome for e in exchanges if not e.request.optional)
    return Trial(event.id, tuple(exchanges), worst(decisive), mask)


def _mask(integration: Integration, context: Context) -> Mask:
    own = integration.settings.secrets() if integration.settings else ()
    return Mask([*own, *context.token.values()])


async def _context(integration: Integration, transport: Transport) -> Context | Outcome:
    """Return the context of a request sent now, with a token if one is needed; or why not."""
    if integration.settings is None:
        return Misconfigured("settings", integration.fault)
    now_ms = time.time() * 1000
    token = await Tokens(transport).values(integration, now_ms)
    if not isinstance(token, Mapping):
        said = one_line(integration.mask(token.message))
        return replace(token, message=f"no token: {said}")
    return context_for(integration, now_ms, batch_at=time_of(now_ms), token=token)


async def _sent(
    request: Request,
    integration: Integration,
    transport: Transport,
    read: Callable[[Request, Response, Any], Verdict],
    mask: Mask,
) -> Exchange:
    try:
        response = await transport.send(request, pool=integration.id, timeout=integration.timeout)
    except TransportError as error:
        return Exchange(request, None, transport_outcome(error))
    verdict = read(request, response, integration.settings)
    return Exchange(request, response, outcomes_of(request, verdict, mask)[0])


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


def trial_shown(trial: Trial) -> dict[str, Any]:
    """Return outcome, requests and answers as plain values, masked."""
    requests = [_exchange_shown(trial, exchange) for exchange in trial.exchanges]
    return {**outcome_shown(trial.event, trial.outcome), "requests": requests}


def _exchange_shown(trial: Trial, exchange: Exchange) -> dict[str, Any]:
    answer = exchange.response
    shown: dict[str, Any] = {
        **request_shown(trial.mask.request(exchange.request)),
        "response": None,
        **outcome_shown(trial.event, exchange.outcome),
    }
    if answer is not None:
        body, encoding = text_or_base64(answer.body)
        shown["response"] = {
            "status": answer.status,
            "headers": {name: trial.mask(value) for name, value in answer.headers.items()},
            "body": trial.mask(body),
            "body_encoding": encoding,
        }
    return shown
