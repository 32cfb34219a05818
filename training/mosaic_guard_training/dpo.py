"""Trajectory-level DPO: TRL's trainer and loss, fed with rows that are already tokens.

TRL's `DPOTrainer` tokenises text itself and has no mask for tool tokens inside a completion. Here the mask and the
layout come from `PairCollator`, and the trainer only changes how the model is called: once per pair, on the row that
`tokens.merge` built, answering as if the two sides had been two rows. Everything else (the loss, the reference
log-probabilities, the metrics, checkpoints, distribution) is TRL's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import DPOTrainer

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.tokens import CHOSEN, REJECTED, SHARED, PairRow

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


def visible(segment_ids: Tensor, branch_ids: Tensor) -> Tensor:
    """Which tokens a token sees: earlier ones of its segment that are shared or of its own branch, and itself.

    Args:
        segment_ids: Shape (pairs, T).
        branch_ids: Shape (pairs, T).

    Returns:
        Booleans of shape (pairs, 1, T, T); row i says what token i sees.
    """
    size = segment_ids.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=segment_ids.device).tril()
    same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
    seen_branch = (branch_ids[:, None, :] == SHARED) | (branch_ids[:, :, None] == branch_ids[:, None, :])
    return (earlier & same_segment & seen_branch)[:, None]


class _OncePerPair:
    """Stands in for the model in TRL's loss: reads each row once and scores only the tokens that carry loss."""

    def __init__(self, model: Callable[..., Any], backbone: nn.Module) -> None:
        self._model = model
        self._backbone = backbone

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
        **options: Any,
    ) -> Any:
        """What TRL's fused language-model head returns, each field of shape (2 × pairs, T - 1) as TRL expects."""
        pairs = len(position_ids)
        view, at = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        row = view % pairs
        with _only_at(self._backbone, row, previous[row, at + 1]):
            scored = self._model(
                input_ids=input_ids[:pairs],
                attention_mask=visible(segment_ids, branch_ids),
                position_ids=position_ids,
                shift_labels=labels[view, at + 1][None],
                **options,
            )

        def spread(value: Tensor) -> Tensor:
            whole = value.new_zeros(labels.shape[0], labels.shape[1] - 1)
            return whole.index_put((view, at), value[0])

        per_token = {"log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask"}
        found = {each.name: getattr(scored, each.name) for each in fields(scored) if each.name in per_token}
        return replace(scored, **{name: spread(value) for name, value in found.items() if value is not None})


@contextmanager
def _only_at(backbone: nn.Module, row: Tensor, at: Tensor) -> Iterator[None]:
    """Let the backbone return its hidden states at some places only, as one row: the head need not read the rest."""

    def pick(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[row, at][None]
        return output

    handle = backbone.register_forward_hook(pick)
    try:
        yield
    finally:
        handle.remove()


class TrajectoryDPOTrainer(DPOTrainer):
    """TRL's DPO on `PairRow`s.

    Needs `precompute_ref_log_probs=True`, `remove_unused_columns=False` and a `PairCollator`. It does not call home:
    TRL's usage statistics are not sent, and no model card is written.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        _require_plain_attention(model.config)
        super().__init__(model, **options)
        if not self.precompute_ref_logps:
            raise ValueError("TrajectoryDPOTrainer needs precompute_ref_log_probs=True")

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _once_per_pair(self, model: Callable[..., Any]) -> _OncePerPair:
        base = self.accelerator.unwrap_model(self.model)
        base = base.get_base_model() if hasattr(base, "get_base_model") else base
        return _OncePerPair(model, base.base_model)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return super()._compute_loss(self._once_per_pair(model), inputs, return_outputs)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Reference log-probabilities of a batch: two tensors of shape (pairs,)."""
        return super().compute_ref_log_probs(self._once_per_pair(model), inputs)

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the manifest says what there is to say."""


def rows_dataset(rows: Sequence[PairRow], directory: Path) -> Dataset:
    """The data set that `TrajectoryDPOTrainer` trains on, in the order of `rows`.

    Args:
        rows: At least one.
        directory: Where the data set lies, and where TRL keeps the reference log-probabilities beside it, so that
            neither another process nor a resumed run need compute them again. What is there already is used.
    """
    if not directory.is_dir():
        part = directory.with_name(directory.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        Dataset.from_list([row.to_dict() for row in rows]).save_to_disk(str(part))
        part.rename(directory)
    return Dataset.load_from_disk(str(directory))


def _require_plain_attention(config: Any) -> None:
    """The row layout needs a decoder whose every layer attends to all that its mask lets it see.

    Raises:
        TrainingError: If a layer has a sliding window, chunks or no attention at all, or its kernel takes no mask.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    kernel = getattr(text, "_attn_implementation", None)
    if kinds != {"full_attention"}:
        odd = ", ".join(sorted(kinds - {"full_attention"}))
        raise TrainingError(f"models of type {text.model_type!r} have layers of {odd}: train one with full attention")
    if kernel not in ("sdpa", "eager"):
        raise TrainingError(f"the attention kernel {kernel!r} takes no mask: load the model with 'sdpa' or 'eager'")
