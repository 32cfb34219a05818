"""Pieces to token sequences, two sides to one row, and which rows fit a budget."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_traces import WORDS, losses_of, step, trajectories, trajectory

from mosaic_guard import Outcome, Trajectory
from mosaic_guard_training.budget import Budget, dealt, lopsided
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.pairs import KINDS, PreferencePair, Side, build_pairs, taught
from mosaic_guard_training.tokens import (
    CHOSEN,
    REJECTED,
    SHARED,
    PairRow,
    TokenSequence,
    merge,
    pair_row,
    side_sequences,
    token_sequence,
)
from mosaic_guard_training.twins import segments


@st.composite
def sequences(draw: st.DrawFn, ids: int = 6) -> TokenSequence:
    """A short sequence over few token ids, so that two of them often begin alike."""
    tokens = draw(st.lists(st.tuples(st.integers(0, ids), st.booleans()), min_size=1, max_size=8))
    return TokenSequence(tuple(i for i, _ in tokens), (False, *(loss for _, loss in tokens[1:])))


sides = st.lists(sequences(), min_size=1, max_size=3)


def paths(row: PairRow, branch: int) -> list[tuple[tuple[int, ...], int]]:
    """(all tokens before it in its sequence, token) of each token of the row that one branch has loss on."""
    loss = row.chosen_loss if branch == CHOSEN else row.rejected_loss
    found = []
    for at in range(len(row)):
        if loss[at]:
            before, place = [], at
            for _ in range(row.position_ids[at]):
                place = row.previous[place]
                before.append(row.input_ids[place])
            found.append((tuple(reversed(before)), row.input_ids[at]))
    return found


def scored(side: list[TokenSequence]) -> list[tuple[tuple[int, ...], int]]:
    """(all tokens before it, token) of each token with loss."""
    return [(s.ids[:at], s.ids[at]) for s in side for at in range(len(s)) if s.loss[at]]


@given(trajectories())
def test_loss_falls_on_sampled_and_target_tokens_only(logged: Trajectory) -> None:
    found = segments(logged.steps)
    whole = [piece for s in logged.steps for piece in s.pieces]
    assert [i for pieces in found for i in token_sequence(pieces).ids] == [i for piece in whole for i in piece.ids]
    for pieces in found:
        assert list(token_sequence(pieces).loss) == losses_of(pieces)
    assert len(found) == len({s.segment for s in logged.steps if s.pieces})


@pytest.mark.slow
@given(sides, sides)
def test_a_row_scores_what_the_sides_score_but_for_what_cancels(chosen: list, rejected: list) -> None:
    row = merge(chosen, rejected)
    ours, theirs = scored(chosen), scored(rejected)
    if row is None:
        assert ours == theirs
        return
    left, right = paths(row, CHOSEN), paths(row, REJECTED)
    # What the row leaves out of one side it leaves out of the other: the differences of the sums are the same.
    for token in left:
        ours.remove(token)
    for token in right:
        theirs.remove(token)
    assert sorted(ours) == sorted(theirs)
    assert left or right


@given(sides, sides)
def test_a_row_is_well_formed(chosen: list, rejected: list) -> None:
    row = merge(chosen, rejected)
    if row is None:
        return
    for at in range(len(row)):
        if row.position_ids[at]:
            before = row.previous[at]
            assert before < at
            assert row.segment_ids[before] == row.segment_ids[at]
            assert row.branch_ids[before] in (SHARED, row.branch_ids[at])
            assert row.position_ids[before] == row.position_ids[at] - 1
        else:
            assert not row.chosen_loss[at]
            assert not row.rejected_loss[at]
        assert not row.chosen_loss[at] or row.branch_ids[at] == CHOSEN
        assert not row.rejected_loss[at] or row.branch_ids[at] == REJECTED
    assert len(row) <= sum(map(len, chosen)) + sum(map(len, rejected))


@given(sides)
def test_sides_that_say_the_same_give_no_row(side: list) -> None:
    assert merge(side, side) is None


@given(trajectories(), trajectories())
def test_a_hindsight_row_reads_one_segment_once(one: Trajectory, other: Trajectory) -> None:
    for pair in build_pairs([one, other], WORDS).pairs:
        row = pair_row(pair, 10_000)
        if pair.kind != "outcome":
            assert row is not None
            assert set(row.segment_ids) == {0}
            assert len(row) < len(token_sequence(pair.chosen.segments[-1])) + 3 * len(pair.calls) * 2


def test_a_sequence_that_is_too_long_is_an_error_not_a_cut() -> None:
    logged = trajectory(
        "long one", [step(0, [("act", "sampled")]), step(1, [("act", "sampled")])], Outcome(False, True)
    )
    side = Side(logged.id, segments(logged.steps))
    length = len(side_sequences(side, 100)[0])
    assert len(side_sequences(side, length)[0]) == length
    with pytest.raises(TrainingError, match=rf"'long one' has {length} tokens in segment 0, more than the limit of"):
        side_sequences(side, length - 1)


def example(kind: str, size: int) -> tuple[PreferencePair, PairRow]:
    nothing = Side("t", ())
    return PreferencePair("task", kind, nothing, nothing), PairRow(input_ids=[0] * size)


examples = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 50)), max_size=40).map(
    lambda found: [example(*each) for each in found]
)


@given(examples, st.none() | st.integers(1, 30), st.none() | st.integers(1, 600), st.integers(0, 5))
def test_a_budget_is_kept_and_both_directions_stay_alike(
    found: list, pairs: int | None, tokens: int | None, seed: int
) -> None:
    chosen = Budget(pairs, tokens).select(found, seed)
    assert chosen == Budget(pairs, tokens).select(found, seed)
    if pairs is None and tokens is None:
        assert chosen == found
        return
    assert pairs is None or len(chosen) <= pairs
    assert tokens is None or sum(len(row) for _, row in chosen) <= tokens
    available = [sum(pair.kind == kind for pair, _ in found) for kind in KINDS]
    taken = [sum(pair.kind == kind for pair, _ in chosen) for kind in KINDS]
    assert all(t <= a for t, a in zip(taken, available, strict=True))
    if available[1] and available[2]:
        assert taken[1] == taken[2]


def test_a_budget_takes_as_much_as_fits() -> None:
    found = [example(kind, 10) for kind in KINDS for _ in range(20)]
    assert [len(Budget(pairs=n).select(found, 0)) for n in (1, 3, 30, 100)] == [1, 3, 30, 60]
    assert len(Budget(tokens=95).select(found, 0)) == 9


@given(examples, st.integers(0, 5))
def test_directions_are_dealt_evenly(found: list, seed: int) -> None:
    order = dealt(found, seed)
    assert sorted(map(id, order)) == sorted(map(id, found))
    assert order == dealt(found, seed)
    for end in range(1, len(order)):
        for kind in KINDS:
            share = sum(pair.kind == kind for pair, _ in found) / len(found)
            taken = sum(pair.kind == kind for pair, _ in order[:end])
            assert abs(taken - share * end) < len(KINDS)


def judged(kind: str, word: str) -> PreferencePair:
    """A pair that parts at one call, in which the side that says `word` there is better."""
    acts, refuses = (
        Side("t", segments([step(0, [("act", "sampled"), (verdict, "sampled")])])) for verdict in ("act", "refuse")
    )
    better, worse = (acts, refuses) if word == "act" else (refuses, acts)
    return PreferencePair("task", kind, better, worse, 0, (1,))


@given(
    st.lists(st.tuples(st.sampled_from(["human", "llm"]), st.sampled_from(["act", "refuse"])), max_size=40),
    st.integers(1, 20),
)
def test_a_budget_keeps_both_directions_of_what_was_judged_alike(found: list[tuple[str, str]], pairs: int) -> None:
    examples = [(judged(*each), PairRow(input_ids=[0])) for each in found]
    taken = Counter((pair.kind, taught(pair)) for pair, _ in Budget(pairs).select(examples, 0))
    for kind in ("human", "llm"):
        if (kind, "act") in found and (kind, "refuse") in found:
            assert taken[kind, "act"] == taken[kind, "refuse"]


@pytest.mark.parametrize("kinds", [("hindsight_harmful", "hindsight_harmless"), ("human", "human"), ("llm", "human")])
@pytest.mark.parametrize(
    ("refuse", "act", "said"),
    [(5, 5, None), (5, 20, None), (1, 5, "5 to act"), (5, 1, "5 pairs of single calls teach to refuse"),
     (0, 3, "act always"), (3, 0, "refuse always"), (0, 0, "no pairs of single calls")],
)  # fmt: skip
def test_lopsided_pairs_are_pointed_out(kinds: tuple[str, str], refuse: int, act: int, said: str | None) -> None:
    pairs = [judged(kinds[0], "refuse")] * refuse + [judged(kinds[1], "act")] * act
    warning = lopsided([*pairs, example("outcome", 1)[0], example("human", 1)[0]])
    assert (warning is None) if said is None else (said in warning)
