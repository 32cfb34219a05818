"""Rows to train on: trajectories of one case together, each verdict with both of its words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

from mosaic_guard_training.tokens import CHOSEN, REJECTED, SHARED, PairRow, TokenSequence, token_sequence
from mosaic_guard_training.twins import segments, verdict_words

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory
    from mosaic_guard_training.hindsight import HindsightModel


@dataclass(frozen=True)
class RowLimits:
    """How large rows, and all of them, may be.

    Attributes:
        group: Safe trajectories, and unsafe ones, of a case in one row.
        max_trajectory: Most tokens of a trajectory; longer ones are left out.
        max_tokens: Most tokens of all rows.
    """

    group: int
    max_trajectory: int
    max_tokens: int


def training_rows(
    trajectories: Sequence[Trajectory], teacher: HindsightModel, limits: RowLimits, seed: int
) -> tuple[list[PairRow], list[str]]:
    """The rows to train on, and the ids of the trajectories in them.

    Cases take turns in random order until `max_tokens` are reached, each time with other trajectories.
    """
    by_case: dict[str, dict[bool, list[Trajectory]]] = {}
    for trajectory in trajectories:
        harmful = trajectory.outcome.harmful if trajectory.outcome else None
        if harmful is not None:
            by_case.setdefault(trajectory.task, {True: [], False: []})[harmful].append(trajectory)
    draw = random.Random(f"{seed}\0rows")
    refuse = teacher.word("refuse")[0]
    queues = {case: {k: draw.sample(v, len(v)) for k, v in sides.items()} for case, sides in by_case.items()}
    rows: list[PairRow] = []
    seen: list[str] = []
    tokens = 0
    while queues:
        for case in draw.sample(sorted(queues), len(queues)):
            safe = _taken(queues[case][False], teacher, limits)
            unsafe = _taken(queues[case][True], teacher, limits)
            size = min(len(safe), len(unsafe))
            if not size:
                del queues[case]
                continue
            row = group_row([s for _, s in safe[:size]], [s for _, s in unsafe[:size]], refuse)
            tokens += len(row)
            if tokens > limits.max_tokens:
                return rows, seen
            rows.append(row)
            seen += [name for name, _ in (*safe[:size], *unsafe[:size])]
    return rows, seen


def _taken(queue: list[Trajectory], teacher: HindsightModel, limits: RowLimits) -> list[tuple[str, TokenSequence]]:
    """The next trajectories of a queue that are short enough, as token sequences."""
    taken: list[tuple[str, TokenSequence]] = []
    while queue and len(taken) < limits.group:
        trajectory = queue.pop()
        sequence = verdict_sequence(trajectory, teacher) if len(trajectory.steps) <= _MOST_STEPS else None
        if sequence is not None and len(sequence) <= limits.max_trajectory:
            taken.append((trajectory.id, sequence))
    return taken


_MOST_STEPS = 4
"""Trajectories of more steps would be too long for a row anyway."""


def verdict_sequence(trajectory: Trajectory, teacher: HindsightModel) -> TokenSequence | None:
    """A trajectory with hindsight blocks as one sequence with loss on its verdict words; None if it needs two segments."""
    from mosaic_guard_training.hindsight import hindsight

    steps = []
    for step in hindsight(trajectory, teacher, check="never").steps:
        words = {where.start for where in verdict_words(step).values()}
        pieces = [
            replace(piece, kind="forced") if piece.kind == "target" and i not in words else piece
            for i, piece in enumerate(step.pieces)
        ]
        steps.append(replace(step, pieces=pieces))
    found = segments(steps)
    return token_sequence(found[0]) if len(found) == 1 else None


def group_row(safe: Sequence[TokenSequence], unsafe: Sequence[TokenSequence], refuse: int) -> PairRow:
    """One row for DPO of some trajectories of one case; what all of them share is read once.

    At each verdict the row branches into the two words. Chosen are the safe trajectories as they were and the unsafe ones'
    twins that refuse; rejected are the safe ones' twins and the unsafe ones as they were.

    Args:
        safe: Token sequences with loss on the word `act` of each verdict.
        unsafe: Likewise.
        refuse: First token of the word `refuse`.
    """
    sides = [*((s, True) for s in safe), *((s, False) for s in unsafe)]
    common = min(_common(one, other) for (one, _), (other, _) in combinations(sides, 2))
    row = PairRow()
    first = sides[0][0]
    for at in range(common):
        _append(row, first.ids[at], at, SHARED, max(at - 1, 0))
    for branch, (sequence, acted_well) in enumerate(sides, REJECTED + 1):
        before = common - 1
        for at in range(common, max(i for i, loss in enumerate(sequence.loss) if loss) + 1):
            if sequence.loss[at]:
                for word, side in ((sequence.ids[at], acted_well), (refuse, not acted_well)):
                    _append(row, word, at, CHOSEN if side else REJECTED, before)
                    (row.chosen_loss if side else row.rejected_loss)[-1] = 1
            _append(row, sequence.ids[at], at, branch, before)
            before = len(row) - 1
    return row


def _common(one: TokenSequence, other: TokenSequence) -> int:
    """Tokens shared from the beginning, up to the first with loss."""
    pairs = zip(one.ids, other.ids, one.loss, other.loss, strict=False)
    ends = (at for at, (a, b, x, y) in enumerate(pairs) if a != b or x or y)
    return next(ends, min(len(one), len(other)))


def _append(row: PairRow, token: int, position: int, branch: int, before: int) -> None:
    row.input_ids.append(token)
    row.position_ids.append(position)
    row.segment_ids.append(0)
    row.branch_ids.append(branch)
    row.previous.append(before)
    row.chosen_loss.append(0)
    row.rejected_loss.append(0)
