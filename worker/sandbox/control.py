"""`/_sandbox/`: telling the sandbox to fail, and asking it what has arrived."""

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from worker.sandbox.faults import MODES, Fault, Faults
from worker.sandbox.log import Log


def control(faults: Faults, log: Log, slugs: list[str]) -> Starlette:
    """Return the application that steers a sandbox."""

    async def about(_request: Request) -> JSONResponse:
        return JSONResponse({"slugs": slugs, "modes": MODES})

    async def add_fault(request: Request) -> JSONResponse:
        try:
            fault = Fault.model_validate_json(await request.body())
        except ValidationError as error:
            faulty = [
                {"field": ".".join(map(str, e["loc"])), "message": e["msg"]} for e in error.errors()
            ]
            return JSONResponse(
                {"error": {"message": "no such fault", "details": faulty}}, status_code=400
            )
        faults.add(fault)
        return _faults()

    async def list_faults(_request: Request) -> JSONResponse:
        return _faults()

    async def clear_faults(_request: Request) -> JSONResponse:
        faults.clear()
        return _faults()

    def _faults() -> JSONResponse:
        return JSONResponse({"faults": [f.model_dump(exclude_none=True) for f in faults.all()]})

    async def taken(request: Request) -> JSONResponse:
        asked = request.query_params
        return JSONResponse(log.counts(asked.get("slug"), asked.get("match", "")))

    async def forget(request: Request) -> JSONResponse:
        log.forget(request.query_params.get("slug"))
        return JSONResponse({})

    async def calls(request: Request) -> JSONResponse:
        last = request.query_params.get("last", "10")
        found = log.calls(request.query_params.get("slug"), int(last) if last.isdigit() else 10)
        return JSONResponse({"calls": found})

    return Starlette(
        routes=[
            Route("/_sandbox/", about),
            Route("/_sandbox/faults", add_fault, methods=["POST"]),
            Route("/_sandbox/faults", list_faults, methods=["GET"]),
            Route("/_sandbox/faults", clear_faults, methods=["DELETE"]),
            Route("/_sandbox/taken", taken, methods=["GET"]),
            Route("/_sandbox/taken", forget, methods=["DELETE"]),
            Route("/_sandbox/calls", calls, methods=["GET"]),
        ]
    )
