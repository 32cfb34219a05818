"""How a model reads rows: what each token of a row sees, and scoring only where loss falls.

A row may hold several sequences: the segments of a trajectory, the two sides of a pair. TRL's trainers call the model as
if every row were one sequence; `RowReader` stands between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.tokens import SHARED

if TYPE_CHECKING:
    from torch import Tensor, nn


def visible(segment_ids: Tensor, branch_ids: Tensor | None = None) -> Tensor:
    """Which tokens a token sees: earlier ones of its segment that are shared or of its own branch, and itself.

    Args:
        segment_ids: Shape (rows, T).
        branch_ids: Shape (rows, T); None where all tokens are shared.

    Returns:
        Booleans of shape (rows, 1, T, T); row i of the last two says what token i sees.
    """
    size = segment_ids.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=segment_ids.device).tril()
    seen = earlier & (segment_ids[:, :, None] == segment_ids[:, None, :])
    if branch_ids is not None:
        seen = seen & ((branch_ids[:, None, :] == SHARED) | (branch_ids[:, :, None] == branch_ids[:, None, :]))
    return seen[:, None]


def positions(segment_ids: Tensor) -> Tensor:
    """Place of each token in its segment, from 0: shape (rows, T), for rows whose segments follow each other."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return index - (index * begins).cummax(1).values


class RowReader:
    """Stands in for the model in TRL's losses: reads each row once and scores only the tokens that carry loss.

    Args:
        model: Called with `fused_lm_head=True`.
        backbone: The part of it below the language-model head.
    """

    def __init__(self, model: Callable[..., Any], backbone: nn.Module) -> None:
        self._model = model
        self._backbone = backbone

    @classmethod
    def of(cls, model: Callable[..., Any], whole: Any) -> RowReader:
        """A reader for a model as a trainer wraps it; `whole` is the same one unwrapped, PEFT or plain."""
        base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
        return cls(model, base.base_model)

    def __call__(
        self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, previous: Tensor | None = None, **rest: Any
    ) -> Any:
        """Score the labelled tokens of some rows.

        Args:
            input_ids: Shape (rows, T).
            attention_mask: What the model takes: which tokens are there, shape (rows, T), or `visible`'s.
            labels: -100 but where a token is scored; shape (views × rows, T), for rows that are scored several times.
            previous: Index in the row of the token that each is predicted from; default the one before it.
            **rest: For the model.

        Returns:
            What TRL's fused language-model head returns, each field of shape (views × rows, T - 1).
        """
        rows = len(input_ids)
        view, at = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        nothing = not len(view)
        if nothing:  # one token is scored and counted as zero, so that gradients exist on every process
            view = at = labels.new_zeros(1)
        row = view % rows
        before = at if previous is None else previous[row, at + 1]
        wanted = input_ids[row, at + 1]
        with _only_at(self._backbone, row, before):
            scored = self._model(input_ids=input_ids, attention_mask=attention_mask, shift_labels=wanted[None], **rest)

        def spread(value: Tensor) -> Tensor:
            whole = value.new_zeros(labels.shape[0], labels.shape[1] - 1)
            return whole.index_put((view, at), value[0] * (not nothing))

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


class SegmentReader(RowReader):
    """A `RowReader` for trajectories of several segments, as KTO and GRPO read them.

    Its `attention_mask` of shape (rows, T) is 0 for padding and else the number of the token's segment, from 1.
    """

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **rest: Any) -> Any:
        """Score the labelled tokens of some rows, as `RowReader` does."""
        return super().__call__(
            input_ids=input_ids,
            attention_mask=visible(attention_mask),
            labels=labels,
            position_ids=positions(attention_mask),
            **rest,
        )


def require_plain_attention(config: Any) -> None:
    """Rows of several sequences need a decoder whose every layer attends to all that its mask lets it see.

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
