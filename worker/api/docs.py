"""OpenAPI 3.1 at /openapi.json: what FastAPI finds, and what every route has in common."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from worker.api.schemas import Error
from worker.registry import all_providers

KEYS = {
    "secret_key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A project's secret key: sk_… (production) or test_sk_… (sandbox)",
    }
}
COMMON = {
    "401": "The key is missing, malformed, unknown or revoked",
    "403": "The key is not a secret key",
    "429": "Too many requests with this key; see Retry-After",
    "500": "A fault on our side",
    "503": "The database, or Redis, can not be reached or is full; see Retry-After",
}
WITH_BODY = {
    "400": "Fields are faulty or missing (all are named), or the body is not a JSON object",
    "408": "The body came too slowly",
    "413": "The body is larger than 64 KiB",
    "415": "The body is not application/json",
}
HEADERS = {
    "401": ("WWW-Authenticate", "string", "Bearer"),
    "429": ("Retry-After", "integer", "Seconds"),
    "503": ("Retry-After", "integer", "Seconds"),
}


def install(app: FastAPI) -> None:
    """Serve the description of this app."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description of the app."""
    found = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    parts = found.setdefault("components", {})
    parts["securitySchemes"] = KEYS
    schemas = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schema = Error.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs") | {"Error": schema}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation)
    _name_providers(found["paths"]["/v4/integrations"]["post"])
    return found


def _name_providers(create: dict[str, Any]) -> None:
    """Say which slugs there are, and which stores each of them takes."""
    by_stores: dict[tuple[str, ...], list[str]] = {}
    for provider in all_providers().values():
        by_stores.setdefault(tuple(provider.stores), []).append(provider.slug)
    schema = create["requestBody"]["content"]["application/json"]["schema"]
    schema["anyOf"] = [
        {"properties": {"integration": {"enum": slugs}, "target_platform": {"enum": list(stores)}}}
        for stores, slugs in by_stores.items()
    ]


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    unwanted = answers.pop("422", None)
    if not path.startswith(("/v4/", "/ops/")):
        return
    operation["security"] = [{"secret_key": []}]
    errors = dict(COMMON)
    if "requestBody" in operation:
        errors |= WITH_BODY
    elif unwanted and path.startswith("/ops/"):
        errors["400"] = "A parameter is faulty"
    names = {parameter["name"] for parameter in operation.get("parameters", ())}
    if "{" in path or path.endswith("/replay") or "project" in names:
        errors["404"] = "Unknown, deleted, or another project's"
    if (path, method) == ("/v4/integrations", "post"):
        errors["409"] = "The Idempotency-Key was used with another body"
    if path.endswith(("/settings", "/roll")):
        errors["422"] = "The stored settings can not be decrypted"
    answers |= {status: _error(status, text) for status, text in sorted(errors.items())}


def _error(status: str, description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    answer: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"schema": schema}},
    }
    if status in HEADERS:
        name, kind, text = HEADERS[status]
        answer["headers"] = {name: {"description": text, "schema": {"type": kind}}}
    return answer
