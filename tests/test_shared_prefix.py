"""Rows that begin alike, read as one: the same log-probabilities and gradients as one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_model
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.utils import add_fused_lm_head

from mosaic_guard_training.reading import RowReader, SegmentReader, visible
from mosaic_guard_training.shared_prefix import share

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tiny() -> Any:
    model, _ = tiny_model()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


@st.composite
def rows(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Up to six rows of up to two segments, many of them alike at the beginning: ids, segments, loss."""
    begins = draw(st.lists(st.lists(st.integers(20, 60), min_size=4, max_size=9), min_size=1, max_size=2))
    found = []
    for _ in range(draw(st.integers(1, 6))):
        ids = [*draw(st.sampled_from(begins)), *draw(st.lists(st.integers(20, 23), min_size=1, max_size=4))]
        cut = draw(st.integers(1, len(ids)))
        segments = [1] * cut + [2] * (len(ids) - cut)
        loss = [int(0 < t != cut and draw(st.integers(0, 2)) == 0) for t in range(len(ids))]
        found.append([torch.tensor(each) for each in (ids, segments, loss)])
    ids, segments, loss = (pad_sequence(list(each), True) for each in zip(*found, strict=True))
    each = torch.unique(torch.stack([ids, segments, loss], 1), dim=0)
    return each[:, 0], each[:, 1], each[:, 2]


@settings(max_examples=40)
@given(rows())
def test_what_is_shared_is_read_as_if_it_were_not(
    tiny: Any, given: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    ids, segments, loss = given
    weights = torch.linspace(1, 2, loss[:, 1:].numel()).reshape(loss[:, 1:].shape)

    def gradient(scores: torch.Tensor) -> torch.Tensor:
        tiny.zero_grad()
        (scores * weights).sum().backward()
        return torch.cat([weight.grad.reshape(-1) for weight in tiny.parameters() if weight.grad is not None])

    alone = SegmentReader.of(tiny, tiny)(
        input_ids=ids, attention_mask=segments, labels=ids.masked_fill(loss == 0, -100), fused_lm_head=True
    )
    shared = share(ids, segments, loss)
    assert shared.input_ids.numel() <= max(len(ids) * ids.shape[1], 1) * 2
    together = RowReader.of(tiny, tiny)(
        input_ids=shared.input_ids,
        attention_mask=visible(shared.segment_ids, shared.branch_ids),
        position_ids=shared.position_ids,
        previous=shared.previous,
        labels=shared.input_ids.masked_fill(shared.loss == 0, -100),
        fused_lm_head=True,
    )
    ours = shared.spread(together.log_probs, loss)
    assert torch.allclose(ours, alone.log_probs * loss[:, 1:], atol=1e-5)
    assert torch.allclose(shared.spread(together.entropy, loss), alone.entropy * loss[:, 1:], atol=1e-5)
    if loss.any():
        assert torch.allclose(gradient(ours), gradient(alone.log_probs), atol=1e-4)


def test_rows_of_a_group_become_one() -> None:
    ids = torch.tensor([[7, 8, 9, 1, 0], [7, 8, 9, 2, 3], [4, 5, 6, 1, 0]])
    segments = (ids > 0).long()
    loss = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 1, 0]])
    shared = share(ids, segments, loss)
    assert shared.input_ids.tolist() == [[7, 8, 9, 1, 2, 3], [4, 5, 6, 1, 0, 0]]
    assert shared.previous.tolist()[0] == [0, 0, 1, 2, 2, 4]
    assert shared.branch_ids.tolist()[0] == [0, 0, 0, 1, 2, 2]
