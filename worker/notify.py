"""Telling operators: the outbox's notices to a webhook of theirs, or to Slack.

Sent at least once, by a task of its own, so that a slow or dead receiver never touches delivery.
"""

import json
import logging
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
from sqlalchemy import Engine

from providers.kit import dump, standard_webhook
from worker.settings import WorkerSettings
from worker.store import notifications
from worker.store.database import reading
from worker.store.models import Notification

log = logging.getLogger(__name__)

SECONDS = 10.0
ATTEMPTS = 20  # then a notice is left unsent; the console and the metrics still tell of it
SLACK = ("hooks.slack.com", "hooks.slack-gov.com")
TEXTS = {
    "integration.suspended": "Suspended: {title} ({slug}) of {project_id}. {message}",
    "provider.incident": "{slug} fails for {failing} of {of} pipelines in {projects} projects.",
    "provider.recovered": "{slug} works again.",
}


def send_notices(
    engine: Engine, settings: WorkerSettings, client: httpx.Client | None = None
) -> int:
    """Send what the outbox holds, oldest first; return how many were taken.

    A receiver that fails is left alone until the next round.
    """
    if settings.notify_url is None:
        return 0
    with reading(engine) as connection:
        notices = [n for n in notifications.unsent(connection) if n.attempts < ATTEMPTS]
    sent = 0
    with client or httpx.Client(timeout=SECONDS, follow_redirects=False, trust_env=False) as http:
        for notice in notices:
            taken = _send(http, settings, notice)
            with engine.begin() as connection:
                notifications.tried(connection, notice.id, sent=taken)
            if not taken:
                break
            sent += 1
    return sent


def _send(http: httpx.Client, settings: WorkerSettings, notice: Notification) -> bool:
    assert settings.notify_url is not None  # noqa: S101  the caller looked
    url = settings.notify_url.get_secret_value()
    body, headers = message_of(notice, url, settings, int(time.time()))
    try:
        response = http.post(url, content=body, headers=headers)
    except httpx.HTTPError as error:
        log.warning("A notice could not be sent (%s); trying again", type(error).__name__)
        return False
    if response.is_success:
        return True
    log.warning("A notice was answered %d; trying again", response.status_code)
    return False


def message_of(
    notice: Notification, url: str, settings: WorkerSettings, now: int
) -> tuple[bytes, dict[str, str]]:
    """Return body and headers: a Slack message for a Slack URL, else a Standard Webhook.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    values: dict[str, Any] = {
        **json.loads(notice.payload),
        "project_id": notice.project_id,
        "integration_id": notice.integration_id,
    }
    headers = {"Content-Type": "application/json"}
    text = TEXTS[notice.kind].format_map(values)
    if urlsplit(url).hostname in SLACK:
        return dump({"text": text}), headers
    data = {key: value for key, value in values.items() if value is not None}
    body = dump(
        {"type": notice.kind, "timestamp": notice.at.isoformat(), "text": text, "data": data}
    )
    headers |= {"webhook-id": f"ntf_{notice.id}", "webhook-timestamp": str(now)}
    if settings.notify_secret is not None:
        secret = settings.notify_secret.get_secret_value()
        headers["webhook-signature"] = standard_webhook(f"ntf_{notice.id}", now, body, secret)
    return body, headers
