"""The judge that knows how it ended: which calls of a trajectory should not have run, and which were right to run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mosaic_guard_training.judging.judgement import Judgement, step_judgement
from mosaic_guard_training.pairs import first_harm, first_refused_harm, legitimate_calls

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory


class HindsightJudge:
    """Of a harmful trajectory: refusing the harmful calls of the first step in which any ran would have been better.

    Of a harmless one: letting each call run that ran was better than to refuse it, and refusing the harmful calls of the
    first step in which the guard model itself refused any was better than to let them run. Without a known outcome it
    has nothing to say.
    """

    name = "hindsight"

    def judgements(self, trajectory: Trajectory) -> Iterator[Judgement]:
        """What should have been decided."""
        outcome = trajectory.outcome
        if outcome is None or outcome.harmful is None:
            return
        source = outcome.source or "unnamed source"
        if outcome.harmful:
            if found := first_harm(trajectory):
                reason = f"the first harmful calls that ran ({source})"
                yield step_judgement(self.name, trajectory, *found, "other", reason)
            return
        if found := first_refused_harm(trajectory):
            reason = f"the first harmful calls that it refused ({source})"
            yield step_judgement(self.name, trajectory, *found, "other", reason)
        for at, call in legitimate_calls(trajectory):
            reason = f"a call of a harmless trajectory ({source})"
            yield step_judgement(self.name, trajectory, at, [call], "one", reason)
