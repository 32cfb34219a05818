"""One roll-out: a task's graph, guarded, played to its end, graded and recorded whole or not at all."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.errors import GraphRecursionError
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command

from mosaic_guard import Guard, GuardModel, MissingExtraError, Outcome, TraceWriter, guarded_graph
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.simulated import grade, simulate
from mosaic_guard_training.tasks import Task

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from mosaic_guard_training.collect import CollectSettings

RECURSION_LIMIT = 100
"""Steps of the user's graph (agent and tools each count one) after which a run is graded as it stands."""

UNFINISHED = ".unfinished"
"""Directory inside the output in which trajectories are written; no reader of traces looks there."""

SCRIPTED = "scripted"
"""The agent that plays the task's script; any other name is a chat model's, as `provider:model`."""

SIMULATED = "simulated"
"""The graph of `simulated.py`; any other is `module:factory`."""


@dataclass(frozen=True)
class DojoTask:
    """A scenario of AgentDojo, by what makes it."""

    id: str
    suite: str
    user_task: str
    injection_task: str | None
    attack: str
    seed: int


@dataclass(frozen=True)
class Job:
    """One roll-out that is wanted."""

    task: Task | DojoTask
    number: int

    @property
    def trajectory(self) -> str:
        """Names it in its trace, and decides what is drawn in it."""
        return f"{self.task.id}/{self.number}"


class RecordError(OSError):
    """A trajectory could not be written; no later one could either."""


class Roller:
    """Loads what roll-outs need once, then plays jobs.

    Args:
        settings: What is collected.

    Raises:
        MissingExtraError: If something of it is not installed.
        TrainingError: If a factory cannot be found or the guard is none.
        ModelLoadError: If the guard's model cannot be loaded.
    """

    def __init__(self, settings: CollectSettings) -> None:
        if settings.graph == SIMULATED and importlib.util.find_spec("langchain") is None:
            raise MissingExtraError("the simulated agent", "langchain")
        self._settings = settings
        self._guard = load_guard(settings)
        self._agent = _chat_model(settings.agent)
        self._factory = load_factory(settings.graph)

    def roll(self, job: Job) -> None:
        """Play a job and record it.

        Raises:
            RecordError: If it cannot be written.
            Exception: Whatever the task's graph, factory or grader raises.
        """
        record(self._settings.output, job.trajectory, lambda trace: self._play(job, trace))

    def _play(self, job: Job, trace: TraceWriter) -> None:
        if isinstance(job.task, DojoTask):
            self._play_scenario(job.task, job.trajectory, trace)
            return
        made = self._factory(job.task) if self._factory else simulate(job.task, self._agent)
        outcome = play(
            job.task, made, self._guard, trace, trajectory=job.trajectory, max_refusals=self._settings.max_refusals
        )
        trace.outcome(job.trajectory, outcome)

    def _play_scenario(self, task: DojoTask, trajectory: str, trace: TraceWriter) -> None:
        from mosaic_guard_agentdojo import run_task, scenario

        model = None if self._agent is None else self._settings.agent
        played = scenario(
            task.suite, task.user_task, task.injection_task, attack=task.attack, seed=task.seed, model_name=model
        )
        run_task(
            played,
            self._guard,
            agent=self._agent,
            trace=trace,
            trajectory=trajectory,
            max_refusals=self._settings.max_refusals,
        )


def play(
    task: Task, made: Any, guard: Guard, trace: TraceWriter, *, trajectory: str, max_refusals: int = RECURSION_LIMIT
) -> Outcome:
    """Play what a factory made, under a guard.

    Args:
        task: What it was made for.
        made: An unguarded compiled graph; or an object with `graph` and, if it has them, `input` (one input, or a list
            of inputs that are given in turn) and `grade(messages)`.
        guard: Judges each step.
        trace: Gets the steps.
        trajectory: Names the run in the trace.
        max_refusals: Refused steps in a row after which the run ends.

    Returns:
        What `grade` says of the last state's messages; by default the task's own labels.

    Raises:
        RuntimeError: If the graph stops to ask somebody something: nobody is there. (What a guard's policy wants to ask
            is answered with no.)
    """
    graph = made if isinstance(made, CompiledStateGraph) else made.graph
    inputs = getattr(made, "input", None)
    if inputs is None:
        inputs = [{"messages": [HumanMessage(request)]} for request in task.user]
    elif not isinstance(inputs, (list, tuple)):
        inputs = [inputs]
    guarded = guarded_graph(graph, guard=guard, trace=trace, max_refusals=max_refusals)
    config = {
        "recursion_limit": RECURSION_LIMIT,
        "metadata": {"mosaic_task": task.id, "mosaic_trajectory": trajectory},
        "configurable": {"thread_id": trajectory},
    }
    messages: list[BaseMessage] = []
    for each in inputs:
        messages = _run(guarded, each, config, messages)
    graded = getattr(made, "grade", None)
    outcome = graded(messages) if graded is not None else grade(task, messages)
    if not isinstance(outcome, Outcome):
        raise TypeError(f"grade returned {type(outcome).__name__}, not an Outcome")
    return outcome


def _run(graph: Any, given: Any, config: Mapping[str, Any], messages: list[BaseMessage]) -> list[BaseMessage]:
    """The history after one input, as far as it came."""
    while given is not None:
        asked: list[Any] = []
        try:
            for chunk in graph.stream(given, config, stream_mode="values"):
                asked = list(chunk.get("__interrupt__") or ())
                messages = list(chunk.get("messages") or messages)
        except GraphRecursionError:
            return messages
        given = Command(resume={each.id: _no(each.value) for each in asked}) if asked else None
    return messages


def _no(asked: Any) -> dict[str, Any]:
    if not isinstance(asked, Mapping) or "action_requests" not in asked:
        raise RuntimeError("the graph stopped to ask a person something: nobody is there during a roll-out")
    no = {"type": "reject", "message": "nobody is there to ask"}
    return {"decisions": [no for _ in asked["action_requests"]]}


class _Counting(TraceWriter):
    """Counts the records that it is given: a writer leaves out, with a warning, what has no JSON form."""

    given = 0

    def step(self, record: Mapping[str, Any]) -> None:
        self.given += 1
        super().step(record)

    def outcome(self, trajectory: str, outcome: Outcome) -> None:
        self.given += 1
        super().outcome(trajectory, outcome)


def record(output: Path, trajectory: str, play: Callable[[TraceWriter], None]) -> None:
    """Write one trajectory to a trace file of its own, which is there whole or not at all.

    Args:
        output: The directory of traces.
        trajectory: Names the file.
        play: Logs the steps and the outcome.

    Raises:
        RecordError: If it cannot be written.
        ValueError: If a step has no JSON form.
    """
    try:
        (output / UNFINISHED).mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=output / UNFINISHED, ignore_cleanup_errors=True)
    except OSError as error:
        raise RecordError(error.errno, error.strerror) from error
    with place as directory:
        writer = _Counting(directory)
        try:
            play(writer)
        finally:
            try:
                writer.close()
            except OSError as error:
                raise RecordError(error.errno, error.strerror) from error
        if writer.path is None:
            raise ValueError("nothing was recorded: the factory's graph logged neither a step nor an outcome")
        lines = writer.path.read_bytes().splitlines()
        if sum(json.loads(line)["type"] in ("step", "outcome") for line in lines) != writer.given:
            raise ValueError("a step of it has no JSON form")
        try:
            os.replace(writer.path, output / file_name(trajectory))
        except OSError as error:
            raise RecordError(error.errno, error.strerror) from error


def file_name(trajectory: str) -> str:
    """The trace file of a trajectory: readable, and no two alike."""
    readable = re.sub(r"[^\w.-]+", "-", trajectory, flags=re.ASCII).strip("-.")[:120]
    return f"{readable}-{hashlib.sha256(trajectory.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}.jsonl"


def load_guard(settings: CollectSettings) -> Guard:
    """The sampling guard that the settings name.

    Raises:
        TrainingError: If a factory gives no guard.
        FileNotFoundError: If the directory holds none.
    """
    sample: Any = {"all": True, "decisions": "decisions", "none": False}[settings.sample]
    options: dict[str, Any] = {"sample": sample, "seed": settings.seed}
    if settings.check != "own":
        options["check"] = settings.check
    if settings.policy is not None:
        options["policy"] = settings.policy
    if not _is_factory(settings.guard):
        return Guard.load(settings.guard, **options)
    made = load_named(settings.guard, "--guard")()
    if isinstance(made, GuardModel):
        return Guard(made, **options)
    if not isinstance(made, Guard):
        raise TrainingError(
            f"--guard {settings.guard} gave {type(made).__name__}: its factory returns a Guard or GuardModel"
        )
    if "check" in options or "policy" in options:
        raise TrainingError(f"--guard {settings.guard} gave a whole Guard: say check and policy there")
    # What is collected is drawn, and repeatable, whatever the factory's guard does elsewhere.
    made.sample, made.seed = sample, settings.seed
    return made


def load_factory(name: str) -> Callable[[Task], Any] | None:
    """The factory of graphs that `--graph` names; None for the simulated agent."""
    return None if name == SIMULATED else load_named(name, "--graph")


def load_named(name: str, option: str) -> Callable[..., Any]:
    """What `module:factory` names.

    Raises:
        TrainingError: If there is no such thing.
    """
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise TrainingError(f"{option} {name}: {error}; write module:factory, importable from here") from error
    if not callable(found):
        raise TrainingError(f"{option} {name} is {type(found).__name__}, not a function")
    return found


def _is_factory(name: str) -> bool:
    """Whether a guard's name is `module:factory`: a Windows path has a colon too."""
    return re.fullmatch(r"[\w.]{2,}:[\w.]+", name) is not None


def _chat_model(name: str) -> BaseChatModel | None:
    if name == SCRIPTED:
        return None
    from langchain.chat_models import init_chat_model

    model: BaseChatModel = init_chat_model(name)
    return model


def tasks_of_suite(suite: str, attack: str, seed: int, agent: str) -> Iterator[DojoTask]:
    """Every (user task, injection task) of an AgentDojo suite, then each user task without an attack.

    Raises:
        ValueError: For an unknown suite or attack.
    """
    from mosaic_guard_agentdojo import load_suite, pairs, scenario

    model = None if agent == SCRIPTED else agent
    clean: Sequence[tuple[str, str | None]] = [(user, None) for user in load_suite(suite).user_tasks]
    for user, injection in [*pairs(suite, attack=attack, model_name=model), *clean]:
        named = scenario(suite, user, injection, attack=attack, seed=seed, model_name=model).task
        yield DojoTask(named, suite, user, injection, attack, seed)
