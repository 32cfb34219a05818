"""What a training run shows and leaves behind while it runs: a bar, a line per step, and a way to stop it."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.outputs import read_losses

LOGGED = {
    "loss": "loss",
    "token_accuracy": "mean_token_accuracy",
    "outcome": "outcome",
    "reward": "reward",
    "preference": "rewards/preference/mean",
    "format": "rewards/format/mean",
    "length": "rewards/length/mean",
    "silent_groups": "frac_reward_zero_std",
    "tied_groups": "tied_groups",
    "written": "completions/mean_length",
    "kl": "kl",
    "entropy": "entropy",
    "reward_accuracy": "rewards/accuracies",
    "reward_margin": "rewards/margins",
    "logp_chosen": "logps/chosen",
    "logp_rejected": "logps/rejected",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}
"""What a line of the loss file may hold besides `step`, `epoch` and `seconds`, and what TRL calls it; the method decides.

`outcome` is the mean outcome of GRPO's roll-outs: 0 for harm, 1 for a task completed without, between them ½.
`silent_groups` is the share of GRPO's groups whose rewards are all equal, so that they teach nothing; `tied_groups` that of
the groups in which no outcome is better than another.
"""

SAID = {
    "rewards/accuracies": ("right", "{:.0%}"),
    "outcome": ("outcome", "{:.2f}"),
    "reward": ("reward", "{:.2f}"),
    "rewards/margins": ("margin", "{:.2f}"),
    "mean_token_accuracy": ("tokens right", "{:.0%}"),
}
"""What the bar shows beside the loss: the first of these that there is."""


class LossLog(TrainerCallback):
    """Appends one JSON line per optimizer step; a resumed run takes back the lines after its checkpoint.

    Args:
        file: Where the lines go.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._before = 0.0
        self._started = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the lines up to the checkpoint."""
        kept = [line for line in read_losses(self.file) if line["step"] <= state.global_step]
        if state.is_world_process_zero:
            self.file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._before = kept[-1]["seconds"] if kept else 0.0
        self._started = time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any], **_: Any
    ) -> None:
        """Append a line.

        Raises:
            TrainingError: If the loss is not a number.
        """
        if "loss" not in logs:
            return
        if not math.isfinite(float(logs["loss"])):
            raise TrainingError(
                f"the loss is {logs['loss']} at step {state.global_step}: start again with a lower --learning-rate"
            )
        line = {
            "step": state.global_step,
            "epoch": round(float(state.epoch or 0), 4),
            **{key: float(logs[name]) for key, name in LOGGED.items() if logs.get(name) is not None},
            "seconds": round(self._before + time.monotonic() - self._started, 2),
        }
        if state.is_world_process_zero:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


class ProgressBar(TrainerCallback):
    """A bar with the last loss; without a terminal, a line at each checkpoint instead."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: Any = None
        self._said = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar."""
        if state.is_world_process_zero:
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any], **_: Any
    ) -> None:
        """Advance it."""
        if self._task is not None and "loss" in logs:
            beside = next((name for name in SAID if logs.get(name) is not None), None)
            self._said = f"loss {float(logs['loss']):.3f}"
            if beside is not None:
                word, form = SAID[beside]
                self._said += f"  {word} {form.format(float(logs[beside]))}"
            self._bar.update(self._task, completed=state.global_step, description=self._said)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say so where there is no bar."""
        if self._task is not None and not self._console.is_terminal:
            self._console.print(f"step {state.global_step} of {state.max_steps}: {self._said}, checkpoint written")

    def close(self) -> None:
        """Take the bar down."""
        self._bar.stop()


class Interrupt(TrainerCallback):
    """Turns Ctrl-C and SIGTERM into a checkpoint and an orderly end; a second signal ends at once.

    Attributes:
        stopped: Whether a signal came.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over while the block runs (in the main thread; elsewhere they cannot be)."""

        def stop(number: int, frame: Any) -> None:
            if self.stopped:
                raise KeyboardInterrupt
            self.stopped = True
            self._console.print("stopping: writing a checkpoint first (once more to stop at once)")

        try:
            before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            before = {}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Between two optimizer steps."""
        self._stop(state, control)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Between two forward passes: what was read since the last optimizer step is read again on resume."""
        self._stop(state, control)

    def _stop(self, state: TrainerState, control: TrainerControl) -> None:
        if self.stopped and state.global_step < state.max_steps:
            control.should_training_stop = True
            control.should_save = state.global_step > 0
