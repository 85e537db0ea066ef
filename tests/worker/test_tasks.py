"""Which child of a worker does what a hint asks for."""

from types import SimpleNamespace

import pytest

from worker import app, tasks


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A child that `drains` or not, `idle` ones that should; what it `did`, and `hints` of it."""
    made = SimpleNamespace(drains=False, idle=0, hints=0, did=[])

    def hint() -> None:
        made.hints += 1

    monkeypatch.setattr(app, "drains", lambda: made.drains)
    monkeypatch.setattr(app, "idle_drains", lambda: made.idle)
    monkeypatch.setattr(tasks, "hint_drain", hint)
    monkeypatch.setattr(tasks, "_drain", lambda until: made.did.append("drain"))
    monkeypatch.setattr(tasks, "_the_recorder", lambda redis: made.did.append("record"))
    return made


@pytest.mark.parametrize(("idle", "hints"), [(1, 1), (0, 0)])
def test_the_recorder_passes_a_hint_on_to_who_should_drain(
    child: SimpleNamespace, idle: int, hints: int
) -> None:
    child.idle = idle
    tasks.drain.run()
    assert (child.hints, child.did) == (hints, [])


def test_a_worker_that_stops_passes_nothing_on(
    child: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "stopping", SimpleNamespace(value=1))
    child.idle = 1
    tasks.drain.run()
    assert child.hints == 0


def test_who_drains_does_not_record(child: SimpleNamespace) -> None:
    child.drains = True
    tasks.record.run()
    assert child.did == []
