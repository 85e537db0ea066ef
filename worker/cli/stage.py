"""Where `onward demo` is shown: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.cli.output import PIPED_WIDTH
from worker.demo import Line

NUMBERS_WIDTH = 84  # columns of all but the reasons
MOODS = {"good": "bold green", "bad": "bold red", "": ""}


class Stage:
    """The story above, the pipelines below. `live` is None where there is no terminal."""

    def __init__(self, console: Console, live: Live | None) -> None:
        self.console = console
        self.live = live
        self.last: Sequence[Line] = ()
        self.began = time.monotonic()

    def say(self, text: str, mood: str = "") -> None:
        """Tell what happens, and when."""
        at = f"{time.monotonic() - self.began:4.0f} s  "
        self.console.print(Text(at, "dim") + Text(text, MOODS[mood]))

    def show(self, lines: Sequence[Line]) -> None:
        """Show how the pipelines stand now."""
        self.last = lines
        if self.live is not None:
            self.live.update(table(lines, self.console.width), refresh=True)


@contextmanager
def stage() -> Iterator[Stage]:
    """Give the stage; where there is no terminal, the pipelines are shown once, at the end."""
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else PIPED_WIDTH)
    if terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            yield Stage(console, live)
        return
    plain = Stage(console, None)
    yield plain
    console.print(table(plain.last, PIPED_WIDTH))


def table(lines: Sequence[Line], width: int) -> Table:
    """Return the pipelines as a table; what there is no room for is cut, the reasons first."""
    room = max(width - NUMBERS_WIDTH, 0)
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("pipeline", "state"):
        shown.add_column(column, no_wrap=True)
    for column in ("sent", "delivered", "skipped", "rejected", "held"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("most often not sent because"[:room], no_wrap=True)
    for line in lines:
        suspended = line.state != "active"
        counts = (line.sent, line.delivered, line.skipped, line.rejected, line.held)
        shown.add_row(
            line.title,
            Text(line.state, MOODS["bad"] if suspended else ""),
            *(f"{count:,}" if count else "" for count in counts),
            Text(line.why if len(line.why) <= room else f"{line.why[: room - 1]}…" if room else ""),
            style="red" if suspended else "",
        )
    return shown
