"""The nodes: `plan`, `check` and `refuse`, and the ways between them.

Routes into a tool node are recorded in the guard's channel; `plan` takes all that wait, so that the calls of a step are
judged together whichever way they came; after `check` the recorded routes are taken, or `refuse` answers.

The nodes read and write the guard's channel through their config: as input or return value it would show in
`astream_events` and in traces.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, messages_to_dict
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.config import get_stream_writer
from langgraph.prebuilt import ToolNode
from langgraph.types import Send

from mosaic_guard._channel import GUARD_CHANNEL, position, read, write
from mosaic_guard._decision import Call, Step
from mosaic_guard._evidence import message_text
from mosaic_guard._gate import refusal_message
from mosaic_guard._guard import Guard, Judgement, Plan
from mosaic_guard._recursion import grant_superstep
from mosaic_guard._trace import TraceWriter
from mosaic_guard._transcript import JudgedStep

State = Mapping[str, Any]
Channel = Mapping[str, Any]

NOT_RUN = "another call of the same step was refused and the run ends"


@dataclass(frozen=True)
class _Waiting:
    """A step that waits for its judgement: the step, and what the channel remembers of the thread."""

    step: Step
    raw: Sequence[Mapping[str, Any]]
    routes: list[list[Any]]
    history: list[JudgedStep]
    trajectory: str
    number: int

    @property
    def key(self) -> str:
        return f"{self.trajectory}/{self.number}"

    @property
    def digests(self) -> list[str]:
        return [call.digest for call in self.step.calls]


@dataclass
class GuardNodes:
    """The functions behind the guard's nodes.

    Attributes:
        guard: Judges the steps.
        tool_nodes: The gated tool nodes by name.
        messages_key: State key of the messages.
        on_refuse: `replan`: the agent reads the refusal and goes on; `end`: the run ends at the first refusal.
        max_refusals: The run ends at this many steps in a row with a refusal.
        refuse_name: Name of the refuse node.
        trace: Where judged steps are logged.
        events: Whether plans and decisions are sent to the `custom` stream.
    """

    guard: Guard
    tool_nodes: Mapping[str, ToolNode]
    messages_key: str = "messages"
    on_refuse: Literal["replan", "end"] = "replan"
    max_refusals: int = 3
    refuse_name: str = "refuse"
    trace: TraceWriter | None = None
    events: bool = False
    tools: dict[str, BaseTool] = field(init=False)

    def __post_init__(self) -> None:
        self.tools = {name: tool for node in self.tool_nodes.values() for name, tool in node.tools_by_name.items()}

    def plan(self, state: State, config: RunnableConfig) -> None:
        """Ask the guard for its plan of the waiting step."""
        waiting = self._begin(state, config)
        plan = self.guard.plan(waiting.step, waiting.history, key=waiting.key) if waiting.step.calls else Plan()
        write(config, GUARD_CHANNEL, self._planned(waiting, plan))

    async def aplan(self, state: State, config: RunnableConfig) -> None:
        """`plan` for event loops."""
        waiting = self._begin(state, config)
        plan = await self.guard.aplan(waiting.step, waiting.history, key=waiting.key) if waiting.step.calls else Plan()
        write(config, GUARD_CHANNEL, self._planned(waiting, plan))

    def check(self, state: State, config: RunnableConfig) -> None:
        """Ask the guard for its decisions; issue clearances, log the step."""
        waiting, plan = self._resume(state, config)
        if not waiting.step.calls:
            write(config, GUARD_CHANNEL, self._passed(waiting))
            return
        if plan is None:
            plan = self.guard.plan(waiting.step, waiting.history, key=waiting.key)
        judgement = self.guard.check(waiting.step, plan, waiting.history, key=waiting.key, number=waiting.number)
        write(config, GUARD_CHANNEL, self._checked(config, waiting, judgement))

    async def acheck(self, state: State, config: RunnableConfig) -> None:
        """`check` for event loops."""
        waiting, plan = self._resume(state, config)
        if not waiting.step.calls:
            write(config, GUARD_CHANNEL, self._passed(waiting))
            return
        if plan is None:
            plan = await self.guard.aplan(waiting.step, waiting.history, key=waiting.key)
        judgement = await self.guard.acheck(waiting.step, plan, waiting.history, key=waiting.key, number=waiting.number)
        write(config, GUARD_CHANNEL, self._checked(config, waiting, judgement))

    def after_check(self, state: State, config: RunnableConfig) -> list[str | Send]:
        """Where the step goes: its recorded routes if any call is cleared (or there is none), else `refuse`."""
        channel = read(config, GUARD_CHANNEL, fresh=True)
        verdicts = [found["verdict"] for found in channel["clearances"]["verdicts"].values()]
        if verdicts and "act" not in verdicts:
            return [self.refuse_name]
        return [name if payload is None else Send(name, payload) for name, payload in channel["go"]]

    def refuse(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Answer every call of a refused step; where the run ends, say so."""
        channel = read(config, GUARD_CHANNEL)
        verdicts = channel["clearances"]["verdicts"]
        answers: list[AnyMessage] = []
        for call in self._raw_calls(state, channel["go"]):
            found = verdicts.get(_call(0, call).digest) or {"reason": "it was not judged"}
            answers.append(refusal_message(call, found["reason"]))
        if channel["ending"]:
            answers.append(AIMessage(content=self._farewell(verdicts, channel["refusals"])))
        return {self.messages_key: answers}

    def _begin(self, state: State, config: RunnableConfig) -> _Waiting:
        grant_superstep(config)
        return self._waiting(state, config, list(_channel(config).get("routes", ())))

    def _resume(self, state: State, config: RunnableConfig) -> tuple[_Waiting, Plan | None]:
        """The planned step, and its plan; no plan if the history was changed since."""
        grant_superstep(config)
        opened = _channel(config).get("open") or {"routes": [], "digests": [], "at": None}
        waiting = self._waiting(state, config, opened["routes"])
        same = opened["digests"] == waiting.digests and opened["at"] == position(state[self.messages_key])
        return waiting, Plan.from_dict(opened["plan"]) if same else None

    def _waiting(self, state: State, config: RunnableConfig, routes: list[list[Any]]) -> _Waiting:
        channel = _channel(config)
        messages = state[self.messages_key]
        raw = self._raw_calls(state, routes)
        calls = tuple(_call(index, call) for index, call in enumerate(raw))
        named = (config.get("metadata") or {}).get("mosaic_trajectory")
        trajectory = str(named or channel.get("trajectory") or uuid.uuid4())
        # Another trajectory on the same thread starts counting anew; its transcript opens a new segment.
        known = channel.get("trajectory") in (None, trajectory)
        history = [JudgedStep.from_dict(record) for record in channel.get("history", ())] if known else []
        number = channel.get("step", 0) if known else 0
        return _Waiting(Step(messages, calls, self.tools), raw, routes, history, trajectory, number)

    def _raw_calls(self, state: State, routes: Sequence[Sequence[Any]]) -> list[Mapping[str, Any]]:
        """The tool calls that the routes lead to, as each tool node would read them."""
        calls: list[Mapping[str, Any]] = []
        for name, payload in routes:
            source = {self.messages_key: state[self.messages_key]} if payload is None else payload
            try:
                found, _ = self.tool_nodes[name]._parse_input(source)
            except (ValueError, TypeError, AttributeError, KeyError, IndexError):
                continue  # nothing that the tool node could run; it says so itself
            calls.extend(found)
        return calls

    def _planned(self, waiting: _Waiting, plan: Plan) -> dict[str, Any]:
        if self.events and waiting.step.calls:
            calls = [call.to_dict() for call in waiting.step.calls]
            self._event(waiting, event="plan", think=plan.think, error=plan.error, calls=calls)
        opened = {
            "routes": waiting.routes,
            "digests": waiting.digests,
            "at": position(waiting.step.messages),
            "plan": plan.to_dict(),
        }
        return {
            "routes-": len(waiting.routes),
            "open": opened,
            "trajectory": waiting.trajectory,
            "bounced": None,
        }

    def _passed(self, waiting: _Waiting) -> dict[str, Any]:
        """A route was taken without calls to judge: the tool node runs none."""
        empty = {"step": position(waiting.step.messages), "verdicts": {}}
        return {"go": waiting.routes, "clearances": empty, "ending": False}

    def _checked(self, config: RunnableConfig, waiting: _Waiting, judgement: Judgement) -> dict[str, Any]:
        refused = [d for d in judgement.decisions if d.verdict != "act"]
        refusals = _refusals_so_far(_channel(config), waiting.step.messages) + 1 if refused else 0
        ending = bool(refused) and (self.on_refuse == "end" or refusals >= self.max_refusals)
        verdicts: dict[str, dict[str, str]] = {}
        for call, decision in zip(waiting.step.calls, judgement.decisions, strict=True):
            found = {"verdict": decision.verdict, "reason": decision.reason}
            if ending and decision.verdict == "act":
                found = {"verdict": "refuse", "reason": NOT_RUN}
            if verdicts.get(call.digest, {}).get("verdict", "act") == "act":
                verdicts[call.digest] = found
        self._log(config, waiting, judgement)
        if self.events:
            decisions = [d.to_dict() for d in judgement.decisions]
            self._event(
                waiting,
                event="decision",
                think=judgement.think,
                safety_thoughts=judgement.safety_thoughts,
                calls=[call.to_dict() for call in waiting.step.calls],
                decisions=decisions,
                seconds=judgement.seconds,
            )
        return {
            "go": waiting.routes,
            "clearances": {"step": position(waiting.step.messages), "verdicts": verdicts},
            "ending": ending,
            "refusals": refusals,
            "humans": _humans(waiting.step.messages),
            "history": _remember(waiting.history, judgement.judged),
            "trajectory": waiting.trajectory,
            "step": waiting.number + 1,
            "logged": len(waiting.step.messages),
        }

    def _log(self, config: RunnableConfig, waiting: _Waiting, judgement: Judgement) -> None:
        if self.trace is None:
            return
        messages = waiting.step.messages
        logged = _channel(config).get("logged", 0) if waiting.number else 0
        metadata = config.get("metadata") or {}
        judged = judgement.judged
        last = waiting.history[-1].segment if waiting.history else 0
        self.trace.step(
            {
                "guard": self.trace.header(self.guard.describe()),
                "trajectory": waiting.trajectory,
                "task": str(metadata.get("mosaic_task") or _task_of(messages)),
                "step": waiting.number,
                "segment": judged.segment if judged else last,
                "thread": config.get("configurable", {}).get("thread_id"),
                "messages": messages_to_dict(messages[logged if logged <= len(messages) else 0 :]),
                "calls": [call.to_dict() for call in waiting.step.calls],
                "decisions": [decision.to_dict() for decision in judgement.decisions],
                "think": judgement.think,
                "safety_thoughts": judgement.safety_thoughts,
                "pieces": [piece.to_dict() for turn in judged.turns for piece in turn.pieces] if judged else [],
                "seconds": judgement.seconds,
            }
        )

    def _event(self, waiting: _Waiting, **event: Any) -> None:
        writer = get_stream_writer()
        writer({"type": "mosaic_guard", "trajectory": waiting.trajectory, "step": waiting.number, **event})

    def _farewell(self, verdicts: Mapping[str, Mapping[str, str]], refusals: int) -> str:
        reasons = [found["reason"] for found in verdicts.values() if found["reason"] != NOT_RUN]
        often = "" if self.on_refuse == "end" else f" after {refusals} refused steps in a row"
        return f"I stopped{often}: the guard refused what I was about to do. {'; '.join(reasons)[:600]}"


def _channel(config: RunnableConfig) -> Channel:
    return read(config, GUARD_CHANNEL) or {}


def _call(index: int, call: Mapping[str, Any]) -> Call:
    return Call(index, call.get("id"), str(call.get("name")), call.get("args"))


def _humans(messages: Sequence[Any]) -> int:
    return sum(isinstance(m, HumanMessage) for m in messages)


def _refusals_so_far(channel: Channel, messages: Sequence[Any]) -> int:
    """Steps in a row with a refusal; new words of a human start the count again."""
    return int(channel.get("refusals", 0)) if channel.get("humans") == _humans(messages) else 0


def _remember(history: list[JudgedStep], judged: JudgedStep | None) -> list[dict[str, Any]]:
    """The history with the new step; of earlier segments only the summaries are needed."""
    if judged is not None:
        history = [*history, judged]
    current = history[-1].segment if history else 0
    return [{**past.to_dict(), **({} if past.segment == current else {"turns": []})} for past in history]


def _task_of(messages: Sequence[Any]) -> str:
    first = next((message_text(m) for m in messages if isinstance(m, HumanMessage)), "")
    return hashlib.sha256(first.encode("utf-8", "surrogatepass")).hexdigest()[:16]
