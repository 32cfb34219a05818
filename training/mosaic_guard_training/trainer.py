"""How TRL's trainers are set up, and what is taken out of them when they are done."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate import PartialState
from transformers import PrinterCallback
from transformers.utils import logging

from mosaic_guard_training.ours import rows_dataset

if TYPE_CHECKING:
    from mosaic_guard_training.grpo import Roller
    from mosaic_guard_training.material import Material
    from mosaic_guard_training.outputs import Output
    from mosaic_guard_training.settings import TrainSettings

LONG_ROW = 2048
"""Rows of more tokens are trained with activation checkpointing on a CPU too, which saves some 2.5 MB a token."""


def build_trainer(
    model: Any,
    tokenizer: Any,
    lora: Any,
    material: Material,
    settings: TrainSettings,
    output: Output,
    *,
    limit: int,
    roller: Roller | None = None,
) -> Any:
    """The trainer of a run; the reference log-probabilities of DPO and KTO are computed here.

    Args:
        model: A causal language model, or a PEFT model to go on from.
        tokenizer: Its tokenizer.
        lora: Configuration of a new adapter; None for a PEFT model, and where all weights are trained.
        material: What to train on.
        settings: Everything else.
        output: Where checkpoints go.
        limit: Most tokens of a segment.
        roller: What GRPO's roll-outs are made by.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    pad = tokenizer.pad_token_id or 0
    common = _common(model, settings, output, material.longest)
    made = {"model": model, "processing_class": tokenizer, "peft_config": lora}

    # Before anything else asks for the state: on CPUs processes find each other only where they are told so.
    processes = PartialState(cpu=not torch.cuda.is_available())

    def data(rows: Callable[[], Sequence[dict[str, Any]]]) -> datasets.Dataset:
        with processes.main_process_first():
            return rows_dataset(rows(), output.data)

    if settings.method == "dpo":
        trainer = _dpo(made, common, settings, data(lambda: [row.to_dict() for row in material.rows]), pad)
    elif settings.method == "sft":
        trainer = _sft(made, common, material, data)
    elif settings.method == "kto":
        trainer = _kto(made, common, settings, material, data, pad, limit)
    else:
        trainer = _grpo(made, common, settings, data(lambda: [{"prompt": name} for name in material.rows]), roller)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _common(model: Any, settings: TrainSettings, output: Output, longest: int) -> dict[str, Any]:
    """The arguments that all of TRL's configurations share."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(output.checkpoints),
        "per_device_train_batch_size": settings.in_memory,
        "gradient_accumulation_steps": settings.batch_size // settings.in_memory,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup,
        "gradient_checkpointing": {"on": True, "off": False}.get(settings.checkpointing, cuda or longest > LONG_ROW),
        # Autocast only speeds up a GPU; on a CPU it casts every weight again and again.
        "bf16": cuda and (settings.tune == "full" or model.dtype == torch.bfloat16),
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "remove_unused_columns": False,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": settings.keep_checkpoints,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings.seed,
    }


def _dpo(made: dict[str, Any], common: dict[str, Any], settings: TrainSettings, data: Any, pad: int) -> Any:
    from trl import DPOConfig

    from mosaic_guard_training.dpo import PairCollator, TrajectoryDPOTrainer

    config = DPOConfig(
        **common,
        beta=settings.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        # The rows are dealt already: see `budget.dealt`.
        train_sampling_strategy="sequential",
    )
    return TrajectoryDPOTrainer(**made, args=config, train_dataset=data, data_collator=PairCollator(pad))


def _sft(made: dict[str, Any], common: dict[str, Any], material: Material, data: Any) -> Any:
    from trl import SFTConfig

    from mosaic_guard_training.sft import BlockSFTTrainer, sft_rows

    config = SFTConfig(**common, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    return BlockSFTTrainer(**made, args=config, train_dataset=data(lambda: sft_rows(material.rows)))


def _kto(
    made: dict[str, Any],
    common: dict[str, Any],
    settings: TrainSettings,
    material: Material,
    data: Any,
    pad: int,
    limit: int,
) -> Any:
    from trl import KTOConfig

    from mosaic_guard_training.kto import LabelledCollator, TrajectoryKTOTrainer, kto_rows

    estimated = settings.kto_loss == "kto"
    config = KTOConfig(
        **common,
        beta=settings.beta,
        loss_type="kto" if estimated else "apo_zero_unpaired",
        max_length=None,
        precompute_ref_log_probs=True,
        # The mismatched rows were made among the rows that are in memory together: they must stay so.
        train_sampling_strategy="sequential",
    )
    rows = data(lambda: kto_rows(material.rows, settings.in_memory if estimated else None, limit))
    return TrajectoryKTOTrainer(**made, args=config, train_dataset=rows, data_collator=LabelledCollator(pad))


def _grpo(made: dict[str, Any], common: dict[str, Any], settings: TrainSettings, data: Any, roller: Any) -> Any:
    from trl import GRPOConfig

    from mosaic_guard_training.grpo import GuardGRPOTrainer, rewards

    config = GRPOConfig(
        **common,
        num_generations=settings.rollouts,
        beta=settings.kl,
        scale_rewards=settings.scale_rewards,
        reward_weights=[weight for _, weight in rewards(settings)],
        log_completions=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'", category=UserWarning)
        return GuardGRPOTrainer(**made, roller=roller, settings=settings, args=config, train_dataset=data)


def save_result(trainer: Any, base_model: str, output: Output) -> None:
    """Write the trained adapter, or the trained model, whole or not at all; to be called on every process.

    Args:
        trainer: When it is done.
        base_model: What an adapter says it is for, named as the traces do.
        output: Where to.
    """
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    # Where the weights are spread over the processes, all of them have to take part in gathering.
    spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state = accelerator.get_state_dict(trainer.model_wrapped) if spread else None
    if not accelerator.is_main_process:
        return
    adapter = hasattr(model, "peft_config")
    where = output.adapter if adapter else output.model
    part = where.with_name(where.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    if adapter:
        model.peft_config["default"].base_model_name_or_path = base_model
        options = {"selected_adapters": ["default"], "save_embedding_layers": False}
        model.save_pretrained(str(part), state_dict=state, **options)
        (part / "README.md").unlink(missing_ok=True)
    else:
        model.save_pretrained(str(part), state_dict=state)
        trainer.processing_class.save_pretrained(str(part))
    shutil.rmtree(where, ignore_errors=True)
    part.rename(where)


def bytes_needed(model: Any, checkpoints: int) -> int:
    """Room that a run takes on the disk.

    Args:
        model: What is trained.
        checkpoints: How many are kept; while one is written there is one more.

    Returns:
        Trained weights and their two moments in float32 for each checkpoint, the result, and 32 MB of small things.
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
