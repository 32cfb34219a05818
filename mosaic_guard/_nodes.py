"""The nodes: `plan`, `check`, `ask` and `refuse`, the gates, and the ways between them.

What they judge is read in `_step_routes.py`; what they leave is written in `_step_verdicts.py`.

Routes into a tool node are recorded in the guard's channel; `plan` takes all that wait, so that the calls of a step are
judged together whichever way they came; after `check` (and `ask`, where a person decides) the recorded routes are taken,
or `refuse` answers.

The nodes read and write the guard's channel through their config: as input or return value it would show in
`astream_events` and in traces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.constants import END
from langgraph.prebuilt import ToolNode
from langgraph.types import Send, interrupt

from mosaic_guard._ask import ask_person
from mosaic_guard._channel import GUARD_CHANNEL, RUNTIME, channel_of, digest_of, read, start, write
from mosaic_guard._final_answer import STRUCTURED, withheld
from mosaic_guard._function_node import FunctionNode
from mosaic_guard._gate import ResultCache, answer_message, gated_tool_node
from mosaic_guard._guard import Guard, Plan, as_guard
from mosaic_guard._hold import HOLDING
from mosaic_guard._nested import Nested
from mosaic_guard._recursion import grant_superstep
from mosaic_guard._step_routes import State, StepRoutes
from mosaic_guard._step_verdicts import StepVerdicts
from mosaic_guard._trace import TraceWriter
from mosaic_guard._waiting import open_calls, still_begins_with


class GuardNodes(StepRoutes, StepVerdicts):
    """The functions behind the guard's nodes, and the gated tool nodes.

    `guarded_graph` uses nothing else; to place them by hand, see `GuardedStateGraph.add_guard`.

    Args:
        guard: Judges the steps. Default: `Guard.load("default")`, the local model.
        tool_nodes: The tool nodes by name: `ToolNode`s, or functions and runnables that run the calls of the last AI message
            themselves (then nothing verifies a call again behind the function's first line).
        messages_key: State key of the messages. Default: what the tool nodes read, else `messages`.
        on_refuse: `replan`: refused calls are answered with the reason and the agent goes on. `end`: a step with a refused
            call runs none of its calls, and the run ends with a message that says why.
        max_refusals: At this many steps in a row with a refusal `after_refusals` happens. At least 1.
        after_refusals: `end`: the run ends. `ask`: a person decides what the guard would refuse (not what a policy refuses).
        prefix: Put before the names of the nodes.
        trace: Where judged steps are logged.
        events: Whether plans and decisions are sent to the `custom` stream.
        check_final: Whether the answer that ends the run is judged too, as a call of `final_answer`.
        caches: Result caches of tool nodes, which then sit inside the gate.

    Attributes:
        gates: The gated tool nodes by name, to be placed under these names.

    Raises:
        ValueError: For an unknown option.
    """

    def __init__(
        self,
        guard: Guard | None = None,
        tool_nodes: Mapping[str, Any] | None = None,
        *,
        messages_key: str | None = None,
        on_refuse: Literal["replan", "end"] = "replan",
        max_refusals: int = 3,
        after_refusals: Literal["end", "ask"] = "end",
        prefix: str = "",
        trace: TraceWriter | None = None,
        events: bool = False,
        check_final: bool = False,
        caches: Mapping[str, ResultCache] | None = None,
    ) -> None:
        if on_refuse not in ("replan", "end"):
            raise ValueError(f"on_refuse is 'replan' or 'end', not {on_refuse!r}")
        if max_refusals < 1:
            raise ValueError(f"max_refusals is at least 1, not {max_refusals!r}")
        if after_refusals not in ("end", "ask"):
            raise ValueError(f"after_refusals is 'end' or 'ask', not {after_refusals!r}")
        self.guard = as_guard(guard)
        self.on_refuse, self.max_refusals, self.after_refusals = on_refuse, max_refusals, after_refusals
        self.plan_name, self.check_name, self.ask_name, self.refuse_name = (
            f"{prefix}{name}" for name in ("plan", "check", "ask", "refuse")
        )
        self.trace, self.events, self.check_final = trace, events, check_final
        given = dict(tool_nodes or {})
        keys = [node._messages_key for node in given.values() if isinstance(node, ToolNode)]
        self.messages_key = messages_key or (keys[0] if keys else "messages")
        self.nested: Nested | None = None
        """Guards the graphs inside tools that come up only while running."""
        self.joined: set[str] = set()
        """Tool nodes that others wait for: they run even where every call is refused, and answer the calls themselves."""
        self.gates: dict[str, Any] = {
            name: gated_tool_node(node, name=name, nodes=self, results=(caches or {}).get(name))
            if isinstance(node, ToolNode)
            else FunctionNode(node, name=name, nodes=self)
            for name, node in given.items()
        }
        self.tools: dict[str, BaseTool] = {
            name: tool for gate in self.gates.values() for name, tool in gate.tools_by_name.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the guard's own nodes."""
        return self.plan_name, self.check_name, self.ask_name, self.refuse_name

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

    def ask(self, state: State, config: RunnableConfig) -> None:
        """Have a person decide the asked calls: one interrupt for all of the step. Nothing is judged here."""
        grant_superstep(config)
        channel = channel_of(config)
        answers = ask_person(channel, interrupt)
        write(config, GUARD_CHANNEL, self._answered(config, channel, answers))

    def clear_at_once(self, routes: list[list[Any]], config: RunnableConfig) -> bool:
        """Clear a step in the task that proposed it, if the policy alone lets all of it act.

        `plan` and `check` would add nothing but two supersteps.

        Args:
            routes: [tool node, `Send` payload or None] of each route that the task takes.
            config: The task's config.
        """
        running = config.get("configurable", {})
        if HOLDING in running or (self.events and RUNTIME not in running):
            return False
        if any(name == END or name in self.joined for name, _ in routes):
            return False
        messages = self.messages_in({self.messages_key: read(config, self.messages_key, fresh=True)})
        found = self._routes(messages, routes, config)
        waiting = self._open(messages, found, config)
        # The whole step, and nothing but it: what another route may bring is judged with it, in `plan`.
        whole = Counter(map(digest_of, open_calls(messages))) == Counter(map(digest_of, waiting.calls))
        if not (waiting.step.calls and whole and self.guard.lets_all_act(waiting.step)):
            return False
        judgement = self.guard.check(waiting.step, Plan(), key=waiting.key, number=waiting.number)
        if any(decision.verdict != "act" for decision in judgement.decisions):
            return False
        write(config, GUARD_CHANNEL, self._checked(config, waiting, judgement))
        return True

    def after_check(self, state: State, config: RunnableConfig) -> list[str | Send]:
        """Where the step goes: to `ask`, back to `plan` with what a person changed, its recorded routes, or `refuse`."""
        channel = read(config, GUARD_CHANNEL, fresh=True)
        if channel["edits"]:
            return [self.plan_name]
        verdicts = [found["verdict"] for found in channel["clearances"]["verdicts"].values()]
        if "ask" in verdicts:
            return [self.ask_name]
        messages = self.messages_in(state)
        kept = still_begins_with(messages, channel["seen"])
        ids = {call.get("id") for _, _, calls in channel["go"] for call in calls}
        since = messages[channel["seen"][0] :]
        if kept and any(isinstance(message, ToolMessage) and message.tool_call_id in ids for message in since):
            # The step has run: langgraph takes an edit of its results for one by `check`, and would take the routes again.
            # Results of other calls are those of a parallel branch.
            return []
        for name, payload in channel["beside"]:
            if payload is None:
                start(config, name)
        beside: list[str | Send] = [Send(*route) for route in channel["beside"] if route[1] is not None]
        names = {route[0] for route in channel["go"]}
        if verdicts and "act" not in verdicts and (channel["ending"] or not names <= self.joined):
            return [self.refuse_name, *beside]
        return [*beside, *(self._leave(messages if kept else None, *route) for route in channel["go"])]

    def _leave(self, messages: list[Any] | None, name: str, payload: Any, calls: list[Any]) -> str | Send:
        """The way into a tool node: as recorded, or with the calls themselves if a parallel branch has written since.

        Not if the history itself was edited (None here): the tool node then reads that, and its gate finds it unjudged.
        """
        if payload is not None:
            return Send(name, payload)
        if name == END or messages is None:
            return name
        return name if self._read_calls(name, {self.messages_key: messages}) == calls else Send(name, calls)

    def refuse(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Answer every call of a step of which none runs; where the run ends, say so."""
        channel = channel_of(config)
        verdicts = channel["clearances"]["verdicts"]
        answers: list[BaseMessage] = []
        # Several tool nodes may read the same calls: each is answered as often as the agent has proposed it.
        left = Counter(map(digest_of, open_calls(self.messages_in(state))))
        proposed = set(left)
        for call in (call for name, _, calls in channel["go"] for call in calls if name != END):
            digest = digest_of(call)
            left[digest] -= 1
            if digest in proposed and left[digest] < 0:
                continue
            found = verdicts.get(digest_of(call)) or {"verdict": "refuse", "reason": "it was not judged"}
            answers.append(answer_message(call, found))
        if any(name == END and calls for name, _, calls in channel["go"]):
            structured = read(config, STRUCTURED) is not None
            answers += withheld(self.messages_in(state), self.tools, structured)
            return {self.messages_key: answers, **({STRUCTURED: None} if structured else {})}
        if channel["ending"]:
            answers.append(AIMessage(content=self._farewell(verdicts, channel["refusals"])))
        return {self.messages_key: answers}

    def judge_again(self, call: Mapping[str, Any], config: RunnableConfig) -> Mapping[str, str]:
        """The verdict on a call that was changed behind its check, as a step of its own; never raises."""
        waiting = self._changed(call, config)
        plan = self.guard.plan(waiting.step, key=waiting.key)
        return self._again(config, waiting, self.guard.check(waiting.step, plan, key=waiting.key))

    async def ajudge_again(self, call: Mapping[str, Any], config: RunnableConfig) -> Mapping[str, str]:
        """`judge_again` for event loops."""
        waiting = self._changed(call, config)
        plan = await self.guard.aplan(waiting.step, key=waiting.key)
        return self._again(config, waiting, await self.guard.acheck(waiting.step, plan, key=waiting.key))
