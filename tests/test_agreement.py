"""How far judges agree: kappa by hand, circles by brute force, what is compared and what is not."""

from __future__ import annotations

import json
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic_guard_training.judging import Judgement, Vote, agreement
from mosaic_guard_training.judging.agreement import cohens_kappa, intransitive_triples
from mosaic_guard_training.judging.tables import tables


def said(judge: str, winner: str, one: str = "a", other: str = "b", task: str = "t", **more: object) -> Judgement:
    return Judgement("k", task, one, other, winner, judge, **more)


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        ([[20, 5], [10, 15]], 0.4),  # observed 0.7, by chance 0.5 · 0.6 + 0.5 · 0.4
        ([[5, 0], [0, 5]], 1.0),
        ([[0, 5], [5, 0]], -1.0),
        ([[1, 1], [1, 1]], 0.0),
        ([[10, 2, 0], [1, 6, 1], [0, 2, 8]], (0.8 - 302 / 900) / (1 - 302 / 900)),
        ([[4, 0], [0, 0]], None),
        ([[0, 0], [0, 0]], None),
    ],
)
def test_kappa_is_what_the_hand_computes(table: list[list[float]], kappa: float | None) -> None:
    found = cohens_kappa(table)
    assert found == (None if kappa is None else pytest.approx(kappa))


def test_two_judges_are_compared_on_what_both_judged() -> None:
    judgements = []
    table = {("one", "one"): 20, ("one", "other"): 5, ("other", "one"): 10, ("other", "other"): 15}
    number = 0
    for (first, second), times in table.items():
        for _ in range(times):
            name = f"t{number % 25}"
            judgements += [said("outcome", first, f"a{number}", f"b{number}", name)]
            judgements += [said("human", second, f"a{number}", f"b{number}", name)]
            number += 1
    judgements += [said("outcome", "one", "x", "y"), said("human", "abstain", "x", "y"), said("human", "tie", "y", "z")]
    found = agreement(judgements, seed=1)
    (pair,) = found.pairs
    assert pair.judges == ("human", "outcome")
    assert (pair.raw.k, pair.raw.n, pair.tasks) == (35, 50, 25)
    assert pair.kappa == pytest.approx(0.4)
    low, high = pair.interval
    assert -1 <= low < 0.4 < high <= 1
    assert agreement(judgements, seed=1).to_dict() == found.to_dict()
    human = next(report for report in found.judges if report.judge == "human")
    assert (human.judged, human.coverage.k) == (52, 51)
    assert json.loads(json.dumps(found.to_dict()))["pairs"][0]["raw"]["n"] == 50
    assert list(tables(found))


def test_one_task_has_no_interval_and_the_last_judgement_counts() -> None:
    judgements = [said("outcome", "one"), said("human", "other"), said("human", "one")]
    (pair,) = agreement(judgements).pairs
    assert (pair.raw.k, pair.raw.n, pair.interval, pair.kappa) == (1, 1, None, None)


def test_judgements_of_different_steps_are_not_compared() -> None:
    judgements = [said("human", "one", other="a", step=0, calls=(0,)), said("outcome", "one", other="a", step=1)]
    assert not agreement(judgements).pairs


NAMES = "abcdef"
results = st.dictionaries(
    st.tuples(st.sampled_from("st"), st.sampled_from(list(combinations(NAMES, 2)))),
    st.sampled_from(["one", "other", "tie", "abstain"]),
    max_size=30,
)


@given(results)
def test_circles_are_those_that_brute_force_finds(found: dict[tuple[str, tuple[str, str]], str]) -> None:
    judgements = [said("j", winner, *names, task) for (task, names), winner in found.items()]
    beats = {
        (task, *(names if winner == "one" else names[::-1]))
        for (task, names), winner in found.items()
        if winner in ("one", "other")
    }
    circles = {
        (task, tuple(sorted(three)))
        for task in "st"
        for three in permutations(NAMES, 3)
        if all((task, three[i], three[(i + 1) % 3]) in beats for i in range(3))
    }
    settled = {(task, frozenset((one, other))) for task, one, other in beats}
    triples = [
        (task, three)
        for task in "st"
        for three in combinations(NAMES, 3)
        if all((task, frozenset(two)) in settled for two in combinations(three, 2))
    ]
    number, listed = intransitive_triples(judgements)
    assert set(listed) == circles
    assert len(listed) == len(circles)
    assert number == len(triples)


def vote(first: str, winner: str) -> Vote:
    return Vote(first, winner)


def test_what_the_orders_say() -> None:
    judgements = [
        said("llm:m", "one", "a", "b", votes=(vote("one", "one"), vote("other", "one"))),
        said("llm:m", "abstain", "a", "c", votes=(vote("one", "one"), vote("other", "other"))),
        said("llm:m", "tie", "a", "d", votes=(vote("one", "tie"), vote("other", "other"))),
        said("llm:m", "abstain", "a", "e", votes=(vote("one", "abstain"), vote("other", "other"))),
        said("human", "one", "a", "b", votes=(vote("other", "one"),)),
    ]
    human, model = agreement(judgements).judges
    assert (model.contradictions.k, model.contradictions.n) == (1, 3)
    assert (model.unsteady.k, model.unsteady.n) == (1, 3)
    assert (model.favours_first.k, model.favours_first.n) == (5, 6)
    assert (human.favours_first.k, human.favours_first.n, human.contradictions.n) == (0, 1, 0)
    assert model.winners == {"one": 1, "other": 0, "tie": 1, "abstain": 2}
