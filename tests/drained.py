"""A delivery loop from its beginning to its end, as a child has it in one slice."""

import time

from worker.drain import Drain


async def drained(loop: Drain, seconds: float) -> None:
    """Drain for so long, or until it is told to stop; then release everything."""
    until = time.monotonic() + seconds
    await loop.open()
    try:
        await loop.slice(lambda: time.monotonic() >= until)
    finally:
        await loop.leave()
