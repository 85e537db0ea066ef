"""What an HTTP status means when the provider says no more; adapters override rows of it."""

from datetime import timedelta

from providers.kit.interface import (
    Delivered,
    Misconfigured,
    Outcome,
    Rejected,
    Response,
    Retry,
    Split,
)

_REASONS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "bad_request",
    408: "timeout",
    413: "too_large",
    422: "bad_request",
    425: "too_early",
    429: "throttled",
    500: "server_error",
    502: "bad_gateway",
    503: "unavailable",
    504: "gateway_timeout",
}


def reason_of(status: int) -> str:
    """Return the short word for a status, one of a few, fit for a metric's label."""
    if status in _REASONS:
        return _REASONS[status]
    return {2: "ok", 3: "redirect", 4: "bad_request", 5: "server_error"}.get(
        status // 100, "bad_status"
    )


def by_status(
    response: Response,
    message: str = "",
    *,
    throttle: timedelta | None = None,
    no_pages: bool = False,
) -> Outcome:
    """Return the outcome of a status alone; `message` is the upstream's words, if found.

    `throttle` is the wait after a 429 without Retry-After. Redirects are never followed. With
    `no_pages`, a web page is no delivery: a proxy has answered, or another site.
    """
    status = response.status
    reason, message = reason_of(status), message or response.text
    match status:
        case _ if 200 <= status < 300:
            page = no_pages and response.is_page
            return Retry("unexpected_answer", message) if page else Delivered()
        case _ if 300 <= status < 400:
            target = response.headers.get("location", "elsewhere")[:200]
            return Misconfigured("redirect", f"redirects to {target}, which is not followed")
        case 401 | 403:
            return Misconfigured(reason, message)
        case 413:
            return Split(reason, message)
        case 429:
            return Retry(reason, message, response.retry_after or throttle, throttled=True)
        case 408 | 425:
            return Retry(reason, message, response.retry_after)
        case _ if 400 <= status < 500:
            return Rejected(reason, message)
        case _:
            return Retry(reason, message, response.retry_after)
