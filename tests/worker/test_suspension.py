"""What rounds mean for a pipeline: when it goes on, waits, and is suspended."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.suspension import Health, Round, Thresholds, Verdict, after_round

LIMITS = Thresholds(retry=10, credential=5, reject=20)
FAILED = Round(failed=True)
REFUSED = Round(refused=True, failed=True)
THROTTLED = Round(throttled=True)


def after(*rounds: Round, health: Health | None = None) -> tuple[Health, list[Verdict]]:
    """Return where these rounds lead, and what was said after each."""
    health, verdicts = health or Health(), []
    for round_ in rounds:
        health, verdict = after_round(health, round_, LIMITS)
        verdicts.append(verdict)
    return health, verdicts


@pytest.mark.parametrize(
    ("before", "round_", "health", "verdict"),
    [
        (Health(), Round(), Health(), "go_on"),
        (Health(), Round(delivered=3), Health(), "go_on"),
        (Health(9, 4, 19, True), Round(delivered=1), Health(), "go_on"),
        (Health(9, 4, 19, True), Round(delivered=1, failed=True), Health(), "go_on"),
        (Health(9, 4, 19, True), Round(delivered=1, refused=True), Health(), "go_on"),
        (Health(9, 4, 19, True), Round(delivered=1, rejected=50), Health(), "go_on"),
        (Health(9, 4, 19), Round(delivered=1, throttled=True), Health(), "pause"),
        (Health(), FAILED, Health(failures=1), "back_off"),
        (Health(failures=8), FAILED, Health(failures=9), "back_off"),
        (Health(failures=9), FAILED, Health(failures=10), "suspend"),
        (Health(), REFUSED, Health(failures=1, refusals=1), "back_off"),
        (Health(failures=3, refusals=3), REFUSED, Health(failures=4, refusals=4), "back_off"),
        (Health(failures=4, refusals=4), REFUSED, Health(failures=5, refusals=5), "suspend"),
        (Health(failures=9), REFUSED, Health(failures=10, refusals=1), "suspend"),
        (Health(), Round(rejected=19), Health(rejections=19), "go_on"),
        (Health(), Round(rejected=20), Health(rejections=20), "suspend"),
        (Health(rejections=19), Round(rejected=1), Health(rejections=20), "suspend"),
        (Health(rejections=19), Round(), Health(rejections=19), "go_on"),
        (Health(rejections=19), FAILED, Health(1, 0, 19), "back_off"),
        (Health(), Round(rejected=1, failed=True), Health(1, 0, 1), "back_off"),
        (Health(failures=9), THROTTLED, Health(failures=9), "pause"),
        (Health(rejections=18), Round(rejected=1, throttled=True), Health(0, 0, 19), "pause"),
        (Health(probation=True), REFUSED, Health(1, 1, 0, True), "suspend"),
        (Health(probation=True), FAILED, Health(1, 0, 0, True), "back_off"),
        (Health(probation=True), THROTTLED, Health(probation=True), "pause"),
        (Health(probation=True), Round(rejected=1), Health(0, 0, 1, True), "go_on"),
        (Health(probation=True), Round(delivered=1), Health(), "go_on"),
        (Health(), Round(gone=True), Health(), "suspend"),
        (Health(3), Round(gone=True, delivered=5), Health(3), "suspend"),
    ],
)
def test_one_round(before: Health, round_: Round, health: Health, verdict: Verdict) -> None:
    assert after_round(before, round_, LIMITS) == (health, verdict)


def test_ten_failed_rounds_suspend() -> None:
    assert after(*[FAILED] * 10)[1] == ["back_off"] * 9 + ["suspend"]


def test_five_refusals_suspend_though_others_fail_between() -> None:
    rounds = [REFUSED, FAILED, REFUSED, REFUSED, FAILED, REFUSED, REFUSED]
    assert after(*rounds)[1] == ["back_off"] * 6 + ["suspend"]


def test_one_delivery_starts_all_counts_anew() -> None:
    rounds = [*[FAILED] * 9, Round(delivered=1, failed=True), *[FAILED] * 9]
    assert "suspend" not in after(*rounds)[1]


def test_throttling_is_no_failure() -> None:
    health, verdicts = after(*[THROTTLED] * 100)
    assert health == Health()
    assert set(verdicts) == {"pause"}


def test_what_fails_again_and_again_among_others_is_no_failure_of_the_pipeline() -> None:
    """But what fails next, before anything is delivered, is."""
    excused = Health(excused=True)
    assert after_round(Health(), FAILED, LIMITS, again=True) == (excused, "go_on")
    failed = Health(failures=1, excused=True)
    assert after_round(excused, FAILED, LIMITS, again=True) == (failed, "back_off")
    assert after_round(failed, FAILED, LIMITS, again=True)[1] == "back_off"
    assert after_round(failed, Round(delivered=1), LIMITS) == (Health(), "go_on")


@pytest.mark.parametrize(
    ("before", "round_", "verdict"),
    [
        (Health(), REFUSED, "back_off"),
        (Health(), Round(failed=True, gone=True), "suspend"),
        (Health(failures=1), FAILED, "back_off"),
        (Health(probation=True), FAILED, "back_off"),
    ],
)
def test_nothing_else_is_put_down_to_events(
    before: Health, round_: Round, verdict: Verdict
) -> None:
    assert after_round(before, round_, LIMITS, again=True)[1] == verdict


rounds = st.builds(
    Round,
    delivered=st.sampled_from([0, 0, 0, 0, 1, 7]),
    rejected=st.sampled_from([0, 0, 1, 3]),
    failed=st.booleans(),
    refused=st.booleans(),
    throttled=st.booleans(),
    gone=st.sampled_from([False] * 9 + [True]),
)
limits = st.builds(
    Thresholds,
    retry=st.integers(1, 12),
    credential=st.integers(1, 12),
    reject=st.integers(1, 12),
)


@settings(deadline=None, max_examples=500)
@given(limits, st.booleans(), st.lists(st.tuples(rounds, st.booleans()), max_size=40))
def test_any_sequence(
    limits: Thresholds, probation: bool, sequence: list[tuple[Round, bool]]
) -> None:
    health = Health(probation=probation)
    for round_, again in sequence:
        before = health
        health, verdict = after_round(before, round_, limits, again=again)
        assert health.refusals <= health.failures <= limits.retry
        assert health.refusals <= limits.credential
        reached = (
            health.failures >= limits.retry
            or health.refusals >= limits.credential
            or health.rejections >= limits.reject
        )
        if verdict == "suspend":
            assert round_.gone or reached or (before.probation and round_.refused)
            return
        assert not reached
        if round_.delivered:
            assert health == Health()
        else:
            excused = health.excused and not before.excused
            assert not excused or (again and before == Health())
            counts = (round_.failed or round_.refused) and not excused
            assert health.failures - before.failures == counts
            assert health.refusals - before.refusals == round_.refused
            assert health.rejections - before.rejections == round_.rejected
            assert health.probation == before.probation
