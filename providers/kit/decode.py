"""From the producer's bytes to an `Event`, or every fault that stands in the way."""

from decimal import Decimal
from math import isinf
from typing import Any

import msgspec

from providers.kit.event import Event
from providers.kit.reader import InvalidEvent, attribution_from, event_from
from providers.kit.usual import Unusual, usual_but_for_extras, usual_event

__all__ = ["InvalidEvent", "attribution_from", "decode", "event_from", "parse"]

EVENT_BYTES = 65_536
DEPTH = 8
BACKSLASH = ord("\\")  # as a number: a text of one byte is looked for five times as long
NESTS = frozenset((dict, list))


def _number(digits: str) -> Decimal:
    if isinf(float(digits)):  # for most who parse it: a receiver would refuse the whole body
        raise OverflowError
    return Decimal(digits)


_decoder = msgspec.json.Decoder(float_hook=_number)


def decode(raw: bytes, now: int) -> Event:
    """Return the event in `raw` (JSON, UTF-8); `now` is Unix seconds of its reading.

    Raises:
        InvalidEvent: with every fault, each naming its path and what would be right.
    """
    if len(raw) > EVENT_BYTES or (BACKSLASH in raw and b"\\u0000" in raw):
        return event_from(parse(raw), now)
    try:
        return usual_event(raw, now)
    except Unusual:
        value = parse(raw)
    try:
        return usual_but_for_extras(raw, value, now)
    except Unusual:
        return event_from(value, now)


def parse(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`, floats as Decimal; raise InvalidEvent if there is none."""
    if len(raw) > EVENT_BYTES:
        raise _refusal(f"is {len(raw):,} bytes; at most {EVENT_BYTES:,}")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _refusal("begins with a byte order mark; send plain UTF-8")
    try:
        value = _decoder.decode(raw)
    except RecursionError:
        raise _refusal(f"is nested deeper than {DEPTH}") from None
    except ArithmeticError:
        raise _refusal("holds a number too large: at most 1.7e308") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _refusal(f"is not JSON in UTF-8 without lone surrogates ({error})") from None
    if not isinstance(value, dict):
        raise _refusal("must be a JSON object")
    if raw.count(b"{") + raw.count(b"[") > DEPTH and _deeper(value):
        raise _refusal(f"is nested deeper than {DEPTH}")
    return value


def _refusal(message: str) -> InvalidEvent:
    return InvalidEvent([{"path": "", "message": message}])


def _deeper(value: dict[str, Any]) -> bool:
    """Whether something lies deeper than DEPTH, the object itself being the first level."""
    level: list[Any] = [value]
    for _ in range(DEPTH):
        if not level:
            return False
        level = [
            part
            for outer in level
            for part in (outer.values() if type(outer) is dict else outer)
            if type(part) in NESTS
        ]
    return bool(level)
