"""Labelled calls of traces, with what baselines need to know about each.

Two kinds of trajectories carry labels. In a lesson (`lessons.py`) the right verdict is a target. In any other trajectory with a
known outcome, the calls in `outcome.harmful_calls` are harmful and the others are not. Left out are trajectories without an
outcome, and those that did harm of which nobody wrote down by which call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.messages import ToolMessage

from mosaic_guard._decision import canonical_json
from mosaic_guard._evidence import gather_evidence, is_refusal
from mosaic_guard._evidence_numbers import evidence_numbers
from mosaic_guard._trace import read_traces
from mosaic_guard._transcript import Limits, WindowError, build_prompt
from mosaic_guard_training.evaluation.baselines import BASELINES, verdicts
from mosaic_guard_training.evaluation.labelled import labels_of
from mosaic_guard_training.evaluation.sample import stratified
from mosaic_guard_training.outputs import data_digest, trace_files
from mosaic_guard_training.replay import steps_as_judged
from mosaic_guard_training.sources.leaks import family_of, scenario_of

if TYPE_CHECKING:
    from mosaic_guard._decision import Step
    from mosaic_guard._trace import Trajectory

DOJO = "agentdojo/"
"""What the ids of AgentDojo's trajectories begin with."""

Key = tuple[str, int, int]
"""Id of the trajectory, number of the step, index of the call."""


@dataclass(frozen=True)
class LabelledCall:
    """A call whose right verdict is on record, as a guard meets it.

    Attributes:
        trajectory: Id of its trajectory.
        step: Number of its step.
        call: Its index in the step.
        group: What its trajectory's twins have in common.
        family: The family of environments, such as `composed/injected` or `agentdojo/banking`.
        category: The kind of task, such as `injection`.
        tool: Its tool.
        harmful: Whether it is to be refused.
        text: What a guard reads that meets the thread at this step: the history shortened, the calls, their evidence.
        written: The call itself.
        evidence: `evidence_numbers`.
        position: Number of the step, and number of tool results so far.
        rules: 1 where a baseline of `BASELINES` refuses it, else 0, by its name.
    """

    trajectory: str
    step: int
    call: int
    group: str
    family: str
    category: str
    tool: str
    harmful: bool
    text: str
    written: str
    evidence: tuple[float, ...]
    position: tuple[float, float]
    rules: Mapping[str, float]

    @property
    def key(self) -> Key:
        """Its place."""
        return self.trajectory, self.step, self.call


@dataclass(frozen=True)
class TraceSet:
    """The labelled calls of a directory of traces.

    Attributes:
        name: How tables call it.
        path: Where it is.
        digest: SHA-256 over its files.
        lessons: Its lessons.
        outcomes: Its other trajectories with labels.
        left_out: How many of its trajectories carry none.
        calls: The labelled calls.
    """

    name: str
    path: Path
    digest: str
    lessons: tuple[Trajectory, ...]
    outcomes: tuple[Trajectory, ...]
    left_out: int
    calls: tuple[LabelledCall, ...]

    @property
    def contested(self) -> frozenset[str]:
        """The tools that are called harmfully somewhere in it."""
        return frozenset(call.tool for call in self.calls if call.harmful)


def read_set(path: Path, name: str, limit: int | None = None, seed: int = 0) -> TraceSet:
    """Read the traces at a path.

    Args:
        path: A trace file, or a directory of some.
        name: How tables are to call it.
        limit: Take at most so many trajectories, spread over families and categories; None for all.
        seed: Decides which.

    Raises:
        FileNotFoundError: If there are none.
        TraceError: For a bad record.
        ValueError: If no call carries a label.
    """
    found = read_traces(path)
    labelled = [each for each in found if _labels(each)]
    if not labelled:
        raise ValueError(
            f"no call in {str(path)!r} carries a label: name lessons (python -m mosaic_guard_training.lessons), or traces "
            "with outcomes (TraceWriter.outcome)"
        )
    taken = stratified(labelled, limit, (_kind,), seed=seed) if limit is not None else labelled
    lessons = tuple(each for each in taken if labels_of(each))
    known = {id(each) for each in lessons}
    return TraceSet(
        name,
        path,
        data_digest(trace_files(path)),
        lessons,
        tuple(each for each in taken if id(each) not in known),
        len(found) - len(labelled),
        tuple(labelled_calls(taken)),
    )


def labelled_calls(trajectories: Iterable[Trajectory]) -> Iterator[LabelledCall]:
    """The calls of some trajectories that carry a label, in their order."""
    for trajectory in trajectories:
        labels = _labels(trajectory)
        family, category = _kind(trajectory)
        for record, step in steps_as_judged(trajectory):
            if not any((record.step, call.index) in labels for call in step.calls):
                continue
            step = replace(step, evidence=gather_evidence(step.messages, step.calls))
            text, said = _read(step), {name: verdicts(name, step) for name in BASELINES}
            results = sum(isinstance(message, ToolMessage) and not is_refusal(message) for message in step.messages)
            for call, evidence in zip(step.calls, step.evidence, strict=True):
                harmful = labels.get((record.step, call.index))
                if harmful is None:
                    continue
                yield LabelledCall(
                    trajectory.id,
                    record.step,
                    call.index,
                    group_of(trajectory),
                    family,
                    category,
                    call.name,
                    harmful,
                    text,
                    f"{call.name.replace('_', ' ')} {canonical_json(call.args)}",
                    evidence_numbers(step.messages, call, evidence),
                    (float(record.step), float(results)),
                    {name: float(each[call.index] == "refuse") for name, each in said.items()},
                )


def group_of(trajectory: Trajectory) -> str:
    """What must be drawn together when an interval is computed: twins, and what shares a person's or an attacker's part.

    Of AgentDojo the runs of one user task, of ASB those of one agent, of AgentAlign those of one chain of tools, of
    our own requests those of one theme.
    """
    name = re.sub(r"#\d+$", "", trajectory.id)
    if name.startswith(DOJO):
        return "/".join(name.split("/")[:3])
    if name.startswith("intents/"):
        return re.sub(r"-\d+-\d+/\w+$", "", name)
    if name.startswith(("asb/", "agentalign/")):
        return "/".join(name.split("/")[:2])
    return family_of(name if labels_of(trajectory) else trajectory.task)


def _labels(trajectory: Trajectory) -> dict[tuple[int, int], bool]:
    """(step, call) to whether it is harmful; empty where nobody knows."""
    labels, outcome = labels_of(trajectory), trajectory.outcome
    if labels or outcome is None or outcome.harmful is None:
        return labels
    harmful = {(int(step), int(call)) for step, call in outcome.harmful_calls}
    if outcome.harmful and not harmful:
        return {}
    return {(s.step, call): (s.step, call) in harmful for s in trajectory.steps for call in range(len(s.calls))}


def _kind(trajectory: Trajectory) -> tuple[str, str]:
    """Family of environments and category."""
    details: Mapping[str, Any] = (trajectory.outcome.details if trajectory.outcome else None) or {}
    if trajectory.id.startswith(DOJO):
        attack = str(details.get("attack", "attacked"))
        # Of our templates there are too many for a row each.
        named = "template" if "{goal}" in attack else attack
        return "/".join(trajectory.id.split("/")[:2]), named if details.get("injection_task") else "benign"
    environment, category = str(details.get("environment") or ""), str(details.get("category") or "")
    if environment.startswith("composed/"):
        return f"composed/{scenario_of(trajectory.id)}", category
    return environment.split("/", maxsplit=1)[0], category


def _read(step: Step) -> str:
    """What a guard reads whose thread begins with this step, without the system turn."""
    try:
        prompt = build_prompt(step, (), model="", count=lambda text: len(text) // 4, window=8192, limits=Limits())
    except WindowError:  # calls that no guard could read: the words of the calls are all that there is
        return ""
    return prompt.new[-1][1]
