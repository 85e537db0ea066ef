"""What was released stays: the description of /v4, and the shape of every answer, value by type.

A change that is meant is written by `RELEASE=1 pytest tests/worker/api/test_released.py`; look at
its diff as a client's author would.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from tests.worker.api.conftest import NEW, Client, Project
from tests.worker.api.test_ops import AT, record
from worker.store.integrations import suspend

FOLDER = Path(__file__).parent / "released"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
PREFIX = re.compile(r"sk_\w{4}…")


def as_released(name: str, found: Any) -> None:
    """Fail if `found` is not what is kept under this name."""
    file = FOLDER / f"{name}.json"
    if "RELEASE" in os.environ:
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    kept = file.read_text()
    assert json.dumps(found, indent=1, ensure_ascii=False) + "\n" == kept  # with its order of keys


def shape(value: Any) -> Any:
    """Return the value's form: names of types, but for what is the same each time."""
    match value:
        case dict():
            return {key: shape(part) for key, part in value.items()}
        case list():
            return [shape(part) for part in value[:1]]
        case str() if TIME.fullmatch(value):
            return "<time>"
        case str():
            return PREFIX.sub("<key>", value)
        case bool() | None:
            return value
        case _:
            return f"<{type(value).__name__}>"


def answer_of(answer: Any, id_: str) -> dict[str, Any]:
    kept = ("content-type", "www-authenticate", "allow", "retry-after")
    headers = {name: answer.headers[name] for name in kept if name in answer.headers}
    body = shape(json.loads(answer.text.replace(id_, "<id>"))) if answer.content else None
    return {"status": answer.status_code, "headers": headers, "body": body}


def refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(refs, value.values()))
    return set().union(*map(refs, value)) if isinstance(value, list) else set()


def test_the_description_of_v4(client: Client) -> None:
    found = client.get("/openapi.json").json()
    paths = {path: item for path, item in found["paths"].items() if path.startswith("/v4/")}
    parts = found["components"]
    schemas: dict[str, Any] = {}
    wanted = refs(paths)
    while wanted - schemas.keys():
        schemas |= {name: parts["schemas"][name] for name in sorted(wanted - schemas.keys())}
        wanted |= refs(schemas)
    security = parts["securitySchemes"]
    kept = {"openapi": found["openapi"], "info": found["info"], "paths": paths}
    as_released("openapi", {**kept, "schemas": schemas, "securitySchemes": security})


def test_the_answers_of_v4(client: Client, project: Project, engine: Engine) -> None:
    made = project("POST", "/v4/integrations", NEW)
    url = made.json()["url"]
    found = {"create": made, "status": project("POST", url + "/status", {"status": 1})}
    with engine.begin() as connection:
        suspend(connection, made.json()["id"], 0, message="401: no", reason="unauthorized", at=AT)
        connection.execute(text("UPDATE integrations SET last_delivery_at = last_error_at"))
    found |= {
        "show": project("GET", url),
        "list": project("GET", "/v4/integrations"),
        "meta": project("GET", "/v4/integrations/meta"),
        "faulty": project("POST", "/v4/integrations", {"integration": "mixpannel"}),
        "faulty status": project("POST", url + "/status", {"status": 2}),
        "no object": project("POST", "/v4/integrations", []),
        "no key": client.get("/v4/integrations"),
        "not found": project("GET", "/v4/integrations/nowhere1"),
        "unknown url": project("GET", "/v4/nowhere"),
        "method": project("PUT", "/v4/integrations"),
        "type": project("POST", "/v4/integrations", headers={"Content-Type": "text/plain"}),
        "large": project("POST", "/v4/integrations", {"title": "a" * 70_000}),
        "delete": project("DELETE", url),
    }
    key = {"Idempotency-Key": "k"}
    project("POST", "/v4/integrations", NEW, headers=key)
    found["conflict"] = project("POST", "/v4/integrations", {**NEW, "title": "B"}, headers=key)
    id_ = made.json()["id"]
    as_released("v4", {name: answer_of(answer, id_) for name, answer in found.items()})


def test_the_answers_of_ops(project: Project, engine: Engine) -> None:
    made = project.create()["id"]
    one = f"/ops/v1/integrations/{made}"
    found = {"save": project("PUT", one + "/settings", {"api_key": "k" * 32, "region": "eu"})}
    record(engine, made)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE integrations SET active = 1, last_error_at = :at"), {"at": AT}
        )
    for path in ("projects", "integrations", "deliveries", "deadletters", "audit"):
        found[path] = project("GET", f"/ops/v1/{path}")
    letter = found["deadletters"].json()["data"][0]["id"]
    found |= {
        "dossier": project("GET", one),
        "settings": project("GET", one + "/settings"),
        "status": project("POST", one + "/status", {"status": 0}),
        "dead letter": project("GET", f"/ops/v1/deadletters/{letter}"),
        "replay": project("POST", "/ops/v1/deadletters/replay", {"all": True, "dry_run": True}),
        "no check": project("POST", f"/ops/v1/integrations/{_posthog(project)}/check"),
    }
    as_released("ops", {name: answer_of(answer, made) for name, answer in found.items()})


def _posthog(project: Project) -> str:
    id_: str = project.create(integration="posthog")["id"]
    return id_
