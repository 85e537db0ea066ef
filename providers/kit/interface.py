"""What an adapter is: values and pure functions between events, requests and outcomes.

`encode` turns events into a `Plan` of requests; `classify` turns the upstream's answer into an
outcome. Neither does I/O, reads a clock or keeps state: time, tokens and what is known of a user
come in a `Context`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from providers.kit.event import Event
from providers.kit.settings import Settings

Json: TypeAlias = Any
Store: TypeAlias = Literal["iOS", "Android", "Stripe"]
Category: TypeAlias = Literal["Analytics & marketing", "Attribution", "Server", "Email & push"]
S = TypeVar("S", bound=Settings)

KB = 1024
MB = 1024 * KB
ANSWER_BYTES = 64 * KB  # of an answer's body are read
NEW_TOKEN = "new_token"  # noqa: S105  the note of a `Retry` that wants another
MESSAGE_LENGTH = 500  # characters of an upstream's words that are kept

_json_encoder = msgspec.json.Encoder(decimal_format="number")


def dump(value: Json) -> bytes:
    """Return `value` as compact UTF-8 JSON; Decimals are numbers with their own digits."""
    return _json_encoder.encode(value)


def dump_text(value: Json) -> str:
    """Return `value` as compact JSON text, for JSON that travels inside a parameter."""
    return _json_encoder.encode(value).decode()


class Members(msgspec.Struct, omit_defaults=True, gc=False):
    """A JSON object in the making: members at their default ("", None) are left out."""


# --- what is sent, and what comes back ---------------------------------------------------------


class Request(msgspec.Struct, frozen=True):
    """One HTTP request, complete to the byte.

    `events` are the positions, in the sequence given to `encode`, of the events it carries.
    `refs` maps the upstream's own name of an entry (an id, "purchases.3") to an index in `events`,
    where the answer names entries by something else than their position.
    Of several requests for one event, those of a later `step` start only when the earlier ones are
    delivered, and a delivered step is never repeated. The failure of an `optional` one is logged
    and forgotten.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    events: tuple[int, ...] = ()
    refs: Mapping[str, int] = {}
    step: int = 0
    optional: bool = False

    @classmethod
    def json(
        cls,
        url: str,
        value: Json,
        *,
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
        content_type: str = "application/json",
        **more: Any,
    ) -> "Request":
        """Return a request with a JSON body. `value` may be bytes that are JSON already."""
        body = value if isinstance(value, bytes) else dump(value)
        head = (("Content-Type", content_type), *(headers or {}).items())
        return cls(method, url, head, body, **more)

    @classmethod
    def form(
        cls,
        url: str,
        values: Mapping[str, str],
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> "Request":
        """Return a POST of form parameters, each encoded once."""
        head = (("Content-Type", "application/x-www-form-urlencoded"), *(headers or {}).items())
        return cls("POST", url, head, urlencode(values, quote_via=quote).encode(), **more)

    @classmethod
    def query(
        cls,
        method: str,
        url: str,
        values: Mapping[str, str],
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> "Request":
        """Return a request without a body whose parameters are in the URL, each encoded once."""
        head = tuple((headers or {}).items())
        return cls(method, f"{url}?{urlencode(values, quote_via=quote)}", head, **more)

    def carrying(self, events: tuple[int, ...]) -> "Request":
        """Return the same request for events at these positions."""
        return Request(
            self.method,
            self.url,
            self.headers,
            self.body,
            events,
            self.refs,
            self.step,
            self.optional,
        )


class Response(msgspec.Struct, frozen=True, dict=True):
    """An upstream's answer: status, headers (lower-case names), body cut at ANSWER_BYTES.

    `at` is when it came (aware UTC); it gives an HTTP date in `Retry-After` its meaning.
    """

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    at: datetime = datetime(1970, 1, 1, tzinfo=UTC)

    @property
    def is_cut(self) -> bool:
        """Whether the body is longer than what is read: of JSON, nothing is then known."""
        return len(self.body) >= ANSWER_BYTES

    @cached_property
    def json(self) -> Json:
        """The body as JSON, or None where it is not JSON."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    @cached_property
    def text(self) -> str:
        """The body as text on one line, cut to `MESSAGE_LENGTH` characters."""
        return one_line(self.body[: 4 * MESSAGE_LENGTH].decode("utf-8", "replace"))

    @property
    def is_page(self) -> bool:
        """Whether the body is a web page."""
        return PAGE.match(self.text) is not None

    @cached_property
    def retry_after(self) -> timedelta | None:
        """`Retry-After`, seconds or HTTP date, at most 24 h; None where absent, past or unreadable.

        https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
        """
        value = self.headers.get("retry-after", "").strip()
        wait = seconds(value)
        if wait is None and value and not value.replace(".", "").lstrip("-").isdigit():
            try:
                wait = parsedate_to_datetime(value) - self.at
            except (ValueError, TypeError, OverflowError):
                return None
        if wait is None or wait <= timedelta(0):
            return None
        return min(wait, MAX_WAIT)


MAX_WAIT = timedelta(hours=24)
PAGE = re.compile(r"(?:<.*)?<(?:!doctype )?html\b", re.IGNORECASE)


def seconds(value: Json) -> timedelta | None:
    """Return a positive number of seconds (number or text), at most 24 h; None for all else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not number > 0 or isinstance(value, bool):
        return None
    return timedelta(seconds=min(number, MAX_WAIT.total_seconds()))


def one_line(text: str) -> str:
    """Return `text` with every unprintable run as one space, cut to `MESSAGE_LENGTH`."""
    words = "".join(c if c.isprintable() else " " for c in text[: 4 * MESSAGE_LENGTH]).split()
    return " ".join(words)[:MESSAGE_LENGTH]


def at(value: Json, *path: str | int) -> Json:
    """Return what stands at `path` in decoded JSON, or None where any step is missing."""
    for step in path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            inside = isinstance(value, list) and -len(value) <= step < len(value)
            value = value[step] if inside else None
    return value


def text_at(value: Json, *path: str | int) -> str:
    """Return the text (or number, as text) at `path`, on one line; "" where there is none."""
    found = at(value, *path)
    if isinstance(found, str):
        return one_line(found)
    return str(found) if isinstance(found, int | float) and not isinstance(found, bool) else ""


# --- outcomes ----------------------------------------------------------------------------------


class Delivered(msgspec.Struct, frozen=True):
    """The upstream has it. `learned` is what it told about the user, if it is asked for that."""

    message: str = ""
    learned: Mapping[str, Json] | None = None


class Retry(msgspec.Struct, frozen=True):
    """Send again, not before `after` if given; `timedelta(0)` means at once.

    `throttled` says the upstream is well but asks to slow down: that is no failure. `note` is what
    the next `encode` should know (`Context.notes`).
    """

    reason: str
    message: str = ""
    after: timedelta | None = None
    throttled: bool = False
    note: str = ""


class Rejected(msgspec.Struct, frozen=True):
    """The upstream will never take this; it becomes a dead letter."""

    reason: str
    message: str = ""


class Misconfigured(msgspec.Struct, frozen=True):
    """The upstream takes nothing until the customer changes the settings."""

    reason: str
    message: str = ""


class Gone(msgspec.Struct, frozen=True):
    """The upstream asks never to be called again."""

    reason: str
    message: str = ""


class Split(msgspec.Struct, frozen=True):
    """The batch was refused without saying which event: send halves, down to the one.

    A single event that gets this answer is rejected.
    """

    reason: str
    message: str = ""


class Skipped(msgspec.Struct, frozen=True):
    """Never sent: the integration does not want it or the upstream could do nothing with it.

    `reason` is one of a few words, for metrics; `message` tells people, and names the remedy.
    """

    reason: str
    message: str


Outcome: TypeAlias = Delivered | Retry | Rejected | Misconfigured | Gone | Split


class Partial(msgspec.Struct, frozen=True):
    """Some events of a request fared otherwise: `named`, by index in `request.events`."""

    named: Mapping[int, Outcome]
    rest: Outcome = Delivered()


Verdict: TypeAlias = Outcome | Partial


# --- planning ----------------------------------------------------------------------------------

Unsent: TypeAlias = Skipped | Rejected | Retry


class Plan(msgspec.Struct, frozen=True):
    """The requests for some events, and what is settled without one, by position."""

    requests: tuple[Request, ...] = ()
    unsent: Mapping[int, Unsent] = {}


class Context(msgspec.Struct, frozen=True):
    """What `encode` may know beside the events.

    `now` is this attempt's time, aware UTC. `batch_at` is when the batch was opened: it is fixed
    with the batch's members, so that it is the same on every attempt. `token` is what the
    provider's `TokenSource` read; `notes` what earlier outcomes left, by event id; `attributions`
    the resolved Apple Ads attribution by user key (`Event.user_key`), and `resolving` the users
    whose attribution is still awaited.
    """

    now: datetime
    project_id: str = ""
    integration_id: str = ""
    batch_at: datetime | None = None
    token: Mapping[str, str] = {}
    notes: Mapping[str, str] = {}
    attributions: Mapping[str, Mapping[str, Json]] = {}
    resolving: frozenset[str] = frozenset()


class Limits(msgspec.Struct, frozen=True):
    """What the upstream documents about load.

    `events` and `bytes` bound one request, after encoding; `concurrency` the requests in flight
    for one integration; `linger` is how long a batch waits to fill. An event older than `max_age`
    is skipped. `whole_batches` says that a batch is retried with the same members.
    """

    events: int = 1
    bytes: int = 1 * MB
    concurrency: int = 16
    linger: timedelta = timedelta(0)
    timeout: timedelta = timedelta(seconds=20)
    max_age: timedelta | None = None
    whole_batches: bool = False


USUAL_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Token:
    """A credential of limited life."""

    values: Mapping[str, str]
    lives: timedelta


@dataclass(frozen=True)
class TokenSource(Generic[S]):
    """How to get the token that `encode` needs, and where it is not needed (`request` → None).

    `sample` stands in for it in previews. A `Retry` with the note NEW_TOKEN makes the worker
    forget the one it has.
    """

    request: Callable[[S, datetime], Request | None]
    read: Callable[[Response], Token | Outcome]
    sample: Mapping[str, str]


@dataclass(frozen=True)
class Check(Generic[S]):
    """A harmless call that proves the settings, and what its answer means."""

    request: Callable[[S, Context], Request]
    read: Callable[[Response], Outcome]


@dataclass(frozen=True, kw_only=True)
class Provider(Generic[S]):
    """An adapter. Everything Onward shows, validates or documents about a slug is read from here.

    `names` are the default upstream names of canonical events; None is not sent by default, and
    with `free_names` an event absent from it goes out under its own name, else it is skipped.
    `identifiers` and `notes` are sentences for people: what a user must carry, and what to know
    before trusting the numbers.
    """

    slug: str
    title: str
    category: Category
    stores: tuple[Store, ...]
    settings: type[S]
    encode: Callable[[Sequence[Event], S, Context], Plan]
    classify: Callable[[Request, Response, S], Verdict]
    limits: Limits = USUAL_LIMITS
    limits_of: Callable[[S], Limits] | None = None
    names: Mapping[str, str | None] = field(default_factory=dict)
    free_names: bool = True
    identifiers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    needs_attribution: bool = False
    token: TokenSource[S] | None = None
    check: Check[S] | None = None
