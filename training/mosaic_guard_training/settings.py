"""The settings of a training run; every field is an option of `python -m mosaic_guard.train` and a key of its recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mosaic_guard_training.options import check_ranges, flag, parse, setting

Method = Literal["sft", "dpo", "kto", "grpo"]

WHERE = frozenset(
    {"traces", "preferences", "output", "resume", "save_steps", "keep_checkpoints", "base_model", "adapter"}
)
"""Settings that say where things are, which a manifest names by what they hold, and how a run is cut into sittings."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What is trained on what, and how; `help` of each field says what it does.

    Raises:
        ValueError: If a number is outside its range or two settings contradict each other; the message names the option.
    """

    method: Method = setting(
        "sft: imitate the better sides; dpo: prefer the better side of each pair; "
        "kto: raise good trajectories, lower bad ones, unpaired; grpo: roll out and reward",
        default="dpo",
    )
    traces: Path | None = setting("trace file, or directory of trace files, to learn from", default=None)
    preferences: Path | None = setting("preference file to learn from, in place of traces", default=None)
    environment: str | None = setting(
        "grpo: what to roll out, as module:factory; the factory returns a list of tasks to run a guard on", default=None
    )
    output: Path = setting("directory to write the trained guard to; must not hold one yet")
    resume: bool = setting("go on from the last checkpoint in OUTPUT/checkpoints", default=False)
    base_model: str | None = setting(
        "base model to train, a path or hub id; default: the one that logged the traces, for grpo the default guard's",
        default=None,
    )
    adapter: str | None = setting(
        "adapter, or trained guard, to go on from: a directory, or 'default' for the guard that ships; 'none' begins a new "
        "adapter; default: the one that logged the traces or preferences",
        default=None,
    )

    epochs: float = setting("how often each pair or task is seen", default=3.0, low=0.001, high=10_000)
    max_steps: int | None = setting("stop after this many optimizer steps", default=None, low=1, high=10**9)
    max_pairs: int | None = setting(
        "train on at most this many pairs, both directions of hindsight alike", default=None, low=1, high=10**9
    )
    max_tokens: int | None = setting(
        "train on as many pairs as keep the tokens read over all epochs below this; 2 CPU cores read 250 a second",
        default=None,
        low=1,
        high=10**12,
    )
    min_pairs: int = setting("refuse to train on fewer pairs than this", default=2, low=1, high=10**9)
    pairs_per_task: int = setting("most pairs by outcome of one task", default=16, low=0, high=10**9)
    harmless_twins: int = setting(
        "most pairs at legitimate calls of one harmless trajectory", default=1, low=0, high=10**9
    )

    batch_size: int = setting(
        "pairs (sft, kto: sequences; grpo: roll-outs) per optimizer step and process", default=8, low=1, high=10**6
    )
    micro_batch: int | None = setting(
        "how many of them are in memory at once; must divide the batch size; default 1, for kto 2",
        default=None,
        low=1,
        high=10**6,
    )
    learning_rate: float = setting("peak learning rate", default=1e-4, low=0.0, high=1.0)
    warmup: float = setting("share of the steps over which the learning rate rises", default=0.1, low=0.0, high=0.99)
    beta: float = setting(
        "dpo, kto: larger keeps the guard closer to the one it starts from", default=0.1, low=1e-6, high=1e3
    )
    kto_loss: Literal["kto", "apo_zero"] = setting(
        "kto: compare with an estimate of the distance to the start, or with the start itself", default="kto"
    )

    rollouts: int = setting("grpo: roll-outs of each task, the group that is compared", default=4, low=2, high=10**4)
    sample: Literal["decisions", "all"] = setting(
        "grpo: draw the decisions only, the text being the likeliest, or the text as well", default="all"
    )
    check: Literal["adaptive", "always", "never"] = setting(
        "grpo: whether the safety block is the guard's choice, always there, or never", default="adaptive"
    )
    plan: Literal["written", "computed"] = setting(
        "grpo: whether the guard writes its plans or has them computed", default="written"
    )
    plan_tokens: int = setting("grpo: most tokens of a plan", default=40, low=1, high=10**6)
    safety_tokens: int = setting("grpo: most tokens of the safety thoughts", default=48, low=1, high=10**6)
    reward: Literal["pairwise", "scalar"] = setting(
        "grpo: reward of an outcome: wins against the rest of the group, or a number by itself", default="pairwise"
    )
    preference_weight: float = setting("grpo: weight of the reward of the outcome; 0 for none", default=1.0, low=0.0)
    format_weight: float = setting(
        "grpo: weight of ending each text oneself, in place of being cut at the limit; 0 for none", default=1.0, low=0.0
    )
    length_weight: float = setting("grpo: weight of the penalty on length; 0 for none", default=1.0, low=0.0)
    free_length: int = setting("grpo: tokens that a trajectory's guard may write unpunished", default=400, low=1)
    scale_rewards: Literal["group", "batch", "none"] = setting(
        "grpo: what a reward's distance from its group's mean is divided by: the spread within the group, as in the paper, "
        "within the batch, so that groups that differ little teach little, or nothing",
        default="group",
    )
    kl: float = setting("grpo: weight of the distance to the guard it starts from; 0 for none", default=0.0, low=0.0)

    tune: Literal["lora", "qlora", "full"] = setting(
        "what is trained: a new adapter, one on a base model in 4 bits (needs a GPU and bitsandbytes), or all weights",
        default="lora",
    )
    lora_rank: int = setting("rank of a new adapter", default=16, low=1, high=4096)
    lora_alpha: int = setting("scale of a new adapter; it is divided by the rank", default=32, low=1, high=65536)
    lora_targets: str = setting("modules to adapt: all-linear, or names separated by commas", default="all-linear")
    max_length: int | None = setting(
        "most tokens of a sequence; a longer one is an error, never cut; default the model's window",
        default=None,
        low=2,
        high=10**9,
    )

    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "precision of the base model; auto: bfloat16 where it is fast or a large model would not fit, else float32",
        default="auto",
    )
    checkpointing: Literal["auto", "on", "off"] = setting(
        "recompute activations to save memory; auto: on a GPU, and for rows of more than 2,048 tokens", default="auto"
    )
    save_steps: int = setting("write a checkpoint every so many steps", default=10, low=1, high=10**9)
    keep_checkpoints: int = setting("how many checkpoints to keep", default=2, low=1, high=10**6)
    seed: int = setting("seed of everything that is drawn", default=0, low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.batch_size % self.in_memory:
            raise ValueError(f"--micro-batch {self.in_memory} does not divide --batch-size {self.batch_size}")
        sources = ("environment",) if self.method == "grpo" else ("traces", "preferences")
        named = [name for name in ("traces", "preferences", "environment") if getattr(self, name) is not None]
        if len(named) != 1 or named[0] not in sources:
            raise ValueError(
                f"--method {self.method} needs {' or '.join(map(flag, sources))}"
                + (f", not {' and '.join(map(flag, named))}" if named else "")
            )
        if self.method == "grpo":
            if self.batch_size % self.rollouts:
                raise ValueError(
                    f"--rollouts {self.rollouts} does not divide --batch-size {self.batch_size}: "
                    "the roll-outs of a task belong to one step and one process"
                )
            if not (self.preference_weight or self.format_weight or self.length_weight):
                raise ValueError("every reward is switched off: raise --preference-weight")
        if self.method == "kto" and self.kto_loss == "kto" and self.in_memory < 2:
            raise ValueError("--kto-loss kto compares sequences in memory: --micro-batch must be at least 2")
        if self.tune == "full" and self.adapter not in (None, "none"):
            raise ValueError("--tune full trains all weights: it cannot go on from an --adapter")

    @property
    def in_memory(self) -> int:
        """How many rows are in memory at once."""
        if self.micro_batch is not None:
            return self.micro_batch
        return 2 if self.method == "kto" and self.kto_loss == "kto" else 1

    def to_dict(self) -> dict[str, Any]:
        """The settings that decide the result, as JSON; not where things are, nor how a run is cut into sittings."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in WHERE}


def parse_settings(arguments: Sequence[str] | None = None) -> TrainSettings:
    """Read a command line.

    Args:
        arguments: Without the program's name; None for this process's own.

    Raises:
        SystemExit: For `--help` (0) and a bad command line (2).
    """
    return parse(
        TrainSettings,
        "python -m mosaic_guard.train",
        "Train the guard model: on preferences between the trajectories of its own traces, or on roll-outs.",
        arguments,
        epilog='Guard.load("OUTPUT") uses the result. Needs the extra "train": pip install "mosaic-guard[train]".',
    )
