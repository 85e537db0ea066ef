"""`python -m tests.bench [--quick] [scenario …]`: measure, print a table, keep the results."""

import argparse
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.bench import report
from tests.bench.scenarios import ALL, QUICK, Bench, Figures, temporary

console = Console(highlight=False)


def main() -> None:
    """Run the scenarios asked for, all where none is named."""
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main ones, in a minute")
    parser.add_argument("names", nargs="*", metavar="scenario", help=", ".join(ALL))
    given = parser.parse_args()
    if unknown := set(given.names) - ALL.keys():
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    names = given.names or list(QUICK if given.quick else ALL)
    found = run(names, quick=given.quick)
    console.print(report.table(found))
    if not given.names:
        report.write(found, quick=given.quick)


def run(names: list[str], *, quick: bool) -> dict[str, Figures]:
    """Return what each scenario found; say what goes on."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="onward-bench-") as folder:
        console.print("starting Valkey, the sink and a worker …")
        with temporary(Path(folder) / "rig", quick=quick) as rig, rig.worker() as worker:
            bench = Bench(rig, worker, quick)
            for number, name in enumerate(names, 1):
                summary = (ALL[name].__doc__ or "").partition("\n")[0]
                console.print(f"[{number}/{len(names)}] {name}: {summary}", markup=False)
                started = time.monotonic()
                bench.found[name] = ALL[name](bench)
                console.print(f"      {time.monotonic() - started:.0f} s", style="dim")
            console.print(f"{time.monotonic() - began:.0f} s in all")
            return bench.found


if __name__ == "__main__":
    main()
