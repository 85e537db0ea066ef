"""Running a command as a user does."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from worker.cli import main


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """Run `onward` with these arguments in this process."""
    capsys.readouterr()
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    printed = capsys.readouterr()
    return Ran(code, printed.out, printed.err)
