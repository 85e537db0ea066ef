"""What the pages say can be typed, can be typed; what they link to is there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from providers.kit.catalogue import ALIASES, EVENTS
from providers.kit.reader import KNOWN
from tests.ops.files import DOCS, OPS, ROOT
from worker.cli import app
from worker.settings import WorkerSettings, variable

PAGES = [OPS / "runbook.md", *sorted(DOCS.glob("*.md"))]


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command line of a page's shell blocks."""
    for page in [*PAGES, ROOT / "README.md"]:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield f"{page.name}: {line}", line


LINES = dict(commands())
PROGRAM = re.compile(r"(\.venv/bin/)?onward")
OURS = {
    name: line
    for name, line in LINES.items()
    if re.match(r"(docker compose exec \w+ )?(\.venv/bin/)?onward ", line)
}


@pytest.mark.parametrize("line", OURS.values(), ids=OURS)
def test_a_command_of_ours_exists_with_the_options_given(line: str) -> None:
    words = shlex.split(line, comments=True)
    start = next(n for n, word in enumerate(words) if PROGRAM.fullmatch(word))
    rest = words[start + 1 :]
    command: Any = typer.main.get_command(app)
    while rest and rest[0] in getattr(command, "commands", ()):
        command = command.commands[rest.pop(0)]
    assert not getattr(command, "commands", None), f"no such command: {line}"
    known = {"--help"} | {name for one in command.params for name in one.opts}
    assert {word for word in rest if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "target",
    sorted(
        set(re.findall(r"^make ([a-z-]+)", (DOCS / "contributing.md").read_text(), re.MULTILINE))
    ),
)
def test_make_knows_what_contributors_are_told(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_event_reference_is_complete() -> None:
    text = (DOCS / "events.md").read_text()
    for name, title in EVENTS.items():
        assert f"| `{name}` | {title} |" in text
    for alias, name in ALIASES.items():
        assert f"- `{alias}` is `{name}`" in text
    fields = "\n".join(re.findall(r"^\| (`.+?) \|", text, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", fields)) >= KNOWN


def test_the_example_of_the_event_reference_is_an_event() -> None:
    from providers.kit.decode import decode

    (example,) = re.findall(
        r"^```json\n(.*?)^```", (DOCS / "events.md").read_text(), re.DOTALL | re.MULTILINE
    )
    event = decode(example.encode(), 1_760_000_100)
    assert (event.name, event.transaction.transaction_id) == ("subscription_renewed", "2000000123")


def settings_table() -> str:
    """Return the table that docs/settings.md must hold."""
    lines = ["| variable | default | what |", "|---|---|---|"]
    for name, field in WorkerSettings.model_fields.items():
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        if isinstance(default, bool):
            default = "1" if default else "0"
        shown = "" if field.default_factory or default in (None, "") else f"`{default}`"
        lines.append(f"| `{variable(name)}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_settings_is_complete_and_true() -> None:
    assert settings_table() in (DOCS / "settings.md").read_text()
