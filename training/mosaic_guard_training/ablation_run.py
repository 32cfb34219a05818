"""One run of the ablations: what it learns from, how it is trained, and what the trained guard does with unseen tasks."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_guard import Guard, Limits, LocalGuardModel, TraceWriter, read_traces
from mosaic_guard_training.graded import KINDS, GradedTask, graded_tasks, held_out_tasks, training_tasks
from mosaic_guard_training.pairs import build_pairs
from mosaic_guard_training.preference_file import Preference, logged_by, write_preferences
from mosaic_guard_training.settings import TrainSettings
from mosaic_guard_training.text_refusal import in_text
from mosaic_guard_training.twins import verdict_ids

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory
    from mosaic_guard_training.ablations import Run

WARM_TASKS = 12
"""Tasks of each kind that a warm start is written for."""

_WARM_SEED = 1_000
"""Keeps the payments of warm starts apart from those that are trained and tried on."""


def limits_of(run: Run) -> Limits:
    """How long a run's texts may be."""
    return Limits(plan=run.arm["plan_tokens"], safety=run.arm["safety_tokens"])


def prepare(run: Run, place: Path, start: Path | None) -> Path | None:
    """What a run learns from, as a preference file; None for GRPO, which rolls out by itself.

    Args:
        run: The run.
        place: Its directory.
        start: The guard that it starts from; None for a warm start.
    """
    from mosaic_guard.models.weights import DEFAULT_BASE

    file = place / "preferences.jsonl"
    if run.arm["method"] == "grpo":
        return None
    if not file.exists():
        base = run.trial.get("base_model") or DEFAULT_BASE
        if run.arm["method"] == "sft":
            _write_warm_start(run, file, base)
        else:
            assert start is not None
            _write_pairs(run, start.with_name(f"traces-{run.arm['check']}-{run.arm['logged']}"), start, file, base)
    return file


def _write_warm_start(run: Run, file: Path, base: str) -> None:
    from mosaic_guard.models.weights import load_base_model
    from mosaic_guard_training.warm_start import write_warm_start

    _, tokenizer = load_base_model(None if "base_model" not in run.trial else base)
    write_warm_start(
        file,
        graded_tasks(WARM_TASKS, seed=_WARM_SEED + run.seed),
        tokenizer,
        base_model=base,
        form=run.arm["form"],
        limits=limits_of(run),
        seed=run.seed,
    )


def _log(run: Run, traces: Path, guard: Guard) -> None:
    """Roll-outs of the training tasks under the guard that a run starts from; there whole or not at all.

    They lie beside that guard: all runs that start from it and log as many learn from the same.
    """
    assert isinstance(guard.model, LocalGuardModel)
    guard.model.remember(512)
    part = traces.with_name(f"{traces.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with TraceWriter(part) as trace:
        for task in some_of(run, training_tasks()):
            for number in range(run.arm["logged"]):
                name = f"{task.id} {number}"
                trace.outcome(name, task.run(guard, trace, name))
    os.replace(part, traces)


def _write_pairs(run: Run, traces: Path, start: Path, file: Path, base: str) -> None:
    guard = _guard(run, start, sample=True, seed=run.seed)
    if not traces.exists():
        _log(run, traces, guard)
    assert isinstance(guard.model, LocalGuardModel)
    pairs = build_pairs(read_traces(traces), verdict_ids(guard.model.tokenizer), seed=run.seed).pairs
    kept = [pair for pair in pairs if pair.kind in run.arm["pairs"]]
    write_preferences(
        file,
        [
            Preference(pair, pair.task.rsplit(" ", 1)[-1], "unknown", "outcome", base, (logged_by({}),), ())
            for pair in kept
        ],
    )


def settings_of(run: Run, place: Path, start: Path | None, data: Path | None) -> TrainSettings:
    """The settings that a run is trained with.

    Args:
        run: The run.
        place: Its directory.
        start: The guard that it starts from; None for a warm start.
        data: Its preference file; None for GRPO.
    """
    known = {field.name for field in dataclasses.fields(TrainSettings)}
    said = {key: value for key, value in run.arm.items() if key in known}
    if run.arm["method"] == "grpo":
        said.setdefault("environment", "mosaic_guard_training.graded:training_tasks")
    else:
        said["preferences"] = data
    if steps := run.trial.get("max_steps"):
        said["max_steps"] = min(steps, said.get("max_steps") or steps)
    return TrainSettings(
        **{"lora_rank": 4, "lora_alpha": 8, "save_steps": 4, **said},
        output=place / "guard",
        resume=True,
        seed=run.seed,
        adapter=None if start is None else str(start),
        base_model=run.trial.get("base_model"),
    )


def try_out(run: Run, guard: Path) -> list[dict[str, Any]]:
    """What a trained guard does with the held-out tasks.

    Args:
        run: The run.
        guard: Its guard.

    Returns:
        For each task `id`, `kind`, and for each of its calls `wanted`, `ran` and `p_refuse`; `checked`, whether it wrote
        safety thoughts; `written`, the tokens that the guard chose; `seconds`, that it took.
    """
    judge = _guard(run, guard)
    if run.arm["form"] == "text":
        judge = in_text(judge)
    tasks = some_of(run, held_out_tasks())
    with tempfile.TemporaryDirectory(prefix="mosaic-ablation-") as directory:
        with TraceWriter(directory) as trace:
            for task in tasks:
                task.run(judge, trace)
        logged = {each.id: each for each in read_traces(Path(directory))}
    return [_did(task, logged[task.id]) for task in tasks]


def some_of(run: Run, tasks: Sequence[GradedTask]) -> Sequence[GradedTask]:
    """All tasks, or in a trial the first of them; the kinds take turns."""
    return tasks[: len(KINDS) * run.trial["tasks"]] if "tasks" in run.trial else tasks


def _did(task: GradedTask, trajectory: Trajectory) -> dict[str, Any]:
    (step,) = trajectory.steps
    return {
        "id": task.id,
        "kind": task.kind,
        "wanted": [payment.wanted for payment in task.payments],
        "ran": [decision.verdict == "act" for decision in step.decisions],
        "p_refuse": [decision.p_refuse for decision in step.decisions],
        "checked": step.safety_thoughts is not None,
        "written": sum(len(piece.ids) for piece in step.pieces if piece.kind == "sampled"),
        "seconds": round(sum(step.seconds.values()), 3),
    }


def _guard(run: Run, directory: Path, **options: Any) -> Guard:
    return Guard.load(directory, check=run.arm["check"], limits=limits_of(run), **options)
