"""Documentation of the providers, made from their declarations: nothing here is written twice."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from providers.kit import EVENTS, KB, MB, Limits, Provider, Settings
from worker.registry import all_providers

FOLDER = Path("docs/providers")
README = Path("README.md")
OPENING, CLOSING = "<!-- providers -->", "<!-- /providers -->"
_FACT = re.compile(r"^(Source|Batch|Dedup|Errors):\s*(.*(?:\n[ \t]+.*)*)", re.MULTILINE)
_ALL_STORES = ("iOS", "Android", "Stripe")


class NoMarkers(ValueError):
    """The README has no place for the table."""

    def __init__(self) -> None:
        super().__init__(f"{README} lacks the lines {OPENING} and {CLOSING} around the table")


def describe(provider: Provider[Any]) -> dict[str, Any]:
    """Return all that is declared about a provider, as plain values."""
    limits = provider.limits
    return {
        "slug": provider.slug,
        "title": provider.title,
        "category": provider.category,
        "stores": list(provider.stores),
        **facts(provider.slug),
        "settings": settings_of(provider.settings),
        "identifiers": list(provider.identifiers),
        "limits": {
            "events": limits.events,
            "bytes": limits.bytes,
            "concurrency": limits.concurrency,
            "linger_seconds": limits.linger.total_seconds(),
            "timeout_seconds": limits.timeout.total_seconds(),
            "max_age_seconds": limits.max_age and limits.max_age.total_seconds(),
        },
        "names": names_of(provider),
        "skipped": list(skips_of(provider)),
        "notes": list(provider.notes),
    }


def facts(slug: str) -> dict[str, str]:
    """Return source, batch, dedup and errors as the adapter's own docstring says them."""
    doc = import_module(f"providers.{slug}").__doc__ or ""
    return {word.lower(): " ".join(text.split()) for word, text in _FACT.findall(doc)}


def names_of(provider: Provider[Any]) -> dict[str, str | None]:
    """Return the default name of each event of the catalogue; None is not sent by default."""
    return {
        event: provider.names.get(event, event if provider.free_names else None) for event in EVENTS
    }


def skips_of(provider: Provider[Any]) -> Iterator[str]:
    """Yield what is not sent, and what to do about it."""
    if provider.stores != _ALL_STORES:
        yield f"events of other stores than {' and '.join(provider.stores)}"
    if not provider.identifiers[0].startswith("none"):
        yield f"events of a user without any identifier: {'; '.join(provider.identifiers)}"
    yield "events switched off by `events`, or whose name in `event_names` is null"
    if not provider.free_names:
        yield "events without a default name, until `event_names` gives them one"
    keys = [f"`{key}`" for key in provider.settings.model_fields if "sandbox" in key]
    yield f"sandbox events, unless the settings let them through ({', '.join(keys)})"
    if provider.limits.max_age is not None:
        yield f"events older than {_span(provider.limits.max_age)}"
    if provider.needs_attribution:
        yield "events of users whose Apple Ads attribution is unknown after 24 hours"


def settings_of(model: type[Settings], *, own: bool = False) -> list[dict[str, Any]]:
    """Return the settings of a model, the required first; with `own` only those it adds."""
    schema = model.model_json_schema()
    common = Settings.model_json_schema()["properties"]
    rows = [
        {
            "key": key,
            "type": _type(field, schema.get("$defs", {})),
            "required": key in schema.get("required", ()),
            "secret": "writeOnly" in msgspec.json.encode(field).decode(),
            "default": field.get("default"),
            "description": field.get("description", ""),
        }
        for key, field in schema["properties"].items()
        if not (own and common.get(key) == field)
    ]
    return sorted(rows, key=lambda row: not row["required"])


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return _type(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in field:
        kinds = [part for part in field["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(_type(part, definitions) for part in kinds))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    match field.get("type"):
        case "string":
            return "text"
        case "boolean":
            return "true, false"
        case "integer" | "number":
            return _number(field)
        case "array":
            items = field.get("items", {})
            return f"list of {_type(items, definitions)}" if items else "list"
        case "object" if "properties" in field:
            return "object of " + ", ".join(f"`{key}`" for key in field["properties"])
        case "object":
            values = field.get("additionalProperties", field.get("patternProperties"))
            return f"object of {_type(values, definitions)}" if _typed(values) else "object"
        case _:
            return "any"


def _typed(values: Any) -> bool:
    return isinstance(values, Mapping) and bool(values.keys() & {"type", "anyOf", "enum", "$ref"})


def _number(field: Mapping[str, Any]) -> str:
    least, most = field.get("minimum"), field.get("maximum")
    if least is None or most is None:
        return "number"
    return f"number, {least:,} to {most:,}"


def _span(span: timedelta) -> str:
    seconds = span.total_seconds()
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds % length == 0:
            return _counted(seconds / length, unit)
    return _counted(seconds, "second")


def _counted(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _size(size: int) -> str:
    if size >= MB:
        return f"{size / MB:g} MB"
    return f"{size / KB:g} KB" if size % KB == 0 else f"{size:,} bytes"


# --- pages -------------------------------------------------------------------------------------


def page(provider: Provider[Any]) -> str:
    """Return the page of a provider, in Markdown."""
    told = facts(provider.slug)
    source = f"[upstream's documentation](<{told['source'].split()[0]}>)"
    stores = ", ".join(provider.stores)
    parts = [
        f"# {provider.title}",
        f"`{provider.slug}` · {provider.category} · {stores} · {source}",
        "## Settings",
        _settings_table(settings_of(provider.settings, own=True)),
        "And those [every provider has](README.md#settings-every-provider-has).",
        "## Identifiers",
        _bullets(provider.identifiers),
        "## Limits",
        _bullets(_limits(provider.limits, told)),
        "## Names",
        _names(provider),
        "## Not sent",
        _bullets(skips_of(provider)),
        "## Answers",
        told["errors"][:1].upper() + told["errors"][1:],
    ]
    if provider.notes:
        parts += ["## Before trusting the numbers", _bullets(provider.notes)]
    return "\n\n".join(parts) + "\n"


def _limits(limits: Limits, told: Mapping[str, str]) -> Iterator[str]:
    yield f"Batch: {told['batch']}"
    yield f"Duplicates: {told['dedup']}"
    many = (
        f"at most {limits.events:,} events and " if limits.events > 1 else "one event and at most "
    )
    yield f"A request has {many}{_size(limits.bytes)}; {limits.concurrency} at once."
    if limits.linger:
        yield f"A batch waits up to {_span(limits.linger)} to fill."


def _names(provider: Provider[Any]) -> str:
    names = names_of(provider)
    renamed = {event: name for event, name in names.items() if name not in (None, event)}
    unsent = [event for event, name in names.items() if name is None]
    parts = []
    if renamed:
        rows = [(f"`{event}`", f"`{name}`") for event, name in renamed.items()]
        parts.append(_table(("event", "sent as"), rows))
    if len(renamed) + len(unsent) < len(names):
        others = "Other events" if renamed or unsent else "Events"
        parts.append(f"{others} go out under their own names.")
    if unsent:
        listed = ", ".join(f"`{event}`" for event in unsent)
        parts.append(f"Not sent unless `event_names` names them: {listed}.")
    return "\n\n".join(parts)


def _settings_table(rows: Iterable[Mapping[str, Any]]) -> str:
    shown = [
        (
            f"`{row['key']}`" + (" (required)" if row["required"] else ""),
            row["type"] + (", secret" if row["secret"] else ""),
            _default(row["default"]),
            row["description"],
        )
        for row in rows
    ]
    return _table(("key", "type", "default", "what"), shown)


def _default(value: Any) -> str:
    if value in (None, "", [], {}):
        return ""
    return f"`{value if isinstance(value, str) else msgspec.json.encode(value).decode()}`"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |"
        for line in lines
    )


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def table(folder: str) -> str:
    """Return the table of all providers, with links to their pages in `folder`."""
    rows = [
        (
            f"[{provider.title}]({folder}{slug}.md)",
            f"`{slug}`",
            provider.category,
            ", ".join(provider.stores),
            "; ".join(provider.identifiers),
        )
        for slug, provider in all_providers().items()
    ]
    return _table(("provider", "slug", "category", "stores", "needs"), rows)


def index() -> str:
    """Return the page with the table and what all providers share."""
    return "\n\n".join(
        [
            "# Providers",
            table(""),
            "## Settings every provider has",
            _settings_table(settings_of(Settings)),
            "These pages are made by `onward providers docs`.\n",
        ]
    )


def pages() -> dict[Path, str]:
    """Return every page, by its path under the repository's root."""
    made = {FOLDER / f"{slug}.md": page(provider) for slug, provider in all_providers().items()}
    return {FOLDER / "README.md": index(), **made}


def with_table(readme: str) -> str:
    """Return the README with the present table between its markers; raise NoMarkers."""
    head, opening, rest = readme.partition(OPENING)
    _, closing, tail = rest.partition(CLOSING)
    if not opening or not closing:
        raise NoMarkers
    return f"{head}{OPENING}\n{table(f'{FOLDER.as_posix()}/')}\n{CLOSING}{tail}"


def stale(root: Path) -> dict[Path, str | None]:
    """Return what is out of date under `root`: path → what it should hold, None if nothing."""
    wanted: dict[Path, str | None] = {root / path: text for path, text in pages().items()}
    wanted[root / README] = with_table((root / README).read_text(encoding="utf-8"))
    left_over = set((root / FOLDER).glob("*.md")) - wanted.keys()
    wanted |= dict.fromkeys(sorted(left_over))
    return {
        path: text
        for path, text in wanted.items()
        if (path.read_text(encoding="utf-8") if path.exists() else None) != text
    }


def write(changes: Mapping[Path, str | None]) -> None:
    """Bring what `stale` found up to date."""
    for path, text in changes.items():
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
