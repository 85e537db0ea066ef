"""Random traffic, a few seeds of each mode; more: python -m tests.worker.traffic --help."""

import pytest

from tests.worker.traffic import MODES, Traffic

pytestmark = pytest.mark.processes


async def _holds(seed: int, mode: str, valkey: str) -> None:
    traffic = Traffic(seed, mode, valkey)
    assert not await traffic.play(), traffic.report()


@pytest.mark.parametrize(("mode", "seed"), [("calm", 1), ("full", 2), ("two", 3), ("cut", 4)])
async def test_traffic(mode: str, seed: int, valkey: str) -> None:
    await _holds(seed, mode, valkey)


@pytest.mark.slow  # all together
@pytest.mark.parametrize("seed", range(10, 16))
@pytest.mark.parametrize("mode", MODES)
async def test_more_traffic(mode: str, seed: int, valkey: str) -> None:
    await _holds(seed, mode, valkey)
