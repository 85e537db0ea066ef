"""The HTTP application: v4, /ops/v1, health and metrics."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import Engine

from worker import metrics
from worker.api import actions, docs, errors, ops, v4
from worker.api.auth import RateLimit, Services
from worker.api.edge import Edge
from worker.api.ready import checks_of, reasons_of
from worker.console.desk import install_console
from worker.servers import connect
from worker.settings import WorkerSettings
from worker.store.database import make_engine
from worker.store.secrets import keyring_of

REDIS_SECONDS = 2
STATEMENT_SECONDS = 15  # of the database; a thread waits no longer for one


def create_app(
    settings: WorkerSettings, *, engine: Engine | None = None, limit: RateLimit | None = None
) -> FastAPI:
    """Return the application.

    `app.state.checks` maps names to functions that raise while the service is not ready; add to it.
    """
    own_engine = engine or make_engine(settings.database_url, statement_seconds=STATEMENT_SECONDS)
    redis = connect(
        settings.redis_url,
        protocol=2,
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        redis.close()
        if engine is None:
            own_engine.dispose()

    app = FastAPI(
        title="Onward",
        version="4",
        description="Manages the integrations that a project's events are sent on to.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.services = Services(
        settings, own_engine, keyring_of(settings), redis, limit or RateLimit(settings.api_rate)
    )
    app.state.checks = checks_of(app.state.services)
    errors.install(app)
    app.add_middleware(Edge)
    app.include_router(v4.router)
    app.include_router(ops.router)
    app.include_router(actions.router)
    _add_health(app)
    install_console(app)
    docs.install(app)
    return app


def _add_health(app: FastAPI) -> None:
    @app.head("/healthz", include_in_schema=False)  # how many a monitor asks
    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Return that the process lives."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", tags=["health"], responses={503: {"description": "A check failed"}})
    async def readyz(request: Request) -> Response:
        """Return whether the service can do its work, check by check."""
        found = await reasons_of(request.app.state.checks)
        failed = {name: reason for name, reason in found.items() if reason}
        body: dict[str, Any] = {
            "status": "not ready" if failed else "ready",
            "checks": {name: "failed" if reason else "ok" for name, reason in found.items()},
        }
        if failed:
            body["reasons"] = failed
        return JSONResponse(body, 503 if failed else 200)

    @app.get("/metrics", tags=["health"], response_class=Response)
    def show_metrics() -> Response:
        """Return the metrics of this process, or of all that share its folder."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
