"""Request → Response; nothing else opens a connection to an upstream.

Two implementations of one contract: `narrow`, the default, made for speed, and `reference`, over
httpx. `guard` decides what may be dialled.
"""

import ssl

from worker.settings import WorkerSettings
from worker.transport.guard import BlockedUrl, Guard, check_url
from worker.transport.resolver import Lookup
from worker.transport.wire import Transport, TransportError

__all__ = ["BlockedUrl", "Transport", "TransportError", "check_url", "make_transport"]


def make_transport(
    settings: WorkerSettings,
    *,
    resolver: Lookup | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Transport:
    """Return the transport the settings choose. Call it inside the loop that will use it.

    `resolver` replaces the system's look-up of a name, `ssl_context` the system's roots.

    Raises:
        BlockedUrl: `settings.upstream` is not a URL.
    """
    guard = Guard(settings.upstream, settings.allow_private_upstreams, resolver)
    context = ssl_context or verifying_context()
    if settings.transport == "httpx":
        from worker.transport.reference import ReferenceTransport  # noqa: PLC0415  slow to import

        return ReferenceTransport(guard, context)
    from worker.transport.narrow import NarrowTransport  # noqa: PLC0415  as above

    return NarrowTransport(guard, context)


def verifying_context() -> ssl.SSLContext:
    """Return a context of the system's roots, TLS 1.2 and up, which checks name and date."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
