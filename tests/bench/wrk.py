"""The limit: what `wrk`, a load generator in C, sends on a core. Null where it is not installed."""

import re
import resource
import shutil
import subprocess

from tests.bench.events import Source
from tests.bench.rig import Measured, Rig

CONNECTIONS = 64
SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.body = file:read("*all")
wrk.headers["Content-Type"] = "application/json; charset=utf-8"
wrk.headers["webhook-id"] = "0123456789ab-1234567"
wrk.headers["webhook-timestamp"] = "1767225600"
wrk.headers["webhook-signature"] = "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="
"""


def measure(rig: Rig, seconds: int, *, tls: bool = False) -> Measured | None:
    """Send bodies like a webhook's to the sink for `seconds`, with one thread."""
    if not shutil.which("wrk"):
        return None
    body, script = rig.folder / "body.json", rig.folder / "post.lua"
    body.write_bytes(Source(["wrk"]).next()[1])
    script.write_text(SCRIPT.format(body=body))
    options = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script)]
    before = _children()
    told = subprocess.run(
        ["wrk", *options, rig.url(0, "wrk", tls=tls)], capture_output=True, text=True, check=True
    ).stdout
    return parsed(told, _children() - before)


def parsed(told: str, cpu: float) -> Measured:
    """Return what wrk tells of its run."""
    found = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", told)
    if found is None:
        raise ValueError(f"wrk told something else: {told}")
    unit = {"ms": 0.001, "s": 1.0, "m": 60.0}[found[3]]
    return Measured(int(found[1]), float(found[2]) * unit, cpu)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
