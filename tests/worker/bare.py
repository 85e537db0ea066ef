"""A provider that is nothing but how it encodes and classifies."""

from typing import Any

from providers.kit import Provider, Settings


def bare_provider(encode: Any, classify: Any) -> Provider[Settings]:
    """Return one for every store, under a slug that there is."""
    return Provider(
        slug="webhooks",
        title="Test",
        category="Server",
        stores=("iOS", "Android", "Stripe"),
        settings=Settings,
        encode=encode,
        classify=classify,
    )
