"""The settings of a training run; every field is an option of `python -m mosaic_guard.train`."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


def _meta(help: str, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """What a field says about its option: its help text and, for numbers, the range that it must lie in."""
    return {"help": help, "range": None if low is None else (low, high)}


@dataclass(frozen=True)
class TrainSettings:
    """What is trained on what, and how; `help` of each field says what it does.

    Raises:
        ValueError: If a number is outside its range; the message names the option.
    """

    traces: Path = field(metadata=_meta("trace file, or directory of trace files, to learn from"))
    output: Path = field(metadata=_meta("directory to write the trained guard to; must not hold one yet"))
    resume: bool = field(default=False, metadata=_meta("go on from the last checkpoint in OUTPUT/checkpoints"))
    adapter: str | None = field(
        default=None,
        metadata=_meta("adapter, or trained guard, to go on from: a directory; or 'none' to begin a new adapter"),
    )

    epochs: float = field(default=3.0, metadata=_meta("how often each pair is seen", 0.001, 10_000))
    max_steps: int | None = field(default=None, metadata=_meta("stop after this many optimizer steps", 1, 10**9))
    max_pairs: int | None = field(
        default=None, metadata=_meta("train on at most this many pairs, both directions of hindsight alike", 1, 10**9)
    )
    max_tokens: int | None = field(
        default=None,
        metadata=_meta(
            "train on as many pairs as keep the tokens read over all epochs below this; 2 CPU cores read 250 a second",
            1,
            10**12,
        ),
    )
    min_pairs: int = field(default=2, metadata=_meta("refuse to train on fewer pairs than this", 1, 10**9))
    pairs_per_task: int = field(default=16, metadata=_meta("most pairs by outcome of one task", 0, 10**9))
    harmless_twins: int = field(default=1, metadata=_meta("most hindsight pairs of one harmless trajectory", 0, 10**9))

    batch_size: int = field(default=8, metadata=_meta("pairs per optimizer step and process", 1, 10**6))
    micro_batch: int = field(default=1, metadata=_meta("pairs in memory at once; must divide the batch size", 1, 10**6))
    learning_rate: float = field(default=1e-4, metadata=_meta("peak learning rate", 0.0, 1.0))
    warmup: float = field(
        default=0.1, metadata=_meta("share of the steps over which the learning rate rises", 0.0, 0.99)
    )
    beta: float = field(
        default=0.1, metadata=_meta("DPO's beta: larger keeps the guard closer to the one it starts from", 1e-6, 1e3)
    )
    lora_rank: int = field(default=16, metadata=_meta("rank of a new adapter", 1, 4096))
    lora_alpha: int = field(default=32, metadata=_meta("scale of a new adapter; it is divided by the rank", 1, 65536))
    lora_targets: str = field(
        default="all-linear", metadata=_meta("modules to adapt: all-linear, or names separated by commas")
    )
    max_length: int | None = field(
        default=None,
        metadata=_meta(
            "most tokens of a sequence; a longer one is an error, never cut; default the model's window", 2, 10**9
        ),
    )

    dtype: Literal["auto", "float32", "bfloat16"] = field(
        default="auto",
        metadata=_meta("precision of the base model; auto: bfloat16 on a GPU and on a CPU with AMX, else float32"),
    )
    checkpointing: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata=_meta("recompute activations to save memory; auto: on a GPU, and for rows of more than 2,048 tokens"),
    )
    save_steps: int = field(default=10, metadata=_meta("write a checkpoint every so many steps", 1, 10**9))
    keep_checkpoints: int = field(default=2, metadata=_meta("how many checkpoints to keep", 1, 10**6))
    seed: int = field(default=0, metadata=_meta("seed of everything that is drawn", 0, 2**32 - 1))

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value, limits = getattr(self, spec.name), spec.metadata["range"]
            if limits and value is not None and not limits[0] <= value <= limits[1]:
                raise ValueError(f"--{_flag(spec.name)} must be between {limits[0]} and {limits[1]}, not {value}")
        if self.batch_size % self.micro_batch:
            raise ValueError(f"--micro-batch {self.micro_batch} does not divide --batch-size {self.batch_size}")

    def to_dict(self) -> dict[str, Any]:
        """The settings that decide the result, as JSON; not where things are, nor how a run is cut into sittings."""
        left_out = {"traces", "output", "resume", "save_steps", "keep_checkpoints", "adapter"}
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in left_out}


def parse_settings(arguments: Sequence[str] | None = None) -> TrainSettings:
    """Read a command line.

    Args:
        arguments: Without the program's name; None for this process's own.

    Raises:
        SystemExit: For `--help` (0) and a bad command line (2).
    """
    parser = argparse.ArgumentParser(
        prog="python -m mosaic_guard.train",
        description="Train the guard model on pairwise preferences between the trajectories of its own traces.",
        epilog='Guard.load("OUTPUT") uses the result. Needs the extra "train": pip install "mosaic-guard[train]".',
    )
    hints = typing.get_type_hints(TrainSettings)
    for spec in dataclasses.fields(TrainSettings):
        _add(parser, spec, hints[spec.name])
    try:
        return TrainSettings(**vars(parser.parse_args(arguments)))
    except ValueError as error:
        parser.error(str(error))


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _add(parser: argparse.ArgumentParser, spec: dataclasses.Field[Any], hint: Any) -> None:
    options: dict[str, Any] = {"help": spec.metadata["help"]}
    required = spec.default is dataclasses.MISSING
    if hint is bool:
        parser.add_argument(f"--{_flag(spec.name)}", action="store_true", **options)
        return
    if isinstance(hint, types.UnionType):  # X | None
        hint = next(each for each in typing.get_args(hint) if each is not types.NoneType)
    if typing.get_origin(hint) is Literal:
        options["choices"] = typing.get_args(hint)
        hint = str
    if not required and spec.default is not None:
        options["help"] += f" (default: {spec.default})"
    if "choices" not in options:
        options["metavar"] = {Path: "DIR", int: "N", float: "X", str: "NAME"}[hint]
    default = None if required else spec.default
    parser.add_argument(f"--{_flag(spec.name)}", type=hint, required=required, default=default, **options)
