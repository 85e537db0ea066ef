"""`onward secrets`: the keys that keep integrations' settings at rest."""

import sys
from typing import TYPE_CHECKING

import typer

from worker.cli.output import AsJson, note, print_json, print_table
from worker.cli.store import ACTOR, looking, settings_here

if TYPE_CHECKING:
    from worker.store.rotation import KeysInUse, Rotation

app = typer.Typer(no_args_is_help=True, help="The keys of settings at rest.")


@app.command(epilog="onward secrets check")
def check(*, json: AsJson = False) -> None:
    """Print which keys are in use, and name the integrations that none opens.

    Exits with 1 if there are any.
    """
    from worker.store.rotation import keys_in_use  # noqa: PLC0415  quick --help
    from worker.store.secrets import keyring_of  # noqa: PLC0415

    settings = settings_here()
    with looking(settings) as connection:
        found = keys_in_use(connection, keyring_of(settings))
    if json:
        print_json(_told(found))
    else:
        _print(found)
    if found.lost or found.damaged:
        raise typer.Exit(1)


def _told(found: "KeysInUse") -> dict[str, object]:
    return {
        "newest": found.newest,
        "keys": [{"key": key, "integrations": count} for key, count in found.known.items()],
        "lost": [{"key": key, "integrations": ids} for key, ids in found.lost.items()],
        "damaged": found.damaged,
    }


def _print(found: "KeysInUse") -> None:
    rows = [
        (key, count, "newest" if key == found.newest else "older: onward secrets rotate")
        for key, count in found.known.items()
    ]
    print_table(("key", "integrations", ""), rows, empty="No key opens any settings.")
    for key, ids in found.lost.items():
        note(
            f"LOST: key {key}, of {', '.join(ids)}. Put it back at the end of "
            "ONWARD_SECRET_KEYS, or save these settings anew."
        )
    if found.damaged:
        note(f"DAMAGED: the settings of {', '.join(found.damaged)}. Save them anew.")


@app.command(epilog="ONWARD_SECRET_KEYS=NEW,OLD onward secrets rotate")
def rotate(*, json: AsJson = False) -> None:
    """Encrypt all settings with the newest key; then the older ones may go.

    The service goes on meanwhile. It must know the new key already: start it with
    ONWARD_SECRET_KEYS=NEW,OLD first.
    """
    done = _rotate()
    rotated = done.done - len(done.damaged)
    if json:
        print_json({"rotated": rotated, "damaged": list(done.damaged)})
    else:
        typer.echo(f"{rotated:,} settings encrypted with the newest key")
    if done.damaged:
        note(f"DAMAGED: the settings of {', '.join(done.damaged)}. Save them anew.")
        raise typer.Exit(1)


def _rotate() -> "Rotation":
    from rich.console import Console  # noqa: PLC0415  only where it is shown
    from rich.progress import MofNCompleteColumn, Progress  # noqa: PLC0415

    from worker.store import rotation  # noqa: PLC0415  quick --help
    from worker.store.database import make_engine  # noqa: PLC0415
    from worker.store.secrets import keyring_of  # noqa: PLC0415

    settings = settings_here()
    engine = make_engine(settings.database_url)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
    console = Console(stderr=True)
    try:
        with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("Encrypting anew")
            for now in rotation.rotate(engine, keyring_of(settings), ACTOR):
                bar.update(task, completed=now.done, total=now.total)
            return now
    finally:
        engine.dispose()
