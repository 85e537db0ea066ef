"""`onward plan`: how many workers, how much Redis and how large a database a load needs."""

import re
from typing import Annotated

import typer

from worker.cli.output import AsJson, Failure, print_fields, print_json
from worker.sizing import (
    BUSY,
    DELIVERIES_PER_CORE,
    EVENT_BYTES,
    EVENTS_PER_CORE,
    WINDOW,
    Load,
    Plan,
    told,
)
from worker.sizing import plan as planned

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
MOST_SHARDS = 4096


def seconds(text: str) -> float:
    """Return the seconds of "90", "45s", "10m", "72h" or "30d"."""
    match = DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration: give 90, 45s, 10m, 72h or 30d")
    return float(match[1]) * UNITS[match[2] or "s"]


def _duration(text: str) -> str:
    seconds(text)
    return text


def _positive(value: float) -> float:
    if not 0 < value < float("inf"):
        raise typer.BadParameter("must be more than 0")
    return value


Rate = Annotated[
    float, typer.Option(callback=_positive, help="Events a second, on average.", show_default=False)
]


def plan(
    events_per_second: Rate,
    *,
    integrations_per_project: Annotated[
        float, typer.Option(callback=_positive, help="Active ones an event goes to.")
    ] = 1,
    hold: Annotated[
        str, typer.Option(callback=_duration, metavar="DURATION", help="ONWARD_HOLD_SECONDS.")
    ] = "72h",
    hold_events: Annotated[
        int, typer.Option(min=1, help="ONWARD_HOLD_EVENTS, for one integration.")
    ] = 100_000,
    held_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of deliveries to pipelines that are down.")
    ] = 0.01,
    integrations: Annotated[
        int, typer.Option(min=0, help="Integrations in all; hold-events then bounds what is held.")
    ] = 0,
    batched_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of deliveries that go 100 a request.")
    ] = 0.0,
    peak: Annotated[float, typer.Option(min=1, help="The worst rate by the average.")] = 3,
    answer: Annotated[
        str,
        typer.Option(
            callback=_duration, metavar="DURATION", help="What an upstream takes, on average."
        ),
    ] = "0.1s",
    event_bytes: Annotated[
        int, typer.Option(min=100, max=65_536, help="JSON of an event.")
    ] = EVENT_BYTES,
    outage: Annotated[
        str,
        typer.Option(
            callback=_duration,
            metavar="DURATION",
            help="How long workers or database may be away.",
        ),
    ] = "1h",
    days: Annotated[float, typer.Option(min=1, help="ONWARD_DELIVERIES_DAYS.")] = 30,
    deliveries_per_core: Annotated[
        float, typer.Option(callback=_positive, help="As `make bench` found on your machine.")
    ] = DELIVERIES_PER_CORE,
    batched_per_core: Annotated[
        float, typer.Option(callback=_positive, help="The same of batched events.")
    ] = EVENTS_PER_CORE,
    json: AsJson = False,
) -> None:
    """Print how many workers and shards, how much Redis and how large a database a load needs.

    The sums use what was measured on a slow machine; docs/sizing.md says how. Rates are averages:
    `--peak` is the room for the worst.
    """
    load = Load(
        events_per_second=events_per_second,
        integrations_per_project=integrations_per_project,
        hold_seconds=seconds(hold),
        hold_events=hold_events,
        held_share=held_share,
        integrations=integrations,
        batched_share=batched_share,
        peak=peak,
        answer_seconds=seconds(answer),
        event_bytes=event_bytes,
        outage_seconds=seconds(outage),
        days=days,
        deliveries_per_core=deliveries_per_core,
        batched_per_core=batched_per_core,
    )
    try:
        needed = planned(load)
    except (OverflowError, ValueError):  # the sums are infinite, or no numbers
        raise Failure("These numbers are too large to plan for: give smaller ones.") from None
    if needed.shards > MOST_SHARDS:
        raise Failure(
            f"This takes {needed.processes:,} processes; one service has at most "
            f"{MOST_SHARDS:,} shards. Divide the projects between several services."
        )
    if json:
        print_json(told(load))
    else:
        _print(load, needed)


def _print(load: Load, needed: Plan) -> None:
    print_fields(
        {
            "Deliveries": f"{needed.deliveries_per_second:,g}/s on average, "
            f"{needed.peak_deliveries_per_second:,g}/s at the peak",
            "Worker processes": f"{needed.processes:,} (one a core, {BUSY:.0%} busy at the peak), "
            f"and {needed.recorder_cores:,g} cores that record",
            "Requests in flight": f"{needed.requests_in_flight:,} at the peak, answered after "
            f"{load.answer_seconds:g} s; a process has ONWARD_WINDOW, {WINDOW} if not set",
            "ONWARD_SHARDS": f"{needed.shards:,} (choose it once: it changes only while all is "
            "delivered)",
            "Redis": f"{size(needed.redis_bytes)} at the worst; "
            f"maxmemory {size(needed.redis_maxmemory)}, for publishing stops at 70 %",
            **{
                f"  {name.replace('_', ' ')}": f"{size(part)}{_why(name, load)}"
                for name, part in needed.redis_parts.items()
            },
            "Database": f"{needed.rows_per_day:,} rows a day, "
            f"{size(needed.database_bytes_per_day)}",
            "  kept": f"{needed.rows:,} rows, {size(needed.database_bytes)} in {load.days:g} days",
        }
    )


def _why(name: str, load: Load) -> str:
    hours = load.outage_seconds / 3600
    return {
        "held": f"  ({load.held_share:.1%} of deliveries, {load.hold_seconds / 3600:g} h)",
        "intake": f"  ({hours:g} h without workers)",
        "journal": f"  ({hours:g} h without the database)",
        "event_ids": "  (against duplicates)",
    }[name]


def size(number: float) -> str:
    """Return bytes for people: `1.5 GiB`."""
    for unit in SIZES[:-1]:
        if number < 1024:
            return f"{number:,.4g} {unit}"
        number /= 1024
    return f"{number:,.4g} {SIZES[-1]}"
