"""A project to look at: integrations against the sandbox, and the events of an invented app."""

import random
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from worker.changing import changing
from worker.intake import publish
from worker.servers import connect
from worker.settings import WorkerSettings
from worker.store import integrations, projects
from worker.store.database import make_engine
from worker.store.secrets import keyring_of

PROJECT = "prj_sample"
PRODUCTS = (("app.lumen.premium.year", 41.65, 45.1), ("app.lumen.premium.month", 7.99, 8.65))
NAMES = (
    "trial_started", "trial_converted", "subscription_started", "subscription_renewed",
    "subscription_canceled", "subscription_expired", "subscription_refunded", "in_app_purchase",
)  # fmt: skip
PAID = frozenset(NAMES) - {"trial_started", "subscription_canceled", "subscription_expired"}
IDS = {  # what the SDKs of the 25 upstreams would have left on a user
    "_q_email": "user{n}@example.com",
    "_q_adjust_adid": "{n:032x}",
    "_q_appsflyer_user_id": "1767225000123-{n:019d}",
    "_q_kochava_device_id": "KI1767225000t{n:032x}",
    "_q_tenjin_aiid": "{n:032x}",
    "_q_firebase_instance_id": "{n:032x}",
    "_q_appmetrica_device_id": "{n:019d}",
    "_q_pushwoosh_hwid": "hw-{n}",
}


def events(
    count: int, seed: int = 1, project: str = PROJECT, users: int = 50
) -> Iterator[dict[str, Any]]:
    """Yield `count` valid iOS events of `users` users; the same for a seed but for the time."""
    chance = random.Random(seed)  # noqa: S311  sample data
    now = int(time.time())
    for number in range(count):
        user = chance.randrange(1, users + 1)
        name = chance.choice(NAMES)
        product, value, usd = chance.choice(PRODUCTS)
        sign = -1 if name == "subscription_refunded" else 1
        money = {"value": sign * value, "value_usd": sign * usd, "currency": "EUR"}
        yield {
            "id": str(UUID(int=chance.getrandbits(128), version=4)),
            "project_id": project,
            "event_name": name,
            "platform": "iOS",
            "environment": "production",
            "time": now - count + number,
            "created_at": now,
            "user_id": f"QON_{user:016x}",
            "identity_id": f"account-{user}",
            "advertiser_id": str(UUID(int=user << 64 | user)).upper(),
            "device_id": str(UUID(int=user << 80 | user)).upper(),
            "product_id": product,
            "revenue": money if name in PAID else None,
            "price": {"value": value, "value_usd": usd, "currency": "EUR"},
            "transaction": {
                "transaction_id": 2_000_000_000_000_000 + number,
                "original_transaction_id": 2_000_000_000_000_000 + user,
                "transaction_date": now - count + number,
            },
            "properties": {key: text.format(n=user) for key, text in IDS.items()},
            "ip": "81.2.69.142",
            "country": "PT",
            "device": {
                "os_version": "18.2",
                "model": "iPhone15,3",
                "app_version": "5.4.1",
                "app_id": "app.lumen",
                "att_status": 3,
            },
            "installed_at": now - 86_400,
        }


def integration(
    connection: Connection,
    settings: WorkerSettings,
    project: str,
    slug: str,
    title: str,
    *,
    store: str = "iOS",
    **changes: Any,
) -> str:
    """Make and activate an integration with the sandbox's settings; return its id."""
    values = dict(import_module(f"worker.sandbox.upstreams.{slug}").upstream.settings) | changes
    made = integrations.create_integration(
        connection, project, title=title, slug=slug, platform=store, actor="sample"
    )
    integrations.save_settings(
        connection,
        made.id,
        values,
        keyring_of(settings),
        actor="sample",
        allow_private=settings.allow_private_upstreams,
    )
    integrations.set_status(connection, made.id, 1, "sample")
    return made.id


def make_sample(settings: WorkerSettings) -> str:
    """Make the sample project once, send it some events, and return what to tell of it."""
    engine = make_engine(settings.database_url)
    with changing(engine, settings) as connection:
        known = {project.id for project in projects.list_projects(connection)}
        if PROJECT in known:
            return f"  Sample    project {PROJECT}: onward integrations list --project {PROJECT}\n"
        made = projects.create_project(connection, "Sample", PROJECT)
        for slug in ("webhooks", "amplitude", "adjust"):
            integration(connection, settings, PROJECT, slug, f"Sample {slug}")
    redis = connect(settings.redis_url)
    count = publish(redis, events(100), settings.shards)
    redis.close()
    engine.dispose()
    return (
        f"  Sample    project {PROJECT}, {count} events sent to three integrations on the sandbox\n"
        f"            secret key {made.secret_key} (shown once)\n"
    )
