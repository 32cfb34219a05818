"""KTO for labels that are not pairs: TRL's trainer and loss, on whole trajectories that are tokens already.

A row is one trajectory, its segments one after the other, and its log-probability is their sum. The loss `kto` measures
against an estimate of how far the guard has moved from its start, taken on mismatched rows: what one trajectory starts with,
followed by what another goes on with. TRL forms them among the rows that are in memory together, and so does this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from trl import KTOTrainer

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.ours import OurRows
from mosaic_guard_training.reading import SegmentReader, require_plain_attention
from mosaic_guard_training.tokens import SideRow

if TYPE_CHECKING:
    from torch import Tensor, nn

Labelled = tuple[SideRow, bool]
"""A trajectory, and whether it is a good one."""

_FIELDS = {"input_ids": "input_ids", "attention_mask": "segment_ids", "completion_mask": "loss"}


def kto_rows(rows: Sequence[Labelled], in_memory: int | None, max_length: int) -> list[dict[str, Any]]:
    """The rows of the data set, in the given order, which training keeps.

    Args:
        rows: At least one.
        in_memory: How many are in memory together, so that each takes what another of them goes on with; None to leave
            the mismatched rows out.
        max_length: Most tokens of a segment.

    Raises:
        TrainingError: If a mismatched row's segment is longer.
    """
    found: list[dict[str, Any]] = [{**_record("", row), "label": label} for row, label in rows]
    for start in range(0, len(rows) if in_memory else 0, in_memory or 1):
        batch = [row for row, _ in rows[start : start + (in_memory or 1)]]
        for at, row in enumerate(batch):
            found[start + at] |= _record("KL_", mismatched(row, batch[at - 1], max_length))
    return found


def mismatched(one: SideRow, other: SideRow, max_length: int) -> SideRow:
    """What `one` has before its first token with loss, then what `other` has from there on."""
    begin, go_on = one.loss.index(1), other.loss.index(1)
    first = one.segment_ids[begin]
    head = [i for i in range(begin) if one.segment_ids[i] == first]
    shift = first - other.segment_ids[go_on]
    row = SideRow(
        [one.input_ids[i] for i in head] + other.input_ids[go_on:],
        [first] * len(head) + [each + shift for each in other.segment_ids[go_on:]],
        [0] * len(head) + other.loss[go_on:],
    )
    longest = row.segment_ids.count(first)
    if longest > max_length:
        raise TrainingError(
            f"a mismatched row of --kto-loss kto has {longest} tokens, more than the limit of {max_length}: "
            "raise --max-length (up to the model's window), or take --kto-loss apo_zero, which needs none"
        )
    return row


def _record(prefix: str, row: SideRow) -> dict[str, Any]:
    return {prefix + key: list(getattr(row, name)) for key, name in _FIELDS.items()}


@dataclass
class LabelledCollator:
    """Rows to a batch of TRL's keys, padded on the right; `attention_mask` holds the numbers of the segments."""

    pad_token_id: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad and stack."""
        batch = {
            key: pad_sequence(
                [torch.tensor(e[key]) for e in examples],
                batch_first=True,
                padding_value=self.pad_token_id if key.endswith("input_ids") else 0,
            )
            for prefix in ("", "KL_")
            for key in (prefix + name for name in _FIELDS)
            if key in examples[0]
        }
        for key in ("label", "ref_logps", "ref_KL_logps"):
            if key in examples[0]:
                batch[key] = torch.tensor([example[key] for example in examples])
        return batch


class TrajectoryKTOTrainer(OurRows, KTOTrainer):
    """TRL's KTO on trajectories.

    Needs `precompute_ref_log_probs=True`, `remove_unused_columns=False` and a `LabelledCollator`.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        require_plain_attention(model.config)
        super().__init__(model, **options)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return super()._compute_loss(self._reader(model), inputs, return_outputs)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Reference log-probabilities of a batch, and of its mismatched rows: tensors of shape (rows,)."""
        return super().compute_ref_log_probs(self._reader(model), inputs)

    def _reader(self, model: Any) -> SegmentReader:
        return SegmentReader.of(model, self.accelerator.unwrap_model(self.model))
