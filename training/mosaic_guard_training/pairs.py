"""Trajectories become preference pairs: by their outcomes, and against their hindsight twins.

Three kinds come of the traces alone:

- `outcome`: two trajectories of one task. A harmless one is better than a harmful one; of two harmless ones, the one
  that completed the task is better. Ties and unknown outcomes give no pair.
- `hindsight_harmful`: to refuse harmful calls is better than to let them run. Of a harmful trajectory, at the first step
  in which one ran: the twin that refuses is better. Of a harmless one, at the first step in which the guard model itself
  refused some: it is better than its twin that lets them run. Without the latter, the traces of a guard that is right
  would teach only to act.
- `hindsight_harmless`: a harmless trajectory is better than its twin that refuses one legitimate call, drawn from those
  that the guard model itself let through.

Two more come of judgements (`preferences.py`): `human` and `llm`.

Left out on purpose: a trajectory that refused a call which is not known to be harmful and failed, against its twin that
lets it run. An outcome names the harmful calls; that another one was legitimate is known only of calls that ran.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from mosaic_guard_training.tokens import LOSS_KINDS
from mosaic_guard_training.twins import REFUSE, Segments, both_sides, last_word, segments, verdict_of, verdict_words

if TYPE_CHECKING:
    from mosaic_guard._decision import Verdict
    from mosaic_guard._trace import Outcome, StepRecord, Trajectory
    from mosaic_guard_training.twins import VerdictIds

PairKind = Literal["outcome", "hindsight_harmful", "hindsight_harmless", "human", "llm"]
KINDS: tuple[PairKind, ...] = ("outcome", "hindsight_harmful", "hindsight_harmless")
"""The kinds that `build_pairs` makes."""

ALL_KINDS: tuple[PairKind, ...] = (*KINDS, "human", "llm")
HINDSIGHT: tuple[PairKind, ...] = ("hindsight_harmful", "hindsight_harmless")


@dataclass(frozen=True)
class Side:
    """One side of a pair.

    Attributes:
        trajectory: Id of the logged trajectory that it is, or that it rewrites.
        segments: Its pieces, one tuple per segment.
        twin: Whether it is a rewrite.
    """

    trajectory: str
    segments: Segments
    twin: bool = False


@dataclass(frozen=True)
class PreferencePair:
    """Two trajectories of one task, of which one is better.

    Attributes:
        task: The task.
        kind: Why one is better.
        chosen: The better one.
        rejected: The worse one.
        step: Number of the step where the two sides part; None where whole trajectories are compared.
        calls: Indices of the calls that one side refuses there and the other lets run.
    """

    task: str
    kind: PairKind
    chosen: Side
    rejected: Side
    step: int | None = None
    calls: tuple[int, ...] = ()


@dataclass
class Pairs:
    """What became of the trajectories.

    Attributes:
        pairs: In a fixed order that depends on the traces and the seed only.
        skipped: Why trajectories or pairs were left out, with how many.
    """

    pairs: list[PreferencePair] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """Number of pairs by kind, every kind named."""
        found = Counter(pair.kind for pair in self.pairs)
        return {kind: found[kind] for kind in KINDS}


def prefer(one: Outcome | None, other: Outcome | None) -> int:
    """1 if `one` is the better outcome, -1 if `other` is, 0 for ties and where it is not known."""
    if one is None or other is None or one.harmful is None or other.harmful is None:
        return 0
    if one.harmful != other.harmful:
        return -1 if one.harmful else 1
    if one.harmful or one.completed is None or other.completed is None:
        return 0
    return int(one.completed) - int(other.completed)


def build_pairs(
    trajectories: Sequence[Trajectory],
    words: VerdictIds,
    *,
    per_task: int = 16,
    harmless_twins: int = 1,
    seed: int = 0,
) -> Pairs:
    """Preference pairs of some trajectories, all logged by guards of one base model.

    Args:
        trajectories: As `read_traces` returns them.
        words: Token ids of the verdict words in that model's tokenizer.
        per_task: Most `outcome` pairs of one task; of more, a random sample is taken.
        harmless_twins: Most `hindsight_harmless` pairs of one trajectory.
        seed: Decides what is drawn.
    """
    result = Pairs()
    tasks: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        tokens = any(piece.ids for step in trajectory.steps for piece in step.pieces)
        if not tokens or trajectory.guard.get("base_model") is None:
            result.skipped["trajectories without tokens of a local guard model"] += 1
        elif trajectory.outcome is None or trajectory.outcome.harmful is None:
            result.skipped["trajectories without a known outcome"] += 1
        else:
            tasks.setdefault(trajectory.task, []).append(trajectory)
    for task, members in tasks.items():
        found = list(_by_outcome(task, members))
        if len(found) > per_task:
            result.skipped[f"outcome pairs beyond {per_task} of one task"] += len(found) - per_task
            found = random.Random(f"{seed}\0{task}").sample(found, per_task)
        result.pairs.extend(found)
        for member in members:
            assert member.outcome is not None  # filtered above
            if member.outcome.harmful:
                result.pairs.extend(_harmful_twin(member, words, result.skipped))
            else:
                result.pairs.extend(_refused_twin(member, words, result.skipped))
                result.pairs.extend(_harmless_twins(member, words, harmless_twins, seed, result.skipped))
    return result


def _by_outcome(task: str, members: Sequence[Trajectory]) -> Iterator[PreferencePair]:
    for one, other in combinations(members, 2):
        better = prefer(one.outcome, other.outcome)
        if better:
            chosen, rejected = (one, other) if better > 0 else (other, one)
            yield PreferencePair(task, "outcome", _side(chosen), _side(rejected))


def _side(trajectory: Trajectory) -> Side:
    return Side(trajectory.id, segments(trajectory.steps))


def _harmful_twin(trajectory: Trajectory, words: VerdictIds, skipped: Counter[str]) -> Iterator[PreferencePair]:
    """The pair at the first step in which a harmful call ran."""
    found = first_harm(trajectory)
    if found is None:
        skipped["harmful trajectories that name no harmful call that ran"] += 1
        return
    pair = step_pair("hindsight_harmful", trajectory, *found, words, act=False)
    if pair is None:
        skipped["harmful trajectories whose harmful step the model did not judge"] += 1
    else:
        yield pair


def _refused_twin(trajectory: Trajectory, words: VerdictIds, skipped: Counter[str]) -> Iterator[PreferencePair]:
    """The pair at the first step in which the model itself refused a harmful call."""
    found = first_refused_harm(trajectory)
    if found is None:
        if _harmful(trajectory):
            skipped["harmless trajectories whose harmful calls the model did not refuse by itself"] += 1
        return
    pair = step_pair("hindsight_harmful", trajectory, *found, words, act=False)
    if pair is not None:
        yield pair


def _harmless_twins(
    trajectory: Trajectory, words: VerdictIds, most: int, seed: int, skipped: Counter[str]
) -> Iterator[PreferencePair]:
    """Pairs at legitimate calls that the model itself let through, whether or not they have side effects."""
    legitimate = [(at, call) for at, call in legitimate_calls(trajectory) if chose(trajectory.steps[at], call)]
    if not legitimate:
        skipped["harmless trajectories in which the model let no legitimate call through"] += 1
    draw = random.Random(f"{seed}\0{trajectory.id}").sample(legitimate, min(most, len(legitimate)))
    for at, call in sorted(draw):
        pair = step_pair("hindsight_harmless", trajectory, at, (call,), words, act=True)
        if pair is not None:
            yield pair


def step_pair(
    kind: PairKind,
    trajectory: Trajectory,
    at: int,
    calls: tuple[int, ...],
    words: VerdictIds,
    *,
    act: bool,
) -> PreferencePair | None:
    """The pair that parts at some calls of one step.

    Args:
        kind: Of the pair.
        trajectory: What was logged.
        at: Index of the step in `trajectory.steps`.
        calls: Indices of the calls.
        words: Token ids of the verdict words.
        act: Whether to let them run is better.

    Returns:
        None if the log does not hold the tokens of one of these verdicts.
    """
    sides = both_sides(trajectory, at, calls, *words)
    if sides is None:
        return None
    acts = Side(trajectory.id, sides.acts, sides.acts_is_twin)
    refuses = Side(trajectory.id, sides.refuses, sides.refuses_is_twin)
    chosen, rejected = (acts, refuses) if act else (refuses, acts)
    return PreferencePair(trajectory.task, kind, chosen, rejected, trajectory.steps[at].step, calls)


def first_harm(trajectory: Trajectory) -> tuple[int, tuple[int, ...]] | None:
    """(index of the step, indices of the calls) where known harmful calls first ran; None if none did."""
    return _first(trajectory, "act")


def first_refused_harm(trajectory: Trajectory) -> tuple[int, tuple[int, ...]] | None:
    """(index of the step, indices of the calls) where the model itself first refused known harmful calls, or None."""
    return _first(trajectory, "refuse", chose)


def _first(
    trajectory: Trajectory, verdict: Verdict, counts: Callable[[StepRecord, int], bool] = lambda *_: True
) -> tuple[int, tuple[int, ...]] | None:
    """Where known harmful calls first got a verdict, of those that count."""
    harmful = _harmful(trajectory)
    for at, step in enumerate(trajectory.steps):
        got = [call for call, said in sorted(verdict_of(step).items()) if said == verdict]
        calls = tuple(call for call in got if (step.step, call) in harmful and counts(step, call))
        if calls:
            return at, calls
    return None


def legitimate_calls(trajectory: Trajectory) -> list[tuple[int, int]]:
    """(index of the step, index of the call) of each call that ran and is not known to be harmful."""
    harmful = _harmful(trajectory)
    return [
        (at, call)
        for at, step in enumerate(trajectory.steps)
        for call, verdict in sorted(verdict_of(step).items())
        if verdict == "act" and (step.step, call) not in harmful
    ]


def chose(step: StepRecord, call: int) -> bool:
    """Whether the guard model itself chose the verdict that was logged for a call, token by token, or hindsight wrote it.

    What a policy, a threshold or a person decided carries no loss, so that its twin alone would be trained. Where a person
    was asked, the word is the model's own and the verdict may be another.
    """
    word = verdict_words(step).get(call)
    if word is None or step.pieces[word.start].kind not in LOSS_KINDS:
        return False
    return "".join(piece.text for piece in step.pieces[word]).strip() == verdict_of(step).get(call)


def taught(pair: PreferencePair) -> Literal["act", "refuse"] | None:
    """What the better side of a pair that parts at some calls says there; None where whole trajectories are compared."""
    if pair.kind in HINDSIGHT:
        return "refuse" if pair.kind == "hindsight_harmful" else "act"
    if pair.step is None:
        return None
    return "refuse" if last_word(pair.chosen.segments, pair.calls[0]) == REFUSE else "act"


def _harmful(trajectory: Trajectory) -> set[tuple[int, int]]:
    return {(step, call) for step, call in trajectory.outcome.harmful_calls} if trajectory.outcome else set()
