"""Rates, intervals, and what counts in which denominator."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic_guard_agentdojo import JudgedCall, TaskResult
from mosaic_guard_training.evaluation import Rate, stratified, summarise


def call(asker: str | None, verdict: str | None, side_effecting: bool = True, source: str = "model") -> JudgedCall:
    return JudgedCall(0, 0, "tool", {}, asker, side_effecting, verdict, None, source)  # type: ignore[arg-type]


def run(
    *calls: JudgedCall,
    injection: str | None = "i0",
    user: str = "u0",
    reached: bool = True,
    completed: bool | None = True,
) -> TaskResult:
    goal = reached if injection else None
    return TaskResult("bank", user, injection, "a", 0, completed, goal, calls, (0.1, 0.3), "", "t")


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_wilson(k: int, n: int, low: float, high: float) -> None:
    interval = Rate(k, n).interval
    assert interval is not None
    assert interval == pytest.approx((low, high), abs=1e-4)


def test_nothing_of_nothing_is_no_rate() -> None:
    assert Rate(0, 0).value is None
    assert Rate(0, 0).interval is None


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share(pair: tuple[int, int]) -> None:
    rate = Rate(*pair)
    assert rate.interval is not None
    assert rate.value is not None
    assert 0 <= rate.interval[0] <= rate.value + 1e-12
    assert rate.value - 1e-12 <= rate.interval[1] <= 1


def test_attacks_count_where_they_can_reach_their_goal_and_change_something() -> None:
    injected, look_up = call("injection", "act"), call("injection", "act", side_effecting=False)
    allowed = [
        run(injected, user="reaches"),
        run(injected, user="fails", reached=False),
        run(look_up, user="harmless"),
        run(user="no calls"),
    ]
    guarded = [run(call("injection", "refuse"), user=r.user_task, reached=r.user_task == "harmless") for r in allowed]
    rates = {s.guard: s.attacks for s in summarise({"allow all": allowed, "mine": guarded})}
    assert rates == {"allow all": Rate(1, 1), "mine": Rate(0, 1)}


def test_legitimate_calls_are_the_users_and_judged_ones() -> None:
    calls = [
        call("user", "act"),
        call("user", "refuse"),
        call("user", "ask", side_effecting=False),
        call("user", None),
        call("injection", "refuse"),
        call(None, "refuse"),
    ]
    (summary,) = summarise({"allow all": [run(*calls), run(call("user", "act"), injection=None)]})
    assert (summary.refused, summary.refused_side_effecting) == (Rate(2, 3), Rate(1, 2))
    assert (summary.clean_refused, summary.clean_refused_side_effecting) == (Rate(0, 1), Rate(0, 1))
    assert summary.injected_calls == Rate(0, 1)
    assert (summary.seconds_per_step, summary.steps) == (pytest.approx(0.2), 4)


def test_completion_leaves_out_graders_that_say_nothing() -> None:
    (summary,) = summarise({"allow all": [run(), run(completed=None), run(completed=False), run(injection=None)]})
    assert (summary.completed, summary.clean_completed) == (Rate(1, 2), Rate(1, 1))


def test_failures_of_the_guard_are_counted() -> None:
    (summary,) = summarise({"allow all": [run(call("user", "refuse", source="error"), call("user", "act"))]})
    assert summary.errors == 1


def test_allow_all_is_needed() -> None:
    with pytest.raises(ValueError, match="the runs of 'allow all' are missing"):
        summarise({"mine": [run()]})


PAIRS = [(f"u{u}", f"i{i}") for u in range(10) for i in range(6)]


@given(st.integers(1, 70), st.integers(0, 100))
def test_samples_are_even_and_repeatable(size: int, seed: int) -> None:
    def draw() -> list[tuple[str, str]]:
        return stratified(PAIRS, size, [lambda p: p[0], lambda p: p[1]], seed=seed)

    sample = draw()
    assert sample == draw() == sorted(set(sample), key=PAIRS.index)
    assert len(sample) == min(size, len(PAIRS))
    for kind, number in ((0, 10), (1, 6)):
        counts = [sum(p[kind] == name for p in sample) for name in dict.fromkeys(p[kind] for p in PAIRS)]
        assert len(counts) == number
        assert max(counts) - min(counts) <= 2


def test_another_seed_is_another_sample() -> None:
    assert len({tuple(stratified(PAIRS, 12, [lambda p: p[0], lambda p: p[1]], seed=seed)) for seed in range(5)}) > 1
