"""How pipelines fare, as processes tell each other."""

from fakeredis import FakeAsyncRedis

from worker.incidents import Fare, incident_of, note, note_well

NOW = 1_767_350_500_000


async def test_those_that_deliver_are_noted_together_and_count_with_those_that_fail() -> None:
    redis = FakeAsyncRedis()
    well = {f"i{number}": Fare(f"p{number}", NOW, failing=False) for number in range(20)}
    await note_well(redis, {"webhooks": well, "slack": {"s": Fare("p", NOW, failing=False)}})
    for number in range(5):
        failing = {f"i{number}": Fare(f"p{number}", NOW, failing=True)}
        fares = [*await note(redis, "webhooks", failing, NOW)]
    assert len(fares) == 20
    assert sum(fare.failing for fare in fares) == 5
    assert incident_of(fares, NOW) is None  # a fourth: it is not the provider
    await redis.aclose()
