"""One envelope for everything that goes wrong, and what becomes of each exception."""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from sqlalchemy.exc import DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from worker.intake import IntakeFull
from worker.store.errors import (
    AlreadyExists,
    Fault,
    Invalid,
    NotFound,
    StoreError,
    UnreadableSettings,
)

Type = Literal["request", "resource", "logical", "internal"]
RETRY_SECONDS = 5  # after a fault of the database
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class ApiError(Exception):
    """An answer other than the wanted one."""

    def __init__(
        self,
        status: int,
        type_: Type,
        code: str,
        message: str,
        *,
        details: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.type = type_
        self.code = code
        self.message = message
        self.details = details
        self.headers = headers
        super().__init__(message)

    def response(self) -> JSONResponse:
        """Return the envelope; `details` are there only for faults of fields."""
        error: dict[str, Any] = {"type": self.type, "code": self.code, "message": self.message}
        if self.details:
            error["details"] = [{"field": f, "message": text} for f, text in self.details]
        return JSONResponse({"error": error}, self.status, self.headers)


def invalid(message: str, *, status: int = 400, details: Sequence[Fault] = ()) -> ApiError:
    """Return the error of a request whose data will not do."""
    return ApiError(status, "request", "invalid_data", message, details=details)


def unauthorized() -> ApiError:
    """Return the error of a missing, malformed, unknown or revoked key; it tells not which."""
    return ApiError(
        401,
        "request",
        "control_unauthorized",
        "A valid secret key is needed: Authorization: Bearer sk_…",
        headers={"WWW-Authenticate": "Bearer"},
    )


def forbidden(message: str) -> ApiError:
    """Return the error of a valid key that may not do this."""
    return ApiError(403, "request", "control_forbidden", message)


def too_many_requests(wait: float) -> ApiError:
    """Return the error of a key that asks too often; `wait` is in seconds."""
    return ApiError(
        429,
        "request",
        "too_many_requests",
        "Too many requests with this key",
        headers={"Retry-After": str(max(1, math.ceil(wait)))},
    )


def unknown_error() -> ApiError:
    """Return the error of a fault of ours; what it was is in the log alone."""
    return ApiError(500, "internal", "unknown_error", "Something went wrong on our side")


def storage_error(message: str = "The database can not be reached at the moment") -> ApiError:
    """Return the error of a database, or Redis, that can not be reached or takes no more."""
    return ApiError(
        503,
        "internal",
        "storage_error",
        message,
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


UNREACHABLE = (OperationalError, InterfaceError, DisconnectionError, PoolTimeout)
TOLD = (ApiError, StoreError, IntakeFull, RedisError, *UNREACHABLE)  # all else is a fault of ours


def install(app: FastAPI) -> None:
    """Turn exceptions into envelopes."""
    for kind in TOLD:
        app.add_exception_handler(kind, lambda _request, error: api_error(error).response())
    app.add_exception_handler(RequestValidationError, _bad_parameters)
    app.add_exception_handler(HTTPException, _http)


def api_error(error: Exception) -> ApiError:
    """Return what one of `TOLD` is to a caller."""
    match error:
        case ApiError():
            return error
        case Invalid(faults=faults):
            return invalid("Validation failed", details=faults)
        case NotFound():
            return ApiError(404, "resource", "not_found", str(error))
        case AlreadyExists():
            return ApiError(409, "resource", "already_exists", str(error))
        case IntakeFull():
            return storage_error(str(error))
        case RedisError():
            return storage_error("Redis can not be reached at the moment")
        case _ if isinstance(error, UNREACHABLE):
            return storage_error()
        case UnreadableSettings():
            return ApiError(422, "logical", "relation_not_found", str(error))
        case _:
            return unknown_error()


def _bad_parameters(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for it alone
    details = [(str(fault["loc"][-1]), str(fault["msg"])) for fault in error.errors()]
    return invalid("Validation failed", details=details).response()


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  registered for it alone
    if error.status_code == HTTPStatus.NOT_FOUND:
        message, headers = "Unknown URL", None
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message, headers = "Method not allowed here", {"Allow": ", ".join(_allowed(request))}
    else:
        message, headers = str(error.detail), None
    return ApiError(
        error.status_code, "request", "invalid_request", message, headers=headers
    ).response()


def _allowed(request: Request) -> list[str]:
    routes = request.app.router.routes
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes
        )
    ]
