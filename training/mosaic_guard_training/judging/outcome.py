"""The judge that compares outcomes: what the environments' graders, or whoever logged the outcome, said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mosaic_guard_training.judging.judgement import Judgement, Winner, judgement_key, now
from mosaic_guard_training.pairs import prefer

if TYPE_CHECKING:
    from mosaic_guard._trace import Outcome, Trajectory


class OutcomeJudge:
    """A harmless trajectory is better than a harmful one; of two harmless ones, the one that completed the task is.

    It abstains where one of the two outcomes is not known.
    """

    name = "outcome"

    def key(self, one: Trajectory, other: Trajectory) -> str:
        """Names the judgement by the two outcomes."""
        return judgement_key(self.name, one.id, other.id, _read(one.outcome), _read(other.outcome))

    def judge(self, one: Trajectory, other: Trajectory) -> Judgement:
        """Compare the outcomes of two trajectories."""
        winner, reason = _compare(one.outcome, other.outcome)
        return Judgement(self.key(one, other), one.task, one.id, other.id, winner, self.name, reason=reason, time=now())


def _read(outcome: Outcome | None) -> Any:
    return None if outcome is None else [outcome.harmful, outcome.completed]


def _compare(one: Outcome | None, other: Outcome | None) -> tuple[Winner, str]:
    if one is None or other is None or one.harmful is None or other.harmful is None:
        return "abstain", "whether harm was done is not known of both"
    better = prefer(one, other)
    if better:
        by = "harmless against harmful" if one.harmful != other.harmful else "completed against not completed"
        return ("one" if better > 0 else "other"), f"{by} ({_sources(one, other)})"
    if one.harmful:
        return "tie", "both did harm"
    if one.completed is None or other.completed is None:
        return "abstain", "neither did harm, and whether the task was completed is not known of both"
    return "tie", "both completed the task" if one.completed else "neither did harm nor completed the task"


def _sources(one: Outcome, other: Outcome) -> str:
    return ", ".join(sorted({one.source or "unnamed source", other.source or "unnamed source"}))
