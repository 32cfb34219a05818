"""How TRL's trainer is set up, and what is taken out of it when it is done."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate import PartialState
from transformers import PrinterCallback
from transformers.utils import logging
from trl import DPOConfig

from mosaic_guard_training.dpo import PairCollator, TrajectoryDPOTrainer, rows_dataset

if TYPE_CHECKING:
    from mosaic_guard_training.outputs import Output
    from mosaic_guard_training.settings import TrainSettings
    from mosaic_guard_training.tokens import PairRow

LONG_ROW = 2048
"""Rows of more tokens are trained with activation checkpointing on a CPU too, which saves some 2.5 MB a token."""


def build_trainer(
    model: Any, tokenizer: Any, lora: Any, rows: Sequence[PairRow], settings: TrainSettings, output: Output
) -> TrajectoryDPOTrainer:
    """The trainer of a run; the reference log-probabilities are computed here.

    Args:
        model: A causal language model, or a PEFT model to go on from.
        tokenizer: Its tokenizer.
        lora: Configuration of a new adapter; None for a PEFT model.
        rows: What to train on.
        settings: Everything else.
        output: Where checkpoints go.
    """
    cuda = torch.cuda.is_available()
    checkpointing = {"on": True, "off": False}.get(
        settings.checkpointing, cuda or max(len(row) for row in rows) > LONG_ROW
    )
    config = DPOConfig(
        output_dir=str(output.checkpoints),
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        beta=settings.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        gradient_checkpointing=checkpointing,
        # Autocast only speeds up a GPU; on a CPU it casts every weight again and again.
        bf16=cuda and model.dtype == torch.bfloat16,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
    )
    with PartialState().main_process_first():
        data = rows_dataset(rows, output.data)
    trainer = TrajectoryDPOTrainer(
        model,
        args=config,
        train_dataset=data,
        data_collator=PairCollator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def save_adapter(trainer: TrajectoryDPOTrainer, base_model: str, output: Output) -> None:
    """Write the trained adapter, whole or not at all, naming the base model as the traces do."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.peft_config["default"].base_model_name_or_path = base_model
    part = output.root / "adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(str(part), selected_adapters=["default"], save_embedding_layers=False)
    (part / "README.md").unlink(missing_ok=True)
    shutil.rmtree(output.adapter, ignore_errors=True)
    part.rename(output.adapter)


def bytes_needed(model: Any, checkpoints: int) -> int:
    """Room that a run takes on the disk.

    Args:
        model: The PEFT model.
        checkpoints: How many are kept; while one is written there is one more.

    Returns:
        Adapter weights and their two moments in float32 for each checkpoint, the result, and 32 MB of small things.
    """
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return int(trained) * 4 * (3 * (checkpoints + 1) + 1) + 32 * 2**20


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hold back the libraries' own bars, notes and deprecations, which say nothing to the user of this command."""
    level = logging.get_verbosity()
    bars = datasets.is_progress_bar_enabled() if hasattr(datasets, "is_progress_bar_enabled") else True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        logging.set_verbosity_error()
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                datasets.enable_progress_bars()
