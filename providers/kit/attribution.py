"""Apple Ads attribution, for upstreams that only take events of users who came through an ad."""

from collections.abc import Mapping
from datetime import timedelta

from providers.kit.event import Event
from providers.kit.interface import Context, Json, Retry, Skipped, text_at

TEST_CAMPAIGN = "1234567890"  # of the payload that Apple gives to development builds
WAIT = timedelta(minutes=5)
_PLACEHOLDERS = ("-1", "0", "null")


def attribution_of(event: Event, context: Context) -> Mapping[str, Json] | Skipped | Retry:
    """Return the attribution of the event's user, or why the event cannot go (yet).

    The event's own first, then what the project has resolved for the user; a retry while that is
    awaited.
    """
    record = event.asa_attribution
    if record is None:
        record = context.attributions.get(event.user_key)
    if record is None and event.user_key in context.resolving:
        return Retry("attribution_pending", "the user's attribution is not known yet", WAIT)
    if record is None or record.get("attributed") is not True:
        return Skipped("not_attributed", "user not attributed to Apple Search Ads")
    if attributed(record, "campaign_id") == TEST_CAMPAIGN:
        return Skipped("test_attribution", "Apple's test attribution is not forwarded")
    return record


def attributed(record: Mapping[str, Json], key: str) -> str:
    """Return a text or id of an attribution; "" where Apple gave none or a placeholder."""
    value = text_at(dict(record), key)
    return "" if value in _PLACEHOLDERS else value
