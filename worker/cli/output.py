"""What commands print: data on stdout, everything else on stderr, and failures in one line."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

PIPED_WIDTH = 200  # columns of a table that no terminal bounds
WHOLE = 16  # characters: such a column is not broken, but for people's own words
WORDS = {"title", "name", "why"}
PART = 9  # characters of one of those that stay together
# What steers a terminal, or turns the direction of what follows; but for line ends and tabs.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_TIME = re.compile(r"\d{4}-(\d\d-\d\d)T(\d\d:\d\d:\d\d)Z")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

# Failures of what we depend on, by class name (importing them all would slow every command down).
_REMEDIES = {
    "redis.exceptions.AuthenticationError": "Redis refuses the password; check ONWARD_REDIS_URL",
    "redis.exceptions.ConnectionError": (
        "Redis does not answer; start the service with `onward up`, or set ONWARD_REDIS_URL"
    ),
    "redis.exceptions.TimeoutError": "Redis does not answer in time; check ONWARD_REDIS_URL",
    "redis.exceptions.OutOfMemoryError": (
        "Redis is full; let the workers drain it, or raise its maxmemory"
    ),
    "redis.exceptions.RedisError": "Redis refuses; check ONWARD_REDIS_URL and the server's log",
    "sqlalchemy.exc.OperationalError": (
        "the database does not answer or has no tables; check ONWARD_DATABASE_URL, "
        "and run `onward migrate`"
    ),
    "sqlalchemy.exc.ProgrammingError": "the database's tables are not these; run `onward migrate`",
    "sqlalchemy.exc.ArgumentError": "ONWARD_DATABASE_URL is not a SQLAlchemy URL",
    "builtins.UnicodeEncodeError": "what was typed is not UTF-8",
    "builtins.TimeoutError": (
        "a part of the service does not answer; see what it says in `log` of the data folder"
    ),
    "builtins.OSError": "the system refuses; check the data folder, its rights and its disk's room",
}
# Where to look for another, of what the API says without a word of commands.
_SEE = {
    "No integration with this id": ": see `onward integrations list`",
    "No dead letter with this id": ": see `onward deadletters list`",
    "No dead letter with one of these ids": ": see `onward deadletters list`",
}


class Failure(Exception):
    """The command cannot do it: what is wrong and the remedy, and the faults by field if any."""

    def __init__(
        self, message: str, details: Iterable[tuple[str, str]] = (), *, code: int = 1
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = list(details)
        self.code = code


def failure_of(error: Exception) -> Failure | None:
    """Return the failure to show for an error people can mend; None for a fault of ours."""
    if isinstance(error, Failure):
        return error
    for kind in type(error).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in _REMEDIES:
            return Failure(f"{_REMEDIES[name]} ({_first_line(error)})")
        match name:
            case "worker.settings.InvalidEnvironment":
                return Failure(f"The environment will not do. {error}")
            case "worker.registry.UnknownProvider":
                return Failure(str(error), code=2)
            case "worker.store.errors.Invalid":
                return Failure("That will not do:", error.faults)  # type: ignore[attr-defined]
            case (
                "worker.intake.IntakeFull"
                | "worker.store.errors.StoreError"
                | "worker.checks.UnfitRedis"
            ):
                return Failure(f"{error}{_SEE.get(str(error), '')}")
            case "worker.preview.InvalidEvents":
                return Failure("The events will not do:", error.faults)  # type: ignore[attr-defined]
            case "providers.kit.settings.InvalidSettings":
                title = str(error).partition(":")[0]
                return Failure(f"The settings of {title} will not do:", error.faults)  # type: ignore[attr-defined]
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def print_failure(failure: Failure, *, as_json: bool) -> None:
    """Print the failure on stderr, and with `as_json` as an object on stdout too."""
    note(f"onward: {failure.message}")
    for field, message in failure.details:
        note(f"  {field}: {message}" if field else f"  {message}")
    if as_json:
        details = [{"field": field, "message": message} for field, message in failure.details]
        with suppress(OSError):  # that stdout takes nothing may be the failure
            print_json({"error": {"message": failure.message, "details": details}})


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout; escaped where stdout does not take all letters."""
    ascii_only = sys.stdout.encoding.lower() != "utf-8"
    text = json.dumps(value, indent=2, ensure_ascii=ascii_only, default=str)
    typer.echo(_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def note(text: str) -> None:
    """Print a line for people on stderr."""
    typer.echo(visible(text), err=True)


def visible(text: str) -> str:
    """Return a text in which a terminal finds no commands: events and answers are others' words."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "None."
) -> None:
    """Print a table that fits the width, with nothing cut off; `empty` where there are no rows.

    On a terminal times are without their year; one that is too narrow breaks the lines itself.
    """
    from rich.console import Console  # noqa: PLC0415  only where a table is shown
    from rich.measure import Measurement  # noqa: PLC0415

    width = None if sys.stdout.isatty() else PIPED_WIDTH
    cells = [["" if cell is None else visible(str(cell)) for cell in row] for row in rows]
    if not cells:
        typer.echo(empty)
        return
    if width is None:
        cells = [[short(cell) for cell in row] for row in cells]
    console = Console(highlight=False, width=width)
    least = Measurement.get(
        console,
        console.options.update(max_width=PIPED_WIDTH),
        _table(columns, [[*map(_least, columns, row)] for row in cells]),
    ).minimum
    console.width = max(console.width, least)
    console.print(_table(columns, cells))


def _table(columns: Sequence[str], cells: list[list[str]]) -> "Table":
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  only where a table is shown
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, values in zip(columns, zip(*cells, strict=True), strict=True):
        width = max(map(cell_len, values))
        whole = name not in WORDS and width <= WHOLE
        least = max(width, cell_len(name)) if whole else None
        table.add_column(name, overflow="fold", no_wrap=whole, min_width=least)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _least(column: str, text: str) -> str:
    """Return what must fit in a line: of people's own words, which may be long, the beginnings."""
    return " ".join(word[:PART] for word in text.split()) if column in WORDS else text


def short(text: str | None) -> str:
    """Return a text with its times shortened: without their year, as nearly all are of today."""
    return _TIME.sub(r"\1 \2Z", text or "")


def print_markdown(text: str) -> None:
    """Print Markdown, laid out for the width, with nothing cut off."""
    from rich.console import Console, ConsoleOptions, RenderResult  # noqa: PLC0415  only where shown
    from rich.markdown import Markdown, TableElement  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    class Folded(TableElement):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for table in super().__rich_console__(console, options):
                assert isinstance(table, Table)  # noqa: S101  it yields that one
                for column in table.columns:
                    column.overflow = "fold"  # a setting's name is worth nothing in part
                yield table

    class Whole(Markdown):
        elements = {**Markdown.elements, "table_open": Folded}  # noqa: RUF012  as there

    Console(highlight=False).print(Whole(text))


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print names and values below each other; those without a value are left out."""
    shown = {name: str(value) for name, value in fields.items() if value not in (None, "")}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        first, *more = map(visible, value.splitlines() or [""])
        typer.echo(f"{name:<{width}}  {first}")
        for line in more:
            typer.echo(f"{'':<{width}}  {line}")
