"""Taking secrets out of what people see: messages, and requests that are shown."""

import json
import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from urllib.parse import quote, quote_plus, urlsplit

from msgspec.structs import replace

from providers.kit import Request, dump_text

HIDDEN = "***"
SHORT = 8  # characters; a shorter secret is hidden only where it stands alone
CUT = 6  # characters of a secret's beginning that are hidden at the end of a text that was cut
_BASIC = re.compile(r"(Basic )(\S+)", re.IGNORECASE)
_ASSERTION = re.compile(r"\b((?:assertion|client_assertion|client_secret|code)=)[^&]+")
_LINE = re.compile(r"[A-Za-z0-9+/=]{16,}")  # of a key in PEM; its line ends may be escaped
_URL_SAFE = str.maketrans("+/", "-_")
_CREDENTIAL = re.compile(
    r"\b(?P<scheme>(?:[Bb]earer|[Bb]asic)\s+)(?=\S*[0-9=]|\S+[A-Z])[A-Za-z0-9._~+/=-]{8,}"
    r"|\bwhsec_[A-Za-z0-9+/=_-]+|\b(?:test_)?sk_[A-Za-z0-9_-]{8,}"
    r"|\bya29\.[A-Za-z0-9._-]+|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
)


class Mask:
    """Hides the given secrets: `mask(text)`, `mask.request(request)`.

    They are found as they are, percent-encoded, inside JSON text, inside base64, and line by line
    where they are keys of several lines; and so is the beginning of one with which a text ends,
    having been cut. Of a secret that is a URL, scheme and host stay.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = tuple(filter(None, secrets))

    @cached_property
    def _forms(self) -> dict[str, str]:
        """What each form of a secret becomes. Most masks never hide anything: theirs take 7 KB."""
        return {form: _shown(secret) for secret in self._secrets for form in _forms(secret)}

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        longest_first = sorted(self._forms, key=len, reverse=True)
        return re.compile("|".join(map(_expression, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """Return somebody's words without the secrets, and without what looks like a credential."""
        return _CREDENTIAL.sub(lambda found: (found["scheme"] or "") + HIDDEN, self._known(text))

    def _known(self, text: str) -> str:
        if self._pattern is None:
            return text
        hidden = self._pattern.sub(lambda found: self._forms[found[0]], text)
        cut = min((_cut_at(hidden, form) for form in self._forms), default=len(hidden))
        return hidden if cut == len(hidden) else hidden[:cut] + HIDDEN

    def request(self, request: Request) -> Request:
        """Return the request as it may be shown; a body that is not text stays as it is."""
        headers = tuple((name, self._header(value)) for name, value in request.headers)
        return replace(
            request,
            url=self._known(request.url),
            headers=headers,
            body=self._body(request, self._known),
        )

    def _header(self, value: str) -> str:
        credential = _BASIC.fullmatch(value)
        if credential:
            decoded = _decoded(credential[2])
            if self._known(decoded) != decoded:
                return credential[1] + HIDDEN
        return self._known(value)

    @staticmethod
    def _body(request: Request, hide: Callable[[str], str]) -> bytes:
        try:
            text = hide(request.body.decode())
        except UnicodeDecodeError:
            return request.body
        form = dict(request.headers).get("Content-Type", "").startswith("application/x-www-form")
        return (_ASSERTION.sub(rf"\1{HIDDEN}", text) if form else text).encode()


def _forms(secret: str) -> Iterator[str]:
    yield from (secret, quote(secret, safe=""), quote_plus(secret), quote(secret))
    yield from (dump_text(secret)[1:-1], json.dumps(secret)[1:-1])
    if len(secret) >= SHORT:
        yield from _in_base64(secret.encode("utf-8", "replace"))
    for line in _LINE.findall(secret.partition("-----BEGIN")[2]):
        yield from (line, quote(line, safe=""))


def _cut_at(text: str, form: str) -> int:
    """Return where the beginning of `form` begins with which the text ends; its length if none."""
    at = text.find(form[:CUT], max(0, len(text) - len(form)))
    while at >= 0:
        if len(text) - at >= CUT and form.startswith(text[at:]):
            return at
        at = text.find(form[:CUT], at + 1)
    return len(text)


def _in_base64(raw: bytes) -> Iterator[str]:
    """What of a base64 text these bytes alone decide, wherever in the coded bytes they begin."""
    for before in range(3):
        coded = b64encode(bytes(before) + raw).decode()
        part = coded[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6]
        yield from (part, part.translate(_URL_SAFE))


def _shown(secret: str) -> str:
    parts = urlsplit(secret) if secret.startswith(("https://", "http://")) else None
    return f"{parts.scheme}://{parts.hostname}/{HIDDEN}" if parts else HIDDEN


def _expression(form: str) -> str:
    alone = rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"
    return alone if len(form) < SHORT else re.escape(form)


def _decoded(credential: str) -> str:
    try:
        return b64decode(credential, validate=True).decode()
    except (NotBase64, UnicodeDecodeError, ValueError):
        return ""
