"""The configuration as the delivery loop sees it: compiled once per change, read without I/O.

A thread refreshes it from the database every few seconds; the loop never waits for a database.
"""

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Engine

from providers.kit import InvalidSettings, Limits, Provider, Settings, read_settings
from worker.away import AWAY, told
from worker.mask import Mask
from worker.policy import Policy, policy_of
from worker.registry import UnknownProvider, provider_of
from worker.settings import WorkerSettings
from worker.store.database import reading
from worker.store.errors import UnreadableSettings
from worker.store.integrations import config_rows, config_version
from worker.store.secrets import KeyRing

log = logging.getLogger(__name__)

STAYS = "The database did not give the configuration (%s); the last one stays"
REFRESH_SECONDS = 2.0
ASKED_SECONDS = 0.05  # the least between two readings, where somebody asks
ASKED_SHARE = 10  # and so many times as long as one takes
WHOLE_SECONDS = 60.0  # all of it is read so often, even if nothing seems to have changed
USABLE_SECONDS = 60.0  # older than this, new entries wait: nothing is routed by stale settings
LONG_LINGER = timedelta(seconds=1)  # beyond it a batch gathers in the lane, not in memory


@dataclass(frozen=True, slots=True, eq=False)
class Integration:
    """An integration compiled for delivery; replaced as a whole when anything of it changes.

    `fault` says what is wrong with the settings, "" where nothing is: such a pipeline is suspended
    at its first event, and sends none.
    """

    id: str
    project_id: str
    slug: str
    platform: str
    active: int
    epoch: int
    on_probation: bool
    provider: Provider[Any]
    settings: Settings | None
    limits: Limits
    policy: Policy
    timeout: float  # s, the whole request
    fault: str
    mask: Mask
    updated_at: datetime  # moved by operators, and by who suspends
    version: tuple[Any, ...]
    ordered: bool = field(init=False)  # events of one user keep their order
    through_lane: bool = field(init=False)  # they gather there even when all is well: buckets
    one_each: bool = field(init=False)  # a request an event, and nothing to be known before it

    def __post_init__(self) -> None:
        limits, provider = self.limits, self.provider
        asks = provider.token or provider.needs_attribution or self.slug == "searchads"
        one_each = limits.events == 1 and not (asks or limits.whole_batches)
        ordered = self.settings is None or self.settings.ordering == "on"
        object.__setattr__(self, "ordered", ordered)
        object.__setattr__(self, "through_lane", limits.linger > LONG_LINGER)
        object.__setattr__(self, "one_each", one_each)


class Directory:
    """Every integration that is not deleted, by project and platform."""

    def __init__(self, engine: Engine, keyring: KeyRing, settings: WorkerSettings) -> None:
        self._engine = engine
        self._keyring = keyring
        self._settings = settings
        self._by_id: dict[str, Integration] = {}
        self._targets: dict[tuple[str, str], tuple[Integration, ...]] = {}
        self._stopped = threading.Event()
        self._asked = threading.Event()
        self._thread: threading.Thread | None = None
        self._version: tuple[Any, ...] = ()
        self.read_at = float("-inf")  # monotonic
        self.taken_at = float("-inf")  # monotonic; nothing has changed since
        self.holds_from = float("-inf")  # monotonic; what was there then is known

    @property
    def usable(self) -> bool:
        """Whether it is young enough to route by."""
        return time.monotonic() - self.read_at < USABLE_SECONDS

    def get(self, integration_id: str) -> Integration | None:
        """Return an integration, or None: it was deleted (only if the database said so)."""
        return self._by_id.get(integration_id)

    def targets(self, project_id: str, platform: str) -> tuple[Integration, ...]:
        """Return the integrations that get the events of a project's store: active or suspended."""
        return self._targets.get((project_id, platform), ())

    def refresh(self) -> None:
        """Read the database if it has changed; compile what has. Blocks; for threads and start-up.

        Of ten thousand, the question costs 9 ms, all of them 200.
        """
        began = time.monotonic()
        with reading(self._engine) as connection:
            version = config_version(connection)
            anew = version != self._version or began - self.taken_at > WHOLE_SECONDS
            rows = config_rows(connection) if anew else ()
        if anew:
            self._take(rows)
            self._version, self.taken_at = version, began
        self.holds_from = began
        self.read_at = time.monotonic()

    def ask(self) -> None:
        """Have it read soon: somebody waits for what may have changed."""
        self._asked.set()

    def _take(self, rows: Iterable[Any]) -> None:
        by_id = {row.id: self._compiled(row) for row in rows}
        targets: dict[tuple[str, str], list[Integration]] = {}
        for integration in by_id.values():
            if integration.active:
                place = (integration.project_id, integration.platform)
                targets.setdefault(place, []).append(integration)
        self._by_id = by_id
        self._targets = {place: tuple(members) for place, members in targets.items()}

    def start(self) -> None:
        """Refresh from now on in a thread."""

        def run() -> None:
            trouble, pause = "", ASKED_SECONDS
            while not self._stopped.wait(pause):
                self._asked.wait(REFRESH_SECONDS - pause)
                self._asked.clear()
                began = time.monotonic()
                try:
                    self.refresh()
                    trouble = ""
                except AWAY as error:
                    if told(error) != trouble:
                        log.warning(STAYS, told(error))
                    trouble = told(error)
                except Exception as error:
                    log.exception(STAYS, type(error).__name__)
                took = time.monotonic() - began
                pause = min(max(ASKED_SECONDS, ASKED_SHARE * took), REFRESH_SECONDS)

        self._thread = threading.Thread(target=run, name="directory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the refreshing."""
        self._stopped.set()
        self._asked.set()
        if self._thread:
            self._thread.join(timeout=5)

    def _compiled(self, row: Any) -> Integration:
        settings = hash(row.settings)  # other than `updated_at` says where keys were rotated
        version = (row.active, row.epoch, row.probation_epoch, row.updated_at, settings)
        present = self._by_id.get(row.id)
        if present is not None and present.version == version:
            return present
        return compile_integration(row, self._keyring, self._settings, version)


def compile_integration(
    row: Any, keyring: KeyRing, worker: WorkerSettings, version: tuple[Any, ...] = ()
) -> Integration:
    """Return the integration of a database row; what is wrong with its settings is in `fault`."""
    try:
        provider = provider_of(row.slug)
    except UnknownProvider as error:
        provider, settings, fault = provider_of("webhooks"), None, str(error)
    else:
        settings, fault = _settings_of(row, provider, keyring, worker)
    limits = provider.limits
    if settings is not None and provider.limits_of:
        limits = provider.limits_of(settings)
    if settings is not None and settings.delivery.concurrency:
        limits = msgspec.structs.replace(limits, concurrency=settings.delivery.concurrency)
    return Integration(
        id=row.id,
        project_id=row.project_id,
        slug=row.slug,
        platform=row.platform,
        active=row.active,
        epoch=row.epoch,
        on_probation=row.probation_epoch is not None and row.probation_epoch == row.epoch,
        provider=provider,
        settings=settings,
        limits=limits,
        policy=policy_of(worker, settings),
        timeout=min(limits.timeout.total_seconds(), worker.attempt_timeout),
        fault=fault,
        mask=Mask(settings.secrets() if settings else ()),
        updated_at=row.updated_at,
        version=version,
    )


def _settings_of(
    row: Any, provider: Provider[Any], keyring: KeyRing, worker: WorkerSettings
) -> tuple[Settings | None, str]:
    try:
        plain = keyring.decrypt(row.settings, row.id) if row.settings else "{}"
        context = {"allow_http": worker.allow_private_upstreams}
        data = msgspec.json.decode(plain)
        return read_settings(provider.title, provider.settings, data, context=context), ""
    except InvalidSettings as error:
        if not row.settings:
            made = provider.settings.generated  # on saving: nobody has to give it
            faults = [fault for fault in error.faults if not made or fault[0] != made.key]
            lacking = [f"{key}: {text}" if key else text for key, text in faults]
            return None, f"{provider.title} settings are not set: {'; '.join(lacking)}"
        return None, str(error)
    except UnreadableSettings as error:
        return None, str(error)
