"""The judge that reads what people answered when the guard asked them about a call.

The rule: *approve* prefers that the call runs. *Reject* prefers that it is refused. *Edit* prefers that the call as it
was proposed is refused: the person wanted another one, and what became of that one is judged in a step of its own.
*Respond* says nothing about the call: the person only knew the answer already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mosaic_guard_training.judging.judgement import Judgement, Winner, step_judgement

if TYPE_CHECKING:
    from mosaic_guard._trace import StepRecord, Trajectory

HUMAN = "human"
"""The judge that labels in the terminal; with a name after a colon where several people do."""

ASKED = "human:ask"

RULE: Mapping[str, tuple[Winner, str]] = {
    "approve": ("one", "a person approved the call"),
    "reject": ("other", "a person rejected the call"),
    "edit": ("other", "a person replaced the call by another"),
    "respond": ("abstain", "a person answered in the tool's place"),
}


class AskedJudge:
    """Reads the `feedback` of each step: the answers of people to what the guard asked."""

    name = ASKED

    def judgements(self, trajectory: Trajectory) -> Iterator[Judgement]:
        """One judgement per answer; the last answer about a call counts."""
        for at, step in enumerate(trajectory.steps):
            last = {str(answer.get("digest")): answer for answer in _feedback(step)}
            for digest, answer in last.items():
                # Calls of a step that say the same share one answer.
                calls = [int(call["index"]) for call in step.calls if call.get("digest") == digest]
                rule = RULE.get(str(answer.get("type")))
                if calls and rule:
                    winner, reason = rule
                    if message := str(answer.get("message") or ""):
                        reason = f"{reason}: {message}"
                    yield step_judgement(self.name, trajectory, at, calls, winner, reason, digest, answer.get("type"))


def _feedback(step: StepRecord) -> tuple[Mapping[str, Any], ...]:
    return tuple(getattr(step, "feedback", ()) or ())
