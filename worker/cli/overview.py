"""What `onward status` and `onward why` print."""

from collections.abc import Iterator
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worker.api.dossier import AS_NAMED, REMEDIES, THEN, WAIT
from worker.api.records import DeadLetterObject, DeliveryObject
from worker.api.schemas import moment, title_of
from worker.audit import ENDS
from worker.cli.output import print_table, short
from worker.clock import time_of
from worker.journal import Row
from worker.status import Overview, Trouble
from worker.why import Life, Place

MIB = 2**20


# --- status -------------------------------------------------------------------------------------


def told(found: Overview) -> dict[str, Any]:
    """Return the overview as plain values."""
    return {
        "workers": found.owners,
        "shards": {"led": found.led, "of": found.shards},
        "backlog": found.backlog,
        "redis": {"used_bytes": found.memory, "most_bytes": found.memory_most},
        "incidents": {
            slug: {"failing": one.failing, "of": one.of, "projects": one.projects}
            for slug, one in found.incidents.items()
        },
        "suspended": [_trouble(one) for one in found.suspended],
        "failing": [_trouble(one) for one in found.failing],
        "integrations": {
            "active": found.states[1],
            "suspended": found.states[2],
            "paused": found.states[0],
        },
        "recorded": dict(found.outcomes),
    }


def _trouble(one: Trouble) -> dict[str, Any]:
    integration = one.integration
    return {
        "integration": integration.id,
        "title": integration.title,
        "slug": integration.slug,
        "project": integration.project_id,
        "since": moment(one.since),
        "message": integration.last_error_message,
        "reason": integration.last_error_reason,
        "failures": integration.delivery_error_count,
        "waiting": one.waiting,
        "oldest_since": moment(one.oldest),
        "next_attempt_at": moment(one.next_attempt),
        "what_to_do": _advice(one),
    }


def _advice(one: Trouble) -> str:
    integration = one.integration
    otherwise = AS_NAMED if integration.active == 2 else WAIT
    remedy = REMEDIES.get(integration.last_error_reason or "", otherwise)
    remedy = remedy.format(title=title_of(integration.slug), secrets="see its settings")
    if integration.active == 1 and one.waiting:
        return remedy.replace(THEN, "")
    if integration.active == 1:
        return f"What was given up: onward deadletters list --integration {integration.id}"
    return (
        f"{remedy}\nonward integrations settings {integration.id} --set FILE\n"
        f"onward integrations activate {integration.id}"
    )


def render(found: Overview) -> RenderableType:
    """Return the overview for a terminal."""
    return Group(*_parts(found))


def _parts(found: Overview) -> Iterator[RenderableType]:
    for slug, one in found.incidents.items():
        fail = f"{one.failing} of {one.of} pipelines fail, in {one.projects} projects"
        yield Text(f"INCIDENT  {slug}: {fail}; none is suspended for it", "bold red")
    if not found.owners:
        yield Text("NO WORKER READS THE INTAKE. Start one: onward worker, or onward up", "bold red")
    if found.suspended:
        yield Text("Suspended: events are held until somebody acts", "bold red")
        yield _troubles(found.suspended)
    if found.failing:
        yield Text("Failing since their last delivery", "bold yellow")
        yield _troubles(found.failing)
    if not found.suspended and not found.failing:
        yield Text("No pipeline is in trouble.", "green")
    grid = Table.grid(padding=(0, 3))
    for name, value in _totals(found):
        grid.add_row(name, value)
    yield grid


def _troubles(troubles: list[Trouble]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("integration", "since", "waiting", "next attempt"):
        table.add_column(column, overflow="fold", no_wrap=column != "integration")
    table.add_column("message and what to do", overflow="fold", ratio=1)
    for one in troubles:
        integration = one.integration
        table.add_row(
            Text(f"{integration.id}\n{integration.slug}\n{integration.title}"),
            Text(short(moment(one.since))),
            Text(f"{one.waiting:,}"),
            Text(_next(one)),
            Text(f"{integration.last_error_message or ''}\n{_advice(one)}"),
        )
    return table


def _next(one: Trouble) -> str:
    if one.integration.active == 2:
        return "held"
    return short(moment(one.next_attempt)) or ("now" if one.waiting else "")


def _totals(found: Overview) -> Iterator[tuple[str, str]]:
    yield "Workers", f"{len(found.owners)} draining, {found.led} of {found.shards} shards led"
    waits = found.backlog
    lanes = f"{waits['intake']:,} events in the intake, {waits['lanes']:,} deliveries in lanes"
    yield "Backlog", f"{lanes}, {waits['journal']:,} pages to record"
    most = f" of {found.memory_most / MIB:,.0f}" if found.memory_most else ""
    yield "Redis", f"{found.memory / MIB:,.1f}{most} MiB"
    states = found.states
    yield (
        "Integrations",
        f"{states[1]:,} active, {states[2]:,} suspended, {states[0]:,} paused",
    )
    yield "Recorded", ", ".join(f"{found.outcomes[end]:,} {end}" for end in ENDS)


# --- why ----------------------------------------------------------------------------------------


def life_told(life: Life) -> dict[str, Any]:
    """Return an event's life as plain values."""
    return {
        "known": life.known,
        "deliveries": [DeliveryObject.of(row).model_dump() for row in life.recorded],
        "not_yet_recorded": [_row(row) for row in life.on_the_way],
        "dead_letters": [DeadLetterObject.of(one).model_dump() for one in life.letters],
        "waiting": [_place(one) for one in life.places],
        "absent": life.absent,
        "dropped": dict(life.dropped),
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "integration_id": row.integration_id,
        "outcome": row.outcome,
        "reason": row.reason,
        "message": row.message,
        "status": row.status,
        "attempts": row.attempts,
        "accepted_at": moment(time_of(row.accepted_at)),
        "finished_at": moment(time_of(row.finished_at)),
    }


def _place(place: Place) -> dict[str, Any]:
    return {
        "where": "lane" if place.integration_id else "intake",
        "integration_id": place.integration_id or None,
        "accepted_at": moment(place.accepted_at),
        "why": place.why,
    }


def print_life(event_id: str, life: Life) -> None:
    """Print an event's life for people."""
    if not life.known:
        typer.echo(_no_trace(event_id, life))
        return
    rows = [DeliveryObject.of(row).model_dump() for row in life.recorded]
    rows += [_row(row) for row in life.on_the_way]
    lines = [
        (r["integration_id"], r["outcome"], r["accepted_at"], r["finished_at"], r["attempts"],
         r["message"] or r["reason"])
        for r in rows
    ]  # fmt: skip
    for place in life.places:
        where = place.integration_id or "(intake)"
        lines.append((where, "waits", moment(place.accepted_at), "", "", place.why))
    lines += [(other, "not sent", "", "", "", because) for other, because in life.absent.items()]
    columns = ("integration", "outcome", "accepted", "ended", "attempts", "why")
    print_table(columns, lines, empty="It reached no integration.")
    for one in life.letters:
        again = f", sent again at {moment(one.replayed_at)}" if one.replayed_at else ""
        typer.echo(f"Dead letter {one.id}: {one.reason}{again}. onward deadletters show {one.id}")


def _no_trace(event_id: str, life: Life) -> str:
    counts = {name: life.dropped[name] for name in ("duplicate", "unrouted", "malformed")}
    return f"""No trace of {event_id}. What leaves none, and how often it has happened:
  {counts["unrouted"]:,} events had no active integration for their project and store
  {counts["duplicate"]:,} had the id of an event that came shortly before
  {counts["malformed"]:,} were malformed: onward deadletters list --reason malformed
Otherwise it was never put in the intake, or its record is older than the record is kept."""
