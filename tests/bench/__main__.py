"""Measure: print a table of what was found beside its target, and keep it.

With no scenario named, all run, and `results.json`, RESULTS.md and the plot are written.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.bench import report
from tests.bench.scenarios import ALL, QUICK, Bench, Figures, temporary

EXAMPLES = """examples:
  python -m tests.bench                    all of it, about seven minutes
  python -m tests.bench --quick            the main ones, in about a minute
  python -m tests.bench latency idle       these two; nothing is written
"""
NO_WRK = "wrk is not installed (`apt-get install wrk`): the comparison with it is left out."
console = Console(highlight=False)


def main() -> int:
    """Run the scenarios asked for, all where none is named; return how many failed."""
    given = _asked()
    names = given.names or list(QUICK if given.quick else ALL)
    found, failed = run(names, quick=given.quick)
    console.print(report.table(found))
    if not given.names:
        report.write(found, quick=given.quick)
    if failed:
        console.print(f"Failed: {', '.join(failed)}", style="bold red")
    return len(failed)


def _asked() -> argparse.Namespace:
    told = "\n".join(f"  {name:<12}{_summary(name)}" for name in ALL)
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        epilog=f"scenarios (* with --quick):\n{told}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the main ones, and less of each")
    parser.add_argument("names", nargs="*", metavar="scenario", help="only these")
    given = parser.parse_args()
    if unknown := set(given.names) - ALL.keys():
        parser.error(
            f"no such scenario: {', '.join(sorted(unknown))} (there are: {', '.join(ALL)})"
        )
    return given


def _summary(name: str) -> str:
    star = "*" if name in QUICK else " "
    return f"{star} {(ALL[name].__doc__ or '').partition(chr(10))[0]}"


def run(names: list[str], *, quick: bool) -> tuple[dict[str, Figures], list[str]]:
    """Return what each scenario found and which failed; say what goes on."""
    began, failed = time.monotonic(), []
    if "single" in names and not shutil.which("wrk"):
        console.print(NO_WRK, style="yellow")
    with tempfile.TemporaryDirectory(prefix="onward-bench-") as folder:
        console.print("starting Valkey, the sink and a worker …")
        with temporary(Path(folder) / "rig", quick=quick) as rig, rig.worker() as worker:
            bench = Bench(rig, worker, quick)
            for number, name in enumerate(names, 1):
                console.print(f"[{number}/{len(names)}] {name}: {_summary(name)[2:]}", markup=False)
                started = time.monotonic()
                try:
                    bench.found[name] = ALL[name](bench)
                except Exception as error:  # noqa: BLE001  the others are of use all the same
                    failed.append(name)
                    console.print(f"      failed: {error!r}", style="bold red", markup=False)
                console.print(f"      {time.monotonic() - started:.0f} s", style="dim")
            console.print(f"{time.monotonic() - began:.0f} s in all")
            return bench.found, failed


if __name__ == "__main__":
    sys.exit(main())
