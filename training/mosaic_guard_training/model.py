"""The model to train: which adapter it starts from, its precision, its new LoRA layers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def starting_point(trajectories: Sequence[Trajectory], adapter: str | None) -> Start:
    """What training on some trajectories starts from: the guard that logged them.

    Args:
        trajectories: At least one with the tokens of a local guard model.
        adapter: What `--adapter` says.

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
    base = next(iter(bases))
    if adapter == "none" or (adapter is None and digests == {None}):
        return Start(base)
    if adapter is None:
        used = ", ".join(sorted(digest or "no adapter" for digest in digests))
        raise TrainingError(
            f"the traces were logged by a guard with an adapter ({used}): name its directory with --adapter, "
            "or start afresh with --adapter none"
        )
    directory = _adapter_directory(Path(adapter))
    return Start(base, directory, hashlib.sha256((directory / ADAPTER_WEIGHTS).read_bytes()).hexdigest()[:12])


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
        settings: The shape of a new adapter.
        dtype: Precision of the base model, as `choose_dtype` names it.

    Returns:
        (model, tokenizer, configuration of the new LoRA adapter) for the trainer. Where training goes on from an
        adapter, it is in the model and the configuration is None.

    Raises:
        ModelLoadError: If the base model cannot be loaded.
        TrainingError: If the adapter does not fit it.
    """
    import torch
    from peft import LoraConfig, PeftModel

    from mosaic_guard.models.weights import load_base_model

    model, tokenizer = load_base_model(start.base_model, dtype=getattr(torch, dtype))
    if start.adapter is None:
        names = settings.lora_targets
        targets = names if names == "all-linear" else [name.strip() for name in names.split(",")]
        return (
            model,
            tokenizer,
            LoraConfig(
                r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=targets, task_type="CAUSAL_LM"
            ),
        )
    try:
        return PeftModel.from_pretrained(model, str(start.adapter), is_trainable=True), tokenizer, None
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"the adapter {str(start.adapter)!r} does not fit {start.base_model!r} "
            f"({str(error).splitlines()[0][:200]}): name another with --adapter, or start afresh with --adapter none"
        ) from error


def choose_dtype(wanted: str) -> str:
    """The precision of the base model, `float32` or `bfloat16`; the adapter's own weights are float32 in any case.

    Args:
        wanted: `float32`, `bfloat16` or `auto`: bfloat16 on a GPU that has it and on a CPU with matrix tiles (AMX).
            Other CPUs multiply no faster in bfloat16, whatever their flags say.
    """
    if wanted != "auto":
        return wanted
    import torch

    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
    else:
        tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
        fast = tiles is not None and tiles()
    return "bfloat16" if fast else "float32"
