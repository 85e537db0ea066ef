"""What all commands share: help, version, and failures told in a line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.cells import cell_len

from tests.worker.cli.run import run
from worker.cli import app
from worker.cli.output import (
    failure_of,
    note,
    print_fields,
    print_json,
    print_markdown,
    print_table,
)
from worker.cli.trial import print_trial

HEAVY = ("pydantic", "redis", "sqlalchemy", "fastapi", "celery", "uvicorn", "rich", "httpx")
OTHERS = ("httpx", "rich", "pygments", "jwt", "alembic", "click_repl", "prompt_toolkit", "pyarrow")


def commands(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, child in getattr(node, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from commands(child, (*path, name))
        else:
            yield (*path, name), child


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_an_example(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    assert f"onward {' '.join(path)}" in (command.epilog or "")


@pytest.mark.parametrize(
    "path",
    [path for path in COMMANDS if path[-1] in ("list", "show", "create", "preview", "explain")],
    ids=" ".join,
)
def test_what_prints_data_can_print_json(path: tuple[str, ...]) -> None:
    assert "--json" in {option for param in COMMANDS[path].params for option in param.opts}


def test_prints_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "--version")
    assert ran.code == 0
    assert ran.out.startswith("onward ")


def test_starts_without_what_only_some_commands_need() -> None:
    code = f"import sys, worker.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_worker_s_children_carry_only_what_they_use() -> None:
    code = (
        "import sys; from worker import app; from worker.cli.service import _import_before_fork; "
        f"_import_before_fork(); print([m for m in {OTHERS} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_fault_of_ours_is_not_dressed_up_as_the_user_s(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("worker.registry.slugs", broken)
    with pytest.raises(ZeroDivisionError):
        run(capsys, "providers", "show", "nobody")
    assert failure_of(ZeroDivisionError()) is None


def test_an_environment_that_will_not_do_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONWARD_RETRY_THRESHOLD", "many")
    ran = run(capsys, "projects", "list")
    assert ran.code == 1
    assert "ONWARD_RETRY_THRESHOLD" in ran.err


def test_a_folder_that_cannot_be_made_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONWARD_DATA_DIR", str(tmp_path / "file" / "var"))
    monkeypatch.delenv("ONWARD_DATABASE_URL", raising=False)
    ran = run(capsys, "projects", "list")
    assert (ran.code, ran.out) == (1, "")
    assert "check the data folder" in ran.err
    assert f"Not a directory: '{tmp_path / 'file' / 'var'}'" in ran.err


def test_a_closed_standard_input_is_an_empty_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    ran = run(capsys, "preview", "slack", "--settings", "-", "--events", "-")
    sys.stdin.close()
    assert ran.err.startswith("onward: - is not JSON")


def test_a_closed_standard_output_takes_nothing_and_breaks_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert run(capsys, "providers", "list").code == 0
    sys.stdout.close()
    sys.stderr.close()


def test_letters_that_stdout_does_not_take_stop_no_command(tmp_path: Path) -> None:
    def printed(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "worker.cli", *arguments],
            env={
                "PYTHONIOENCODING": "ascii",
                "PYTHONPATH": os.pathsep.join(sys.path),
                "ONWARD_DATA_DIR": str(tmp_path),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    printed("migrate")
    made = json.loads(printed("projects", "create", "Ünï", "--json"))
    assert made["name"] == "Ünï"
    assert "?n?" in printed("projects", "list")


def test_a_disk_that_is_full_is_told_in_a_line() -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "worker.cli", "providers", "list", "--json"],
            env=buffered,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("onward: the system refuses")


def test_what_others_wrote_gives_the_terminal_no_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A malformed event's bytes, an upstream's answer: `ESC ] 0 ;` names the window, and worse."""
    evil = "\x1b]0;mine\x07 \x9b2J\u202e Ünï 👨‍👩‍👧"
    print_fields({"body": f"{evil}\n\ttwo"})
    print_table(("why",), [(evil,)])
    print_json({"body": evil})
    answer = {"status": 200, "body": evil, "body_encoding": "utf-8"}
    request = {"method": "POST", "url": "https://a.invalid", "headers": {}, "response": answer}
    told = {"outcome": "delivered", "event": "test-1", "message": ""}
    print_trial({**told, "requests": [{**request, "body": "", "body_encoding": "utf-8"}]})
    note(evil)
    printed = "".join(capsys.readouterr())
    assert not set("\x1b\x07\x9b\u202e") & set(printed)
    assert printed.count("\\x1b]0;mine\\x07 \\x9b2J\\u202e Ünï 👨‍👩‍👧") == 4
    assert "\n      \ttwo" in printed

    print_json({"body": evil})
    assert json.loads(capsys.readouterr().out)["body"] == evil


def test_a_long_word_of_somebody_s_makes_no_table_wider_than_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")

    def printed() -> str:
        return re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)

    url = "https://receiver.invalid/" + "0123456789" * 20
    print_table(("id", "title", "why"), [("c9VdLs3H", "🎉" * 255, f"404 from {url}")])
    out = printed()
    assert max(map(cell_len, out.splitlines())) <= 80
    assert out.count("🎉") == 255
    assert out.count("0") == 21

    times = "2026-11-30T14:20:11Z", "2026-11-30T14:20:12Z", "2026-11-30T14:20:13Z"
    print_table(
        ("at", "then", "last", "integration", "why"), [(*times, "c9VdLs3H", "it is so " * 9)]
    )
    out = printed()
    assert all(f"11-30 14:20:1{n}Z" in out for n in (1, 2, 3))


def test_nothing_is_cut_off_where_the_terminal_is_narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an id names another one."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "dumb")
    print_table(("id", "title", "accepted"), [("c9VdLs3H", "Our own backend", "1,234,567")])
    out = capsys.readouterr().out
    assert all(whole in out for whole in ("c9VdLs3H", "1,234,567", "title", "accepted"))

    print_markdown("| key | what |\n| --- | --- |\n| `previous_signing_secret` | Signs too |")
    out = capsys.readouterr().out
    assert "…" not in out
    assert "previous_signing_secret" in "".join(
        line.split()[0] for line in out.splitlines() if line.strip()
    )


def test_tables_show_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [("[red]x[/red]", None)])
    assert "[red]x[/red]" in capsys.readouterr().out
    print_table(("a",), [], empty="Nothing.")
    assert capsys.readouterr().out == "Nothing.\n"
    print_fields({"name": "two\nlines", "none": None, "zero": 0})
    assert capsys.readouterr().out == "name  two\n      lines\nzero  0\n"
