"""Templates, forms and errors of the console's pages."""

import re
import secrets
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from redis.exceptions import RedisError

from providers.kit.reader import fault_text
from worker.api.auth import Here, Services
from worker.api.errors import TOLD, ApiError, api_error, storage_error
from worker.console.session import COOKIE, FIRST, Forged, Sessions, SignedOut, same

HERE = Path(__file__).parent
MOST = 64 * 1024  # bytes of a form
STATES = {0: "paused", 1: "active", 2: "suspended"}
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
ASSETS = {
    path.name: (path.read_bytes(), TYPES[path.suffix]) for path in (HERE / "static").iterdir()
}
_FIRST = re.compile(r"[0-9a-f]{32}")
VERSION = sha256(b"".join(content for content, _ in ASSETS.values())).hexdigest()[:12]


# --- templates ----------------------------------------------------------------------------------


def ago(at: datetime | str | None) -> str:
    """Return how long ago, or in how long, a time is, to its largest unit; "never" for None."""
    if at is None:
        return "never"
    seconds = (datetime.now(UTC) - _time(at)).total_seconds()
    words = span(abs(seconds))
    return f"{words} ago" if seconds >= 0 else f"in {words}"


def span(seconds: float) -> str:
    """Return a duration to its largest unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.2g} s"


def iso(at: datetime | str) -> str:
    """Return a time in UTC, to the second."""
    return _time(at).strftime("%Y-%m-%d %H:%M:%SZ")


def _time(at: datetime | str) -> datetime:
    return datetime.fromisoformat(at) if isinstance(at, str) else at


def _query(**given: Any) -> str:
    """Return the query of these that are not empty."""
    return "?" + urlencode({name: value for name, value in given.items() if value})


pages = Environment(
    loader=FileSystemLoader(HERE / "pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
pages.filters |= {
    "ago": ago, "span": span, "iso": iso, "count": "{:,}".format,
    "fault_text": fault_text,
}  # fmt: skip
pages.globals |= {"states": STATES, "version": VERSION, "query": _query}


def render(name: str, status: int = 200, *, token: str = "", **values: Any) -> HTMLResponse:
    """Return a page; `token` is that of its forms, "" where nobody is signed in."""
    body = pages.get_template(name).render(token=token, **values)
    return HTMLResponse(body, status, {"Content-Security-Policy": CSP})


# --- who asks, and what with --------------------------------------------------------------------


def sessions_of(here: Services) -> Sessions:
    """Return the sessions of this service; raise ApiError where there is no admin key."""
    if here.settings.admin_key is None:
        raise ApiError(
            503, "logical", "no_admin_key", "No admin key is set: start the API with "
            "ONWARD_ADMIN_KEY, at least 20 random characters.",
        )  # fmt: skip
    return Sessions(here.settings.admin_key.get_secret_value())


def signed_in(request: Request, here: Here) -> str:
    """Return the token of the session's forms; raise SignedOut."""
    return sessions_of(here).check(request.cookies.get(COOKIE, ""))


Token = Annotated[str, Depends(signed_in)]


async def _form(request: Request) -> dict[str, str]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "A form is wanted")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MOST:
            raise HTTPException(413, "The form is too large")
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=32)
    except ValueError:  # not ASCII, or more fields than that
        raise HTTPException(400, "That is no form of the console's") from None
    return dict(pairs)


def first_form(request: Request, form: Annotated[dict[str, str], Depends(_form)]) -> dict[str, str]:
    """Return the form of a sign-in; raise Forged where it is not the one we gave."""
    if not same(form.get("token", ""), request.cookies.get(FIRST, "")):
        raise Forged
    return form


def own_form(token: Token, form: Annotated[dict[str, str], Depends(_form)]) -> dict[str, str]:
    """Return a form of a signed-in operator; raise Forged where it lacks the session's token."""
    if not same(form.get("token", ""), token):
        raise Forged
    return form


FirstForm = Annotated[dict[str, str], Depends(first_form)]
Form = Annotated[dict[str, str], Depends(own_form)]


# --- what goes wrong ----------------------------------------------------------------------------

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Page(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Handler:
        """Return the handler, with a net under it."""
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handler(request)
            except SignedOut:
                return sign_in_page(request, 401)
            except Forged:
                return _error(403, "This form is not from your session, or it has ended. Go back, "
                "reload the page and try again.")  # fmt: skip
            except RequestValidationError:
                return _error(400, "A field of the form or the address is faulty.")
            except HTTPException as error:
                return _error(error.status_code, str(error.detail))
            except TOLD as error:
                return _of(_read(error))

        return guarded


def _read(error: Exception) -> ApiError:
    if isinstance(error, RedisError):
        return storage_error("Redis does not answer. Nothing is delivered until it does; what was "
        "accepted is in its append-only file.")  # fmt: skip
    return api_error(error)


def _of(error: ApiError) -> Response:
    more = "; ".join(f"{field}: {text}" for field, text in error.details)
    return _error(error.status, f"{error.message}: {more}" if more else error.message)


def _error(status: int, message: str) -> Response:
    return render("error.html", status, code=status, message=message)


def sign_in_page(
    request: Request, status: int = 200, fault: str = "", *, after: str = ""
) -> Response:
    """Return the form of the sign-in, which leads to `after`, else to the page asked for (401)."""
    again = status == 401 and request.method == "GET"  # perhaps but the cookie was not sent
    if again:
        after = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    kept = request.cookies.get(FIRST, "")  # another tab's form stays good
    first = kept if _FIRST.fullmatch(kept) else secrets.token_hex(16)
    answer = render("sign_in.html", status, first=first, after=after, again=again, fault=fault)
    set_cookie(request, answer, FIRST, first, 600)
    return answer


def set_cookie(request: Request, answer: Response, name: str, value: str, seconds: int) -> None:
    """Set a cookie that only the console's own pages send; over TLS, never without it."""
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
    answer.set_cookie(
        name, value, seconds, path="/console", httponly=True, samesite="strict", secure=secure
    )
