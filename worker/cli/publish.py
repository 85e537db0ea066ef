"""`onward publish`: events from a file into the intake."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from worker.cli.inputs import array_items
from worker.cli.output import AsJson, Failure, note, print_json


@dataclass
class Count:
    """What became of the events of a file."""

    published: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)


def publish(
    file: Annotated[str, typer.Argument(help="NDJSON or a JSON array of events; - is stdin.")],
    *,
    json: AsJson = False,
) -> None:
    """Put the events of a file into the intake; faulty ones are listed and left out.

    A file may be published again: an event is recognised by its id for some minutes.
    """
    count = Count()
    try:
        with _opened(file) as stream:
            _publish(stream, file, count)
    except KeyboardInterrupt:
        note(f"Stopped: {count.published:,} published, or some more; it may be published again")
        raise
    except Exception:
        if count.published:
            note(f"{count.published:,} published, and then:")
        raise
    refused = len(count.faults)
    if json:
        print_json({"published": count.published, "refused": refused, "faults": count.faults})
    else:
        typer.echo(f"{count.published:,} published, {refused:,} refused")
    if count.faults:
        raise typer.Exit(1)


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = Path(file).open("rb")  # noqa: SIM115  closed below
    except OSError as error:
        raise Failure(f"Cannot read {file}: {error.strerror}", code=2) from None
    with stream:
        yield stream


def _publish(stream: IO[bytes], file: str, count: Count) -> None:
    from worker.intake import publish as append  # noqa: PLC0415  quick --help
    from worker.servers import connect  # noqa: PLC0415
    from worker.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    with connect(settings.redis_url) as client, _progress(stream) as advance:

        def taken(published: int) -> None:
            count.published = published
            advance(published)

        append(client, _good(stream, file, count), settings.shards, taken)


def _good(stream: IO[bytes], file: str, count: Count) -> Iterator[bytes]:
    """Yield the events that the worker will take; list the others."""
    from providers.kit.decode import InvalidEvent, decode  # noqa: PLC0415  quick --help

    for number, raw in _numbered(stream, file):
        try:
            decode(raw, int(time.time()))
        except InvalidEvent as error:
            count.faults.append({"line": number, "faults": error.faults})
            note(f"line {number}: {error}")
        else:
            yield raw


def _numbered(stream: IO[bytes], file: str) -> Iterator[tuple[int, bytes]]:
    """Yield events with their line, or their place in the array; blank lines hold none."""
    first = True
    for number, line in enumerate(stream, 1):
        text = line.strip()
        if first and text.startswith(b"["):
            yield from enumerate(array_items(file, line + stream.read()), 1)
            return
        if text:
            first = False
            yield number, text


@contextmanager
def _progress(stream: IO[bytes]) -> Iterator[Callable[[int], None]]:
    """Give a function that shows how many events are published: a bar, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _published: None
        return
    from rich.console import Console  # noqa: PLC0415  only where it is shown
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    size = os.fstat(stream.fileno()).st_size or None
    text = TextColumn("{task.fields[events]:,} events")
    with Progress(BarColumn(), text, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=size, events=0)

        def advance(published: int) -> None:
            bar.update(task, completed=stream.tell() if size else 0, events=published)

        yield advance
