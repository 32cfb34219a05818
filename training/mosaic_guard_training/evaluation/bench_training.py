"""How fast trajectory DPO trains, next to TRL's own trainer on the same tokens, step by step in turns.

    python -m mosaic_guard_training.evaluation.bench_training --shared 400 --own 40

Pairs share a prefix, as a trajectory and its twin do, and then go their own ways; random tokens take the time of others.
TRL's trainer reads prefix and end of each side as a row of its own. Throughput is what a pair says on both sides, per second:
the same number of tokens for both, however often they are read. The ratio is what counts; a shared machine makes the
absolute figures worth little. Both have their reference computed beforehand, and neither is timed on it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from trl import DPOConfig, DPOTrainer

from mosaic_guard_training.dpo import PairCollator, TrajectoryDPOTrainer
from mosaic_guard_training.ours import OurRows, rows_dataset
from mosaic_guard_training.tokens import TokenSequence, merge
from mosaic_guard_training.trainer import quiet_libraries


class _BareDPOTrainer(OurRows, DPOTrainer):
    """TRL's own, but for data that are tokens already, and for calls home."""


@dataclass(frozen=True)
class TrainingBench:
    """Seconds per optimizer step, in the order in which they were taken.

    Attributes:
        ours: Of `TrajectoryDPOTrainer`.
        bare: Of TRL's trainer.
        tokens: What one step's pairs say on both sides.
    """

    ours: list[float]
    bare: list[float]
    tokens: int

    @property
    def ratio(self) -> float:
        """Our throughput over TRL's: the median over the turns of the ratio within each."""
        return statistics.median(bare / ours for ours, bare in zip(self.ours, self.bare, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """What was found, as JSON."""
        return {
            "tokens_per_step": self.tokens,
            "ours_tokens_per_second": round(self.tokens / statistics.median(self.ours), 1),
            "trl_tokens_per_second": round(self.tokens / statistics.median(self.bare), 1),
            "ratio": round(self.ratio, 3),
            "turns": len(self.ours),
        }


def bench_training(
    model_of: Any, tokenizer: Any, *, shared: int = 400, own: int = 40, pairs: int = 2, turns: int = 3, seed: int = 0
) -> TrainingBench:
    """Train both on the same pairs, a step each in turn.

    Args:
        model_of: Returns the model anew, so that the two do not share weights.
        tokenizer: Its tokenizer.
        shared: Tokens that the sides of a pair share.
        own: Tokens that each side has for itself; loss falls on them.
        pairs: Pairs per step, one in memory at a time.
        turns: Steps of each that are timed, after one of each that is not.
        seed: Draws the tokens.
    """
    draw = random.Random(seed)
    size = min(len(tokenizer), 30_000)

    def some(number: int) -> list[int]:
        return [draw.randrange(3, size) for _ in range(number)]

    said = [(some(shared), some(own), some(own)) for _ in range(pairs)]
    loss = (False,) * shared + (True,) * own
    rows = [merge([TokenSequence((*p, *c), loss)], [TokenSequence((*p, *r), loss)]) for p, c, r in said]
    with tempfile.TemporaryDirectory() as directory, quiet_libraries():
        where = Path(directory)
        ours = TrajectoryDPOTrainer(
            model_of(),
            args=_config(where / "ours", pairs),
            train_dataset=rows_dataset([row.to_dict() for row in rows if row is not None], where / "data"),
            data_collator=PairCollator(tokenizer.pad_token_id or 0),
            processing_class=tokenizer,
            peft_config=_lora(),
        )
        prompts, chosen, rejected = ([list(part) for part in parts] for parts in zip(*said, strict=True))
        bare = _BareDPOTrainer(
            model_of(),
            args=_config(where / "bare", pairs),
            train_dataset=datasets.Dataset.from_dict(
                {"prompt_ids": prompts, "chosen_ids": chosen, "rejected_ids": rejected}
            ),
            processing_class=tokenizer,
            peft_config=_lora(),
        )
        steps = [_Stepper(ours), _Stepper(bare)]
        seconds = [[step() for step in steps] for _ in range(turns + 1)][1:]
    return TrainingBench([s[0] for s in seconds], [s[1] for s in seconds], pairs * 2 * (shared + own))


class _Stepper:
    """One optimizer step of a trainer after another."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._batches = [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]
        self._optimizer = trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = len(self._batches)
        trainer.model.train()

    def __call__(self) -> float:
        started = time.perf_counter()
        for batch in self._batches:
            self._trainer.training_step(self._trainer.model, dict(batch))
        self._optimizer.step()
        self._optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started


def _config(directory: Path, pairs: int) -> DPOConfig:
    cuda = torch.cuda.is_available()
    return DPOConfig(
        str(directory),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=pairs,
        max_length=None,
        precompute_ref_log_probs=True,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        bf16=cuda,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        report_to="none",
        disable_tqdm=True,
    )


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure on the default model, or another."""
    from mosaic_guard.models.weights import load_base_model

    parser = argparse.ArgumentParser(prog="python -m mosaic_guard_training.evaluation.bench_training")
    parser.add_argument("--model", help="path or hub id; default the default guard's")
    for name, default in (("shared", 400), ("own", 40), ("pairs", 2), ("turns", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = vars(parser.parse_args(arguments))
    name = options.pop("model")
    tokenizer = load_base_model(name)[1]
    print(json.dumps(bench_training(lambda: load_base_model(name)[0], tokenizer, **options).to_dict(), indent=2))


if __name__ == "__main__":
    main()
