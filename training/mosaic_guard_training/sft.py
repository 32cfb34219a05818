"""The warm start: TRL's SFT on the block format, with loss on what the guard model wrote or should have written.

Each segment of a better side is a sequence of its own; loss falls on its `sampled` and `target` pieces alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import SFTTrainer

from mosaic_guard_training.ours import OurRows
from mosaic_guard_training.reading import RowReader
from mosaic_guard_training.tokens import SideRow

IGNORED = -100
"""The label of a token without loss."""


def sft_rows(rows: Sequence[SideRow]) -> list[dict[str, list[int]]]:
    """The segments of some sides as TRL's SFT reads them: `input_ids` and `labels`, a segment that comes twice once."""
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], None] = {}
    for row in rows:
        for segment in sorted(set(row.segment_ids)):
            at = [i for i, each in enumerate(row.segment_ids) if each == segment]
            ids = tuple(row.input_ids[i] for i in at)
            found[ids, tuple(row.input_ids[i] if row.loss[i] else IGNORED for i in at)] = None
    return [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in found]


class BlockSFTTrainer(OurRows, SFTTrainer):
    """TRL's SFT on token sequences; the language-model head reads only the places that predict a token with loss."""

    def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
        """The mean over the tokens with loss of the whole batch, as TRL has it."""
        return super().compute_loss(RowReader.of(model, self.accelerator.unwrap_model(self.model)), inputs, **options)
