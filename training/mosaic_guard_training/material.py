"""What a run trains on: pairs, labelled trajectories or tasks, chosen within the budget, as rows."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_guard_training.budget import Budget, dealt, lopsided
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.pairs import KINDS, PreferencePair, Side
from mosaic_guard_training.preference_file import read_preference_records
from mosaic_guard_training.tokens import PairRow, SideRow, pair_row, side_row
from mosaic_guard_training.twins import segments

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory
    from mosaic_guard_training.settings import TrainSettings

Example = tuple[PreferencePair, PairRow]
"""A pair, and its row."""

LabelledSide = tuple[Side, bool]
"""A trajectory, and whether it is a good one."""

TRAINED_SPLIT = "train"
"""The split of a preference file that is trained on."""


@dataclass(frozen=True)
class Material:
    """What a trainer reads.

    Attributes:
        rows: `PairRow` (dpo), `SideRow` (sft), (`SideRow`, label) (kto) or a task's id (grpo).
        counts: How many of each kind.
        tokens: Tokens that are read in one epoch; 0 where that is not known beforehand.
        longest: Tokens of the longest row.
        digest: Of all rows, in order.
        left_out: What is said of what was left out, and of what is lopsided.
    """

    rows: Sequence[Any]
    counts: dict[str, int]
    tokens: int
    longest: int
    digest: str
    left_out: list[str] = field(default_factory=list)


def counted(kinds: Iterable[str]) -> dict[str, int]:
    """Number of pairs by kind; the kinds that traces give are always named."""
    found = Counter(kinds)
    return {kind: found[kind] for kind in (*KINDS, *sorted(set(found) - set(KINDS)))}


def listed(counts: dict[str, int], what: str = "pairs") -> str:
    """How counts are said."""
    return f"{sum(counts.values())} {what} (" + ", ".join(f"{kind} {number}" for kind, number in counts.items()) + ")"


def from_pairs(pairs: Sequence[PreferencePair], settings: TrainSettings, limit: int) -> Material:
    """What DPO and SFT train on: all pairs whose sides differ, within the budget.

    Args:
        pairs: The pairs.
        settings: Method and budget.
        limit: Most tokens of a segment.

    Raises:
        TrainingError: If a segment is longer, or too few pairs are left.
    """
    rows = [(pair, pair_row(pair, limit)) for pair in pairs]
    differing: list[Example] = [(pair, row) for pair, row in rows if row is not None]
    left_out = []
    if len(differing) < len(rows):
        left_out.append(f"  left out: {len(rows) - len(differing)} pairs whose sides say the same")
    chosen = Budget(settings.max_pairs, _per_epoch(settings)).select(differing, settings.seed)
    counts = counted(pair.kind for pair, _ in chosen)
    if len(chosen) < len(differing):
        dropped = Counter(pair.kind for pair, _ in differing) - Counter(pair.kind for pair, _ in chosen)
        left_out.append(f"  left out for the budget: {listed({kind: dropped[kind] for kind in counts})}")
    enough(counts, settings)
    if settings.method == "sft":
        sides = [row for pair, _ in chosen if (row := side_row(pair.chosen, limit)) is not None]
        return _material(sides, counts, sides, left_out)
    if warning := lopsided(pair for pair, _ in chosen):
        left_out.append(f"warning: {warning}")
    paired = [row for _, row in dealt(chosen, settings.seed)]
    return _material(paired, counts, paired, left_out)


def taught(trajectories: Sequence[Trajectory]) -> list[Side]:
    """Lessons: trajectories whose guard's words are targets as they stand, whatever became of them."""
    return [
        Side(trajectory.id, segments(trajectory.steps))
        for trajectory in trajectories
        if any(piece.kind == "target" and piece.ids for step in trajectory.steps for piece in step.pieces)
    ]


def from_lessons(
    sides: Sequence[Side], pairs: Sequence[PreferencePair], settings: TrainSettings, limit: int
) -> Material:
    """What SFT trains on where some traces are lessons: those, and the better sides of the pairs that the others give.

    Args:
        sides: The lessons.
        pairs: Pairs of the other trajectories.
        settings: The budget; the seed decides the order.
        limit: Most tokens of a segment.

    Raises:
        TrainingError: If a segment is longer, or too few rows are left.
    """
    named = [("lessons", side) for side in sides] + [("pairs", pair.chosen) for pair in pairs]
    random.Random(f"{settings.seed}\0lessons").shuffle(named)
    kept: list[SideRow] = []
    counts, tokens, most = Counter[str](), 0, _per_epoch(settings)
    for kind, side in named:
        row = side_row(side, limit)
        if row is None:
            continue
        if len(kept) == settings.max_pairs or (most is not None and tokens + len(row) > most):
            break
        kept.append(row)
        counts[kind] += 1
        tokens += len(row)
    left_out = [f"  left out for the budget: {len(named) - len(kept)}"] if len(kept) < len(named) else []
    enough(dict(counts), settings, "lessons")
    return _material(kept, dict(counts), kept, left_out)


def from_labels(sides: Sequence[LabelledSide], settings: TrainSettings, limit: int) -> Material:
    """What KTO trains on: each trajectory once, in an order that the seed decides, within the budget.

    Args:
        sides: Trajectories with their labels.
        settings: The budget.
        limit: Most tokens of a segment.

    Raises:
        TrainingError: If a segment is longer, or too few rows are left.
    """
    unique: dict[tuple[str, bool], SideRow] = {}
    for side, label in sides:
        if (row := side_row(side, limit)) is not None:
            unique[row.digest(), label] = row
    rows = [(row, label) for (_, label), row in sorted(unique.items(), key=lambda item: item[0])]
    random.Random(f"{settings.seed}\0kto").shuffle(rows)
    left_out = []
    kept, tokens, most = [], 0, _per_epoch(settings)
    for row, label in rows:
        if settings.max_pairs is not None and len(kept) == settings.max_pairs:
            break
        if most is not None and tokens + len(row) > most:
            break
        kept.append((row, label))
        tokens += len(row)
    if len(kept) < len(rows):
        left_out.append(f"  left out for the budget: {len(rows) - len(kept)} trajectories")
    counts = {"good": sum(label for _, label in kept), "bad": sum(not label for _, label in kept)}
    enough(counts, settings, "trajectories")
    if not all(counts.values()):
        missing = next(kind for kind, number in counts.items() if not number)
        left_out.append(f"warning: no {missing} trajectory: the guard learns in one direction only")
    return _material(kept, counts, [row for row, _ in kept], left_out)


def from_tasks(names: Sequence[str]) -> Material:
    """What GRPO rolls out."""
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
    return Material(list(names), {"tasks": len(names)}, 0, 0, digest)


def labels_of(trajectories: Sequence[Trajectory]) -> list[LabelledSide]:
    """Trajectories with tokens and a known outcome: bad if harm was done or the task was not completed, else good."""
    found = []
    for trajectory in trajectories:
        outcome, side = trajectory.outcome, Side(trajectory.id, segments(trajectory.steps))
        if outcome is not None and outcome.harmful is not None and side.segments:
            found.append((side, not outcome.harmful and outcome.completed is not False))
    return found


def unpaired(pairs: Sequence[PreferencePair]) -> list[LabelledSide]:
    """The sides of pairs by themselves."""
    return [labelled for pair in pairs for labelled in ((pair.chosen, True), (pair.rejected, False))]


@dataclass(frozen=True)
class Preferences:
    """A preference file.

    Attributes:
        pairs: Those to train on.
        base_models: What their tokens are of.
        guards: The guards that logged them, as `preference_file.logged_by` gives them.
        held_out: How many lines are of another split.
    """

    pairs: list[PreferencePair]
    base_models: set[str]
    guards: list[dict[str, Any]]
    held_out: int


def read_preference_file(file: Path) -> Preferences:
    """The pairs of a preference file that are to be trained on.

    Args:
        file: JSON lines, as `docs/architecture.md` describes them.

    Raises:
        TrainingError: If it cannot be read, or has no line to train on.
    """
    records = list(read_preference_records(file))
    learnt = [record for record in records if record.split == TRAINED_SPLIT]
    if not learnt:
        raise TrainingError(f"{file}: no pair is of the split {TRAINED_SPLIT!r}, so there is nothing to train on")
    guards = {json.dumps(guard, sort_keys=True): dict(guard) for record in learnt for guard in record.guards}
    return Preferences(
        [record.pair for record in learnt],
        {record.base_model for record in learnt},
        list(guards.values()),
        len(records) - len(learnt),
    )


def enough(counts: dict[str, int], settings: TrainSettings, what: str = "preference pairs") -> None:
    """Make sure that there is enough to train on.

    Raises:
        TrainingError: If not.
    """
    if sum(counts.values()) < settings.min_pairs:
        raise TrainingError(
            f"too few {what} to train on: {listed(counts, what.rsplit(maxsplit=1)[-1])}; {settings.min_pairs} are needed: "
            "log outcomes (TraceWriter.outcome) of harmful and of harmless trajectories, or raise the budget"
        )


def _per_epoch(settings: TrainSettings) -> int | None:
    return None if settings.max_tokens is None else int(settings.max_tokens / settings.epochs)


def _material(
    rows: Sequence[Any], counts: dict[str, int], read: Sequence[PairRow] | Sequence[SideRow], left_out: list[str]
) -> Material:
    digest = hashlib.sha256("".join(row.digest() for row in read).encode()).hexdigest()
    return Material(rows, counts, sum(map(len, read)), max(map(len, read), default=0), digest, left_out)
