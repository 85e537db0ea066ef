"""What `onward integrations test` and `check` print."""

from typing import Any

import typer

from worker.cli.output import visible


def print_trial(told: dict[str, Any]) -> None:
    """Print what was sent (>), what was answered (<), and what it means."""
    for request in told["requests"]:
        typer.echo(f"> {request['method']} {request['url']}")
        for name, value in request["headers"].items():
            typer.echo(f"> {name}: {value}")
        typer.echo(f">\n> {_brief(request)}\n")
        answer = request["response"]
        if answer:
            typer.echo(f"< {answer['status']}\n< {_brief(answer)}\n")
    reason = "" if told["outcome"] == "delivered" else f" ({told['reason']})"
    what = told["event"] or "check"
    typer.echo(f"{what}: {told['outcome']}{reason} {told['message']}".rstrip())


def _brief(message: dict[str, Any]) -> str:
    if message["body_encoding"] == "base64":
        return f"({len(message['body']) * 3 // 4:,} bytes)"
    body: str = message["body"]
    return visible(body if len(body) <= 2000 else f"{body[:2000]}…")
