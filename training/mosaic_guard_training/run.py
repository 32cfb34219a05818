"""One training run from traces to a guard: check all that can be checked, then train, then write the manifest."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from mosaic_guard._trace import Trajectory, read_traces
from mosaic_guard_training.budget import Budget, lopsided
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.model import Start, starting_point
from mosaic_guard_training.outputs import Output, data_digest, read_losses, trace_files, write_json
from mosaic_guard_training.pairs import KINDS, Pairs, PreferencePair, build_pairs
from mosaic_guard_training.settings import TrainSettings
from mosaic_guard_training.tokens import PairRow, pair_row
from mosaic_guard_training.twins import REFUSE, word_ids


class Interrupted(Exception):
    """A signal stopped the run; the message says how to go on."""


Example = tuple[PreferencePair, PairRow]
"""A pair, and what the trainer sees of it."""


def train(settings: TrainSettings, console: Console | None = None) -> Output:
    """Train a guard on traces.

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


class _Run:
    """The steps of `train`, in order."""

    def __init__(self, settings: TrainSettings, output: Output, console: Console, first: bool) -> None:
        self._settings, self._output, self._console, self._first = settings, output, console, first

    def go(self) -> Output:
        settings = self._settings
        files = trace_files(settings.traces)
        trajectories = self._read()
        start = starting_point(trajectories, settings.adapter)
        data = {"digest": data_digest(files), "files": len(files), "trajectories": len(trajectories)}

        known = word_ids(trajectories, REFUSE)
        # The ids decide what the pairs say, not how many there are: too few is seen before a model is loaded.
        pairs = self._pairs(trajectories, known or [0])
        self._report(len(trajectories), pairs)

        from mosaic_guard_training.model import choose_dtype, load_start

        dtype = self._output.noted().get("dtype") or choose_dtype(settings.dtype)
        model, tokenizer, lora = load_start(start, settings, dtype)
        if known is None:
            pairs = self._pairs(trajectories, tokenizer.encode(REFUSE, add_special_tokens=False))
        examples = self._examples(pairs.pairs, model.config)
        if self._first:
            self._output.begin(
                {
                    "base_model": start.base_model,
                    "parent_adapter": start.adapter_digest,
                    "traces": data["digest"],
                    "settings": settings.to_dict(),
                    "dtype": dtype,
                    "pairs": hashlib.sha256("".join(row.digest() for _, row in examples).encode()).hexdigest(),
                }
            )
        self._train(model, tokenizer, lora, examples, start)
        if self._first:
            self._finish(trajectories, start, data, examples, dtype)
        return self._output

    def _read(self) -> list[Trajectory]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trajectories = read_traces(self._settings.traces)
        for warning in caught:
            self._console.print(f"note: {warning.message}", markup=False)
        return trajectories

    def _pairs(self, trajectories: Sequence[Trajectory], refuse_ids: Sequence[int]) -> Pairs:
        settings = self._settings
        return build_pairs(
            trajectories,
            refuse_ids,
            per_task=settings.pairs_per_task,
            harmless_twins=settings.harmless_twins,
            seed=settings.seed,
        )

    def _report(self, trajectories: int, found: Pairs) -> None:
        self._say(f"{trajectories} trajectories give {_listed(found.counts())}")
        for reason, number in sorted(found.skipped.items()):
            self._say(f"  left out: {number} {reason}")
        self._enough(found.counts())

    def _examples(self, pairs: Sequence[PreferencePair], config: Any) -> list[Example]:
        """The pairs to train on as rows: all that differ, within the budget."""
        settings = self._settings
        window = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 8192)
        limit = min(settings.max_length or window, window)
        rows = [(pair, pair_row(pair, limit)) for pair in pairs]
        differing = [(pair, row) for pair, row in rows if row is not None]
        if len(differing) < len(rows):
            self._say(f"  left out: {len(rows) - len(differing)} pairs whose sides say the same")
        per_epoch = None if settings.max_tokens is None else int(settings.max_tokens / settings.epochs)
        chosen = Budget(settings.max_pairs, per_epoch).select(differing, settings.seed)
        if len(chosen) < len(differing):
            dropped = Counter(pair.kind for pair, _ in differing) - Counter(pair.kind for pair, _ in chosen)
            self._say(f"  left out for the budget: {_listed({kind: dropped[kind] for kind in KINDS})}")
        counts = _counts(chosen)
        self._enough(counts)
        tokens = sum(len(row) for _, row in chosen)
        self._say(f"training on {_listed(counts)}: {tokens:,} tokens, {settings.epochs:g} times")
        if warning := lopsided(counts):
            self._say(f"warning: {warning}")
        return chosen

    def _enough(self, counts: dict[str, int]) -> None:
        if sum(counts.values()) < self._settings.min_pairs:
            raise TrainingError(
                f"too few preference pairs to train on: {_listed(counts)}; {self._settings.min_pairs} are needed: "
                "log outcomes (TraceWriter.outcome) of harmful and of harmless trajectories, or raise the budget"
            )

    def _train(self, model: Any, tokenizer: Any, lora: Any, examples: Sequence[Example], start: Start) -> None:
        from mosaic_guard_training.progress import Interrupt, LossLog, ProgressBar
        from mosaic_guard_training.trainer import build_trainer, bytes_needed, quiet_libraries, save_adapter

        interrupt = Interrupt(self._console)
        bar = ProgressBar(self._console)
        callbacks = [LossLog(self._output.losses), bar, interrupt]
        last = self._output.last_checkpoint() if self._settings.resume else None
        try:
            with quiet_libraries():
                trainer = build_trainer(
                    model, tokenizer, lora, [row for _, row in examples], self._settings, self._output
                )
                for callback in callbacks:
                    trainer.add_callback(callback)
                self._output.need_space(bytes_needed(trainer.model, self._settings.keep_checkpoints))
                if last is not None:
                    self._say(f"resuming from {last.name}")
                with interrupt.listening():
                    trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except KeyboardInterrupt:
            raise Interrupted(self._how_to_resume()) from None
        finally:
            bar.close()
        if trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(self._how_to_resume())
        if self._first:
            save_adapter(trainer, start.base_model, self._output)

    def _how_to_resume(self) -> str:
        last = self._output.last_checkpoint()
        where = "before the first checkpoint" if last is None else f"after {last.name}"
        return f"stopped {where}: go on with the same command and --resume"

    def _finish(
        self,
        trajectories: Sequence[Trajectory],
        start: Start,
        data: dict[str, Any],
        examples: Sequence[Example],
        dtype: str,
    ) -> None:
        from mosaic_guard_training.curve import draw_curve
        from mosaic_guard_training.manifest import guard_options, manifest, metrics_of

        losses = read_losses(self._output.losses)
        draw_curve(losses, self._output.curve)
        counts = _counts(examples)
        metrics = metrics_of(losses, counts, sum(len(row) for _, row in examples))
        record = manifest(
            start=start,
            settings=self._settings,
            data=data,
            metrics=metrics,
            guard_options=guard_options(trajectories),
            dtype=dtype,
        )
        write_json(self._output.manifest, record)
        shutil.rmtree(self._output.data, ignore_errors=True)
        self._say(
            f"loss {metrics['loss_first']:.3f} → {metrics['loss_last']:.3f}, {metrics['reward_accuracy']:.0%} of the "
            f"pairs ranked right, {metrics['tokens']:,} tokens in {metrics['seconds']:,.0f} s"
        )
        self._say(f'Guard.load("{self._output.root}") uses it')

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _counts(examples: Sequence[Example]) -> dict[str, int]:
    found = Counter(pair.kind for pair, _ in examples)
    return {kind: found[kind] for kind in KINDS}


def _listed(counts: dict[str, int]) -> str:
    return f"{sum(counts.values())} pairs (" + ", ".join(f"{kind} {number}" for kind, number in counts.items()) + ")"
