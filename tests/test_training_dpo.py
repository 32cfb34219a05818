"""The loss is TRL's, the layout is ours: rows against sequences and TRL's own trainer; where gradients are zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from tiny_model import tiny_model
from trl import DPOConfig, DPOTrainer

from mosaic_guard_training.dpo import PairCollator, TrajectoryDPOTrainer
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.ours import rows_dataset
from mosaic_guard_training.reading import visible
from mosaic_guard_training.tokens import CHOSEN, REJECTED, SHARED, PairRow, TokenSequence, merge
from mosaic_guard_training.trainer import quiet_libraries

pytestmark = pytest.mark.model

Sides = tuple[list[TokenSequence], list[TokenSequence]]


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return tiny_model()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with quiet_libraries():
        yield


def config(directory: Path, **options: Any) -> DPOConfig:
    return DPOConfig(
        output_dir=str(directory), per_device_train_batch_size=2, num_train_epochs=4, learning_rate=1e-2, beta=0.5,
        max_length=None, precompute_ref_log_probs=True, remove_unused_columns=False, gradient_checkpointing=False,
        bf16=False, use_cpu=True, dataloader_pin_memory=False, report_to="none", logging_steps=1, save_strategy="no",
        disable_tqdm=True, **options,
    )  # fmt: skip


LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def trainer_of(tiny: Any, rows: Sequence[PairRow], directory: Path, **options: Any) -> TrajectoryDPOTrainer:
    return TrajectoryDPOTrainer(
        tiny_model()[0],
        args=config(directory, **options),
        train_dataset=rows_dataset([row.to_dict() for row in rows], directory / "data"),
        data_collator=PairCollator(1),
        processing_class=tiny[1],
        peft_config=LoraConfig(**LORA),
    )


class TextlessDPOTrainer(DPOTrainer):
    """TRL's own, but for data that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def test_single_turn_pairs_train_as_with_trl_alone(tiny: Any, tmp_path: Path) -> None:
    prompts = [[5, 6, 7, 8], [9, 10, 11], [12, 13], [14, 15, 16, 17, 18]]
    chosen = [[20, 21], [22], [23, 24, 25], [26, 27]]
    rejected = [[30, 31, 32], [33], [34], [35, 36, 37, 38]]

    def side(prompt: list[int], answer: list[int]) -> list[TokenSequence]:
        return [TokenSequence((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))]

    rows = [merge(side(p, c), side(p, r)) for p, c, r in zip(prompts, chosen, rejected, strict=True)]
    ours = trainer_of(tiny, rows, tmp_path / "ours")
    import datasets

    data = datasets.Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": chosen, "rejected_ids": rejected})
    theirs = TextlessDPOTrainer(
        tiny_model()[0],
        args=config(tmp_path / "theirs"),
        train_dataset=data,
        processing_class=tiny[1],
        peft_config=LoraConfig(**LORA),
    )
    ours.train()
    theirs.train()
    compared = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
                "logps/chosen", "logps/rejected", "logits/chosen", "mean_token_accuracy", "entropy")  # fmt: skip
    steps = list(zip(ours.state.log_history, theirs.state.log_history, strict=True))[:-1]
    assert len(steps) == 8
    assert steps[-1][0]["loss"] < 0.6 < steps[0][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for our, their in steps:
        assert [our[key] for key in compared] == pytest.approx([their[key] for key in compared], abs=1e-5)


def naive(model: Any, side: list[TokenSequence]) -> torch.Tensor:
    """The log-probability of a side: each segment read by itself, summed over its tokens with loss."""
    total = torch.zeros(())
    for sequence in side:
        ids = torch.tensor([sequence.ids])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        total = total + logps[torch.tensor(sequence.loss[1:], dtype=torch.bool)].sum()
    return total


@st.composite
def pairs(draw: st.DrawFn) -> list[Sides]:
    """Pairs of trajectories of up to three segments that begin alike, at least one of which differs in its loss."""
    token, loss = st.integers(2, 200), st.booleans()

    def sequence(start: TokenSequence) -> TokenSequence:
        more = draw(st.lists(st.tuples(token, loss), min_size=1, max_size=6))
        return TokenSequence((*start.ids, *(i for i, _ in more)), (*start.loss, *(kept for _, kept in more)))

    found = []
    for _ in range(draw(st.integers(1, 3))):
        chosen, rejected = [], []
        for side in (chosen, rejected):
            for number in range(draw(st.integers(1, 3))):
                common = TokenSequence((3, 4 + number, 5), (False, True, True))
                side.append(sequence(common if draw(st.booleans()) else TokenSequence((6,), (False,))))
        if merge(chosen, rejected) is not None:
            found.append((chosen, rejected))
    return found or [([TokenSequence((2, 3), (False, True))], [TokenSequence((2, 4), (False, True))])]


@settings(max_examples=15)
@given(found=pairs())
def test_a_trajectory_is_the_sum_of_its_segments(found: list[Sides]) -> None:
    """Rows of many branches and segments give the differences that reading every segment alone gives."""
    model, _ = tiny_model()
    rows = [merge(*sides) for sides in found]
    difference = row_differences(model, rows)
    with torch.no_grad():
        expected = torch.stack([naive(model, chosen) - naive(model, rejected) for chosen, rejected in found])
    assert difference.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def row_differences(model: Any, rows: Sequence[PairRow]) -> torch.Tensor:
    """Chosen minus rejected log-probability of each row, from one pass with the row's own mask."""
    batch = PairCollator(1)([row.to_dict() for row in rows])
    count = len(rows)
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"][:count],
            position_ids=batch["position_ids"],
            attention_mask=visible(batch["segment_ids"], batch["branch_ids"]),
        ).logits
    each = torch.arange(count)[:, None]
    logps = logits[each, batch["previous"]].log_softmax(-1).gather(2, batch["input_ids"][:count, :, None])[..., 0]
    chosen, rejected = batch["completion_mask"].view(2, count, -1)
    return (logps * (chosen - rejected)).sum(1)


SEGMENTED: Sides = (
    [TokenSequence((3, 4, 5, 6), (False, True, False, True)), TokenSequence((3, 7, 8), (False, False, True))],
    [
        TokenSequence((3, 4, 5, 9, 10), (False, True, False, True, False)),
        TokenSequence((2, 7, 8, 9), (False,) * 3 + (True,)),
    ],
)


def test_the_trainer_sums_over_segments(tiny: Any, tmp_path: Path) -> None:
    trainer = trainer_of(tiny, [merge(*SEGMENTED)], tmp_path)
    model, _ = tiny_model()
    data = trainer.train_dataset
    expected = naive(model, SEGMENTED[0]) - naive(model, SEGMENTED[1])
    assert data["ref_chosen_logps"][0] - data["ref_rejected_logps"][0] == pytest.approx(expected.item(), abs=1e-5)


def test_gradients_are_zero_wherever_no_loss_falls(tiny: Any, tmp_path: Path) -> None:
    row = merge(*SEGMENTED)
    trainer = trainer_of(tiny, [row], tmp_path)
    hidden: list[torch.Tensor] = []
    backbone = trainer.model.get_base_model().model
    # Registered before the trainer's own hook, so it sees the hidden states at all places.
    backbone.norm.register_forward_hook(lambda *args: args[-1].retain_grad() or hidden.append(args[-1]))
    trainer.model.train()
    trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).backward()
    (states,) = [h for h in hidden if h.grad is not None]
    size = states.grad[0].abs().sum(-1)
    predicting = {row.previous[at] for at in range(len(row)) if row.chosen_loss[at] or row.rejected_loss[at]}
    assert {at for at in range(len(row)) if size[at] != 0} == predicting
    assert len(predicting) == 3  # the two words of the first segment are predicted from one place

    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)


def test_a_batch_counts_each_token_once() -> None:
    rows = [merge(*SEGMENTED), merge([TokenSequence((2, 3), (False, True))], [TokenSequence((2, 4), (False, True))])]
    batch = PairCollator(1)([row.to_dict() for row in rows])
    assert batch["attention_mask"].sum() == sum(map(len, rows))
    size = batch["input_ids"].shape[1]
    assert batch["input_ids"].shape == batch["completion_mask"].shape == batch["attention_mask"].shape == (4, size)
    assert batch["position_ids"].shape == batch["previous"].shape == (2, size)


def test_a_token_sees_its_own_segment_and_branch() -> None:
    segment = torch.tensor([[0, 0, 0, 0, 1, -1]])
    branch = torch.tensor([[SHARED, CHOSEN, CHOSEN, REJECTED, CHOSEN, -1]])
    seen = visible(segment, branch)[0, 0]
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_the_reference_is_not_computed_twice(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [merge(*SEGMENTED)]
    first = trainer_of(tiny, rows, tmp_path)
    monkeypatch.setattr(TrajectoryDPOTrainer, "compute_ref_log_probs", lambda *_: pytest.fail("computed again"))
    second = trainer_of(tiny, rows, tmp_path)
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        assert list(first.train_dataset[column]) == list(second.train_dataset[column])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of sliding_attention"),
        ({"_attn_implementation": "flash_attention_2"}, "'flash_attention_2' takes no mask"),
    ],
)
def test_models_that_cannot_take_the_mask_are_refused(tiny: Any, change: Any, said: str) -> None:
    model, _ = tiny_model()
    for key, value in change.items():
        object.__setattr__(model.config, key, value)
    with pytest.raises(TrainingError, match=said):
        TrajectoryDPOTrainer(model)
