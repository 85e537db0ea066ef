"""One look tells why: what is wrong with an integration, since when, how much waits, what to do."""

from typing import Any

from pydantic import SecretStr
from sqlalchemy import Connection, func, select

from providers.kit import Provider
from worker import directory
from worker.api.auth import Services
from worker.api.schemas import IntegrationObject, moment
from worker.api.waiting import Waiting, waiting_of
from worker.store.models import DeadLetter, Integration

REMEDIES = {
    "unauthorized": "{title} refuses the credentials ({secrets}). Correct them in the settings, "
    "then activate.",
    "forbidden": "{title} knows the credentials ({secrets}), but they may not do this. Give them "
    "the permission there, or use others, then activate.",
    "settings": "Correct the settings, then activate.",
    "not_found": "{title} does not know this address or account. Check ids and URL in the "
    "settings, then activate.",
    "gone": "The receiver asks never to be called again. Give it a new URL, then activate.",
    "redirect": "The URL redirects, which is not followed. Set the final URL, then activate.",
    "blocked": "The address may not be called (private, or a refused port). Set a public one.",
    "tls": "The certificate of {title}'s server is not valid. Its owner must renew it.",
    "throttled": "{title} asks to slow down. Nothing to do; sending goes on at its pace.",
    "rejected": "{title} does not take these events. Look at the dead letters, correct settings or "
    "event names, then activate, then replay them.",
    "bad_request": "{title} does not take these events. Look at the dead letters, correct "
    "settings or event names, then replay them.",
}
NO_LETTERS = {
    "rejected": "{title} does not take these events. Correct settings or event names, then "
    "activate.",
    "bad_request": "{title} does not take these events. Correct settings or event names.",
}
THEN = ", then activate"  # not where it is active
AS_NAMED = "Put right what the message names, in the settings or at {title}, then activate."
WAIT = "Nothing to do while it is tried again; if it stays, ask {title}'s status page."
WAIT_FOR_OWN = (
    "Nothing to do while it is tried again; if it stays, look at the receiver and its log."
)
INCIDENT = "{title} fails for others, too. Nothing to do: it is tried again, and not suspended."


def dossier_of(connection: Connection, here: Services, row: Integration) -> dict[str, Any]:
    """Return what an operator needs to know; `waiting` is null where Redis does not answer."""
    integration = directory.compile_integration(row, here.keyring, here.settings)
    waiting = waiting_of(here.redis, here.settings.shards, integration)
    return {
        "object": "dossier",
        "integration": IntegrationObject.of(row).model_dump(),
        "project_id": row.project_id,
        "slug": row.slug,
        "settings_saved": row.settings is not None,
        "settings_fault": integration.fault or None,
        "epoch": row.epoch,
        "on_probation": row.active == 1 and integration.on_probation,
        "error": _error(connection, row, integration, waiting),
        "waiting": waiting.shown() if waiting else None,
        "next": _next(row, integration, waiting),
    }


def _error(
    connection: Connection,
    row: Integration,
    integration: directory.Integration,
    waiting: Waiting | None,
) -> dict[str, Any] | None:
    if row.last_error_at is None:
        return None
    table = DeadLetter.table()
    mine = table.c.integration_id == row.id
    open_letters = connection.execute(
        select(func.count()).select_from(table).where(mine, table.c.replayed_at.is_(None))
    ).scalar_one()
    return {
        "class": row.last_error_reason,
        "message": row.last_error_message,
        "first_at": moment(row.first_error_at),
        "last_at": moment(row.last_error_at),
        "failures_since_delivery": row.delivery_error_count,
        "dead_letters": open_letters,
        "affected_events": open_letters + (waiting.events if waiting else 0),
        "sample": _sample(connection, row, waiting),
        "remedy": _remedy(row, integration, waiting, open_letters),
    }


def _sample(
    connection: Connection, row: Integration, waiting: Waiting | None
) -> dict[str, Any] | None:
    """Return a request and its answer, masked: of the last dead letter with this error.

    Without one, the request that the oldest waiting event makes, and the upstream's words.
    """
    table = DeadLetter.table()
    names = ("event_id", "request", "response", "status", "attempts")
    letter = connection.execute(
        select(*(table.c[name] for name in names))
        .where(
            table.c.integration_id == row.id,
            table.c.reason == row.last_error_reason,
            table.c.request.is_not(None),
        )
        .order_by(table.c.id.desc())
        .limit(1)
    ).first()
    if letter:
        return {"of": "dead letter", **letter._asdict()}
    if waiting is None or waiting.request is None:
        return None
    return {
        "of": "oldest waiting event",
        "event_id": waiting.event_id,
        "request": waiting.request,
        "response": row.last_error_message,
        "status": None,
        "attempts": waiting.attempts,
    }


def _remedy(
    row: Integration, integration: directory.Integration, waiting: Waiting | None, letters: int
) -> str:
    reason = row.last_error_reason or ""
    if row.active == 1 and waiting and waiting.incident:
        text = INCIDENT
    elif reason in NO_LETTERS and not letters:
        text = NO_LETTERS[reason]
    else:
        wait = WAIT_FOR_OWN if row.slug == "webhooks" else WAIT
        text = REMEDIES.get(reason, AS_NAMED if row.active == 2 else wait)
    provider = integration.provider
    text = text if row.active == 2 else text.replace(THEN, "")
    return text.format(title=provider.title, secrets=_secrets(provider, integration))


def _secrets(provider: Provider[Any], integration: directory.Integration) -> str:
    """Return the names of the secrets that are set, else of all there are."""
    fields = provider.settings.model_fields
    given = integration.settings.model_fields_set if integration.settings else fields.keys()
    names = [name for name in fields if name in given and _is_secret(fields[name].annotation)]
    return ", ".join(names) or "see the settings"


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(map(_is_secret, getattr(annotation, "__args__", ())))


def _next(row: Integration, integration: directory.Integration, waiting: Waiting | None) -> str:
    if row.active == 0:
        return "Paused: events that arrive are neither sent nor held. Activate to send again."
    policy = integration.policy
    if row.active == 2:
        until = waiting.expires_at if waiting else None
        return (
            f"Suspended: events are held for up to {policy.hold_seconds // 3600} h and sent in "
            "order once you have put right what is wrong and activate."
        ) + (f" The oldest is dropped at {until}." if until else "")
    if waiting and waiting.events and (waiting.next_attempt_at or waiting.failed_rounds):
        at = f"at {waiting.next_attempt_at}" if waiting.next_attempt_at else "now"
        told = f"Waiting events are tried {at}."
        if not waiting.failed_rounds or waiting.incident:
            return told
        left = policy.thresholds.retry - waiting.failed_rounds
        if waiting.refused_rounds:
            left = min(left, policy.thresholds.credential - waiting.refused_rounds)
        more = (
            f"{left} more failed rounds suspend" if left > 1 else "One more failed round suspends"
        )
        return f"{told} {more} it; new settings, or activating it again, try at once."
    if row.settings is None:
        return "Active without settings: it is suspended at its first event. Save the settings."
    if integration.fault:
        return f"Active, and suspended at its first event: {integration.fault}"
    if not (waiting and waiting.events) or integration.limits.whole_batches:
        return "Delivering."
    return (
        f"Delivering what waits, in order, at most {integration.limits.concurrency} requests at "
        "once. If it cannot keep up, raise delivery.concurrency in the settings."
    )
