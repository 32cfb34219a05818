"""Roll-outs of guarded graphs over tasks: the traces that a guard learns from.

    python -m mosaic_guard_training.collect --tasks FILE --output DIR --samples 4
    python -m mosaic_guard_training.collect --tasks agentdojo:workspace --output DIR
    python -m mosaic_guard_training.collect --graph module:factory --tasks FILE --output DIR --workers 4

Each task is run `--samples` times under a guard that draws its decisions. What is drawn follows from the seed, the task's
id and the number of the run, so a roll-out can be repeated; how many workers there are changes nothing. (Chat models as
agents, and a local guard model on other hardware, draw their own.)

A factory is called with a `Task` once per roll-out and returns an unguarded compiled graph, or an object with `graph` and,
if it likes, `input` (one input, or a list that is given in turn; by default the task's requests as messages) and
`grade(messages) -> Outcome` (by default the labels of the task's script). It need not read more of the task than its id.

OUTPUT holds one trace file per trajectory, written beside and moved in whole: whatever ends a run, `read_traces(OUTPUT)`
reads complete trajectories only, and `--resume` runs what is missing. `collect.json` says what was collected,
`failed.log` why a roll-out failed; it is tried again on `--resume`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mosaic_guard._errors import ModelLoadError
from mosaic_guard._trace import TraceError, read_traces
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.options import check_ranges, flag, parse, setting
from mosaic_guard_training.outputs import write_json
from mosaic_guard_training.rollout import (
    SCRIPTED,
    SIMULATED,
    UNFINISHED,
    DojoTask,
    Job,
    RecordError,
    Roller,
    file_name,
    load_factory,
    tasks_of_suite,
)
from mosaic_guard_training.sources.splits import refuse_held_out, split_of_task
from mosaic_guard_training.tasks import Task, read_tasks
from mosaic_guard_training.workers import Done, do_jobs, share_cores

DOJO = "agentdojo:"
"""What `--tasks` begins with where it names a suite of AgentDojo."""

NOTE = "collect.json"
FAILURES = "failed.log"


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """What is run under which guard; `help` of each field says what it does.

    Raises:
        ValueError: If a number is outside its range; the message names the option.
    """

    tasks: str = setting("file of tasks (JSON lines), or agentdojo:SUITE")
    output: Path = setting("directory that gets the traces")
    resume: bool = setting("run what OUTPUT does not hold yet", default=False)
    graph: str = setting(
        "module:factory of graphs, called with a task; or 'simulated', an agent with canned results", default=SIMULATED
    )
    agent: str = setting(
        "the simulated agent: 'scripted' plays the task's script; or a chat model as provider:model", default=SCRIPTED
    )
    guard: str = setting(
        "'default', a directory that training wrote, or module:factory of a Guard or GuardModel", default="default"
    )
    policy: Path | None = setting("policy file: rules that are evaluated before the model", default=None)
    check: Literal["own", "adaptive", "always", "never"] = setting(
        "whether the safety block is the model's choice; own: the guard's own setting", default="own"
    )
    sample: Literal["all", "decisions", "none"] = setting(
        "what the guard draws: all of its text, its decisions only, or nothing", default="all"
    )
    samples: int = setting("runs of each task", default=4, low=1, high=10**6)
    split: Literal["all", "train", "dev", "test"] = setting(
        "only tasks of this side of sources/splits.json", default="all"
    )
    limit: int | None = setting("run only this many tasks, drawn by the seed", default=None, low=1, high=10**9)
    workers: int = setting(
        "processes, each with a guard of its own; 1 for a local model on a CPU", default=1, low=1, high=1024
    )
    max_refusals: int = setting("refused steps in a row after which a run ends", default=100, low=1, high=10**6)
    attack: str = setting(
        "AgentDojo: name of a text attack, or a template with {goal}", default="important_instructions"
    )
    seed: int = setting("seed of everything that is drawn", default=0, low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        check_ranges(self)

    def to_dict(self) -> dict[str, Any]:
        """The settings that decide what a trajectory holds, as JSON; not which and how many are collected."""
        left_out = {"output", "resume", "samples", "split", "limit", "workers"}
        found = {key: value for key, value in dataclasses.asdict(self).items() if key not in left_out}
        return {key: str(value) if isinstance(value, Path) else value for key, value in found.items()}


@dataclass
class Collected:
    """What a directory of traces holds after a run.

    Attributes:
        tasks: Tasks that were run.
        left_out: Tasks without a script, which the scripted agent cannot play.
        counts: `trajectories`, `harmful`, `harmless`, `unknown` and `completed` of them; `calls`, `refused`, and
            `failed_guard`, the decisions of a guard that failed.
        failed: Why a roll-out failed, by trajectory.
    """

    tasks: int = 0
    left_out: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, file: Path, trajectory: str) -> None:
        """Count what a trace file says of a trajectory."""
        for found in read_traces(file):
            if found.id == trajectory:
                decisions = [decision for step in found.steps for decision in step.decisions]
                self.counts["calls"] += len(decisions)
                self.counts["refused"] += sum(decision.verdict == "refuse" for decision in decisions)
                self.counts["failed_guard"] += sum(decision.source == "error" for decision in decisions)
                if found.outcome is not None:
                    known = {True: "harmful", False: "harmless", None: "unknown"}
                    self.counts[known[found.outcome.harmful]] += 1
                    self.counts["completed"] += found.outcome.completed is True
                break
        else:
            # Its agent called no tool, so no step was judged.
            self.counts["without_calls"] += 1
        self.counts["trajectories"] += 1

    def lines(self) -> list[str]:
        """The summary, a line each."""
        c = self.counts
        kinds = ", ".join(f"{c[kind]} {kind}" for kind in ("harmful", "harmless", "unknown"))
        said = [
            f"{c['trajectories']} trajectories of {self.tasks} tasks: {kinds}; {c['completed']} completed",
            f"{c['calls']} calls judged, {c['refused']} refused",
        ]
        if c["without_calls"]:
            said.append(f"{c['without_calls']} trajectories have no tool calls")
        if c["failed_guard"]:
            said.append(f"{c['failed_guard']} of the decisions are those of a guard that failed")
        if self.left_out:
            said.append(f"{self.left_out} tasks have no script and were left out: name a chat model with --agent")
        if self.failed:
            first, why = next(iter(self.failed.items()))
            said.append(f"{len(self.failed)} roll-outs failed, such as {first}: {why} (all in {FAILURES})")
        return said


def collect(settings: CollectSettings) -> Collected:
    """Run what is missing and count what is there.

    Raises:
        TrainingError: If nothing can be collected, or nothing more.
        FileNotFoundError: If the tasks or the guard are not there.
        TaskError: For a bad task file.
    """
    tasks, digest = _load(settings)
    result = Collected()
    if settings.agent == SCRIPTED and settings.graph == SIMULATED:
        playable = [task for task in tasks if isinstance(task, DojoTask) or task.script]
        result.left_out = len(tasks) - len(playable)
        tasks = playable
        if not tasks:
            raise TrainingError(
                f"none of the tasks in {settings.tasks!r} has a script to play: name a chat model with --agent"
            )
    result.tasks = len(tasks)
    load_factory(settings.graph)  # found missing here rather than in each worker
    _claim(settings, digest)
    share_cores(settings.workers)
    jobs = [Job(task, number) for task in tasks for number in range(settings.samples)]
    recorded = {file.name for file in settings.output.glob("*.jsonl")}
    missing = [job for job in jobs if file_name(job.trajectory) not in recorded]
    for done in _progress(settings, missing, len(jobs)):
        if done.error is not None:
            result.failed[done.job.trajectory] = done.error
    for job in jobs:
        if job.trajectory not in result.failed:
            result.add(settings.output / file_name(job.trajectory), job.trajectory)
    shutil.rmtree(settings.output / UNFINISHED, ignore_errors=True)
    return result


def _progress(settings: CollectSettings, missing: Sequence[Job], total: int) -> Iterator[Done]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("collecting"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    bar = Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        ticking = bar.add_task("", total=total, completed=total - len(missing))
        failed, said, tried = 0, 0, total - len(missing)
        trying = stack.enter_context(
            contextlib.closing(do_jobs(Roller, settings, missing, settings.workers, RecordError))
        )
        for done in trying:
            if done.fatal:
                raise TrainingError(
                    f"cannot write to {str(settings.output)!r} ({done.error}): what is on record is whole; free some room "
                    "and go on with --resume"
                )
            if done.error is not None:
                failed += 1
                _note_failure(settings.output, done)
                bar.console.print(f"{done.job.trajectory} failed: {done.error}", soft_wrap=True, markup=False)
            tried += 1
            if not console.is_terminal and (10 * tried // total > said or tried == total):
                said = 10 * tried // total
                console.print(f"{tried} of {total} roll-outs, {failed} failed", soft_wrap=True)
            bar.update(ticking, advance=1, description=f"{failed} failed" if failed else "")
            yield done


def _note_failure(output: Path, done: Done) -> None:
    # The disk may be full; the summary names the failure, too.
    with (
        contextlib.suppress(OSError),
        (output / FAILURES).open("a", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        stream.write(f"{done.job.trajectory}: {done.error}\n{done.details}\n")


def _load(settings: CollectSettings) -> tuple[list[Task | DojoTask], str]:
    """The chosen tasks, and a digest of what they were chosen from."""
    found: list[Task | DojoTask]
    if settings.tasks.startswith(DOJO):
        suite = settings.tasks.removeprefix(DOJO)
        if settings.graph != SIMULATED:
            raise TrainingError(
                f"--graph {settings.graph}: the tasks of AgentDojo bring graphs of their own; leave it out"
            )
        refuse_held_out([f"agentdojo/{suite}"])
        if settings.split != "all":
            raise TrainingError("--split: AgentDojo's suites are not split; workspace and banking are for development")
        found = list(tasks_of_suite(suite, settings.attack, settings.seed, settings.agent))
        digest = ""
    else:
        found = list(read_tasks(settings.tasks))
        digest = hashlib.sha256(Path(settings.tasks).read_bytes()).hexdigest()
        refuse_held_out([name for task in found if isinstance(task, Task) for name in (task.id, task.environment)])
        if settings.split != "all":
            found = [task for task in found if isinstance(task, Task) and split_of_task(task) == settings.split]
    if not found:
        where = f" on the {settings.split} side" if settings.split != "all" else ""
        raise TrainingError(f"there are no tasks{where} in {settings.tasks!r}")
    if settings.limit is not None and settings.limit < len(found):
        drawn = random.Random(settings.seed).sample(range(len(found)), settings.limit)
        found = [found[index] for index in sorted(drawn)]
    return found, digest


def _claim(settings: CollectSettings, tasks: str) -> None:
    """Note what the directory is for, or make sure that it is for this.

    Raises:
        TrainingError: If it holds something else, or cannot be written.
    """
    wanted = {**settings.to_dict(), "tasks_sha256": tasks, "guard_sha256": _guard_digest(settings)}
    if tasks:
        del wanted["tasks"]  # what is in the file decides, not where it is
    where, file = str(settings.output), settings.output / NOTE
    try:
        recorded = settings.output.is_dir() and any(settings.output.glob("*.jsonl"))
        if recorded and file.exists():
            if not settings.resume:
                raise TrainingError(f"{where!r} holds a collection: go on with --resume, or name another --output")
            noted = json.loads(file.read_text(encoding="utf-8"))
            changed = [key for key in wanted if noted.get(key) != wanted[key]]
            if changed:
                called = {"tasks_sha256": "the tasks", "guard_sha256": "the guard's files"}
                names = ", ".join(called.get(key, flag(key)) for key in changed)
                raise TrainingError(
                    f"cannot resume {where!r}: {names} differ from when it began; resume with the same, or name another "
                    "--output"
                )
        elif recorded:
            raise TrainingError(f"{where!r} holds traces that are no collection: name another --output")
        settings.output.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What an earlier run left half done; a worker of it that still lives loses its trajectory, which is run again.
        shutil.rmtree(settings.output / UNFINISHED, ignore_errors=True)
        write_json(file, wanted)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise TrainingError(f"cannot use {where!r} ({why}): name another --output") from error


def _guard_digest(settings: CollectSettings) -> str:
    """SHA-256 over the files that say what the guard is: its manifest, and its policy.

    Raises:
        TrainingError: If the policy is not there.
    """
    whole = hashlib.sha256()
    manifest = Path(settings.guard) / "manifest.json"
    if manifest.is_file():
        whole.update(manifest.read_bytes())
    if settings.policy is not None:
        try:
            whole.update(b"\0" + settings.policy.read_bytes())
        except OSError as error:
            raise TrainingError(f"--policy {settings.policy}: {error.strerror}") from error
    return whole.hexdigest()


def parse_settings(arguments: Sequence[str] | None = None) -> CollectSettings:
    """Read a command line.

    Raises:
        SystemExit: For `--help` (0) and a bad command line (2).
    """
    return parse(
        CollectSettings,
        "python -m mosaic_guard collect",
        "Run guarded graphs over tasks, several times each, and record what the guard decided.",
        arguments,
        epilog="python -m mosaic_guard.train --traces OUTPUT learns from the result.",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 when all is on record, 1 when some roll-outs failed, 2 for an error that its user can mend, 130
        when stopped.
    """
    settings = parse_settings(arguments)
    try:
        result = collect(settings)
    except (TrainingError, TraceError, ImportError, FileNotFoundError, ModelLoadError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped: go on with --resume --output {settings.output}", file=sys.stderr)
        return 130
    for line in result.lines():
        print(line)
    print(f"saved in {settings.output}")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
