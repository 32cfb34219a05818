"""Rows that begin alike become one row: what they share is read once, then each goes its own way.

The roll-outs of a task share all that the guard reads and differ in the few tokens that it draws, so that reading them one by
one would read the same hundreds of tokens again and again. Log-probabilities and gradients are those of the rows by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from mosaic_guard_training.reading import positions
from mosaic_guard_training.tokens import SHARED

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 0.6
"""The least share of a row that it must have in common with others to be read with them."""


@dataclass(frozen=True)
class SharedRows:
    """R rows of T tokens as M rows of N; a row's padding is nowhere in them.

    Attributes:
        input_ids: Token ids, shape (M, N), as the other fields but the last.
        segment_ids: As in the rows that it is made of; 0 for padding.
        branch_ids: `SHARED`, or from 1 the number of the row that the token belongs to, among those of its row here.
        position_ids: Place in the token's own segment, from 0.
        previous: Index of the token before it in its own row; 0 for a row's first token.
        loss: 1 where loss falls on it in any row.
        place: Where each token of each row stands, as an index into (M × N); shape (R, T), 0 for padding.
    """

    input_ids: Tensor
    segment_ids: Tensor
    branch_ids: Tensor
    position_ids: Tensor
    previous: Tensor
    loss: Tensor
    place: Tensor

    def spread(self, scores: Tensor, loss: Tensor) -> Tensor:
        """Scores of the tokens of these rows as those of the rows that they are made of.

        Args:
            scores: Shape (M, N - 1), of each row's tokens but the first.
            loss: Shape (R, T).

        Returns:
            Shape (R, T - 1), 0 where no loss falls.
        """
        whole = torch.cat([scores.new_zeros(len(scores), 1), scores], dim=1).reshape(-1)
        return whole[self.place[:, 1:]] * loss[:, 1:]


def share(input_ids: Tensor, segment_ids: Tensor, loss: Tensor) -> SharedRows:
    """Read together what begins alike.

    Args:
        input_ids: Shape (R, T), padded on the right, rows that begin alike next to each other (sorted rows do).
        segment_ids: Shape (R, T); the number of each token's segment from 1, 0 for padding.
        loss: Shape (R, T).
    """
    at = positions(segment_ids)
    rows = torch.stack([input_ids, segment_ids, loss], dim=1).cpu()
    lengths = (rows[:, 1] > 0).sum(1).tolist()
    made: list[list[Tensor]] = []
    place = torch.zeros_like(rows[:, 0])
    for members, common in _clusters(rows, lengths):
        first = members[0]
        # Of each token: which row it is taken from, where it stands there, its branch, and the token before it.
        taken = [(first, t, SHARED, max(t - 1, 0)) for t in range(common)]
        place[members, :common] = torch.arange(common)
        for branch, row in enumerate(members, SHARED + 1):
            for t in range(common, lengths[row]):
                place[row, t] = len(taken)
                taken.append((row, t, branch, max(len(taken) - 1, 0) if t > common else max(common - 1, 0)))
        source, where, branches, before = torch.tensor(taken).T.to(input_ids.device)
        kept = [each[source, where] for each in (input_ids, segment_ids, at, loss)]
        made.append([*kept, branches, before])
        place[members] += (len(made) - 1) << 32  # the row, until it is known how wide rows are
    ids, segments, at, kept_loss, branches, before = (
        pad_sequence(list(each), True) for each in zip(*made, strict=True)
    )
    width = ids.shape[1]
    place = (place >> 32) * width + (place & 0xFFFFFFFF)
    return SharedRows(ids, segments, branches, at, before, kept_loss, place.to(input_ids.device))


def _clusters(rows: Tensor, lengths: list[int]) -> list[tuple[list[int], int]]:
    """Neighbouring rows that are read together, and how many tokens they share: rows of shape (R, 3, T)."""
    found: list[tuple[list[int], int]] = []
    for row in range(len(rows)):
        if found:
            members, common = found[-1]
            common = min(common, lengths[row])
            same = (rows[row, :, :common] == rows[members[0], :, :common]).all(0)
            common = common if bool(same.all()) else int((~same).int().argmax())
            if common >= LEAST * max(lengths[row], *(lengths[member] for member in members)):
                found[-1] = ([*members, row], common)
                continue
        found.append(([row], lengths[row]))
    return found
