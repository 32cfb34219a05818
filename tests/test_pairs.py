"""Preference pairs: who is preferred and why, and what a hindsight twin keeps and changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_traces import ACT, REFUSE, WORDS, losses_of, step, trajectories, trajectory

from mosaic_guard import Outcome, Trajectory
from mosaic_guard._transcript import Piece
from mosaic_guard_training.pairs import KINDS, Side, build_pairs, prefer, taught
from mosaic_guard_training.tokens import pair_row
from mosaic_guard_training.twins import logged_verdict_ids

SAMPLED_ACT = ("act", "sampled")
HARMFUL = Outcome(True, True, [(1, 0)])
DONE = Outcome(False, True)
NOT_DONE = Outcome(False, False)

many = st.lists(trajectories(), min_size=1, max_size=5).map(
    lambda found: [replace(each, id=f"t{i}") for i, each in enumerate(found)]
)


def harmful(kind: str = "sampled", calls: Sequence[tuple[int, int]] = ((1, 0),)) -> Trajectory:
    steps = [step(0, [SAMPLED_ACT]), step(1, [("act", kind), SAMPLED_ACT]), step(2, [SAMPLED_ACT])]
    return trajectory("harm", steps, Outcome(True, True, calls))


def harmless(name: str = "fine", outcome: Outcome = DONE) -> Trajectory:
    return trajectory(name, [step(0, [SAMPLED_ACT]), step(1, [SAMPLED_ACT, SAMPLED_ACT])], outcome)


def flat(side: Side) -> list[Piece]:
    return [piece for segment in side.segments for piece in segment]


def words(side: Side) -> str:
    return "".join(piece.text for piece in flat(side))


def test_a_harmful_trajectory_loses_against_the_twin_that_refuses() -> None:
    (pair,) = build_pairs([harmful()], WORDS).pairs
    assert (pair.kind, pair.step, pair.calls) == ("hindsight_harmful", 1, (0,))
    assert words(pair.chosen).endswith("1: refuse\n2: act\n</decision>")
    assert words(pair.rejected).endswith("1: act\n2: act\n</decision>")
    assert pair.chosen.twin
    assert not pair.rejected.twin


def test_a_harmless_trajectory_wins_against_the_twin_that_refuses() -> None:
    (pair,) = build_pairs([harmless()], WORDS).pairs
    assert pair.kind == "hindsight_harmless"
    assert "refuse" in words(pair.rejected)
    assert "refuse" not in words(pair.chosen)
    assert words(pair.chosen).count("<decision>") == words(pair.rejected).count("<decision>") == pair.step + 1


def test_the_twin_refuses_at_the_first_step_where_harm_ran_and_all_harmful_calls_of_it() -> None:
    (pair,) = build_pairs([harmful(calls=[(2, 0), (1, 1), (1, 0)])], WORDS).pairs
    assert (pair.step, pair.calls) == (1, (0, 1))
    assert words(pair.chosen).endswith("1: refuse\n2: refuse\n</decision>")


def test_verdicts_after_the_changed_one_are_not_compared() -> None:
    (pair,) = build_pairs([harmful()], WORDS).pairs
    row = pair_row(pair, 1000)
    assert [i for i, loss in zip(row.input_ids, row.chosen_loss, strict=True) if loss] == [REFUSE[0]]
    assert [i for i, loss in zip(row.input_ids, row.rejected_loss, strict=True) if loss] == [ACT[0]]


def test_an_overridden_verdict_has_no_loss_but_its_twin_does() -> None:
    (pair,) = build_pairs([harmful("overridden")], WORDS).pairs
    row = pair_row(pair, 1000)
    assert sum(row.chosen_loss) == 1
    assert sum(row.rejected_loss) == 0


def refused(kind: str = "sampled") -> Trajectory:
    steps = [step(0, [SAMPLED_ACT]), step(1, [SAMPLED_ACT, ("refuse", kind)]), step(2, [("refuse", "sampled")])]
    return trajectory("right", steps, Outcome(False, True, [(1, 1), (2, 0)]))


def test_a_right_refusal_wins_against_the_twin_that_acts() -> None:
    """The traces of a guard that is right teach to refuse as well as to act."""
    found = build_pairs([refused()], WORDS)
    assert found.counts() == {"outcome": 0, "hindsight_harmful": 1, "hindsight_harmless": 1}
    pair = found.pairs[0]
    assert (pair.kind, pair.step, pair.calls) == ("hindsight_harmful", 1, (1,))
    assert words(pair.chosen).endswith("1: act\n2: refuse\n</decision>")
    assert words(pair.rejected).endswith("1: act\n2: act\n</decision>")
    assert (pair.chosen.twin, pair.rejected.twin) == (False, True)
    row = pair_row(pair, 1000)
    assert [i for i, loss in zip(row.input_ids, row.chosen_loss, strict=True) if loss] == [REFUSE[0]]


def test_a_refusal_that_a_policy_decided_gives_no_twin() -> None:
    pair = build_pairs([refused("overridden")], WORDS).pairs[0]
    assert (pair.kind, pair.step) == ("hindsight_harmful", 2)


def test_a_refusal_for_want_of_a_person_to_ask_is_not_the_models_own() -> None:
    asked = step(1, [SAMPLED_ACT])
    asked = replace(asked, decisions=[replace(each, verdict="refuse") for each in asked.decisions])
    found = build_pairs([trajectory("t", [step(0, [SAMPLED_ACT]), asked], Outcome(False, True, [(1, 0)]))], WORDS)
    assert found.counts()["hindsight_harmful"] == 0
    assert found.skipped == {"harmless trajectories whose harmful calls the model did not refuse by itself": 1}


def test_only_calls_that_the_model_itself_let_through_give_harmless_twins() -> None:
    steps = [step(0, [("act", "overridden")]), step(1, [("refuse", "sampled")]), step(2, [SAMPLED_ACT], judged=False)]
    found = build_pairs([trajectory("t", steps, DONE)], WORDS)
    assert not found.pairs
    assert list(found.skipped) == ["harmless trajectories in which the model let no legitimate call through"]


def test_what_hindsight_wrote_gives_twins_in_both_directions() -> None:
    """Imported conversations have targets in the place of what a model drew."""
    wrote = [step(0, [("act", "target")]), step(1, [("act", "target")])]
    found = build_pairs(
        [trajectory("fine", wrote, DONE), trajectory("bad", wrote, Outcome(True, True, [(1, 0)]))], WORDS, seed=1
    )
    assert found.counts() == {"outcome": 1, "hindsight_harmful": 1, "hindsight_harmless": 1}
    harmless = found.pairs[-1] if found.pairs[-1].kind == "hindsight_harmless" else found.pairs[1]
    row = pair_row(harmless, 1000)
    assert (sum(row.chosen_loss), sum(row.rejected_loss)) == (1, 1)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(True, True, []), "harmful trajectories that name no harmful call that ran"),
        (Outcome(True, True, [(0, 5)]), "harmful trajectories that name no harmful call that ran"),
        (Outcome(True, True, [(2, 0)]), "harmful trajectories whose harmful step the model did not judge"),
        (Outcome(None, True, [(1, 0)]), "trajectories without a known outcome"),
        (None, "trajectories without a known outcome"),
    ],
)
def test_what_gives_no_twin_is_counted(outcome: Outcome | None, reason: str) -> None:
    steps = [*harmful().steps[:2], step(2, [SAMPLED_ACT], judged=False)]
    found = build_pairs([trajectory("t", steps, outcome)], WORDS)
    assert not found.pairs
    assert found.skipped == {reason: 1}


def test_trajectories_without_tokens_are_counted() -> None:
    unjudged = trajectory("t", [step(0, [SAMPLED_ACT], judged=False)], DONE)
    nameless = trajectory("u", [step(0, [SAMPLED_ACT])], DONE, guard={})
    found = build_pairs([unjudged, nameless], WORDS)
    assert not found.pairs
    assert found.skipped == {"trajectories without tokens of a local guard model": 2}


def test_the_number_of_pairs_can_be_limited() -> None:
    members = [harmless(f"fine {i}") for i in range(4)] + [replace(harmful(), id=f"harm {i}") for i in range(4)]
    found = build_pairs(members, WORDS, per_task=5, harmless_twins=3)
    assert found.counts() == {"outcome": 5, "hindsight_harmful": 4, "hindsight_harmless": 12}
    assert found.skipped["outcome pairs beyond 5 of one task"] == 11
    assert build_pairs(members, WORDS, per_task=0, harmless_twins=0).counts()["hindsight_harmless"] == 0


def test_the_words_ids_are_read_from_the_traces() -> None:
    refused = trajectory("t", [step(0, [("refuse", "overridden")])], None)
    assert logged_verdict_ids([harmless(), refused]) == WORDS
    assert logged_verdict_ids([harmless()]) is None
    assert logged_verdict_ids([refused]) is None


@pytest.mark.parametrize(
    ("better", "worse"),
    [(DONE, NOT_DONE), (DONE, HARMFUL), (NOT_DONE, HARMFUL), (Outcome(False, None), HARMFUL)],
)
def test_the_order_of_outcomes(better: Outcome, worse: Outcome) -> None:
    assert prefer(better, worse) == 1
    assert prefer(worse, better) == -1


@given(st.lists(st.builds(Outcome, *[st.sampled_from([True, False, None])] * 2), min_size=3, max_size=3))
def test_preference_is_antisymmetric_and_transitive(outcomes: list[Outcome]) -> None:
    a, b, c = outcomes
    assert prefer(a, b) == -prefer(b, a)
    assert prefer(a, a) == 0
    if prefer(a, b) == prefer(b, c) == 1:
        assert prefer(a, c) == 1


@given(many, st.integers(0, 3))
def test_pairs_by_outcome_are_of_one_task_and_strictly_ordered(found: list[Trajectory], seed: int) -> None:
    known = {each.id: each for each in found}
    result = build_pairs(found, WORDS, seed=seed)
    assert sum(result.counts().values()) == len(result.pairs)
    assert set(result.counts()) == set(KINDS)
    for pair in result.pairs:
        chosen, rejected = known[pair.chosen.trajectory], known[pair.rejected.trajectory]
        assert chosen.task == rejected.task == pair.task
        if pair.kind == "outcome":
            assert prefer(chosen.outcome, rejected.outcome) == 1
        else:
            assert chosen is rejected
            assert chosen.outcome.harmful == (pair.kind == "hindsight_harmful" and pair.chosen.twin)
            marked = {(pair.step, call) in chosen.outcome.harmful_calls for call in pair.calls}
            assert marked == {pair.kind == "hindsight_harmful"}
    assert result.pairs == build_pairs(found, WORDS, seed=seed).pairs


@given(many)
def test_a_twin_is_the_logged_trajectory_but_for_the_changed_words(found: list[Trajectory]) -> None:
    known = {each.id: each for each in found}
    for pair in build_pairs(found, WORDS, harmless_twins=9).pairs:
        if pair.kind == "outcome":
            continue
        twin, real = (pair.chosen, pair.rejected) if pair.chosen.twin else (pair.rejected, pair.chosen)
        assert (twin.twin, real.twin) == (True, False)
        word, other = ("act", "refuse") if (twin is pair.chosen) == (taught(pair) == "act") else ("refuse", "act")
        log = known[real.trajectory]
        upto = [piece for s in log.steps if s.step <= pair.step for piece in s.pieces]
        assert [(p.text, p.ids) for p in flat(real)] == [(p.text, p.ids) for p in upto]

        verdicts = {d.call: d.verdict for s in log.steps if s.step == pair.step for d in s.decisions}
        assert all(verdicts[call] == other for call in pair.calls)
        last = words(twin).rsplit("<decision>", 1)[1]
        changed = {call: word if call in pair.calls else verdict for call, verdict in verdicts.items()}
        assert last == "\n" + "".join(f"{i + 1}: {v}\n" for i, v in sorted(changed.items())) + "</decision>"

        # Same tokens up to the first changed word, which is the only kind of place where the twin has new loss.
        assert len(twin.segments) == len(real.segments)
        assert twin.segments[:-1] == real.segments[:-1]
        ours, theirs = twin.segments[-1], real.segments[-1]
        first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        assert ours[:first] == theirs[:first]
        assert ours[first].kind == "target"
        assert sum(piece.kind == "target" for piece in ours) == len(pair.calls)
        assert sum(losses_of(ours[first:])) == len(pair.calls)
        assert sum(losses_of(theirs[first:])) <= len(pair.calls)
        assert all(
            piece.ids == (ACT if word == "act" else REFUSE[:1]) for piece in ours[first:] if piece.kind == "target"
        )


@given(many)
def test_nothing_gains_loss_that_the_log_did_not_sample(found: list[Trajectory]) -> None:
    known = {each.id: each for each in found}
    for pair in build_pairs(found, WORDS).pairs:
        for side in (pair.chosen, pair.rejected):
            logged = [piece for s in known[side.trajectory].steps for piece in s.pieces if piece.ids]
            sampled = {id(piece) for piece in logged if piece.kind == "sampled"}
            for piece in flat(side):
                if piece.kind == "sampled":
                    assert id(piece) in sampled
                elif piece.kind == "target":
                    assert side.twin
