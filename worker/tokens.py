"""Credentials of limited life: fetched when needed, one request at a time, kept until they end."""

import asyncio
import logging
from collections.abc import Mapping

from providers.kit import Misconfigured, Outcome, Token
from worker.attempt import adapter_words, transport_outcome
from worker.clock import time_of
from worker.directory import Integration
from worker.transport import Transport, TransportError

log = logging.getLogger(__name__)

EARLY_MS = 300_000  # a token is renewed five minutes before its end
NONE: Mapping[str, str] = {}


class Tokens:
    """Tokens by integration; gone with the process, and with any change of the settings."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._kept: dict[str, tuple[Integration, Token, float]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def values(self, integration: Integration, now_ms: float) -> Mapping[str, str] | Outcome:
        """Return the token's values ({} where none is needed), or what came of asking for one."""
        try:
            return await self._values(integration, now_ms)
        except Exception as error:
            log.exception("The %s adapter failed to ask for a token", integration.slug)
            return Misconfigured("adapter_error", adapter_words(error))

    async def _values(self, integration: Integration, now_ms: float) -> Mapping[str, str] | Outcome:
        source = integration.provider.token
        if source is None:
            return NONE
        async with self._locks.setdefault(integration.id, asyncio.Lock()):
            kept = self._kept.get(integration.id)
            if kept and kept[0].version == integration.version and kept[2] > now_ms:
                return kept[1].values
            now = time_of(now_ms)
            request = source.request(integration.settings, now)
            if request is None:
                return NONE
            try:
                response = await self._transport.send(
                    request, pool=integration.id, timeout=integration.timeout
                )
            except TransportError as error:
                return transport_outcome(error)
            token = source.read(response)
            if not isinstance(token, Token):
                return token
            ends = now_ms + max(token.lives.total_seconds() * 1000 - EARLY_MS, 1000)
            self._kept[integration.id] = (integration, token, ends)
            return token.values

    def forget(self, integration_id: str) -> None:
        """Drop a token that the upstream refused."""
        self._kept.pop(integration_id, None)
