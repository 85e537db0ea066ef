"""What the loop counted is what `/metrics` shows, once it is published."""

from prometheus_client import REGISTRY

from providers.kit import Delivered, Partial, Retry
from worker import metrics


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_counts_show_once_published() -> None:
    labels = {"provider": "adjust", "outcome": "retry", "reason": "server_error"}
    before = value("onward_delivery_attempts_total", **labels)

    metrics.attempt("adjust", Retry("server_error"), 0.02)
    metrics.attempt("adjust", Retry("server_error"), 0.03)
    assert value("onward_delivery_attempts_total", **labels) == before
    metrics.publish()
    assert value("onward_delivery_attempts_total", **labels) == before + 2
    metrics.publish()
    assert value("onward_delivery_attempts_total", **labels) == before + 2


def test_a_partial_answer_has_a_name_of_its_own() -> None:
    labels = {"provider": "segment", "outcome": "partial", "reason": "partial"}
    before = value("onward_delivery_attempts_total", **labels)
    metrics.attempt("segment", Partial({0: Retry("rate_limited")}), 0.02)
    metrics.publish()
    assert value("onward_delivery_attempts_total", **labels) == before + 1


def shape(slug: str) -> dict[str, float]:
    """Return the buckets, the sum and the count of a slug's request times."""
    return {
        f"{sample.name} {sample.labels.get('le')}": sample.value
        for metric in metrics.ATTEMPT_SECONDS.collect()
        for sample in metric.samples
        if sample.labels.get("provider") == slug and not sample.name.endswith("_created")
    }


def test_times_fall_into_the_buckets_that_observing_one_by_one_fills() -> None:
    seconds = [0.001, 0.005, 0.0051, 0.3, 29.9, 30.0, 31.0]
    metrics.publish()  # what other tests counted
    before = {slug: shape(slug) for slug in ("branch", "kochava")}
    for each in seconds:
        metrics.ATTEMPT_SECONDS.labels("branch").observe(each)
        metrics.attempt("kochava", Delivered(), each)
    metrics.publish()

    def more(slug: str) -> dict[str, float]:
        had = before[slug]
        return {name: round(n - had.get(name, 0), 6) for name, n in shape(slug).items()}

    assert more("kochava") == more("branch")
    assert more("branch")["onward_delivery_attempt_seconds_count None"] == len(seconds)


def test_what_is_given_up_counts_as_a_dead_letter() -> None:
    def letters(slug: str) -> float:
        return value("onward_dead_letters_total", provider=slug)

    before, unread = letters("tenjin"), letters("none")
    metrics.ended("tenjin", "rejected", "bad_request")
    metrics.ended("tenjin", "expired", "hold_seconds")
    metrics.event("malformed", 2)
    metrics.event("accepted", 3)
    metrics.publish()
    assert (letters("tenjin"), letters("none")) == (before + 1, unread + 2)
