"""Trajectory-level DPO: TRL's trainer and loss, fed with rows that are already tokens.

TRL's `DPOTrainer` tokenises text itself and has no mask for tool tokens inside a completion. Here the mask and the
layout come from `PairCollator`, and the trainer only changes how the model is called: once per pair, on the row that
`tokens.merge` built, answering as if the two sides had been two rows. Everything else (the loss, the reference
log-probabilities, the metrics, checkpoints, distribution) is TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from trl import DPOTrainer

from mosaic_guard_training.ours import OurRows
from mosaic_guard_training.reading import RowReader, require_plain_attention, visible
from mosaic_guard_training.tokens import CHOSEN, REJECTED, SHARED

if TYPE_CHECKING:
    from torch import Tensor, nn

ROW_KEYS = ("position_ids", "segment_ids", "branch_ids", "previous")
"""What a batch says about its rows besides what TRL expects; int64 of shape (pairs, T)."""


@dataclass
class PairCollator:
    """Rows to a batch, padded on the right to the longest, T tokens.

    TRL's keys have shape (2 × pairs, T), first what the chosen sides see, then the rejected: `input_ids` (the rows,
    twice), `completion_mask` (where loss falls), `attention_mask` (1 for each token that is read, shared ones in the
    first half only, so that its sum is the number of tokens). `ROW_KEYS` have shape (pairs, T); padding has segment -1.
    Where the reference is known, `ref_chosen_logps` and `ref_rejected_logps` have shape (pairs,).
    """

    pad_token_id: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad and stack."""

        def padded(key: str, value: int = 0) -> Tensor:
            return pad_sequence([torch.tensor(e[key]) for e in examples], batch_first=True, padding_value=value)

        branch = padded("branch_ids", -1)
        batch = {
            "input_ids": padded("input_ids", self.pad_token_id).repeat(2, 1),
            "attention_mask": torch.cat([(branch == SHARED) | (branch == CHOSEN), branch == REJECTED]).long(),
            "completion_mask": torch.cat([padded("chosen_loss"), padded("rejected_loss")]),
            "position_ids": padded("position_ids"),
            "segment_ids": padded("segment_ids", -1),
            "branch_ids": branch,
            "previous": padded("previous"),
        }
        for key in ("ref_chosen_logps", "ref_rejected_logps"):
            if key in examples[0]:
                batch[key] = torch.tensor([example[key] for example in examples])
        return batch


class _PairReader(RowReader):
    """Reads each row once, and answers as if the two sides had been two rows."""

    def __call__(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        branch_ids: Tensor,
        previous: Tensor,
        **rest: Any,
    ) -> Any:
        """What TRL's fused language-model head returns, each field of shape (2 × pairs, T - 1) as TRL expects."""
        return super().__call__(
            input_ids=input_ids[: len(position_ids)],
            attention_mask=visible(segment_ids, branch_ids),
            labels=labels,
            previous=previous,
            position_ids=position_ids,
            **rest,
        )


class TrajectoryDPOTrainer(OurRows, DPOTrainer):
    """TRL's DPO on `PairRow`s.

    Needs `precompute_ref_log_probs=True`, `remove_unused_columns=False` and a `PairCollator`.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        require_plain_attention(model.config)
        super().__init__(model, **options)
        if not self.precompute_ref_logps:
            raise ValueError("TrajectoryDPOTrainer needs precompute_ref_log_probs=True")

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return super()._compute_loss(self._reader(model), inputs, return_outputs)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Reference log-probabilities of a batch: two tensors of shape (pairs,)."""
        return super().compute_ref_log_probs(self._reader(model), inputs)

    def _reader(self, model: Any) -> _PairReader:
        return _PairReader.of(model, self.accelerator.unwrap_model(self.model))
