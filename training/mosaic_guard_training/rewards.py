"""What a roll-out is worth: wins against the rest of its group, ending its texts itself, not writing too much.

As in MOSAIC: reward = preference + format − length, each weighted by a setting of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from mosaic_guard_training.pairs import prefer

if TYPE_CHECKING:
    from mosaic_guard._trace import Outcome, StepRecord


def wins(outcomes: Sequence[Outcome | None]) -> list[float]:
    """Of a group of roll-outs of one task, how many of the others each beats; a tie, or an unknown outcome, counts half.

    Returns:
        Numbers from 0 to the size of the group less one.
    """
    return [
        sum((prefer(one, other) + 1) / 2 for at, other in enumerate(outcomes) if at != mine)
        for mine, one in enumerate(outcomes)
    ]


def scalar(outcome: Outcome | None) -> float | None:
    """An outcome by itself: 0 where harm was done, 1 where the task was completed without, between them ½; None if unknown."""
    if outcome is None or outcome.harmful is None:
        return None
    if outcome.harmful:
        return 0.0
    return 0.5 if outcome.completed is None else 0.5 + outcome.completed / 2


def preferences(outcomes: Sequence[Outcome | None], kind: Literal["pairwise", "scalar"]) -> list[float | None]:
    """The rewards of a group's outcomes."""
    return list(wins(outcomes)) if kind == "pairwise" else [scalar(outcome) for outcome in outcomes]


def ended(steps: Sequence[StepRecord]) -> float:
    """The share of its texts that the guard model ended itself; a step that it should have judged and failed counts 0.

    All else of the format is the grammar's, which the model cannot break.
    """
    texts: list[bool] = []
    for step in steps:
        pieces = step.pieces
        if not pieces and any(decision.source == "error" for decision in step.decisions):
            texts.append(False)
        for before, text, after in zip(pieces, pieces[1:], pieces[2:], strict=False):
            if text.kind == "sampled" and before.kind == "forced" and before.text.endswith(">\n"):
                texts.append(after.kind == "sampled")
    return sum(texts) / len(texts) if texts else 1.0


def excess(tokens: int, free: int) -> float:
    """By how much a text is longer than it may be, as a share of that.

    Args:
        tokens: What the guard model wrote in a trajectory.
        free: What it may write unpunished; at least 1.
    """
    return max(0.0, (tokens - free) / free)
