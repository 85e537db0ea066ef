"""Telling operators: the outbox's notices to a webhook of theirs, or to Slack.

Each goes to its project's receiver, or to the service's where that has none. Sent at least once,
with one id, in order for each receiver; one that fails is tried again ever more seldom for a day.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from datetime import timedelta
from html import escape
from typing import Any
from urllib.parse import urlsplit

import httpx
from sqlalchemy import Connection, Engine

from providers.kit import dump, standard_webhook
from worker.settings import WorkerSettings
from worker.store import notifications
from worker.store.database import now, reading
from worker.store.errors import UnreadableSettings
from worker.store.models import Notification
from worker.store.projects import Receiver, receivers
from worker.store.secrets import keyring_of

log = logging.getLogger(__name__)

SECONDS = 10.0  # one notice, all of it
KEPT = timedelta(days=1)  # older than that it is no news
FIRST_SECONDS, LONGEST_SECONDS = 5, 3600  # until a receiver that failed is tried again
SLACK = ("hooks.slack.com", "hooks.slack-gov.com")
OF = "{title} ({slug}, {integration_id}) of {project_id}"
TEXTS = {
    "integration.nearing": f"Nearing suspension: {OF}: {{used}}. {{message}}",
    "integration.suspended": f"Suspended: {OF}. {{message}} Events are held. When it is mended: "
    "onward integrations activate {integration_id}",
    "integration.expiring": f"Near expiry: {OF}: {{used}} % of the {{limit}} its events are held "
    "for is used up; {waiting} wait. What falls out is lost to it.",
    "integration.recovered": f"Delivers again: {OF}; {{waiting}} events wait.",
    "provider.incident": "{slug} fails for {failing} of {of} pipelines in {projects} projects.",
    "provider.recovered": "{slug} works again.",
    "test": "A test of the notices of {project_id}.",
}


def send_notices(
    engine: Engine,
    settings: WorkerSettings,
    ours: Callable[[], bool] = lambda: True,
    transport: httpx.AsyncBaseTransport | None = None,
) -> int:
    """Send what the outbox holds, oldest first, while it is `ours` to do; return how many."""
    with reading(engine) as connection:
        waiting = notifications.unsent(connection, now() - KEPT)
        find = _finder(connection, settings) if waiting else dict[str, Receiver]().get
    failing: set[str] = set()  # URLs; what is for them waits behind their first
    sent = 0
    for notice in waiting:
        receiver = find(notice.project_id or "")
        if receiver is None or receiver.url in failing:
            continue
        if notice.next_at and notice.next_at > now():
            failing.add(receiver.url)
            continue
        if not ours():
            break
        taken = send(notice, receiver, transport)
        after = min(FIRST_SECONDS * 2 ** min(notice.attempts, 20), LONGEST_SECONDS)
        next_at = None if taken else now() + timedelta(seconds=after)
        with engine.begin() as connection:
            notifications.tried(connection, notice.id, sent=taken, next_at=next_at)
        if taken:
            sent += 1
        else:
            failing.add(receiver.url)
    return sent


def _finder(connection: Connection, settings: WorkerSettings) -> Callable[[str], Receiver | None]:
    """Return what finds a project's receiver; "" is of no project."""
    everybodys = None
    if settings.notify_url:
        secret = settings.notify_secret.get_secret_value() if settings.notify_secret else None
        everybodys = Receiver(settings.notify_url.get_secret_value(), secret)
    try:
        own = dict(receivers(connection, keyring_of(settings)))
    except UnreadableSettings as error:
        log.warning("A project's receiver of notices cannot be read: %s", error)
        own = {}
    return lambda project_id: own.get(project_id, everybodys)


def send(
    notice: Notification, receiver: Receiver, transport: httpx.AsyncBaseTransport | None = None
) -> bool:
    """Send a notice once; return whether it was taken."""
    body, headers = message_of(notice, receiver, int(time.time()))
    try:
        status = asyncio.run(_post(receiver.url, body, headers, transport))
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        log.warning("Notice %d could not be sent (%s)", notice.id, type(error).__name__)
        return False
    if 200 <= status < 300:
        return True
    log.warning("Notice %d was answered %d", notice.id, status)
    return False


async def _post(
    url: str, body: bytes, headers: dict[str, str], transport: httpx.AsyncBaseTransport | None
) -> int:
    """Return the status; the answer's body is not read."""
    async with (
        asyncio.timeout(SECONDS),
        httpx.AsyncClient(transport=transport, timeout=SECONDS, trust_env=False) as client,
        client.stream("POST", url, content=body, headers=headers) as response,
    ):
        return response.status_code


def message_of(notice: Notification, receiver: Receiver, at: int) -> tuple[bytes, dict[str, str]]:
    """Return body and headers: a Slack message for a Slack URL, else a Standard Webhook.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    https://docs.slack.dev/messaging/formatting-message-text#escaping
    """
    values: dict[str, Any] = {
        **json.loads(notice.payload),
        "project_id": notice.project_id,
        "integration_id": notice.integration_id,
    }
    headers = {"Content-Type": "application/json"}
    told = (values.get("message") or "").rstrip()
    stop = "" if not told or told.endswith((".", "!", "?")) else "."
    text = TEXTS[notice.kind].format_map(values | {"message": told + stop}).rstrip()
    if is_slack(receiver.url):
        return dump({"text": escape(text, quote=False)}), headers  # or `<!channel>` would call it
    data = {key: value for key, value in values.items() if value is not None}
    body = dump(
        {"type": notice.kind, "timestamp": notice.at.isoformat(), "text": text, "data": data}
    )
    headers |= {"webhook-id": f"ntf_{notice.id}", "webhook-timestamp": str(at)}
    if receiver.secret is not None:
        headers["webhook-signature"] = standard_webhook(
            f"ntf_{notice.id}", at, body, receiver.secret
        )
    return body, headers


def is_slack(url: str) -> bool:
    """Whether Slack itself takes what is sent there: in its form, and unsigned."""
    return urlsplit(url).hostname in SLACK
