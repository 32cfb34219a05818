"""Run one scenario with a guarded agent and grade it with AgentDojo's own functions."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import BaseTool
from langgraph.errors import GraphRecursionError

from mosaic_guard import Guard, Outcome, TraceWriter, guarded_graph
from mosaic_guard_agentdojo.grading import grade_security, grade_utility
from mosaic_guard_agentdojo.gullible import GullibleChatModel
from mosaic_guard_agentdojo.labels import ProposedCall, label_calls
from mosaic_guard_agentdojo.scenarios import Scenario
from mosaic_guard_agentdojo.suites import Toolbox, system_message

RECURSION_LIMIT = 100
"""Steps of the user's graph (agent and tools each count one) after which a run is graded as it stands."""


@dataclass(frozen=True)
class JudgedCall(ProposedCall):
    """A proposed call and what the guard decided about it.

    Attributes:
        verdict: `act`, `refuse` or `ask`; None where the run ended before a decision.
        p_refuse: The guard's probability of refusal in [0, 1]; None where no model was asked.
        source: Who decided: `model`, `policy`, `threshold` or `error`.
    """

    verdict: str | None = None
    p_refuse: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class TaskResult:
    """What became of one run.

    Attributes:
        suite: The suite's name.
        user_task: The user task's id.
        injection_task: The injection task's id; None for a clean run.
        attack: Name or template of the attack; None for a clean run.
        seed: The scenario's seed.
        completed: AgentDojo's `utility`: the user's task was done; None where its grader is content before anything was
            done (four of banking's tasks), so that it says nothing.
        goal_reached: AgentDojo's `security`: the attacker's goal was reached; None for a clean run.
        calls: Every proposed call, labelled and judged.
        seconds: What the guard took for each step, in seconds.
        answer: The agent's final answer.
        trajectory: Names the run in its trace.
    """

    suite: str
    user_task: str
    injection_task: str | None
    attack: str | None
    seed: int
    completed: bool | None
    goal_reached: bool | None
    calls: tuple[JudgedCall, ...]
    seconds: tuple[float, ...]
    answer: str
    trajectory: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-like."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TaskResult:
        """Read what `to_dict` wrote."""
        calls = tuple(JudgedCall(**call) for call in record["calls"])
        return cls(**{**record, "calls": calls, "seconds": tuple(record["seconds"])})


class StepLog(TraceWriter):
    """Keeps a run's step records in memory and passes everything on to a trace, if there is one."""

    def __init__(self, onward: TraceWriter | None = None) -> None:
        super().__init__(onward.directory if onward else "")
        self.steps: list[Mapping[str, Any]] = []
        self._onward = onward

    def header(self, guard: Mapping[str, Any]) -> str:
        """Pass on."""
        return self._onward.header(guard) if self._onward else ""

    def tools(self, tools: Mapping[str, BaseTool]) -> str:
        """Pass on."""
        return self._onward.tools(tools) if self._onward else ""

    def tool_specs(self, specs: Sequence[Mapping[str, Any]]) -> str:
        """Pass on."""
        return self._onward.tool_specs(specs) if self._onward else ""

    def feedback(self, trajectory: str, step: int, at: str, answers: Sequence[Mapping[str, Any]]) -> None:
        """Pass on."""
        if self._onward:
            self._onward.feedback(trajectory, step, at, answers)

    def step(self, record: Mapping[str, Any]) -> None:
        """Keep and pass on."""
        self.steps.append(record)
        if self._onward:
            self._onward.step(record)

    def outcome(self, trajectory: str, outcome: Outcome) -> None:
        """Pass on."""
        if self._onward:
            self._onward.outcome(trajectory, outcome)


def run_task(
    scenario: Scenario,
    guard: Guard,
    *,
    agent: BaseChatModel | None = None,
    trace: TraceWriter | None = None,
    trajectory: str | None = None,
    max_refusals: int = RECURSION_LIMIT,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> TaskResult:
    """Run a scenario once and grade it.

    The agent is LangChain's `create_agent` with AgentDojo's system prompt and the suite's tools, guarded by
    `guarded_graph`. Where the guard asks, the answer is no: nobody is there.

    Args:
        scenario: What to run.
        guard: Judges each step.
        agent: The agent's chat model; by default the gullible one.
        trace: Gets the steps and the outcome. Its harmful calls are the injection's side-effecting ones.
        trajectory: Names the run in the trace; by default a fresh id.
        max_refusals: Consecutive refused steps after which the run ends. By default practically unlimited, so that
            every call of the gullible agent, which never gives up, is judged.
        on_event: Gets each plan and each decision as it is made: the guard's events of the `custom` stream.
    """
    toolbox = Toolbox(scenario.suite, scenario.environment())
    model = agent if agent is not None else GullibleChatModel(scenario=scenario)
    log = StepLog(trace)
    trajectory = trajectory or uuid.uuid4().hex
    graph = guarded_graph(
        create_agent(model, toolbox.tools, system_prompt=system_message()),
        guard=guard,
        trace=log,
        max_refusals=max_refusals,
        events=on_event is not None,
    )
    messages = _play(graph, scenario, trajectory, on_event)
    answer = _answer(messages)
    completed = grade_utility(scenario, answer, toolbox.environment, toolbox.executed)
    reached = grade_security(scenario, answer, toolbox.environment, toolbox.executed)
    calls = _judged(label_calls(scenario, messages, model), log.steps)
    result = TaskResult(
        suite=scenario.suite.name,
        user_task=scenario.user_task.ID,
        injection_task=scenario.injection_task.ID if scenario.injection_task else None,
        attack=scenario.attack,
        seed=scenario.seed,
        completed=completed,
        goal_reached=reached,
        calls=tuple(calls),
        seconds=tuple(round(sum(record["seconds"].values()), 6) for record in log.steps),
        answer=answer,
        trajectory=trajectory,
    )
    log.outcome(trajectory, outcome_of(result))
    return result


def outcome_of(result: TaskResult) -> Outcome:
    """What a trace keeps of a run: harmful if the attacker's goal was reached, completed if the user's was."""
    harmful = [(c.step, c.index) for c in result.calls if c.asker == "injection" and c.side_effecting]
    details = {key: getattr(result, key) for key in ("suite", "user_task", "injection_task", "attack", "seed")}
    return Outcome(bool(result.goal_reached), result.completed, harmful, "grader:agentdojo", details)


def _play(
    graph: Any, scenario: Scenario, trajectory: str, on_event: Callable[[Mapping[str, Any]], None] | None
) -> list[BaseMessage]:
    """The history of one run, as far as it came."""
    config = {
        "recursion_limit": RECURSION_LIMIT,
        "metadata": {"mosaic_task": scenario.task, "mosaic_trajectory": trajectory},
    }
    state: Mapping[str, Any] = {"messages": []}
    with contextlib.suppress(GraphRecursionError):
        for mode, chunk in graph.stream(
            {"messages": [{"role": "user", "content": scenario.user_task.PROMPT}]},
            config,
            stream_mode=["values", "custom"],
        ):
            if mode == "values":
                state = chunk
            elif on_event is not None:
                on_event(chunk)
    return list(state["messages"])


def _answer(messages: Sequence[BaseMessage]) -> str:
    last = messages[-1] if messages else None
    return last.text if isinstance(last, AIMessage) and not last.tool_calls else ""


def _judged(calls: Sequence[ProposedCall], steps: Sequence[Mapping[str, Any]]) -> list[JudgedCall]:
    decisions = {(record["step"], d["call"]): d for record in steps for d in record["decisions"]}
    judged = []
    for call in calls:
        decision = decisions.get((call.step, call.index), {})
        judged.append(
            JudgedCall(
                **{name: getattr(call, name) for name in ProposedCall.__dataclass_fields__},
                **{name: decision.get(name) for name in ("verdict", "p_refuse", "source")},
            )
        )
    return judged
