"""The sets of labelled calls that every guard is measured on.

The recipe of the guard that ships learns from none of them. Its threshold is taken from BFCL's conversations, and the three
agents of ASB are among the lessons that its evidence model is weighed on. A guard that has learnt from a suite of AgentDojo
(`reproduce --suites`) is to be measured on the other.

Each is written as lessons (`lessons.py`) in the mode of the guard that is measured, so that it reads what it reads at work.
Those of public data need `--data`, as `sources/` does; AgentDojo's suites need the extra `agentdojo` alone. `travel` and
`slack` are AgentDojo's held-out suites: they can be named, and are not among the defaults.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_guard._transcript import Limits
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.lessons import DOJO, Lessons, LessonSettings, teach
from mosaic_guard_training.sources import (
    agent_threat_bench,
    agentalign,
    asb,
    bfcl,
    bfcl_conversations,
    injecagent,
    intents,
)
from mosaic_guard_training.sources.composed import compose
from mosaic_guard_training.sources.scene import pool_of
from mosaic_guard_training.sources.splits import split_of_task
from mosaic_guard_training.tasks import Task, write_tasks

if TYPE_CHECKING:
    from mosaic_guard_training.evaluation.step_scores import ScoredGuard
    from mosaic_guard_training.sources.injections import Side

REGISTERED = ("important_instructions", "direct", "ignore_previous", "injecagent", "tool_knowledge")
"""AgentDojo's attacks that its suites are attacked with; one template of the test side is added for each pair of tasks."""

SUITES = ("workspace", "banking")
COMPOSED = 600
"""How many tasks are composed."""


@dataclass(frozen=True)
class Benchmark:
    """A set.

    Attributes:
        about: What it is, in a few words.
        tasks: Its tasks, from the directory of the sources; None for a suite of AgentDojo.
        suite: The suite.
    """

    about: str
    tasks: Callable[[Path], Iterable[Task]] | None = None
    suite: str | None = None


def _of(source: Any, side: Side) -> Callable[[Path], list[Task]]:
    return lambda data: [task for task in source.tasks(data) if task.script and split_of_task(task) == side]


def _composed(data: Path) -> list[Task]:
    return compose(pool_of("test", bfcl.read_records(data)[0]), COMPOSED)


FROM_DATA: Mapping[str, Benchmark] = {
    "composed": Benchmark(
        "generated: requests, tools, templates and results of the test side, with twins in which the user asks",
        _composed,
    ),
    "injecagent": Benchmark(
        "InjecAgent: toolkits held back, but for Gmail, which half of the attacks end in; twins in which the user asks",
        _of(injecagent, "test"),
    ),
    "asb": Benchmark(
        "Agent Security Bench: three agents held back from training, though not from weighing evidence; no arguments",
        _of(asb, "dev"),
    ),
    "agentalign": Benchmark(
        "AgentAlign: harmful requests in categories held back, and ordinary ones, some for tools that are trained on",
        _of(agentalign, "test"),
    ),
    "intents": Benchmark(
        "our own harmful requests and look-alikes, two categories held back, which border on some that are taught; same tools",
        _of(intents, "test"),
    ),
    "bfcl-conversations": Benchmark(
        "BFCL multi_turn_base, ids 0 to 99: ordinary work; all 100 set the threshold of the guard that ships",
        bfcl_conversations.tasks,
    ),
    "agent-threat-bench": Benchmark("an inbox and a support desk under attack", agent_threat_bench.tasks),
}
"""By name, what needs the sources' files."""


def benchmarks(suites: Iterable[str] = SUITES) -> dict[str, Benchmark]:
    """All sets by name, AgentDojo's suites first."""
    dojo = {f"agentdojo-{suite}": Benchmark(f"AgentDojo v1.1.2, {suite}", suite=suite) for suite in suites}
    return dojo | dict(FROM_DATA)


def write_traces(
    name: str,
    benchmark: Benchmark,
    guard: ScoredGuard,
    data: Path | None,
    output: Path,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Path, Lessons]:
    """The lessons of a set, in a guard's mode; those that are there are not written again.

    Args:
        name: Its name.
        benchmark: The set.
        guard: Whose base model and options decide what is read.
        data: Directory of the sources.
        output: Where tasks and traces go.
        limit: Take at most so many tasks, drawn at random; None for all.
        seed: Decides which, and AgentDojo's attacks.

    Returns:
        Their directory, and what came of them.

    Raises:
        TrainingError: If a source's files are missing or are others.
        ImportError: If AgentDojo is not installed.
    """
    mode = mode_of(guard)
    if benchmark.tasks is None:
        tasks = f"{DOJO}{benchmark.suite}"
    else:
        if data is None:
            raise TrainingError(f"{name} is made of public files: name with --data the directory that holds them")
        file = output / "tasks" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tasks(file, benchmark.tasks(data))
        tasks = str(file)
    key = json.dumps([mode, REGISTERED, seed, limit, Path(tasks).read_text("utf-8") if benchmark.tasks else tasks])
    settings = LessonSettings(
        tasks=tasks,
        output=output / "traces" / hashlib.sha256(key.encode()).hexdigest()[:12] / name,
        base_model=guard.base,
        check=mode["check"],
        plan=mode["plan"],
        plan_tokens=mode["limits"]["plan"],
        safety_tokens=mode["limits"]["safety"],
        limit=limit,
        attacks=1,
        side="test",
        registered=",".join(REGISTERED),
        seed=seed,
    )
    return settings.output, teach(settings, to_learn=False)


def mode_of(guard: ScoredGuard) -> dict[str, Any]:
    """What decides which tokens a guard reads: its base model, and how it plans and checks."""
    limits = asdict(Limits(**dict(guard.options.get("limits") or {})))
    defaults = {"check": "adaptive", "plan": "written"}
    return {"base": guard.base, "limits": limits} | {key: guard.options.get(key, defaults[key]) for key in defaults}
