"""Trajectories become preference pairs: by their outcomes, and against their hindsight twins.

Three kinds come of the traces alone:

- `outcome`: two trajectories of one task. A harmless one is better than a harmful one; of two harmless ones, the one
  that completed the task is better. Ties and unknown outcomes give no pair.
- `hindsight_harmful`: the twin that refuses the harmful calls of the first step in which one ran is better than the
  harmful trajectory.
- `hindsight_harmless`: a harmless trajectory is better than its twin that refuses one legitimate call, drawn from those
  that the guard model itself let through.

Two more come of judgements (`preferences.py`): `human` and `llm`.

Left out on purpose: a trajectory that refused a harmful call against one that acts there, and one that refused a
legitimate call and failed against one that acts there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from mosaic_guard_training.tokens import LOSS_KINDS
from mosaic_guard_training.twins import (
    REFUSE,
    Segments,
    last_word,
    refusal_twin,
    segments,
    verdict_of,
    verdict_words,
)

if TYPE_CHECKING:
    from mosaic_guard._trace import Outcome, StepRecord, Trajectory

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
    refuse_ids: Sequence[int],
    *,
    per_task: int = 16,
    harmless_twins: int = 1,
    seed: int = 0,
) -> Pairs:
    """Preference pairs of some trajectories, all logged by guards of one base model.

    Args:
        trajectories: As `read_traces` returns them.
        refuse_ids: Token ids of ` refuse` in that model's tokenizer.
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
                result.pairs.extend(_harmful_twin(member, refuse_ids, result.skipped))
            else:
                result.pairs.extend(_harmless_twins(member, refuse_ids, harmless_twins, seed, result.skipped))
    return result


def _by_outcome(task: str, members: Sequence[Trajectory]) -> Iterator[PreferencePair]:
    for one, other in combinations(members, 2):
        better = prefer(one.outcome, other.outcome)
        if better:
            chosen, rejected = (one, other) if better > 0 else (other, one)
            yield PreferencePair(task, "outcome", _side(chosen), _side(rejected))


def _side(trajectory: Trajectory) -> Side:
    return Side(trajectory.id, segments(trajectory.steps))


def _harmful_twin(trajectory: Trajectory, refuse_ids: Sequence[int], skipped: Counter[str]) -> Iterator[PreferencePair]:
    """The pair at the first step in which a harmful call ran."""
    found = first_harm(trajectory)
    if found is None:
        skipped["harmful trajectories that name no harmful call that ran"] += 1
        return
    at, ran = found
    twin = refusal_twin(trajectory, at, ran, refuse_ids)
    if twin is None:
        skipped["harmful trajectories whose harmful step the model did not judge"] += 1
        return
    yield PreferencePair(
        trajectory.task,
        "hindsight_harmful",
        Side(trajectory.id, twin.refused, twin=True),
        Side(trajectory.id, twin.as_was),
        trajectory.steps[at].step,
        ran,
    )


def _harmless_twins(
    trajectory: Trajectory, refuse_ids: Sequence[int], most: int, seed: int, skipped: Counter[str]
) -> Iterator[PreferencePair]:
    """Pairs at legitimate calls that the model itself let through, whether or not they have side effects."""
    legitimate = [(at, call) for at, call in legitimate_calls(trajectory) if chose(trajectory.steps[at], call)]
    if not legitimate:
        skipped["harmless trajectories in which the model let no legitimate call through"] += 1
    draw = random.Random(f"{seed}\0{trajectory.id}").sample(legitimate, min(most, len(legitimate)))
    for at, call in sorted(draw):
        twin = refusal_twin(trajectory, at, [call], refuse_ids)
        if twin is not None:
            yield PreferencePair(
                trajectory.task,
                "hindsight_harmless",
                Side(trajectory.id, twin.as_was),
                Side(trajectory.id, twin.refused, twin=True),
                trajectory.steps[at].step,
                (call,),
            )


def first_harm(trajectory: Trajectory) -> tuple[int, tuple[int, ...]] | None:
    """(index of the step, indices of the calls) where known harmful calls first ran; None if none did."""
    harmful = _harmful(trajectory)
    for at, step in enumerate(trajectory.steps):
        ran = tuple(
            sorted(
                call for call, verdict in verdict_of(step).items() if verdict == "act" and (step.step, call) in harmful
            )
        )
        if ran:
            return at, ran
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

    What a policy, a threshold or a person decided carries no loss, so that its twin alone would be trained.
    """
    word = verdict_words(step).get(call)
    return word is not None and step.pieces[word.start].kind in LOSS_KINDS


def taught(pair: PreferencePair) -> Literal["act", "refuse"] | None:
    """What the better side of a pair that parts at some calls says there; None where whole trajectories are compared."""
    if pair.kind in HINDSIGHT:
        return "refuse" if pair.kind == "hindsight_harmful" else "act"
    if pair.step is None:
        return None
    return "refuse" if last_word(pair.chosen.segments, pair.calls[0]) == REFUSE else "act"


def _harmful(trajectory: Trajectory) -> set[tuple[int, int]]:
    return {(step, call) for step, call in trajectory.outcome.harmful_calls} if trajectory.outcome else set()
