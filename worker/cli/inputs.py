"""Reading what commands are given: `FILE` arguments, `-` being standard input."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from worker.cli.output import Failure


def read_bytes(name: str) -> bytes:
    """Return the content of a file (`-`: stdin)."""
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise Failure(f"Cannot read {name}: {error.strerror}", code=2) from None


def read_object(name: str) -> dict[str, Any]:
    """Return the JSON object in a file."""
    try:
        value = msgspec.json.decode(read_bytes(name))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Failure(f"{name} must hold a JSON object")
    return value


def read_events(name: str) -> list[bytes]:
    """Return the events of a file, a JSON array or NDJSON, each as it is written."""
    content = read_bytes(name)
    if content.lstrip().startswith(b"["):
        return array_items(name, content)
    try:
        msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [line for line in content.splitlines() if line.strip()]
    return [content.strip()]  # one event, perhaps on many lines


def array_items(name: str, content: bytes) -> list[bytes]:
    """Return the members of a JSON array, each as it is written."""
    try:
        return [bytes(raw) for raw in msgspec.json.decode(content, type=list[msgspec.Raw])]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{name} is not a JSON array: {error}") from None
