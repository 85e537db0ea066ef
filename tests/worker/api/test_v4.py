"""`/v4/integrations` against its documentation, row by row (domain.md, section 5)."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, text

from tests.worker.api.conftest import NEW, Client, Keys, Project, on_both
from worker.store.integrations import suspend

URL = "/v4/integrations"
ORDER = [
    "object", "id", "url", "title", "integration", "target_platform", "active", "created_at",
    "updated_at", "last_delivery_at", "last_error_at", "last_error_message",
    "delivery_error_count",
]  # fmt: skip
NOT_A_STATUS: tuple[Any, ...] = (2, -1, True, False, "1", "", 1.5, None, [1], {}, 2**70)
AT = datetime(2026, 5, 29, 22, 10, 31, 900_000, tzinfo=UTC)


def fault(answer: Any) -> tuple[int, str, str]:
    """Return status, type and code of an error, having looked at its envelope."""
    body = answer.json()
    assert list(body) == ["error"]
    assert list(body["error"])[:3] == ["type", "code", "message"]
    assert body["error"].get("details") != []
    return answer.status_code, body["error"]["type"], body["error"]["code"]


def details(answer: Any) -> dict[str, str]:
    return {row["field"]: row["message"] for row in answer.json()["error"]["details"]}


def break_(engine: Engine, integration_id: str) -> None:
    with engine.begin() as connection:
        assert suspend(
            connection, integration_id, 0, message="401 from Amplitude", reason="x", at=AT
        )


# --- authentication --------------------------------------------------------------------------


@on_both
def test_live_and_test_keys_see_the_same_records(client: Client, keys: Keys) -> None:
    made = Project(client, keys.test).create()
    assert Project(client, keys.live)("GET", made["url"]).json() == made


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", "Bearer sk_wrong")],
        [("Authorization", "Basic {key}")],
        [("Authorization", "{key}")],
        [("Authorization", "Bearer {key}x")],
        [("Authorization", "Bearer " + "x" * 10_000)],
        [("Authorization", "Bearer {key}"), ("Authorization", "Bearer {key}")],
        [("X-Api-Key", "{key}")],
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", ""), ("GET", "/meta"), ("POST", "/a1/status"), ("DELETE", "/a1")],
)
def test_without_a_valid_key_nobody_enters(
    client: Client, keys: Keys, headers: list[tuple[str, str]], method: str, path: str
) -> None:
    given = [(name, value.format(key=keys.live)) for name, value in headers]
    answer = client.request(method, URL + path, headers=given)
    assert fault(answer) == (401, "request", "control_unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_the_key_is_not_taken_from_the_query(client: Client, keys: Keys) -> None:
    assert client.get(URL, params={"key": keys.live}).status_code == 401


def test_an_sdk_key_is_forbidden(client: Client, keys: Keys) -> None:
    answer = Project(client, keys.sdk)("GET", URL)
    assert fault(answer) == (403, "request", "control_forbidden")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_schemes_case_does_not_matter(client: Client, keys: Keys, scheme: str) -> None:
    answer = client.get(URL, headers={"Authorization": f"{scheme} {keys.live}"})
    assert answer.status_code == 200


# --- list and show ---------------------------------------------------------------------------


def test_an_empty_list(project: Project) -> None:
    answer = project("GET", URL)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.text == ('{"object":"list","url":"/v4/integrations","data":[],"has_more":false}')


@on_both
def test_the_list_is_whole_in_order_of_creation_and_ones_own(
    project: Project, other: Project
) -> None:
    made = [project.create(title=f"T{n}") for n in range(12)]
    other.create()
    project("DELETE", made[3]["url"])
    answer = project("GET", URL + "?limit=1&page=9").json()
    assert answer["data"] == made[:3] + made[4:]
    assert list(answer) == ["object", "url", "data", "has_more"]
    assert answer["has_more"] is False


@on_both
def test_an_object_as_documented(project: Project) -> None:
    made = project.create(title="Warehouse", integration="amazon_s3", target_platform="Android")
    assert list(made) == ORDER
    assert made == {
        "object": "integration",
        "id": made["id"],
        "url": f"/v4/integrations/{made['id']}",
        "title": "Warehouse",
        "integration": "Amazon S3",
        "target_platform": "Android",
        "active": 0,
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
        "last_delivery_at": None,
        "last_error_at": None,
        "last_error_message": None,
        "delivery_error_count": 0,
    }
    assert re.fullmatch(r"[A-Za-z0-9]{8}", made["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["created_at"])
    assert project("GET", made["url"]).json() == made


@on_both
def test_an_object_in_error(project: Project, engine: Engine) -> None:
    made = project.create()
    project("POST", made["url"] + "/status", {"status": 1})
    break_(engine, made["id"])
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE integrations SET last_error_message = :m"), {"m": "é" * 1500}
        )
    shown = project("GET", made["url"]).json()
    assert list(shown) == ORDER
    assert (shown["active"], shown["last_error_at"]) == (2, "2026-05-29T22:10:31Z")
    assert shown["last_error_message"] == "é" * 1000


@pytest.mark.parametrize(
    "id_", ["nosuchid", "meta2", "a b", "%00", "a~b", "x" * 256, "x" * 257, "-1", "1e3", "ü", "..x"]
)
@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("DELETE", ""), ("POST", "/status")])
def test_ids_that_are_none_are_not_found(
    project: Project, id_: str, method: str, tail: str
) -> None:
    body = {"status": 1} if tail else None
    answer = project(method, f"{URL}/{id_}{tail}", body)
    assert fault(answer) == (404, "resource", "not_found")
    assert answer.json()["error"]["message"] == "No integration with this id"


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("DELETE", ""), ("POST", "/status")])
def test_another_projects_id_is_not_found(
    project: Project, other: Project, method: str, tail: str
) -> None:
    theirs = other.create()
    body = {"status": 1} if tail else None
    answer = project(method, theirs["url"] + tail, body)
    assert fault(answer) == (404, "resource", "not_found")
    assert other("GET", theirs["url"]).json() == theirs


# --- create ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"title": None}, "title"),
        ({"title": ""}, "title"),
        ({"title": " \t"}, "title"),
        ({"title": 7}, "title"),
        ({"title": ["x"]}, "title"),
        ({"title": "x" * 256}, "title"),
        ({"title": "a\nb"}, "title"),
        ({"title": "a\x00b"}, "title"),
        ({"title": "a\x7fb"}, "title"),
        ({"integration": None}, "integration"),
        ({"integration": ""}, "integration"),
        ({"integration": "Amplitude"}, "integration"),
        ({"integration": "Amazon S3"}, "integration"),
        ({"integration": 1}, "integration"),
        ({"integration": "x" * 5000}, "integration"),
        ({"target_platform": None}, "target_platform"),
        ({"target_platform": "ios"}, "target_platform"),
        ({"target_platform": "Web"}, "target_platform"),
        ({"target_platform": {}}, "target_platform"),
        ({"integration": "adjust", "target_platform": "Stripe"}, "target_platform"),
    ],
)
def test_a_faulty_field_is_named_alone(project: Project, change: Any, field: str) -> None:
    answer = project("POST", URL, {**NEW, **change})
    assert fault(answer) == (400, "request", "invalid_data")
    assert list(details(answer)) == [field]
    assert project("GET", URL).json()["data"] == []


def test_all_faults_at_once(project: Project) -> None:
    answer = project(
        "POST", URL, {"title": "", "integration": "amplitud", "target_platform": "ios"}
    )
    assert answer.json() == {
        "error": {
            "type": "request",
            "code": "invalid_data",
            "message": "Validation failed",
            "details": [
                {"field": "title", "message": "Must not be blank"},
                {
                    "field": "integration",
                    "message": 'Unknown provider "amplitud". Did you mean "amplitude"?',
                },
                {
                    "field": "target_platform",
                    "message": "Must be one of iOS, Android, Stripe (case-sensitive)",
                },
            ],
        }
    }
    assert list(details(project("POST", URL, {}))) == ["title", "integration", "target_platform"]


def test_the_allowed_stores_are_named(project: Project) -> None:
    answer = project("POST", URL, {**NEW, "integration": "adjust", "target_platform": "Stripe"})
    assert "iOS, Android" in details(answer)["target_platform"]


@on_both
@pytest.mark.parametrize("title", ["x", "x" * 255, "😀" * 255, " padded ", "Ünïcödé", '"<b>&'])
def test_titles_come_back_as_they_were(project: Project, title: str) -> None:
    assert project.create(title=title)["title"] == title


def test_unknown_fields_are_ignored(project: Project) -> None:
    made = project.create(active=1, settings={"api_key": "x"}, id="mine", colour="red")
    assert made["active"] == 0
    assert "colour" not in made


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 60_000,
        b"NaN",
        b'{"title": 1e400}',
    ],
)
def test_a_body_that_is_no_object(project: Project, content: bytes) -> None:
    answer = project("POST", URL, content=content, headers={"Content-Type": "application/json"})
    assert fault(answer) == (400, "request", "invalid_data")
    assert "details" not in answer.json()["error"]


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "json",
    ],
)
def test_a_body_of_another_type(project: Project, kind: str) -> None:
    answer = project("POST", URL, content=b"{}", headers={"Content-Type": kind})
    assert fault(answer) == (415, "request", "invalid_data")


@pytest.mark.parametrize(
    "kind",
    ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'],
)
def test_types_that_pass(project: Project, kind: str) -> None:
    content = b'{"title":"T","integration":"slack","target_platform":"iOS"}'
    answer = project("POST", URL, content=content, headers={"Content-Type": kind})
    assert answer.status_code in {201, 400}
    assert answer.status_code != 415


def test_a_body_too_large(project: Project) -> None:
    async def chunks() -> Any:
        yield b'{"title": "'
        for _ in range(70):
            yield b"x" * 1024

    large = b'{"title": "' + b"x" * 65_536 + b'"}'
    for content in (large, chunks()):
        answer = project("POST", URL, content=content, headers={"Content-Type": "application/json"})
        assert fault(answer) == (413, "request", "invalid_data")
    fits = {**NEW, "note": "x" * (65_536 - 200)}
    assert project("POST", URL, fits).status_code == 201


# --- Idempotency-Key -------------------------------------------------------------------------


def again(project: Project, key: str, **changes: Any) -> Any:
    return project("POST", URL, {**NEW, **changes}, headers={"Idempotency-Key": key})


@on_both
def test_the_same_key_and_body_give_the_same_answer(project: Project) -> None:
    first, second = again(project, "k1"), again(project, "k1")
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert first.status_code == 201
    assert len(project("GET", URL).json()["data"]) == 1
    assert again(project, "k2").json()["id"] != first.json()["id"]


def test_the_stored_answer_is_the_first_one(project: Project) -> None:
    first = again(project, "k1")
    project("POST", first.json()["url"] + "/status", {"status": 1})
    assert again(project, "k1").content == first.content


@on_both
def test_the_same_key_with_another_body_conflicts(project: Project) -> None:
    again(project, "k1")
    assert fault(again(project, "k1", title="Other")) == (409, "resource", "already_exists")


def test_keys_are_of_a_project(project: Project, other: Project) -> None:
    assert again(project, "k1").json()["id"] != again(other, "k1", title="Other").json()["id"]


@on_both
def test_failed_requests_are_not_kept(project: Project) -> None:
    assert again(project, "k1", title="").status_code == 400
    assert again(project, "k1").status_code == 201


@on_both
def test_after_a_day_a_key_is_new(project: Project, engine: Engine) -> None:
    first = again(project, "k1")
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE idempotency_keys SET created_at = :t"), {"t": "2020-01-01 00:00:00+00:00"}
        )
    assert again(project, "k1", title="Other").json()["id"] != first.json()["id"]


@on_both
def test_two_at_once_create_one(project: Project) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: again(project, "k1"), range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(project("GET", URL).json()["data"]) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\t", "k\x7f"])
def test_keys_of_another_form_are_refused(project: Project, key: str) -> None:
    answer = again(project, key)
    assert fault(answer) == (400, "request", "invalid_data")
    assert list(details(answer)) == ["Idempotency-Key"]


def test_a_key_of_255_characters_passes(project: Project) -> None:
    assert again(project, "~" * 255).status_code == 201


# --- meta ------------------------------------------------------------------------------------


def test_the_catalogue(project: Project) -> None:
    answer = project("GET", URL + "/meta").json()
    assert list(answer) == ["object", "url", "data", "has_more"]
    assert (answer["object"], answer["url"], answer["has_more"]) == ("list", URL + "/meta", False)
    assert [group["category"] for group in answer["data"]] == [
        "Analytics & marketing", "Attribution", "Server", "Email & push",
    ]  # fmt: skip
    items = [item for group in answer["data"] for item in group["items"]]
    assert all(list(item) == ["slug", "title", "allowedStores"] for item in items)
    assert items[0] == {
        "slug": "amplitude",
        "title": "Amplitude",
        "allowedStores": ["iOS", "Android", "Stripe"],
    }


def test_everything_in_the_catalogue_can_be_created(project: Project) -> None:
    for group in project("GET", URL + "/meta").json()["data"]:
        for item in group["items"]:
            for store in item["allowedStores"]:
                made = project.create(integration=item["slug"], target_platform=store)
                assert (made["integration"], made["target_platform"]) == (item["title"], store)


# --- status ----------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [b"1", b"1.0", b"1e0"])
def test_an_integer_may_be_written_as_any_number(project: Project, one: bytes) -> None:
    made = project.create()
    given = {"content": b'{"status": %b}' % one, "headers": {"Content-Type": "application/json"}}
    assert project("POST", made["url"] + "/status", **given).json()["active"] == 1


@on_both
def test_states_change_as_documented(project: Project, engine: Engine) -> None:
    made = project.create()

    def put(status: int) -> Any:
        answer = project("POST", made["url"] + "/status", {"status": status})
        assert answer.status_code == 200
        return answer.json()

    assert put(0) == made
    active = put(1)
    assert list(active) == ORDER
    assert active["active"] == 1
    assert put(1) == active
    break_(engine, made["id"])
    resumed = put(1)
    assert (resumed["active"], resumed["delivery_error_count"]) == (1, 0)
    assert resumed["last_error_message"] == "401 from Amplitude"
    assert resumed["last_error_at"] == "2026-05-29T22:10:31Z"
    assert put(0)["active"] == 0


def test_an_integration_in_error_can_be_paused(project: Project, engine: Engine) -> None:
    made = project.create()
    project("POST", made["url"] + "/status", {"status": 1})
    break_(engine, made["id"])
    answer = project("POST", made["url"] + "/status", {"status": 0})
    assert (answer.status_code, answer.json()["active"]) == (200, 0)


@pytest.mark.parametrize(
    "body",
    [{}, *({"status": value} for value in NOT_A_STATUS)],
)
def test_a_state_that_can_not_be_set(project: Project, body: Any) -> None:
    made = project.create()
    answer = project("POST", made["url"] + "/status", body)
    assert fault(answer) == (400, "request", "invalid_data")
    assert list(details(answer)) == ["status"]
    assert project("GET", made["url"]).json()["active"] == 0


# --- delete ----------------------------------------------------------------------------------


@on_both
def test_delete_is_final(project: Project) -> None:
    made = project.create()
    answer = project("DELETE", made["url"])
    assert (answer.status_code, answer.content) == (204, b"")
    for method, tail, body in (
        ("DELETE", "", None), ("GET", "", None), ("POST", "/status", {"status": 1}),
    ):  # fmt: skip
        assert fault(project(method, made["url"] + tail, body)) == (404, "resource", "not_found")
    assert project("GET", URL).json()["data"] == []


# --- everything else -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v4", "/v5/integrations", URL + "/", URL + "/a1/status/", URL + "/a1/x", "/docs"]
)
def test_unknown_urls(project: Project, path: str) -> None:
    assert fault(project("GET", path)) == (404, "request", "invalid_request")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "", "GET, POST"),
        ("DELETE", "", "GET, POST"),
        ("PATCH", "/a1", "GET, DELETE"),
        ("POST", "/a1", "GET, DELETE"),
        ("GET", "/a1/status", "POST"),
        ("DELETE", "/meta", "GET"),
        ("POST", "/meta", "GET"),
        ("OPTIONS", "", "GET, POST"),
    ],
)
def test_methods_that_are_none(project: Project, method: str, path: str, allowed: str) -> None:
    answer = project(method, URL + path)
    assert fault(answer) == (405, "request", "invalid_request")
    assert answer.headers["Allow"] == allowed


def test_no_secret_and_no_setting_is_ever_shown(project: Project, admin: Project) -> None:
    made = project.create()
    saved = admin("PUT", f"/ops{made['url'].replace('v4', 'v1')}/settings", {"api_key": "canary-1"})
    assert saved.status_code == 200
    assert "canary-1" not in project("GET", made["url"]).text + project("GET", URL).text
    assert list(project("GET", made["url"]).json()) == ORDER
