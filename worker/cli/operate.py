"""What operators ask and do: `status`, `why`, `audit`, `deadletters replay`, `demo`."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import deadletters
from worker.cli.output import AsJson, Failure, note, print_json, print_table
from worker.cli.store import ACTOR, LARGEST, looking, redis_of, settings_here

if TYPE_CHECKING:
    from worker.audit import Balance
    from worker.replay import Choice
    from worker.settings import WorkerSettings

PANEL = "Operate"
REFRESH_SECONDS = 2.0


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    add = app.command
    add(rich_help_panel=PANEL, epilog="onward status --watch")(status)
    add(rich_help_panel=PANEL, epilog="onward why evt-000417 c9VdLs3H")(why)
    add(rich_help_panel=PANEL, epilog="onward audit")(audit)
    add(rich_help_panel="Try out", epilog="onward demo")(demo)
    deadletters.app.command(
        epilog="onward deadletters replay --integration c9VdLs3H --reason bad_request --dry-run"
    )(replay)


@contextmanager
def _service() -> Iterator[tuple["WorkerSettings", Any, Any]]:
    """Give settings, Redis and the engine of the service."""
    from worker.store.database import make_engine  # noqa: PLC0415  quick --help

    settings = settings_here()
    engine = make_engine(settings.database_url)
    try:
        with redis_of(settings) as redis:
            yield settings, redis, engine
    finally:
        engine.dispose()


# --- status -------------------------------------------------------------------------------------


def status(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, until Ctrl-C.")] = False,
    json: AsJson = False,
) -> None:
    """Print how the service stands: what needs somebody first, then the whole."""
    from worker.cli.overview import render, told  # noqa: PLC0415  quick --help
    from worker.status import overview  # noqa: PLC0415

    with _service() as (settings, redis, engine):
        if watch and not json:
            _watch(lambda: render(overview(redis, engine, settings.shards)))
            return
        found = overview(redis, engine, settings.shards)
    if json:
        print_json(told(found))
    else:
        _console().print(render(found))


def _console() -> Any:
    from rich.console import Console  # noqa: PLC0415  only where it is shown

    from worker.cli.output import PIPED_WIDTH  # noqa: PLC0415

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def _watch(look: Any) -> None:
    from rich.live import Live  # noqa: PLC0415  only where it is shown

    with _stoppable() as stopped, Live(look(), console=_console(), auto_refresh=False) as live:
        while not stopped():
            time.sleep(REFRESH_SECONDS)
            live.update(look(), refresh=True)


@contextmanager
def _stoppable() -> Iterator[Any]:
    """Give a function that tells whether Ctrl-C was pressed; nothing is broken off by it."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


# --- why ----------------------------------------------------------------------------------------


def why(
    event_id: Annotated[str, typer.Argument(metavar="EVENT_ID", help="The event's id.")],
    integration_id: Annotated[
        str | None, typer.Argument(metavar="[INTEGRATION]", help="This integration only.")
    ] = None,
    *,
    json: AsJson = False,
) -> None:
    """Print the life of an event: where it went, where it waits, and why it did not go elsewhere.

    Exits with 1 where there is no trace of it.
    """
    from worker.cli.overview import life_told, print_life  # noqa: PLC0415  quick --help
    from worker.store.database import reading  # noqa: PLC0415
    from worker.why import life_of  # noqa: PLC0415

    with _service() as (settings, redis, engine), reading(engine) as connection:
        life = life_of(redis, connection, settings.shards, event_id, integration_id)
    if json:
        print_json(life_told(life))
    else:
        print_life(event_id, life)
    if not life.known:
        raise typer.Exit(1)


# --- audit --------------------------------------------------------------------------------------


def audit(*, json: AsJson = False) -> None:
    """Print where every accepted event is, for each integration; fail if any is missing."""
    from worker.audit import balance  # noqa: PLC0415  quick --help
    from worker.store.database import reading  # noqa: PLC0415
    from worker.store.integrations import titles  # noqa: PLC0415

    with _service() as (settings, redis, engine):
        found = balance(redis, engine, settings.shards)
        with reading(engine) as connection:
            names = titles(connection)
    lines = [_audit_line(line, names.get(line.integration_id)) for line in found.lines]
    if json:
        print_json(
            {
                "intake": found.intake,
                "journal": found.journal,
                "dropped": found.dropped,
                "unaccounted": found.unaccounted,
                "integrations": lines,
            }
        )
    else:
        _print_audit(found, lines)
    if found.unaccounted:
        raise typer.Exit(1)


def _audit_line(line: Any, name: Any) -> dict[str, Any]:
    from worker.audit import ENDS  # noqa: PLC0415  quick --help

    return {
        "integration": line.integration_id,
        "title": name.title if name else None,
        "slug": name.slug if name else None,
        "accepted": line.accepted,
        "waiting": line.waiting,
        **{what: line.ended.get(what, 0) for what in ENDS},
        "in_journal": sum(line.in_journal.get(what, 0) for what in ENDS),
        "missing": line.missing,
        "unrecorded": line.unrecorded,
        "forgotten": line.forgotten,
    }


def _print_audit(found: "Balance", lines: list[dict[str, Any]]) -> None:
    columns = [
        "integration", "title",
        "accepted", "waiting", "delivered", "skipped", "rejected", "expired",
    ]  # fmt: skip
    rare = ("in_journal", "missing", "unrecorded")  # not shown where there is none
    columns += [what for what in rare if any(line[what] for line in lines)]
    print_table(
        ["id", *(column.replace("_", " ") for column in columns[1:])],
        [[_number(line[column]) for column in columns] for line in lines],
        empty="No event has reached an integration yet.",
    )
    typer.echo(f"In the intake, not routed yet: {found.intake:,}")
    dropped = ", ".join(f"{count:,} {what}" for what, count in sorted(found.dropped.items()))
    typer.echo(f"Reached no integration: {dropped or 'none'}")
    if not found.unaccounted:
        typer.echo("Every event is accounted for.")
        return
    typer.echo(f"NOT ACCOUNTED FOR: {found.unaccounted:,}")
    for line in lines:
        name = f"{line['integration']} ({line['title'] or 'unknown integration'})"
        if line["missing"]:
            which = "accepted and nowhere" if line["missing"] > 0 else "ended without acceptance"
            typer.echo(f"  {name}: {abs(line['missing']):,} {which}")
        if line["unrecorded"]:
            typer.echo(f"  {name}: {line['unrecorded']:,} counted and not recorded")
        if line["forgotten"] and line["missing"]:
            typer.echo(f"  {name}: Redis was emptied since; it forgot {line['forgotten']:,}")


def _number(value: Any) -> Any:
    return f"{value:,}" if isinstance(value, int) else value


# --- deadletters replay -------------------------------------------------------------------------


def replay(
    *,
    integration: Annotated[str | None, typer.Option(help="Of this integration.")] = None,
    reason: Annotated[str | None, typer.Option(help="With this reason.")] = None,
    ids: Annotated[
        list[int] | None,
        typer.Option("--id", min=1, max=LARGEST, help="With this id; may be repeated."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be.")] = False,
    rate: Annotated[
        float | None, typer.Option(min=0.1, max=100_000, help="At most so many a second.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also those replayed before; malformed ones to the intake."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Send dead letters again: each goes to the end of its integration's lane, as a new delivery.

    First tells how many of what; Ctrl-C stops between two of them.
    """
    from worker.replay import choose  # noqa: PLC0415  quick --help
    from worker.store.errors import NotFound  # noqa: PLC0415
    from worker.store.integrations import get  # noqa: PLC0415

    if not (integration or reason or ids or every):
        raise Failure("Say which: --integration, --reason, --id, or --all", code=2)
    with looking() as connection:
        if integration:
            _may_replay(get(connection, integration))
        chosen = choose(connection, ids=ids, integration_id=integration, reason=reason, force=force)
    if len(chosen.ids) + chosen.refused.total() < len(set(ids or ())):
        raise NotFound("No dead letter with one of these ids")
    _tell_choice(chosen, quiet=json)
    left = dict(chosen.refused)
    if dry_run or not chosen.ids:
        if json:
            print_json({"would_replay": len(chosen.ids), "replayed": 0, "refused": left})
        return
    if not yes and not sys.stdin.isatty():
        raise Failure("Nobody can be asked here: add --yes, or --dry-run to only look", code=2)
    if not yes:
        typer.confirm(f"Send {len(chosen.ids):,} again?", abort=True, err=True)
    done = _replay(chosen, rate, force=force)
    if json:
        print_json({"replayed": done, "chosen": len(chosen.ids), "refused": left})
    else:
        typer.echo(f"{done:,} of {len(chosen.ids):,} sent again")
    if done < len(chosen.ids):
        raise typer.Exit(1)


def _may_replay(integration: Any) -> None:
    if integration.active == 0:
        raise Failure(
            f"{integration.id} is paused: what is sent again would be skipped. First "
            f"`onward integrations activate {integration.id}`."
        )
    if integration.active == 2:
        note(f"{integration.id} is suspended: what is sent again is held until it is activated.")


def _tell_choice(chosen: "Choice", *, quiet: bool) -> None:
    """Tell what would be sent again, and what not; on stderr where stdout is for a program."""
    if chosen.kinds and not quiet:
        rows = [
            (integration or "(intake)", reason, f"{count:,}")
            for (integration, reason), count in sorted(
                chosen.kinds.items(), key=lambda kind: (kind[0][0] or "", kind[0][1])
            )
        ]
        print_table(("integration", "reason", "letters"), rows)
    say = note if quiet else typer.echo
    say(f"{len(chosen.ids):,} to send again")
    for which, count in sorted(chosen.refused.items()):
        say(f"{count:,} left out: {which}")


def _replay(chosen: "Choice", rate: float | None, *, force: bool) -> int:
    """Send them again with a bar; return how many were. Ctrl-C ends it early."""
    from rich.console import Console  # noqa: PLC0415  only where it is shown
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: PLC0415

    from worker.replay import replay as replayed  # noqa: PLC0415

    done = 0
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    with _service() as (settings, redis, engine), _stoppable() as stopped, bar:
        task = bar.add_task("Sending again", total=len(chosen.ids))
        going = replayed(redis, engine, settings.shards, chosen.ids, rate, force=force, actor=ACTOR)
        for progress in going:
            done = progress.replayed
            bar.update(task, completed=done + progress.refused)
            if stopped():
                note("Stopped.")
                break
        del going
    return done


# --- demo ---------------------------------------------------------------------------------------


def demo(
    events: Annotated[int, typer.Option(min=40, max=100_000, help="How many to send.")] = 200,
) -> None:
    """Play the whole story against the sandbox in a folder of its own; takes about a minute.

    Events through every provider; one pipeline failing until it is suspended; the fix; the held
    events arriving. Succeeds only if every event is accounted for.
    """
    from worker.cli.stage import stage  # noqa: PLC0415  quick --help
    from worker.demo import play  # noqa: PLC0415

    with stage() as shown:
        whole = play(events, shown)
    if not whole:
        raise typer.Exit(1)
