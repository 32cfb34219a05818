"""One training run from traces, preferences or tasks to a guard: check all that can be checked, then train, then write."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console

from mosaic_guard._trace import Trajectory, read_traces
from mosaic_guard._transcript import Limits
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.material import (
    Material,
    counted,
    enough,
    from_labels,
    from_lessons,
    from_pairs,
    from_tasks,
    labels_of,
    listed,
    read_preference_file,
    taught,
    unpaired,
)
from mosaic_guard_training.model import Start, named_start, preferred_start, starting_point
from mosaic_guard_training.outputs import Output, data_digest, read_losses, trace_files, write_json
from mosaic_guard_training.pairs import Pairs, PreferencePair, Side, build_pairs
from mosaic_guard_training.settings import TrainSettings
from mosaic_guard_training.sources.splits import refuse_held_out
from mosaic_guard_training.twins import VerdictIds, logged_verdict_ids, verdict_ids


class Interrupted(Exception):
    """A signal stopped the run; the message says how to go on."""


@dataclass
class _Source:
    """What a run learns from.

    Attributes:
        start: What training starts from.
        data: Its digest and size, for the manifest.
        trajectories: Of traces.
        pairs: Of a preference file.
        guards: Those that logged a preference file's pairs.
        tasks: Of an environment.
        lessons: Of traces, for SFT: trajectories whose guard's words are targets as they stand; they are in no pair.
    """

    start: Start
    data: dict[str, Any]
    trajectories: list[Trajectory] = field(default_factory=list)
    pairs: list[PreferencePair] = field(default_factory=list)
    guards: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[Any] = field(default_factory=list)
    lessons: list[Side] = field(default_factory=list)


def train(settings: TrainSettings, console: Console | None = None) -> Output:
    """Train a guard.

    Args:
        settings: What on what, and how.
        console: Where progress goes; default standard output, of the first process only.

    Returns:
        Where the guard is.

    Raises:
        TrainingError: If it cannot start, or the loss is lost.
        TraceError: For a bad trace record.
        ModelLoadError: If the base model cannot be loaded.
        Interrupted: If Ctrl-C or SIGTERM stopped it.
    """
    first = os.environ.get("RANK", "0") == "0"
    console = console or Console(quiet=not first, highlight=False)
    output = Output(settings.output)
    if first:
        output.claim(settings.resume)
    if output.manifest.exists():
        console.print(f"nothing to do: {output.root} holds a trained guard")
        return output
    try:
        return _Run(settings, output, console, first).go()
    except TrainingError:
        output.forget()
        raise
    finally:
        output.release()


def leave_processes() -> None:
    """Take leave of the other processes of a launched run; its last act, for nothing can be said to them any more.

    The threads of a process group that is still there when the interpreter ends abort the process, now and then.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()  # the trainer refers to itself, and its model to the group
        distributed.destroy_process_group()


class _Run:
    """The steps of `train`, in order."""

    def __init__(self, settings: TrainSettings, output: Output, console: Console, first: bool) -> None:
        self._settings, self._output, self._console, self._first = settings, output, console, first

    def go(self) -> Output:
        settings = self._settings
        source = self._source()
        # The ids of the twins' words decide what pairs say, not how many there are: too few is seen before a model is loaded.
        known = logged_verdict_ids(source.trajectories)
        pairs = self._pairs(source, known or ([0], [0]))

        from mosaic_guard_training.model import load_start

        model, tokenizer, lora = load_start(source.start, settings, self._output.noted().get("dtype") or settings.dtype)
        dtype = str(model.dtype).removeprefix("torch.")
        if known is None and source.trajectories:
            pairs = self._made(source, verdict_ids(tokenizer)).pairs
        limit = self._limit(model.config)
        material = self._material(source, pairs, limit)
        if self._first:
            self._output.begin(
                {
                    "base_model": source.start.base_model,
                    "parent_adapter": source.start.adapter_digest,
                    "traces": source.data["digest"],
                    "settings": settings.to_dict(),
                    "dtype": dtype,
                    "pairs": material.digest,
                }
            )
        self._train(model, tokenizer, lora, material, source, limit)
        if self._first:
            self._finish(source, material, dtype)
        return self._output

    def _source(self) -> _Source:
        settings = self._settings
        if settings.environment is not None:
            from mosaic_guard.models.weights import DEFAULT_BASE
            from mosaic_guard_training.grpo import load_tasks

            tasks = load_tasks(settings.environment)
            start = named_start(settings.base_model or DEFAULT_BASE, settings.adapter)
            digest = from_tasks([task.id for task in tasks]).digest
            return _Source(start, {"digest": digest, "tasks": len(tasks)}, tasks=tasks)
        if settings.preferences is not None:
            file = read_preference_file(settings.preferences)
            if file.held_out:
                self._say(f"  held out: {file.held_out} pairs of other splits")
            start = preferred_start(file.base_models, file.guards, settings.adapter, settings.base_model)
            data = {"digest": data_digest([settings.preferences]), "files": 1, "pairs": len(file.pairs)}
            return _Source(start, data, pairs=file.pairs, guards=file.guards)
        assert settings.traces is not None  # the settings see to it
        from mosaic_guard_training.lessons import to_be_learnt

        files = trace_files(settings.traces)
        trajectories = self._read()
        refuse_held_out(name for each in trajectories for name in (each.id, each.task))
        if not to_be_learnt(settings.traces):
            raise TrainingError(
                f"the lessons in {str(settings.traces)!r} were written to measure guards on: take others"
            )
        start = starting_point(trajectories, settings.adapter, settings.base_model)
        data = {"digest": data_digest(files), "files": len(files), "trajectories": len(trajectories)}
        return _Source(
            start, data, trajectories=trajectories, lessons=taught(trajectories) if settings.method == "sft" else []
        )

    def _read(self) -> list[Trajectory]:
        assert self._settings.traces is not None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trajectories = read_traces(self._settings.traces)
        for warning in caught:
            self._console.print(f"note: {warning.message}", markup=False)
        return trajectories

    def _pairs(self, source: _Source, words: VerdictIds) -> list[PreferencePair]:
        """The pairs of traces or of a preference file, with a word on where they come from."""
        if self._settings.method in ("kto", "grpo"):
            return source.pairs
        found = self._made(source, words) if source.trajectories else Pairs(source.pairs)
        counts = counted(pair.kind for pair in found.pairs)
        what = f"{len(source.trajectories)} trajectories give" if source.trajectories else "the preference file holds"
        self._say(f"{what} {listed(counts)}")
        for reason, number in sorted(found.skipped.items()):
            self._say(f"  left out: {number} {reason}")
        if not source.lessons:
            enough(counts, self._settings)
        return found.pairs

    def _made(self, source: _Source, words: VerdictIds) -> Pairs:
        settings, lessons = self._settings, {side.trajectory for side in source.lessons}
        return build_pairs(
            [trajectory for trajectory in source.trajectories if trajectory.id not in lessons],
            words,
            per_task=settings.pairs_per_task,
            harmless_twins=settings.harmless_twins,
            seed=settings.seed,
        )

    def _limit(self, config: Any) -> int:
        """Most tokens of a sequence: the model's window, or what was asked for within it."""
        window = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 8192)
        return min(self._settings.max_length or window, window)

    def _material(self, source: _Source, pairs: Sequence[PreferencePair], limit: int) -> Material:
        settings = self._settings
        if settings.method == "grpo":
            found = from_tasks([task.id for task in source.tasks])
        elif settings.method == "kto":
            sides = labels_of(source.trajectories) if source.trajectories else unpaired(source.pairs)
            self._say(f"{len(source.trajectories) or len(source.pairs)} {'trajectories' if source.trajectories else 'pairs'} "
                      f"give {len(sides)} labelled trajectories")  # fmt: skip
            found = from_labels(sides, settings, limit)
        elif source.lessons:
            self._say(f"{len(source.lessons)} trajectories are lessons")
            found = from_lessons(source.lessons, pairs, settings, limit)
        else:
            found = from_pairs(pairs, settings, limit)
        what = {"grpo": "tasks", "kto": "trajectories"}.get(settings.method, "lessons" if source.lessons else "pairs")
        notes = [note for note in found.left_out if not note.startswith("warning")]
        tokens = f": {found.tokens:,} tokens, {settings.epochs:g} times" if found.tokens else ""
        for note in notes:
            self._say(note)
        self._say(f"training on {listed(found.counts, what)}{tokens}")
        for note in found.left_out:
            if note not in notes:
                self._say(note)
        return found

    def _train(self, model: Any, tokenizer: Any, lora: Any, material: Material, source: _Source, limit: int) -> None:
        from mosaic_guard_training.progress import Interrupt, LossLog, ProgressBar
        from mosaic_guard_training.trainer import build_trainer, bytes_needed, quiet_libraries, save_result

        interrupt = Interrupt(self._console)
        bar = ProgressBar(self._console)
        callbacks = [LossLog(self._output.losses), bar, interrupt]
        last = self._output.last_checkpoint() if self._settings.resume else None
        try:
            with quiet_libraries():
                trainer = build_trainer(
                    model, tokenizer, lora, material, self._settings, self._output,
                    limit=limit, roller=self._roller(source, limit),
                )  # fmt: skip
                for callback in callbacks:
                    trainer.add_callback(callback)
                self._output.need_space(bytes_needed(trainer.model, self._settings.keep_checkpoints))
                if last is not None:
                    self._say(f"resuming from {last.name}")
                with interrupt.listening():
                    trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except KeyboardInterrupt:
            raise Interrupted(self._how_to_resume()) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise TrainingError(
                f"the disk of {str(self._output.root)!r} is full: free some, then go on with the same command and --resume"
            ) from error
        finally:
            bar.close()
        if trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(self._how_to_resume())
        save_result(trainer, source.start.base_model, self._output)

    def _roller(self, source: _Source, limit: int) -> Any:
        if not source.tasks:
            return None
        from mosaic_guard_training.grpo import Roller

        return Roller(source.tasks, self._settings, source.start.base_model, limit)

    def _how_to_resume(self) -> str:
        last = self._output.last_checkpoint()
        where = "before the first checkpoint" if last is None else f"after {last.name}"
        return f"stopped {where}: go on with the same command and --resume"

    def _finish(self, source: _Source, material: Material, dtype: str) -> None:
        from mosaic_guard_training.curve import draw_curve
        from mosaic_guard_training.manifest import FITTED, guard_options, manifest, metrics_of

        settings = self._settings
        losses = read_losses(self._output.losses)
        draw_curve(losses, self._output.curve, settings.method)
        groups = None
        if settings.method == "grpo":
            groups = settings.batch_size // settings.rollouts * int(os.environ.get("WORLD_SIZE", "1"))
        metrics = metrics_of(losses, material.counts, material.tokens, groups)
        if settings.method == "grpo":
            limits = Limits(plan=settings.plan_tokens, safety=settings.safety_tokens)
            guards = [{"check": settings.check, "plan": settings.plan, "limits": asdict(limits)}]
        else:
            guards = source.guards or [trajectory.guard for trajectory in source.trajectories]
        kept = guard_options(guards, source.start.adapter_digest)
        record = manifest(
            start=source.start,
            settings=settings,
            data=source.data,
            metrics=metrics,
            guard_options=kept,
            dtype=dtype,
        )
        write_json(self._output.manifest, record)
        shutil.rmtree(self._output.data, ignore_errors=True)
        self._say(_summary(metrics))
        self._say(f'Guard.load("{self._output.root}") uses it')
        if source.start.adapter_digest and any(name in kept for name in FITTED):
            finds = "python -m mosaic_guard_training.calibrate finds its own"
            self._say(f"its threshold is that of the guard that it went on from: {finds}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _summary(metrics: dict[str, Any]) -> str:
    """What came of a run, in one line."""
    parts = [f"loss {metrics['loss_first']:.3f} → {metrics['loss_last']:.3f}"]
    if "reward_accuracy" in metrics:
        parts.append(f"{metrics['reward_accuracy']:.0%} of the pairs ranked right")
    elif "token_accuracy" in metrics:
        parts.append(f"{metrics['token_accuracy']:.0%} of the tokens guessed right")
    if "groups" in metrics:
        groups = metrics["groups"]
        if "outcome" in metrics:
            parts.append(f"mean outcome {metrics['outcome']:.2f} of 1")
        parts.append(f"{groups['silent']} of {groups['all']} groups taught nothing ({groups['tied']} tied)")
    read = f"{metrics['tokens']:,} tokens in " if metrics["tokens"] else ""
    return ", ".join(parts) + f", {read}{metrics['seconds']:,.0f} s"
