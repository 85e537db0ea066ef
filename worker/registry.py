"""Slug → provider: the only module that imports adapters."""

import pkgutil
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import Any

import providers
from providers.kit import Provider

CATEGORIES = ("Analytics & marketing", "Attribution", "Server", "Email & push")
# The order of the catalogue within its categories; a slug not listed comes last.
ORDER = (
    "amplitude", "appmetrica", "facebook", "firebase", "mixpanel", "posthog", "segment",
    "searchads", "adjust", "appsflyer", "branch", "kochava", "singular", "split_metrics",
    "asapty", "tenjin", "amazon_s3", "google_cloud_storage", "slack", "webhooks",
    "braze", "clevertap", "mailchimp", "onesignal", "pushwoosh",
)  # fmt: skip


class UnknownProvider(LookupError):
    """No adapter has this slug; the message suggests the nearest."""

    def __init__(self, slug: str) -> None:
        near = get_close_matches(slug.lower(), slugs(), n=1)
        hint = f' Did you mean "{near[0]}"?' if near else f" One of: {', '.join(slugs())}."
        super().__init__(f'Unknown provider "{slug}".{hint}')


@cache
def slugs() -> tuple[str, ...]:
    """Return every slug found in `providers/`, in the catalogue's order."""
    names = [m.name for m in pkgutil.iter_modules(providers.__path__) if m.name != "kit"]
    names.sort(key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return tuple(names)


def all_providers() -> dict[str, Provider[Any]]:
    """Return every adapter, in the catalogue's order."""
    return {slug: provider_of(slug) for slug in slugs()}


@cache
def provider_of(slug: str) -> Provider[Any]:
    """Return the adapter of `slug`, importing no other; raise UnknownProvider."""
    if slug not in slugs():
        raise UnknownProvider(slug)
    provider: Provider[Any] = import_module(f"providers.{slug}").provider
    return provider
