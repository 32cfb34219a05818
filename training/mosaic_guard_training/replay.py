"""The steps of a logged trajectory again, under another guard: what it would have decided.

What happened does not change: each step is judged with the messages, calls and tools that the log holds for it, whatever the
guard decided before. Its own history is carried on from step to step, so that a local model only reads what is new.

A trace holds each message once. Where messages were taken out of a thread (a summary in their place), a step is judged here
with them still there. Steps of traces that name no tools are judged without the tools' descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, messages_from_dict
from langchain_core.tools import StructuredTool

from mosaic_guard._decision import Call, Step

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from mosaic_guard._guard import Guard, Judgement
    from mosaic_guard._trace import StepRecord, Trajectory
    from mosaic_guard._transcript import JudgedStep


@dataclass(frozen=True)
class TrajectoryScore:
    """How probable a guard finds it that the calls of a trajectory must be refused.

    Attributes:
        trajectory: Its id.
        calls: P(refuse) in [0, 1] of each call, step by step; None where the model was not asked or failed.
        failures: Number of calls that the guard failed to judge.
    """

    trajectory: str
    calls: tuple[tuple[float | None, ...], ...]
    failures: int = 0

    @property
    def highest(self) -> float | None:
        """The highest P(refuse) along the trajectory; None where no call has one."""
        return max((p for step in self.calls for p in step if p is not None), default=None)


def steps_as_judged(trajectory: Trajectory) -> Iterator[tuple[StepRecord, Step]]:
    """Each record of a trajectory with the step that a guard sees: the messages as they stood, the calls, the tools."""
    messages: list[BaseMessage] = []
    made: dict[int, dict[str, BaseTool]] = {}
    for record in trajectory.steps:
        messages += messages_from_dict([dict(message) for message in record.messages])
        calls = tuple(
            Call(index, call.get("id"), str(call["name"]), call["args"]) for index, call in enumerate(record.calls)
        )
        tools = made.setdefault(id(record.tools), {spec["name"]: as_tool(spec) for spec in record.tools})
        yield record, Step(tuple(messages), calls, tools)


def rejudge(trajectory: Trajectory, guard: Guard) -> list[Judgement]:
    """What a guard decides about each step of a logged trajectory; a guard that fails on a step refuses it, as always."""
    history: list[JudgedStep] = []
    judgements = []
    for record, step in steps_as_judged(trajectory):
        key = f"{trajectory.id}/{record.step}"
        plan = guard.plan(step, history, key=key)
        judgement = guard.check(step, plan, history, key=key, number=record.step)
        if judgement.judged is not None:
            history.append(judgement.judged)
        judgements.append(judgement)
    return judgements


def score(trajectory: Trajectory, guard: Guard) -> TrajectoryScore:
    """P(refuse) of each call of a trajectory under a guard."""
    decisions = [judgement.decisions for judgement in rejudge(trajectory, guard)]
    calls = tuple(tuple(decision.p_refuse for decision in step) for step in decisions)
    return TrajectoryScore(trajectory.id, calls, sum(d.source == "error" for step in decisions for d in step))


def scores(trajectories: Sequence[Trajectory], guard: Guard) -> list[TrajectoryScore]:
    """`score` of each, in their order."""
    return [score(trajectory, guard) for trajectory in trajectories]


def as_tool(spec: Mapping[str, Any]) -> BaseTool:
    """A tool that a trace describes, for a guard to read about; it cannot be run."""

    def not_here(**_: Any) -> str:
        raise NotImplementedError(f"{spec['name']} is known from a trace only")

    return StructuredTool(
        name=spec["name"],
        description=spec.get("description") or "",
        args_schema=dict(spec.get("parameters") or {"type": "object", "properties": {}}),
        func=not_here,
        metadata=dict(spec.get("metadata") or {}) or None,
        tags=list(spec.get("tags") or ()) or None,
    )
