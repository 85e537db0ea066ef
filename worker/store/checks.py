"""What a new integration and its settings must be; API and commands ask the same."""

import unicodedata
from collections.abc import Iterator, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, SecretStr

from providers.kit import InvalidSettings, Settings, read_settings
from worker.registry import UnknownProvider, provider_of
from worker.store.errors import Fault, Invalid
from worker.transport.guard import BlockedUrl, check_url

PLATFORMS = ("iOS", "Android", "Stripe")
TITLE_LENGTH = 255  # characters
SLUG_LENGTH = 64


def check_new(*, title: Any, slug: Any, platform: Any) -> list[Fault]:
    """Return every fault of a new integration's fields, under their names in v4."""
    checks = (("title", title_fault(title)), ("integration", _slug(slug)))
    faults = [(field, fault) for field, fault in checks if fault]
    fault = _platform(platform, None if _slug(slug) else provider_of(slug).stores)
    return [*faults, ("target_platform", fault)] if fault else faults


def title_fault(title: Any) -> str:
    """Return what is wrong with a name that people give something; "" where nothing is."""
    if not isinstance(title, str):
        return f"Must be a string of 1 to {TITLE_LENGTH} characters"
    if not title.strip():
        return "Must not be blank"
    if len(title) > TITLE_LENGTH:
        return f"Must be at most {TITLE_LENGTH} characters, got {len(title)}"
    if any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in title):
        return "Must not contain control characters or line breaks"
    return ""


def _slug(slug: Any) -> str:
    if not isinstance(slug, str) or not slug:
        return "Must be the slug of a provider, see GET /v4/integrations/meta"
    if len(slug) > SLUG_LENGTH:
        return f"Must be at most {SLUG_LENGTH} characters"
    try:
        provider_of(slug)
    except UnknownProvider as error:
        return str(error)
    return ""


def _platform(platform: Any, stores: tuple[str, ...] | None) -> str:
    if not isinstance(platform, str) or platform not in PLATFORMS:
        return f"Must be one of {', '.join(PLATFORMS)} (case-sensitive)"
    if stores is not None and platform not in stores:
        return f"This provider takes only {', '.join(stores)}"
    return ""


def check_settings(slug: str, data: Mapping[str, Any], *, allow_private: bool) -> Settings:
    """Return the provider's model of `data`; raise Invalid naming every faulty key."""
    provider = provider_of(slug)
    try:
        model: Settings = read_settings(
            provider.title, provider.settings, dict(data), {"allow_http": allow_private}
        )
    except InvalidSettings as error:
        raise Invalid([(key or "settings", text) for key, text in error.faults]) from None
    faults = list(_blocked(model, allow_private=allow_private))
    if faults:
        raise Invalid(faults)
    return model


def _blocked(model: Settings, *, allow_private: bool) -> Iterator[Fault]:
    """Every setting that is a URL to where nothing may be sent; names are not resolved."""
    for key in type(model).model_fields:
        value = getattr(model, key)
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str) and "://" in text[:16]:
            try:
                check_url(text, allow_private=allow_private)
            except BlockedUrl as error:
                yield key, str(error)


def shown_settings(model: Settings) -> dict[str, Any]:
    """Return what was given of the settings: a secret only as set, with a fingerprint."""
    return _shown_fields(model)


def _shown_fields(model: BaseModel) -> dict[str, Any]:
    given = model.model_fields_set
    return {key: _shown(getattr(model, key)) for key in type(model).model_fields if key in given}


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        digest = sha256(value.get_secret_value().encode()).hexdigest()
        return {"set": True, "fingerprint": digest[:8]}
    if isinstance(value, BaseModel):
        return _shown_fields(value)
    if isinstance(value, Mapping):
        return {key: _shown(part) for key, part in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple | frozenset) else value


def _is_shown(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("set") is True


def has_shown(value: Any) -> bool:
    """Whether any secret in settings is given as `shown_settings` shows it."""
    if _is_shown(value):
        return True
    return isinstance(value, Mapping) and any(map(has_shown, value.values()))


def merge_shown(new: Any, old: Any) -> Any:
    """Return `new` with what stands in `old` wherever a secret is given as it is shown."""
    if _is_shown(new):
        return old
    if not isinstance(new, Mapping):
        return new
    inside = old if isinstance(old, Mapping) else {}
    return {key: merge_shown(value, inside.get(key)) for key, value in new.items()}
