"""Reading a request's body: bounded in size and time, and a JSON object or nothing."""

import asyncio
import math
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from worker.api.errors import ApiError, invalid
from worker.store.errors import Invalid

_Model = TypeVar("_Model", bound=BaseModel)

MAX_BODY = 64 * 1024  # bytes
READ_SECONDS = 10


def _number(text: str) -> int | float:
    """Return a number written with a point or exponent: 1.0 is an integer too (JSON Schema 6.1.1).

    https://json-schema.org/draft/2020-12/json-schema-validation#section-6.1.1
    """
    number = float(text)
    if math.isinf(number):
        raise ValueError("out of range")
    return int(number) if number.is_integer() else number


_decoder = msgspec.json.Decoder(float_hook=_number)


async def json_object(request: Request) -> dict[str, Any]:
    """Return the body, a JSON object; of a repeated key the last value counts.

    Raises:
        ApiError: 415, 413, 408 (it came too slowly), or 400 where it is not a JSON object.
    """
    _check_type(request)
    try:
        async with asyncio.timeout(READ_SECONDS):
            raw = await _read(request)
    except TimeoutError:
        raise ApiError(408, "request", "invalid_request", "The body came too slowly") from None
    try:
        value = _decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise invalid("The body is not JSON") from None
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object")
    return value


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type")
    if given is None and request.headers.get("content-length", "0") == "0":
        return  # no body at all: that it is missing is the better message
    kind, *parameters = (given or "").lower().split(";")
    names = [value.strip().replace(" ", "").replace('"', "") for value in parameters]
    charsets = [name for name in names if name.startswith("charset=")]
    if kind.strip() != "application/json" or charsets not in ([], ["charset=utf-8"]):
        raise invalid("Content-Type must be application/json (UTF-8)", status=415)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise invalid("Content-Encoding is not supported", status=415)


async def _read(request: Request) -> bytes:
    raw = bytearray()
    announced = request.headers.get("content-length", "")
    too_large = invalid(f"The body is larger than {MAX_BODY} bytes", status=413)
    if announced.isdigit() and int(announced) > MAX_BODY:
        raise too_large
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise too_large
    return bytes(raw)


Body = Annotated[dict[str, Any], Depends(json_object)]


def read_model(model: type[_Model], body: dict[str, Any]) -> _Model:
    """Return the body as `model`; raise Invalid naming every faulty field."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        faults = [
            (".".join(map(str, fault["loc"])) or "body", fault["msg"].removeprefix("Value error, "))
            for fault in error.errors()
        ]
        raise Invalid(faults) from None
