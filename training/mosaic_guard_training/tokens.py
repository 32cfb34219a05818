"""Pieces become token sequences, and a pair of them becomes one row that a model reads once.

Each segment is a training sequence of its own; a trajectory's log-probability is the sum over the tokens of its
segments that carry loss (`sampled` and `target`, nothing else).

The two sides of a pair mostly say the same: what they share is read once, then each side goes its own way. Left out is
only what cannot change the difference of the two log-probabilities that DPO trains on: the loss of shared tokens (it
cancels), segments that are equal on both sides, and what follows a side's last token with loss in a segment. Nothing
else is ever cut: a sequence that is longer than the limit is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

from mosaic_guard_training.errors import TrainingError

if TYPE_CHECKING:
    from mosaic_guard._transcript import Piece
    from mosaic_guard_training.pairs import PreferencePair, Side

LOSS_KINDS = frozenset({"sampled", "target"})
"""The kinds of pieces that loss falls on."""

SHARED, CHOSEN, REJECTED = 0, 1, 2
"""The branch that a token of a row belongs to."""


@dataclass(frozen=True)
class TokenSequence:
    """One segment of one side.

    Attributes:
        ids: Token ids, as the guard model read and wrote them.
        loss: Whether loss falls on each of them; as long as `ids`.
    """

    ids: tuple[int, ...] = ()
    loss: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class PairRow:
    """A pair as one row of T tokens; every list has T entries.

    A token sees the tokens before it in its own segment that are shared or of its own branch.

    Attributes:
        input_ids: Token ids.
        position_ids: Place in the token's own sequence, from 0.
        segment_ids: Number of the token's segment, from 0.
        branch_ids: `SHARED`, `CHOSEN` or `REJECTED`.
        previous: Index in the row of the token before it in its own sequence; 0 for a sequence's first token.
        chosen_loss: 1 where the token counts for the chosen side; never on shared tokens.
        rejected_loss: 1 where the token counts for the rejected side; never on shared tokens.
    """

    input_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    segment_ids: list[int] = field(default_factory=list)
    branch_ids: list[int] = field(default_factory=list)
    previous: list[int] = field(default_factory=list)
    chosen_loss: list[int] = field(default_factory=list)
    rejected_loss: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    def to_dict(self) -> dict[str, list[int]]:
        """The form that a data set holds."""
        return asdict(self)

    def digest(self) -> str:
        """SHA-256 over the row, hexadecimal."""
        return hashlib.sha256(repr(self.to_dict()).encode()).hexdigest()

    def _append(self, sequence: TokenSequence, start: int, end: int, branch: int, segment: int, before: int) -> int:
        """Add `sequence[start:end]`, which follows the row's token `before`; returns the index of the last one."""
        for position in range(start, end):
            loss = int(sequence.loss[position])
            self.input_ids.append(sequence.ids[position])
            self.position_ids.append(position)
            self.segment_ids.append(segment)
            self.branch_ids.append(branch)
            self.previous.append(before)
            self.chosen_loss.append(loss if branch == CHOSEN else 0)
            self.rejected_loss.append(loss if branch == REJECTED else 0)
            before = len(self) - 1
        return before


@dataclass
class SideRow:
    """One side, or one trajectory, as a row of T tokens: its segments one after the other; every list has T entries.

    Attributes:
        input_ids: Token ids.
        segment_ids: Number of the token's segment, from 1.
        loss: 1 where loss falls on the token.
    """

    input_ids: list[int] = field(default_factory=list)
    segment_ids: list[int] = field(default_factory=list)
    loss: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    def digest(self) -> str:
        """SHA-256 over the row, hexadecimal."""
        return hashlib.sha256(repr(asdict(self)).encode()).hexdigest()


def side_row(side: Side, max_length: int) -> SideRow | None:
    """The row of one side; None where no loss falls on it.

    Left out is only what loss does not depend on: segments without loss, and what follows a segment's last token with it.

    Args:
        side: The side.
        max_length: Most tokens that a segment (not the row) may have.

    Raises:
        TrainingError: If a segment is longer.
    """
    row = SideRow()
    for sequence in side_sequences(side, max_length):
        end = _last_loss(sequence, 0)
        if end:
            row.input_ids += sequence.ids[:end]
            row.segment_ids += [row.segment_ids[-1] + 1 if row.segment_ids else 1] * end
            row.loss += [int(each) for each in sequence.loss[:end]]
    return row if len(row) else None


def token_sequence(pieces: Sequence[Piece]) -> TokenSequence:
    """The tokens of one segment, with loss on `sampled` and `target` pieces.

    The first token of all never carries loss: there is nothing before it to predict it from.
    """
    ids = [i for piece in pieces for i in piece.ids]
    loss = [piece.kind in LOSS_KINDS for piece in pieces for _ in piece.ids]
    if loss:
        loss[0] = False
    return TokenSequence(tuple(ids), tuple(loss))


def side_sequences(side: Side, max_length: int) -> list[TokenSequence]:
    """The token sequences of one side of a pair, one per segment.

    Args:
        side: The side.
        max_length: Most tokens that a sequence may have.

    Raises:
        TrainingError: If a sequence is longer; it names the trajectory and the length.
    """
    sequences = [token_sequence(pieces) for pieces in side.segments]
    for number, sequence in enumerate(sequences):
        if len(sequence) > max_length:
            raise TrainingError(
                f"trajectory {side.trajectory!r} has {len(sequence)} tokens in segment {number}, more than the limit "
                f"of {max_length}: raise --max-length (up to the model's window) or leave this trajectory out"
            )
    return sequences


def pair_row(pair: PreferencePair, max_length: int) -> PairRow | None:
    """The row of a pair; None where the two sides carry the same loss, so that there is nothing to prefer.

    Args:
        pair: The pair.
        max_length: Most tokens that a sequence (not the row) may have.

    Raises:
        TrainingError: If a sequence is longer.
    """
    return merge(side_sequences(pair.chosen, max_length), side_sequences(pair.rejected, max_length))


def merge(chosen: Sequence[TokenSequence], rejected: Sequence[TokenSequence]) -> PairRow | None:
    """One row of two sides; segments are paired in order. None where the sides carry the same loss."""
    row = PairRow()
    segment = 0
    for one, other in zip_longest(chosen, rejected, fillvalue=TokenSequence()):
        common = _common(one, other)
        ends = [_last_loss(sequence, common) for sequence in (one, other)]
        if max(ends) <= common:
            continue
        last = row._append(one, 0, common, SHARED, segment, 0)
        row._append(one, common, ends[0], CHOSEN, segment, last)
        row._append(other, common, ends[1], REJECTED, segment, last)
        segment += 1
    return row if segment else None


def _common(one: TokenSequence, other: TokenSequence) -> int:
    """How many tokens two sequences share from the beginning, with the same loss."""
    common = 0
    for mine, theirs in zip(zip(one.ids, one.loss, strict=True), zip(other.ids, other.loss, strict=True), strict=False):
        if mine != theirs:
            break
        common += 1
    return common


def _last_loss(sequence: TokenSequence, start: int) -> int:
    """One past the last token with loss at or after `start`; `start` if there is none."""
    return max((i + 1 for i in range(start, len(sequence)) if sequence.loss[i]), default=start)
