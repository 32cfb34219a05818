"""Lessons: tasks with labels become traces in which the guard says what it should, as targets for SFT.

    python -m mosaic_guard_training.lessons --tasks FILE --output DIR
    python -m mosaic_guard_training.lessons --tasks agentdojo:workspace --output DIR

Each task's scripted agent runs under `guarded_graph` with a guard model that knows the labels (`TeacherModel`): it refuses the
harmful calls and lets the others act, so that what follows a refusal is what follows one at inference. Plan and safety
thoughts say, in a few tokens, which words of the user ask for the call and where its values come from. Nothing is
sampled and no weights are needed: a task of three steps takes about a tenth of a second.

OUTPUT holds one trace file per task, written beside and moved in whole; a task that is on record is not run again.
`lessons.json` says what was run and how many tokens came of it. For AgentDojo see `lessons_agentdojo.py`.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from mosaic_guard import Guard
from mosaic_guard._errors import ModelLoadError
from mosaic_guard._trace import TraceError, TraceWriter, read_traces
from mosaic_guard._transcript import Limits
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.hindsight import HindsightModel
from mosaic_guard_training.options import check_ranges, parse, setting
from mosaic_guard_training.outputs import write_json
from mosaic_guard_training.rollout import UNFINISHED, RecordError, file_name, play, record
from mosaic_guard_training.simulated import simulate
from mosaic_guard_training.sources.splits import refuse_held_out
from mosaic_guard_training.tasks import Task, call_key, read_tasks

if TYPE_CHECKING:
    from mosaic_guard._decision import Step
    from mosaic_guard._transcript import Prompt
    from mosaic_guard.models.guard_model import Checked, Decide, Planned

DOJO = "agentdojo:"
"""What `--tasks` begins with where it names a suite of AgentDojo."""

NOTE = "lessons.json"


@dataclass(frozen=True, kw_only=True)
class LessonSettings:
    """What is taught; `help` of each field says what it does.

    Raises:
        ValueError: If a number is outside its range.
    """

    tasks: str = setting("file of tasks, or agentdojo:SUITE")
    output: Path = setting("directory for the traces; what is there already is not run again")
    base_model: str | None = setting(
        "model whose tokenizer is used, a path or hub id; default: the default guard's", default=None
    )
    check: Literal["adaptive", "always", "never"] = setting(
        "safety thoughts: where a call is refused, at every step, or never", default="adaptive"
    )
    plan: Literal["written", "computed"] = setting(
        "whether the guard is to write its plans, which it then learns, or will have them computed", default="written"
    )
    plan_tokens: int = setting("most tokens of a plan", default=40, low=1, high=10**4)
    safety_tokens: int = setting("most tokens of the safety thoughts", default=48, low=1, high=10**4)
    limit: int | None = setting("run at most this many tasks, drawn at random", default=None, low=1, high=10**9)
    midway: float = setting(
        "share of the tasks in whose middle the guard comes in: it has judged no step of what stands there already",
        default=0.0,
        low=0.0,
        high=1.0,
    )
    attacks: int = setting(
        "agentdojo: how many of our templates each pair of tasks is attacked with", default=2, low=0, high=1000
    )
    side: Literal["train", "dev", "test"] = setting("agentdojo: whose templates", default="train")
    registered: str = setting(
        "agentdojo: AgentDojo's own attacks, separated by commas", default="important_instructions,direct"
    )
    seed: int = setting("seed of what is drawn", default=0, low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        check_ranges(self)


Labels = Callable[["Step"], "Sequence[bool | None]"]
"""Whether each call of a step is harmful; None: it acts, and nothing is to be learnt of it."""


class Lesson(Protocol):
    """Something that can be run once under a guard that knows better."""

    @property
    def id(self) -> str:
        """Names its trajectory."""

    def labels(self, step: Step) -> Sequence[bool | None]:
        """As `Labels` says."""

    def run(self, guard: Guard, trace: TraceWriter) -> None:
        """Run it and log steps and outcome."""


class TeacherModel(HindsightModel):
    """Says what labels say: `refuse` of each harmful call, `act` of the others.

    Args:
        tokenizer: The base model's.
        name: Path or hub id of the base model.
        window: Its context length in tokens.
    """

    labels: Labels

    def knowing(self, labels: Labels) -> TeacherModel:
        """The same with these labels."""
        told = copy(self)
        told.labels = labels
        return told

    def check(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        """Write the safety block, if there is to be one, and the right verdicts."""
        labels = self.labels(prompt.step)
        told = copy(self)
        told.verdicts = tuple("refuse" if harmful else "act" for harmful in labels)
        told.taught = tuple(harmful is not None for harmful in labels)
        return HindsightModel.check(told, prompt, planned, decide)


@dataclass
class Lessons:
    """What came of the tasks.

    Attributes:
        tasks: How many are on record.
        counts: `steps`, `calls`, `refused`, `tokens`, `target_tokens`, `failed_guard` (a step that could not be judged).
        failed: Why a task could not be run, by task.
        seconds: How long the tasks of this run took.
    """

    tasks: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """The summary, a line each."""
        c = self.counts
        steps = max(c["steps"], 1)
        said = [
            f"{self.tasks} tasks: {c['steps']} steps, {c['calls']} calls, {c['refused']} of them refused",
            f"{c['tokens'] / steps:.0f} tokens per step, {c['target_tokens'] / steps:.1f} of them targets",
        ]
        if c["run"]:
            said.append(f"{c['run'] / max(self.seconds, 1e-9):.1f} tasks per second")
        if c["failed_guard"]:
            said.append(f"{c['failed_guard']} calls could not be judged and give no lesson")
        if self.failed:
            first, why = next(iter(self.failed.items()))
            said.append(f"{len(self.failed)} tasks failed, such as {first}: {why}")
        return said


def teach(settings: LessonSettings, *, to_learn: bool = True) -> Lessons:
    """Run what is missing and count what is there.

    Args:
        settings: What is taught.
        to_learn: Whether somebody is to learn from it; False where a guard is measured on it only.

    Raises:
        TrainingError: If there is nothing to run, or nobody may learn from it.
        FileNotFoundError: If the tasks are not there.
        TaskError: For a bad task file.
        ModelLoadError: If the tokenizer cannot be loaded.
    """
    lessons = list(_lessons(settings, to_learn))
    if settings.limit is not None and settings.limit < len(lessons):
        drawn = random.Random(settings.seed).sample(range(len(lessons)), settings.limit)
        lessons = [lessons[at] for at in sorted(drawn)]
    if not lessons:
        raise TrainingError(f"there are no tasks with a script in {settings.tasks!r}")
    settings.output.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(settings.output / UNFINISHED, ignore_errors=True)
    missing = [lesson for lesson in lessons if not (settings.output / file_name(lesson.id)).exists()]
    result = Lessons()
    started = time.monotonic()
    teacher, limits = teacher_of(settings.base_model), Limits(plan=settings.plan_tokens, safety=settings.safety_tokens)
    for lesson in _shown(missing):
        try:
            guard = Guard(teacher.knowing(lesson.labels), check=settings.check, plan=settings.plan, limits=limits)
            record(settings.output, lesson.id, partial(lesson.run, guard))
            result.counts["run"] += 1
        except RecordError as error:
            raise TrainingError(
                f"cannot write to {str(settings.output)!r} ({error}): free some room and run it again"
            ) from error
        except Exception as error:  # whatever a graph or grader raises: the others go on
            result.failed[lesson.id] = f"{type(error).__name__}: {error}"
    shutil.rmtree(settings.output / UNFINISHED, ignore_errors=True)
    result.seconds = time.monotonic() - started
    for lesson in lessons:
        if lesson.id not in result.failed:
            _count(result, settings.output / file_name(lesson.id))
    told = {
        name: getattr(settings, name) for name in ("tasks", "check", "plan", "plan_tokens", "safety_tokens", "midway")
    }
    write_json(settings.output / NOTE, {**told, "to_learn": to_learn, "counts": dict(result.counts)})
    return result


def to_be_learnt(traces: Path) -> bool:
    """Whether somebody may learn from the traces at a path; not from lessons that were written to measure guards on."""
    note = traces / NOTE
    return not note.is_file() or json.loads(note.read_text(encoding="utf-8")).get("to_learn") is not False


def teacher_of(base_model: str | None = None) -> TeacherModel:
    """A teacher with a base model's tokenizer.

    Args:
        base_model: Path or hub id; None for the default guard's.

    Raises:
        ModelLoadError: If it cannot be loaded.
    """
    from mosaic_guard.models.weights import DEFAULT_BASE, load_base_model

    model, tokenizer = load_base_model(base_model)
    window = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 8192)
    return TeacherModel(tokenizer, name=base_model or DEFAULT_BASE, window=window)


def _shown(lessons: Sequence[Lesson]) -> Iterator[Lesson]:
    """The lessons, with a bar."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(lessons, "teaching", console=console, disable=not console.is_terminal)


def _count(result: Lessons, file: Path) -> None:
    """Count what a trace file says."""
    for found in read_traces(file):
        result.tasks += 1
        for step in found.steps:
            result.counts["steps"] += 1
            result.counts["calls"] += len(step.decisions)
            result.counts["refused"] += sum(decision.verdict == "refuse" for decision in step.decisions)
            result.counts["failed_guard"] += sum(decision.source == "error" for decision in step.decisions)
            result.counts["tokens"] += sum(len(piece.ids) for piece in step.pieces)
            result.counts["target_tokens"] += sum(len(p.ids) for p in step.pieces if p.kind == "target")


@dataclass(frozen=True)
class _TaskLesson:
    """A task's scripted agent.

    Attributes:
        task: What it plays.
        midway: How likely it is that the guard comes in later than at the first step.
    """

    task: Task
    midway: float = 0.0

    @property
    def id(self) -> str:
        return self.task.id

    def labels(self, step: Step) -> Sequence[bool | None]:
        harmful = {call_key(call.tool, call.args) for call in self.task.calls if call.harmful}
        return [call_key(call.name, call.args) in harmful for call in step.calls]

    def run(self, guard: Guard, trace: TraceWriter) -> None:
        made = simulate(self.task, begun=self.begun())
        trace.outcome(self.id, play(self.task, made, guard, trace, trajectory=self.id))

    def begun(self) -> int:
        """How many turns of the script come before the guard does: harmless ones, and not all; drawn, alike in every run."""
        rng = random.Random(f"midway {self.id}")
        turns = self.task.script
        harmful = (at for at, turn in enumerate(turns) if any(call.harmful for call in turn.calls))
        # Also ends before the last turn, and where the user speaks again.
        latest = next((at for at, turn in enumerate(turns) if not turn.calls), len(turns)) - 1
        latest = min(next(harmful, latest), latest)
        if latest < 1 or rng.random() >= self.midway:
            return 0
        return latest if rng.random() < 0.5 else rng.randint(1, latest)


def _lessons(settings: LessonSettings, to_learn: bool) -> Iterator[Lesson]:
    if settings.tasks.startswith(DOJO):
        from mosaic_guard_training.lessons_agentdojo import lessons_of

        suite = settings.tasks.removeprefix(DOJO)
        if to_learn:
            refuse_held_out([f"agentdojo/{suite}"])
        registered = [name.strip() for name in settings.registered.split(",")]
        yield from lessons_of(suite, settings.attacks, settings.seed, side=settings.side, registered=registered)
        return
    for task in read_tasks(settings.tasks):
        if to_learn:
            refuse_held_out([task.id, task.environment])
        if task.script:
            yield _TaskLesson(task, settings.midway)


def parse_settings(arguments: Sequence[str] | None = None) -> LessonSettings:
    """Read a command line.

    Raises:
        SystemExit: For `--help` (0) and a bad command line (2).
    """
    return parse(
        LessonSettings,
        "python -m mosaic_guard_training.lessons",
        "Run tasks under a guard that knows their labels, and record what it says as targets.",
        arguments,
        epilog="python -m mosaic_guard.train --method sft --traces OUTPUT learns from the result.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 when all is on record, 1 when some tasks failed, 2 for an error that its user can mend, 130 when
        stopped.
    """
    settings = parse_settings(arguments)
    try:
        result = teach(settings)
    except (TrainingError, TraceError, ImportError, FileNotFoundError, ModelLoadError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped: the same command goes on, with what is in {settings.output}", file=sys.stderr)
        return 130
    for line in result.lines():
        print(line)
    print(f"saved in {settings.output}")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
