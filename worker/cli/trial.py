"""The test event of `onward integrations test`: sent, and told without secrets."""

import asyncio
from typing import Any

import typer

from worker.cli.store import settings_here
from worker.directory import Integration
from worker.preview import outcome_shown, text_or_base64
from worker.transport import make_transport
from worker.trial import Trial, send_test


def tried(integration: Integration) -> dict[str, Any]:
    """Send a test event; return requests, answers and outcome as plain values, masked."""
    return _told(asyncio.run(_try(integration)), integration)


async def _try(integration: Integration) -> Trial:
    transport = make_transport(settings_here())
    try:
        return await send_test(integration, transport)
    finally:
        await transport.close()


def _told(trial: Trial, integration: Integration) -> dict[str, Any]:
    exchanges = []
    for exchange in trial.exchanges:
        request = integration.mask.request(exchange.request)
        body, encoding = text_or_base64(request.body)
        shown: dict[str, Any] = {
            "method": request.method,
            "url": request.url,
            "headers": dict(request.headers),
            "body": body,
            "body_encoding": encoding,
            "response": None,
            **outcome_shown(trial.event.id, exchange.outcome),
        }
        if exchange.response is not None:
            answer, encoding = text_or_base64(exchange.response.body)
            shown["response"] = {
                "status": exchange.response.status,
                "headers": dict(exchange.response.headers),
                "body": integration.mask(answer),
                "body_encoding": encoding,
            }
        exchanges.append(shown)
    return {**outcome_shown(trial.event.id, trial.outcome), "requests": exchanges}


def print_trial(told: dict[str, Any]) -> None:
    """Print what was sent (>), what was answered (<), and what became of the event."""
    for request in told["requests"]:
        typer.echo(f"> {request['method']} {request['url']}")
        for name, value in request["headers"].items():
            typer.echo(f"> {name}: {value}")
        typer.echo(f">\n> {_brief(request)}\n")
        answer = request["response"]
        if answer:
            typer.echo(f"< {answer['status']}\n< {_brief(answer)}\n")
    reason = "" if told["outcome"] == "delivered" else f" ({told['reason']})"
    typer.echo(f"{told['event']}: {told['outcome']}{reason} {told['message']}".rstrip())


def _brief(message: dict[str, Any]) -> str:
    if message["body_encoding"] == "base64":
        return f"({len(message['body']) * 3 // 4:,} bytes)"
    body: str = message["body"]
    return body if len(body) <= 2000 else f"{body[:2000]}…"
