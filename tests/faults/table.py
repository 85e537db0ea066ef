"""The table at the end of `make faults`: fault, held or not, lost, duplicates."""

import re
from dataclasses import dataclass
from typing import Any

HEAD = f"{'row':>5}  {'fault':<58} {'':<6} {'events':>6} {'lost':>5} {'dupl.':>5}"


@dataclass(frozen=True)
class Row:
    number: str
    fault: str
    test: str
    outcome: str
    accepted: str
    lost: str
    duplicates: str

    def __lt__(self, other: "Row") -> bool:
        return self._place < other._place

    @property
    def _place(self) -> tuple[int, str, str]:
        digits = re.match(r"\d+", self.number)
        return int(digits[0]) if digits else 1000, self.number, self.fault

    def __str__(self) -> str:
        word = {"passed": "held", "xfailed": "OPEN"}.get(self.outcome, "FAILED")
        return (
            f"{self.number:>5}  {self.fault[:58]:<58} {word:<6} "
            f"{self.accepted:>6} {self.lost:>5} {self.duplicates:>5}"
        )


def row_of(report: Any, outcome: str) -> Row | None:
    """Return the row of a test's report, or None where it is none of the matrix."""
    said = dict(report.user_properties)
    if "row" not in said:
        return None
    variant = re.search(r"\[(.+)\]$", report.nodeid)
    fault = f"{said['fault']}: {variant[1]}" if variant else said["fault"]
    figures = (str(said.get(name, "")) for name in ("accepted", "lost", "duplicates"))
    return Row(said["row"], fault, report.nodeid, outcome, *figures)
