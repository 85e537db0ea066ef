"""Who the user is, by the ids an event may carry. Every function returns "" for "not known"."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from providers.kit.event import Event

_DOCUMENTATION = tuple(  # https://www.rfc-editor.org/rfc/rfc5737 and rfc3849
    ipaddress.ip_network(block)
    for block in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
)
ZERO_UUID = "00000000-0000-0000-0000-000000000000"
_NOBODY = frozenset({"null", "nil", "undefined", "none", "unknown", "anonymous", "n/a", ZERO_UUID})


def usable(value: str, refused: Iterable[str] = ()) -> str:
    """Return `value` trimmed, or "" where it only looks like an id. Letter case is kept."""
    value = value.strip()
    low = value.lower()
    return "" if low in _NOBODY or low.replace("-", "") == "0" * 32 or low in refused else value


def user_id(
    event: Event,
    own_property: str | None = None,
    *,
    anonymous: bool = True,
    refused: Iterable[str] = (),
    shortest: int = 0,
) -> str:
    """Return the app's id of the user.

    In order: property named in the settings, `identity_id`, `custom_user_id`, `_q_custom_user_id`,
    and the platform's own anonymous `user_id` where `anonymous` allows. `refused` are further
    values (lower case) the upstream takes for nobody; so is an id of fewer than `shortest`
    characters.
    """
    for candidate in (
        event.properties.get(own_property, "") if own_property else "",
        event.identity_id,
        event.custom_user_id,
        event.properties.get("_q_custom_user_id", ""),
        event.user_id if anonymous else "",
    ):
        value = usable(candidate, refused) if candidate else ""
        if value and len(value) >= shortest:
            return value
    return ""


def property_of(event: Event, *keys: str | None) -> str:
    """Return the first usable user property of these keys."""
    found = (usable(event.properties.get(key, "")) for key in keys if key)
    return next((value for value in found if value), "")


def advertising_id(event: Event) -> str:
    """Return IDFA (iOS) or AAID (Android); on iOS only with ATT unset or authorised."""
    if event.platform not in ("iOS", "Android"):
        return ""
    if event.platform == "iOS" and event.device.att_status not in (None, 3):
        return ""
    return usable(event.advertiser_id) or property_of(event, "_q_advertising_id")


def vendor_id(event: Event) -> str:
    """Return the IDFV of an iOS event."""
    return usable(event.device_id) if event.platform == "iOS" else ""


def android_id(event: Event) -> str:
    """Return the Android id of an Android event."""
    return usable(event.device_id) if event.platform == "Android" else ""


def public_ip(event: Event, version: int | None = None) -> str:
    """Return the user's address if it is a public one (of IP `version`, if given).

    The blocks set aside for documentation pass: they stand in for users in samples and tests.
    """
    public = _public_version(event.ip) if event.ip else 0
    return event.ip if public and version in (None, public) else ""


@lru_cache(4096)  # a user's events come together
def _public_version(text: str) -> int:
    """Return the IP version of a public address, 0 for another."""
    address = ipaddress.ip_address(text)
    sample = any(address in block for block in _DOCUMENTATION if block.version == address.version)
    public = sample or (address.is_global and not address.is_multicast)
    return address.version if public else 0
