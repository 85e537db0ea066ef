"""Random traffic from a few seeds; for more see `python -m tests.worker.traffic --help`."""

import pytest

from tests.worker.traffic import MODES, Traffic

pytestmark = pytest.mark.processes


async def _holds(seed: int, mode: str, valkey: str) -> None:
    traffic = Traffic(seed, mode, valkey)
    assert not await traffic.play(), traffic.report()


@pytest.mark.parametrize(("mode", "seed"), [("calm", 75), ("full", 84), ("cut", 207)])
async def test_traffic(mode: str, seed: int, valkey: str) -> None:
    await _holds(seed, mode, valkey)


@pytest.mark.slow  # together
@pytest.mark.parametrize("seed", range(10, 16))
@pytest.mark.parametrize("mode", MODES)
async def test_more_traffic(mode: str, seed: int, valkey: str) -> None:
    await _holds(seed, mode, valkey)
