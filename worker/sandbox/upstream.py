"""What a fake upstream is: a pure function from a request to the real one's answer.

One module per slug in `worker/sandbox/upstreams/`, each with `upstream = Upstream(...)`. The app
around them (`app.py`) records what was taken and plays the faults it is told to.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec


@dataclass(frozen=True)
class Call:
    """A request as the upstream sees it: `host` and `path` are those of the real upstream.

    Header names are lower-case; `target` is the path with its query as sent.
    """

    method: str
    host: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The path alone."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters, decoded; the last of a repeated one."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def form(self) -> dict[str, str]:
        """The parameters of a form body, decoded."""
        return dict(parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True))

    @property
    def json(self) -> Any:
        """The body as JSON, or None."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


@dataclass(frozen=True)
class Reply:
    """The answer. `taken` are the ids under which the upstream counts the events it took.

    An id is what the real upstream dedupes by where it does (insert_id, $insert_id, webhook-id …),
    else the event id that the adapter puts into the body.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    taken: tuple[str, ...] = ()

    def payload(self) -> tuple[bytes, str]:
        """Return the body as bytes and its content type."""
        if isinstance(self.body, bytes):
            return self.body, "text/plain; charset=utf-8"
        if isinstance(self.body, str):
            return self.body.encode(), "text/plain; charset=utf-8"
        return msgspec.json.encode(self.body), "application/json"


@dataclass(frozen=True)
class Upstream:
    """A fake upstream.

    `hosts` are the real upstream's host names (a leading "." matches any sub-domain). `answer`
    checks the call as strictly as the real one documents and never raises. `refusal` is the real
    one's answer to wrong credentials; `settings` are valid settings for it, and `secret` names the
    one that breaks it when changed to "wrong".
    """

    slug: str
    hosts: tuple[str, ...]
    answer: Callable[[Call], Reply]
    settings: Mapping[str, Any]
    secret: str
    refusal: Reply
    throttle: Reply = Reply(429, "slow down", {"Retry-After": "2"})

    def serves(self, host: str) -> bool:
        """Whether requests to this host are for this upstream."""
        return any(host == h or (h.startswith(".") and host.endswith(h)) for h in self.hosts)


def find(value: Any, key: str) -> Iterator[Any]:
    """Yield every value under `key` in decoded JSON, depth first."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name == key:
                yield part
            yield from find(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from find(part, key)
