"""`onward publish` and the helper behind it: what is accepted is in the intake, nothing else."""

import json
import zlib
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from tests.worker.cli.run import run
from worker.intake import IntakeFull, publish

EVENT: dict[str, Any] = {
    "id": "evt-1",
    "project_id": "prj_lumen",
    "event_name": "trial_started",
    "platform": "iOS",
    "environment": "production",
    "time": 1767225600,
}


def intake(redis: Redis, project_id: str = "prj_lumen") -> list[bytes]:
    key = f"onward:{{{zlib.crc32(project_id.encode()) % 32}}}:intake"
    entries: Any = redis.xrange(key)
    return [entry[b"event"] for _, entry in entries]


def lines(*events: Any) -> str:
    return "\n".join(e if isinstance(e, str) else json.dumps(e) for e in events)


def test_publishes_each_line_as_it_is_written(
    redis: Redis, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "events.ndjson"
    odd = json.dumps({**EVENT, "id": "evt-2", "time": 1767225600.0}).replace(",", " ,  ")
    file.write_text(lines(EVENT, "", odd) + "\n")
    ran = run(capsys, "publish", file)
    assert (ran.code, ran.out, ran.err) == (0, "2 published, 0 refused\n", "")
    assert intake(redis) == [json.dumps(EVENT).encode(), odd.encode()]


def test_publishes_more_than_one_pipeline_in_order_to_the_shard_of_each_project(
    redis: Redis, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "events.json"
    events = [
        {**EVENT, "id": f"evt-{n}", "project_id": ("prj_a", "prj_b")[n % 2]} for n in range(1201)
    ]
    file.write_text(json.dumps(events, indent=1))
    assert run(capsys, "publish", file, "--json").json == {
        "published": 1201,
        "refused": 0,
        "faults": [],
    }
    ids = [json.loads(raw)["id"] for raw in intake(redis, "prj_a")]
    assert ids == [f"evt-{n}" for n in range(0, 1201, 2)]
    assert len(intake(redis, "prj_b")) == 600


def test_lists_faulty_lines_with_every_reason_and_publishes_the_rest(
    redis: Redis, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "events.ndjson"
    bad = {**EVENT, "platform": "ios", "time": 1767225600000}
    file.write_text(lines(EVENT, "", bad, "{", {**EVENT, "id": "evt-5"}))
    ran = run(capsys, "publish", file, "--json")
    assert ran.code == 1
    assert (ran.json["published"], ran.json["refused"]) == (2, 2)
    assert [f["line"] for f in ran.json["faults"]] == [3, 4]
    assert {f["path"] for f in ran.json["faults"][0]["faults"]} == {"platform", "time"}
    assert "line 3: platform must be one of" in ran.err
    assert "line 4: event is not JSON" in ran.err
    assert len(intake(redis)) == 2


def test_reads_standard_input(
    redis: Redis, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(lines(EVENT).encode())))
    assert run(capsys, "publish", "-").code == 0
    assert len(intake(redis)) == 1


def test_refuses_when_redis_is_nearly_full(
    redis: Redis, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_text(lines(EVENT))
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.2))
    ran = run(capsys, "publish", file)
    redis.config_set("maxmemory", 0)
    assert ran.code == 1
    assert "takes no events from 70% on" in ran.err
    assert "published" not in ran.err
    assert intake(redis) == []


def test_tells_how_many_are_published_when_it_is_stopped(
    redis: Redis,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_text(lines(*({**EVENT, "id": f"evt-{number}"} for number in range(501))))

    def interrupted(raw: bytes, _now: int) -> None:
        if b"evt-500" in raw:
            raise KeyboardInterrupt

    monkeypatch.setattr("providers.kit.decode.decode", interrupted)
    ran = run(capsys, "publish", file)
    assert ran.code == 130
    assert ran.err.startswith("Stopped: 500 published")
    assert len(intake(redis)) == 500


def test_says_what_to_do_where_redis_does_not_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONWARD_REDIS_URL", "redis://127.0.0.1:1/0")
    file = tmp_path / "events.ndjson"
    file.write_text(lines(EVENT))
    ran = run(capsys, "publish", file)
    assert (ran.code, ran.out) == (1, "")
    assert "set ONWARD_REDIS_URL" in ran.err


def test_the_helper_takes_mappings_text_and_bytes(redis: Redis) -> None:
    text = json.dumps({**EVENT, "id": "evt-2"})
    assert publish(redis, [EVENT, text, text.encode()]) == 3
    assert [json.loads(raw)["id"] for raw in intake(redis)] == ["evt-1", "evt-2", "evt-2"]
    assert publish(redis, []) == 0


def test_the_helper_wants_a_project(redis: Redis) -> None:
    with pytest.raises(msgspec.ValidationError, match="project_id"):
        publish(redis, [{"id": "evt-1"}])


def test_the_helper_says_how_many_were_accepted_before_redis_was_full(
    redis: Redis,
) -> None:
    accepted: list[int] = []

    def progress(count: int) -> None:
        accepted.append(count)
        redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.1))

    with pytest.raises(IntakeFull):
        publish(redis, [EVENT] * 501, progress=progress)
    redis.config_set("maxmemory", 0)
    assert accepted == [500]
    assert len(intake(redis)) == 500
