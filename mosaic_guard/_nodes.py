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

from langchain_core.messages import AIMessage, AnyMessage, messages_to_dict
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.config import get_stream_writer
from langgraph.prebuilt import ToolNode
from langgraph.types import Send

from mosaic_guard._channel import GUARD_CHANNEL, ROUTES_CHANNEL, digest_of, position, read, write
from mosaic_guard._decision import Call, Step
from mosaic_guard._evidence import is_human, message_text
from mosaic_guard._gate import refusal_message
from mosaic_guard._guard import Guard, Judgement, Plan
from mosaic_guard._recursion import grant_superstep
from mosaic_guard._trace import TraceWriter
from mosaic_guard._transcript import JudgedStep, message_digest, messages_digest, step_end

State = Mapping[str, Any]
Channel = Mapping[str, Any]

NOT_RUN = "another call of the same step was refused and the run ends"


@dataclass(frozen=True)
class _Waiting:
    """A step that waits for its judgement.

    Attributes:
        step: The step.
        routes: [tool node, `Send` payload or None, the calls that the tool node reads there] of each route.
        history: The steps of the trajectory that the model judged before.
        trajectory: Its id.
        number: The step's number in it.
    """

    step: Step
    routes: list[list[Any]]
    history: list[JudgedStep]
    trajectory: str
    number: int

    @property
    def key(self) -> str:
        return f"{self.trajectory}/{self.number}"


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
        messages = state[self.messages_key]
        kept = _still_begins_with(messages, channel["seen"])
        return [self._leave(messages, kept, *route) for route in channel["go"]]

    def _leave(self, messages: list[Any], kept: bool, name: str, payload: Any, calls: list[Any]) -> str | Send:
        """The way into a tool node: as recorded, or with the calls themselves if a parallel branch has written since.

        Not if the history itself was edited: the tool node then reads the edited one, and its gate finds it unjudged.
        """
        if payload is not None:
            return Send(name, payload)
        moved = kept and self._read_calls(name, {self.messages_key: messages}) != calls
        return Send(name, calls) if moved else name

    def refuse(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Answer every call of a refused step; where the run ends, say so."""
        channel = _channel(config)
        verdicts = channel["clearances"]["verdicts"]
        answers: list[AnyMessage] = []
        for call in (call for _, _, calls in channel["go"] for call in calls):
            found = verdicts.get(digest_of(call)) or {"reason": "it was not judged"}
            answers.append(refusal_message(call, found["reason"]))
        if channel["ending"]:
            answers.append(AIMessage(content=self._farewell(verdicts, channel["refusals"])))
        return {self.messages_key: answers}

    def _begin(self, state: State, config: RunnableConfig) -> _Waiting:
        grant_superstep(config)
        messages = list(state[self.messages_key])
        routes: list[list[Any]] = []
        for name, payload in read(config, ROUTES_CHANNEL) or ():
            # Several edges into one tool node are one route: it runs once.
            if payload is None and any(known[0] == name and known[1] is None for known in routes):
                continue
            source = {self.messages_key: messages} if payload is None else payload
            routes.append([name, payload, self._read_calls(name, source)])
        return self._open(messages, routes, config)

    def _open(self, messages: list[Any], routes: list[list[Any]], config: RunnableConfig) -> _Waiting:
        """The step that a task's routes make, with what its thread remembers."""
        channel = _channel(config)
        named = (config.get("metadata") or {}).get("mosaic_trajectory")
        trajectory = str(named or channel.get("trajectory") or uuid.uuid4())
        # Another trajectory on the same thread starts counting anew.
        known = channel.get("trajectory") in (None, trajectory)
        history = [JudgedStep.from_dict(record) for record in channel.get("history", ())] if known else []
        number = channel.get("step", 0) if known else 0
        return self._waiting(messages, routes, history, trajectory, number)

    def _resume(self, state: State, config: RunnableConfig) -> tuple[_Waiting, Plan | None]:
        """The planned step, and its plan; no plan if the history that it was made for was changed since."""
        grant_superstep(config)
        messages = list(state[self.messages_key])
        opened = _channel(config)["open"]
        routes = opened["routes"]
        history = [JudgedStep.from_dict(record) for record in opened["history"]]
        # What a parallel branch has written since is not part of the step.
        same = _still_begins_with(messages, opened["seen"])
        if same:
            messages = messages[: opened["seen"][0]]
        else:
            routes = [
                [name, payload, self._read_calls(name, {self.messages_key: messages}) if payload is None else calls]
                for name, payload, calls in routes
            ]
        waiting = self._waiting(messages, routes, history, opened["trajectory"], opened["number"])
        return waiting, Plan.from_dict(opened["plan"]) if same else None

    def _waiting(
        self, messages: list[Any], routes: list[list[Any]], history: list[JudgedStep], trajectory: str, number: int
    ) -> _Waiting:
        calls = [call for _, _, found in routes for call in found]
        made = tuple(Call(i, c.get("id"), str(c.get("name")), c.get("args")) for i, c in enumerate(calls))
        return _Waiting(Step(messages, made, self.tools), routes, history, trajectory, number)

    def _read_calls(self, name: str, source: Any) -> list[Any]:
        """The tool calls that a tool node would read from its input; none if it could not run any (it says so itself)."""
        try:
            return list(self.tool_nodes[name]._parse_input(source)[0])
        except (ValueError, TypeError, AttributeError, KeyError, IndexError):
            return []

    def _planned(self, waiting: _Waiting, plan: Plan) -> dict[str, Any]:
        if self.events and waiting.step.calls:
            calls = [call.to_dict() for call in waiting.step.calls]
            self._event(waiting, event="plan", think=plan.think, error=plan.error, calls=calls)
        opened = {
            "routes": waiting.routes,
            "seen": _seen(waiting),
            "history": [past.to_dict() for past in waiting.history],
            "trajectory": waiting.trajectory,
            "number": waiting.number,
            "plan": plan.to_dict(),
        }
        return {"open": opened, "bounced": None}

    def _passed(self, waiting: _Waiting) -> dict[str, Any]:
        """A route was taken without calls to judge: the tool node runs none."""
        return {
            "go": waiting.routes,
            "seen": _seen(waiting),
            "clearances": _clearances(waiting, {}),
            "ending": False,
        }

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
            "seen": _seen(waiting),
            "clearances": _clearances(waiting, verdicts),
            "ending": ending,
            "refusals": refusals,
            "humans": _humans(waiting.step.messages),
            "history": _remember(waiting.history, judgement.judged),
            "trajectory": waiting.trajectory,
            "step": waiting.number + 1,
            "at": _at(waiting),
            "logged": [message_digest(message) for message in waiting.step.messages] if self.trace else None,
        }

    def _log(self, config: RunnableConfig, waiting: _Waiting, judgement: Judgement) -> None:
        if self.trace is None:
            return
        messages = waiting.step.messages
        logged = set(_channel(config).get("logged") or ()) if waiting.number else set()
        metadata = config.get("metadata") or {}
        judged = judgement.judged
        last = waiting.history[-1].segment if waiting.history else 0
        self.trace.step(
            {
                "guard": self.trace.header(self.guard.describe()),
                "trajectory": waiting.trajectory,
                "task": str(metadata.get("mosaic_task") or _task_of(messages)),
                "step": waiting.number,
                "at": _at(waiting),
                "after": _channel(config).get("at") if waiting.number else None,
                "segment": judged.segment if judged else last,
                "thread": config.get("configurable", {}).get("thread_id"),
                "messages": messages_to_dict([m for m in messages if message_digest(m) not in logged]),
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


def _seen(waiting: _Waiting) -> list[Any]:
    """The history that a step was judged with: number of messages and their digest."""
    return [len(waiting.step.messages), messages_digest(waiting.step.messages)]


def _at(waiting: _Waiting) -> str:
    """Names the step in its trace: a digest of all that was said up to it."""
    return messages_digest(waiting.step.messages[: step_end(waiting.step.messages)])


def _still_begins_with(messages: Sequence[Any], seen: Sequence[Any]) -> bool:
    return bool(messages_digest(messages[: seen[0]]) == seen[1])


def _clearances(waiting: _Waiting, verdicts: dict[str, dict[str, str]]) -> dict[str, Any]:
    nodes = sorted({name for name, _, _ in waiting.routes})
    return {"step": position(waiting.step.messages), "nodes": nodes, "verdicts": verdicts}


def _humans(messages: Sequence[Any]) -> int:
    return sum(map(is_human, messages))


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
    first = next((message_text(m) for m in messages if is_human(m)), "")
    return hashlib.sha256(first.encode("utf-8", "surrogatepass")).hexdigest()[:16]
