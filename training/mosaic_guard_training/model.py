"""The model to train: which adapter it starts from, its precision, and what of it is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_guard._errors import ModelLoadError
from mosaic_guard.models.manifest import SHIPPED
from mosaic_guard_training.errors import TrainingError

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory
    from mosaic_guard_training.settings import TrainSettings

ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Start:
    """What training starts from.

    Attributes:
        base_model: Path or hub id of the base model.
        adapter: Directory of the adapter that training goes on from; None to begin a new one.
        adapter_digest: First 12 hexadecimal digits of the SHA-256 of its weights, as traces name it.
    """

    base_model: str
    adapter: Path | None = None
    adapter_digest: str | None = None


def starting_point(trajectories: Sequence[Trajectory], adapter: str | None, base_model: str | None = None) -> Start:
    """What training on some trajectories starts from: the guard that logged them.

    Args:
        trajectories: At least one with the tokens of a local guard model.
        adapter: What `--adapter` says.
        base_model: What `--base-model` says.

    Raises:
        TrainingError: If no base model is named, or several are; if the adapter is not known, or is not there.
    """
    bases: dict[str, set[str]] = {}
    digests: set[str | None] = set()
    for trajectory in trajectories:
        base = trajectory.guard.get("base_model")
        if base is not None:
            bases.setdefault(str(base), set()).add(trajectory.file.name)
            digests.add(trajectory.guard.get("adapter"))
    if not bases:
        raise TrainingError(
            "no trajectory was judged by a local guard model, so there are no tokens to train on: "
            "log traces with Guard() or Guard.load(...)"
        )
    if len(bases) > 1:
        named = "; ".join(f"{base!r} in {_some(files)}" for base, files in sorted(bases.items()))
        raise TrainingError(f"the traces are of {len(bases)} base models ({named}): train on those of one at a time")
    return _logged_start(_agreed(next(iter(bases)), base_model, "traces"), digests, adapter, "traces")


def preferred_start(
    bases: Collection[str], guards: Iterable[Mapping[str, Any]], adapter: str | None, base_model: str | None
) -> Start:
    """What training on a preference file starts from: the guard that logged its pairs.

    Args:
        bases: The base models that its lines name.
        guards: The guards that they name.
        adapter: What `--adapter` says.
        base_model: What `--base-model` says.

    Raises:
        TrainingError: If several base models are named; if the adapter is not known, or is not there.
    """
    if len(bases) > 1:
        named = ", ".join(map(repr, sorted(bases)))
        raise TrainingError(
            f"the preferences are of {len(bases)} base models ({named}): train on those of one at a time"
        )
    base = _agreed(next(iter(bases)), base_model, "preferences")
    return _logged_start(base, {guard.get("adapter") or None for guard in guards}, adapter, "preferences")


def _logged_start(base: str, digests: Collection[str | None], adapter: str | None, what: str) -> Start:
    """The adapter that logged what is learnt from, unless `--adapter` names another."""
    if adapter is not None:
        return named_start(base, adapter)
    if set(digests) == {None}:
        return Start(base)
    if set(digests) == {_digest_of(SHIPPED)}:
        return named_start(base, "default")
    used = ", ".join(sorted(digest or "no adapter" for digest in digests))
    raise TrainingError(
        f"the {what} were logged by a guard with an adapter ({used}): name its directory with --adapter, "
        "or start afresh with --adapter none"
    )


def named_start(base_model: str, adapter: str | None) -> Start:
    """A base model, and the adapter that `--adapter` names; None or `none` for a new one, `default` for the one that ships.

    Raises:
        TrainingError: If the adapter is not there.
    """
    if adapter in (None, "none"):
        return Start(base_model)
    directory = _adapter_directory(SHIPPED if adapter == "default" else Path(str(adapter)))
    return Start(base_model, directory, _digest_of(directory))


def _digest_of(directory: Path) -> str | None:
    """What traces name an adapter by; None where there is none."""
    for file in (directory / ADAPTER_WEIGHTS, directory / "adapter" / ADAPTER_WEIGHTS):
        if file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return None


def _agreed(base: str, wanted: str | None, what: str) -> str:
    """The base model whose tokens the data hold, where it is the one that was asked for."""
    if wanted not in (None, base):
        raise TrainingError(
            f"the {what} hold tokens of {base!r}, which another model does not read: leave out --base-model {wanted}, "
            "or log traces with a guard on that model"
        )
    return base


def _some(files: Iterable[str]) -> str:
    names = sorted(files)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _adapter_directory(path: Path) -> Path:
    """The adapter itself, or that of a trained guard."""
    for directory in (path, path / "adapter"):
        if (directory / ADAPTER_WEIGHTS).is_file():
            return directory
    raise TrainingError(f"no adapter at {str(path)!r}: name a directory with {ADAPTER_WEIGHTS}, or a trained guard's")


def load_start(start: Start, settings: TrainSettings, dtype: str) -> tuple[Any, Any, Any]:
    """Load what training starts from.

    Args:
        start: What.
        settings: What of it is trained, and the shape of a new adapter.
        dtype: Precision of the base model: `float32`, `bfloat16`, or `auto` for what the guard itself would run in. Weights
            that are trained themselves are float32 in any case, as an adapter's are.

    Returns:
        (model, tokenizer, configuration of the new LoRA adapter) for the trainer. The configuration is None where
        training goes on from an adapter, which is then in the model, and where all weights are trained.

    Raises:
        ModelLoadError: If the base model cannot be loaded.
        TrainingError: If the adapter does not fit it, or 4 bits are not to be had.
    """
    import torch
    from peft import PeftModel

    from mosaic_guard.models.weights import load_base_model

    if settings.tune == "qlora":
        model, tokenizer = _in_four_bits(start.base_model)
    else:
        wanted = "float32" if settings.tune == "full" and dtype == "auto" else dtype
        model, tokenizer = load_base_model(start.base_model, dtype=None if wanted == "auto" else getattr(torch, wanted))
    if settings.tune == "full":
        return model, tokenizer, None
    if start.adapter is None:
        return model, tokenizer, _new_adapter(settings)
    try:
        return PeftModel.from_pretrained(model, str(start.adapter), is_trainable=True), tokenizer, None
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"the adapter {str(start.adapter)!r} does not fit {start.base_model!r} "
            f"({str(error).splitlines()[0][:200]}): name another with --adapter, or start afresh with --adapter none"
        ) from error


def _new_adapter(settings: TrainSettings) -> Any:
    from peft import LoraConfig

    names = settings.lora_targets
    targets = names if names == "all-linear" else [name.strip() for name in names.split(",")]
    return LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=targets, task_type="CAUSAL_LM"
    )


def _in_four_bits(base_model: str) -> tuple[Any, Any]:
    """The base model in NF4, made ready for training an adapter on it."""
    import torch

    if find_spec("bitsandbytes") is None or not torch.cuda.is_available():
        missing = "bitsandbytes (pip install bitsandbytes)" if torch.cuda.is_available() else "a CUDA GPU"
        raise TrainingError(f"--tune qlora needs {missing}: use --tune lora, which trains the same adapter")
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(base_model, quantization_config=quantised, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(base_model)
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"cannot load {base_model!r} in 4 bits ({str(error).splitlines()[0][:200]}); "
            "give the path of a directory with a causal language model, or a hub id that can be reached"
        ) from error
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False), tokenizer
