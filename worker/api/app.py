"""The HTTP application: v4, /ops/v1, health and metrics."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from redis import Redis
from sqlalchemy import Engine, text

from worker import metrics
from worker.api import docs, errors, ops, v4
from worker.api.auth import RateLimit, Services
from worker.api.edge import Edge
from worker.settings import WorkerSettings
from worker.store.database import make_engine, reading
from worker.store.errors import StoreError
from worker.store.rotation import check_keys
from worker.store.secrets import keyring_of

CHECK_SECONDS = 3  # a check that takes longer has failed
REDIS_SECONDS = 2
CONCURRENT = 1_000  # connections; more are turned away
Check = Callable[[], Any]
log = logging.getLogger(__name__)


def create_app(
    settings: WorkerSettings, *, engine: Engine | None = None, limit: RateLimit | None = None
) -> FastAPI:
    """Return the application.

    `app.state.checks` maps names to functions that raise while the service is not ready; add to it.
    """
    own_engine = engine or make_engine(settings.database_url)
    redis = Redis.from_url(
        settings.redis_url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS
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
        settings, own_engine, keyring_of(settings), redis, limit or RateLimit()
    )
    app.state.checks = _checks(app.state.services)
    errors.install(app)
    app.add_middleware(Edge)
    app.include_router(v4.router)
    app.include_router(ops.router)
    _add_health(app)
    docs.install(app)
    return app


def _checks(services: Services) -> dict[str, Check]:
    def database() -> None:
        with reading(services.engine) as connection:
            connection.execute(text("SELECT 1"))

    def keys() -> None:
        with reading(services.engine) as connection:
            check_keys(connection, services.keyring)

    return {"database": database, "redis": services.redis.ping, "keys": keys}


def _add_health(app: FastAPI) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Return that the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], responses={503: {"description": "A check failed"}})
    async def readyz(request: Request) -> Response:
        """Return whether the service can do its work, check by check."""
        checks: dict[str, Check] = request.app.state.checks
        results = {name: await _passes(name, check) for name, check in checks.items()}
        ready = all(results.values())
        body = {
            "status": "ready" if ready else "not ready",
            "checks": {name: "ok" if passed else "failed" for name, passed in results.items()},
        }
        return JSONResponse(body, 200 if ready else 503)

    @app.get("/metrics", tags=["health"], response_class=Response)
    def show_metrics() -> Response:
        """Return the metrics of this process, or of all that share its folder."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


async def _passes(name: str, check: Check) -> bool:
    try:
        with anyio.fail_after(CHECK_SECONDS):
            await anyio.to_thread.run_sync(check, abandon_on_cancel=True)
    except Exception as error:  # noqa: BLE001  whatever it is, it is not ready
        reason = error if isinstance(error, StoreError) else type(error).__name__
        log.warning("Not ready: %s (%s)", name, reason)
        return False
    return True


def make_server(app: FastAPI, port: int, host: str = "127.0.0.1") -> uvicorn.Server:
    """Return a server of the app, to be run by the caller (`run()`, or `serve()` on a loop)."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONCURRENT,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=5,
        )
    )
