"""Invariants 1 to 3 over the whole life of a thread: random graphs, kills, resumes, edits, forks, people's answers.

One thread at a time. Agents are deterministic in the history, so that a resumed run does what the killed one would have.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from scripted_agents import State, assert_valid, calls, hand_written

from mosaic_guard import Guard, ScriptedGuardModel, guarded_graph

pytestmark = pytest.mark.slow

TOOLS = ("look", "pay", "send")
CALL = st.tuples(st.sampled_from(TOOLS), st.integers(0, 6))
STEP = st.lists(CALL, min_size=1, max_size=3)
KINDS = ("create_agent", "condition", "send", "nested", "function", "two", "command")


class Killed(BaseException):
    """The process is gone, while the guard judges."""


class Crashed(Exception):
    """The process is gone, while a tool runs: raised in a thread of the tool node's."""


class Agent(BaseChatModel):
    """Proposes the step of its script that comes next in the history."""

    script: list[Any]

    @property
    def _llm_type(self) -> str:
        return "agent"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Agent:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        number = sum(isinstance(m, AIMessage) and m.id is not None for m in messages)
        proposed = self.script[number] if number < len(self.script) else None
        said = AIMessage("done") if proposed is None else _proposal(proposed, number)
        return ChatResult(generations=[ChatGeneration(message=said)])


def _proposal(step: list[tuple[str, int]], number: int) -> AIMessage:
    return calls(*((name, {"x": x}) for name, x in step), ids=[f"{number}-{i}" for i in range(len(step))])


class World:
    """What happens outside the graph: which bodies ran, what was cleared, when the process dies."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str, int]] = []
        self.cleared: Counter[tuple[str, int]] = Counter()
        self.kill: str | None = None

    def dies(self, where: str) -> None:
        if self.kill == where:
            self.kill = None
            raise Killed if where == "guard" else Crashed

    def decide(self, step: Any) -> list[float]:
        self.dies("guard")
        answers = []
        for call in step.calls:
            x = call.args["x"]
            if x == 5:
                raise RuntimeError("no decision")
            answers.append({3: 0.9, 4: 0.3}.get(x, 0.0))
        for call, p in zip(step.calls, answers, strict=True):
            if p == 0.0:
                self.cleared[(call.name, call.args["x"])] += 1
        return answers

    def tools(self) -> list[BaseTool]:
        def make(name: str) -> BaseTool:
            def body(x: int) -> str:
                self.dies("before")
                self.ran.append((name, name, x))
                self.dies("after")
                return f"{name} {x}"

            return StructuredTool.from_function(body, name=name, description=name)

        return [make(name) for name in TOOLS]


class Rewrites(AgentMiddleware):
    """Adds one to 1."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        call = request.tool_call
        if call["args"]["x"] != 1:
            return handler(request)
        return handler(request.override(tool_call={**call, "args": {"x": 2}}))


def build(kind: str, world: World, model: Agent, rewrites: bool, saver: Any) -> Any:
    tools = world.tools()
    guard = Guard(ScriptedGuardModel(world.decide), ask_threshold=0.2)
    wraps = [Rewrites()] if rewrites else []
    node = ToolNode(tools, wrap_tool_call=wraps[0].wrap_tool_call if wraps else None)
    if kind == "create_agent":
        plain: Any = create_agent(model, tools, middleware=wraps, checkpointer=saver)
    elif kind in ("condition", "send"):
        plain = hand_written(model, node, kind, checkpointer=saver)
    else:
        plain = _builder(kind, model, node, tools).compile(checkpointer=saver)
    return guarded_graph(plain, guard=guard, max_refusals=9, tool_nodes=["tools"] if kind == "function" else [])


def _builder(kind: str, model: Agent, node: ToolNode, tools: list[BaseTool]) -> StateGraph[Any]:
    builder = StateGraph(State)

    def agent(state: State) -> Any:
        said = model.invoke(state["messages"])
        if kind == "command":
            return Command(update={"messages": [said]}, goto="tools" if said.tool_calls else END)
        return {"messages": [said]}

    def run(state: State) -> Any:
        by_name = {t.name: t for t in tools}
        answered = {m.tool_call_id for m in state["messages"] if isinstance(m, ToolMessage)}
        proposed = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
        return {"messages": [by_name[c["name"]].invoke(c) for c in proposed.tool_calls if c["id"] not in answered]}

    if kind == "nested":
        builder.add_node("inner", hand_written(model, node))
        builder.add_edge(START, "inner")
        return builder
    builder.add_node("agent", agent)
    builder.add_edge(START, "agent")
    builder.add_node("tools", run if kind == "function" else node)
    builder.add_edge("tools", "agent")
    if kind == "command":
        return builder
    if kind == "two":
        builder.add_node("more", ToolNode(tools))

    def route(state: State) -> str:
        last: Any = state["messages"][-1]
        if not last.tool_calls:
            return END
        return "more" if kind == "two" and last.tool_calls[0]["args"]["x"] % 2 else "tools"

    builder.add_conditional_edges("agent", route)
    if kind == "two":
        builder.add_edge("more", "agent")
    return builder


class RandomThread(RuleBasedStateMachine):
    """One thread, and all that people and machines do to it."""

    checkpoints = Bundle("checkpoints")

    @initialize(kind=st.sampled_from(KINDS), rewrites=st.booleans())
    def start(self, kind: str, rewrites: bool) -> None:
        self.world, self.saver, self.kind = World(), InMemorySaver(), kind
        self.model = Agent(script=[])
        self.make = lambda: build(kind, self.world, self.model, rewrites, self.saver)
        self.graph = self.make()
        self.thread: Any = {"configurable": {"thread_id": "1"}}

    @rule(steps=st.lists(STEP, min_size=1, max_size=2), stop=st.sampled_from([None, "plan", "check", "tools"]))
    def say(self, steps: list[Any], stop: str | None) -> None:
        """A person says something, and the agent does some steps."""
        known = sum(isinstance(m, AIMessage) for m in self.messages())
        self.model.script = [*self.model.script[:known], *[None] * (known - len(self.model.script)), *steps, None]
        nodes = [stop] if stop and self.kind != "nested" else None
        self.go({"messages": [HumanMessage("go on")]}, interrupt_before=nodes)

    @rule(new_process=st.booleans())
    def resume(self, new_process: bool) -> None:
        """Go on from the last checkpoint."""
        if new_process:
            self.graph = self.make()
        if self.graph.get_state(self.thread).next and not self.asked():
            self.go(None)

    @precondition(lambda self: self.asked())
    @rule(data=st.data())
    def answer(self, data: Any) -> None:
        """A person decides what is asked."""
        decisions = []
        for action in self.asked():
            kind = data.draw(st.sampled_from(["approve", "reject", "respond", "edit"]))
            decision: dict[str, Any] = {"type": kind, "message": "so"}
            if kind == "edit":
                decision["edited_action"] = {"name": action["name"], "args": {"x": data.draw(st.integers(0, 4))}}
            if kind == "approve":
                self.world.cleared[(action["name"], action["args"]["x"])] += 1
            decisions.append(decision)
        self.go(Command(resume={"decisions": decisions}))

    @rule(where=st.sampled_from(["guard", "before", "after"]))
    def arm(self, where: str) -> None:
        """The process will die there."""
        self.world.kill = where

    @rule(x=st.integers(0, 6))
    def edit(self, x: int) -> None:
        """A person edits the open step behind the guard's back."""
        messages = self.messages()
        if (
            not messages
            or not isinstance(messages[-1], AIMessage)
            or not messages[-1].tool_calls
            or self.kind in ("nested", "command")  # langgraph itself goes nowhere from an edit there
        ):
            return
        last = messages[-1]
        changed = last.model_copy(update={"tool_calls": [{**call, "args": {"x": x}} for call in last.tool_calls]})
        self.graph.update_state(self.thread, {"messages": [changed]})

    @rule(back=st.integers(1, 12))
    def travel(self, back: int) -> None:
        """Go on from an earlier checkpoint."""
        history = list(self.graph.get_state_history(self.thread))
        if len(history) > back and self.kind != "nested":
            self.go(None, history[back].config)

    def go(self, given: Any, config: Any = None, **options: Any) -> None:
        config = config or self.thread
        state = self.graph.get_state(config)
        done = {m.tool_call_id for m in state.values.get("messages", []) if isinstance(m, ToolMessage)}
        before = len(self.world.ran)
        try:
            out = self.graph.invoke(given, config, **{k: v for k, v in options.items() if v})
        except (Killed, Crashed):
            out = None
        ran = Counter((name, x) for _, name, x in self.world.ran[before:])
        if out is not None and given is None:
            answered = [m for m in out["messages"] if isinstance(m, ToolMessage) and m.tool_call_id in done]
            assert len(answered) >= len(done), "a result was lost"
        assert sum(ran.values()) <= 40, "a call runs over and over"
        assert self.world.cleared is not None

    def messages(self) -> list[AnyMessage]:
        return list(self.graph.get_state(self.thread).values.get("messages", []))

    def asked(self) -> list[Any]:
        state = self.graph.get_state(self.thread, subgraphs=True)
        found = [i for task in state.tasks for i in task.interrupts]
        return list(found[0].value["action_requests"]) if found else []

    @invariant()
    def nothing_ran_uncleared(self) -> None:
        """A body runs for a call that was cleared, or cleared and rewritten into a cleared one."""
        if hasattr(self, "world"):
            ran = {(name, x) for _, name, x in self.world.ran}
            assert ran <= set(self.world.cleared), "a tool body ran without a clearance for exactly that call"

    @invariant()
    def closed_threads_are_valid(self) -> None:
        """Every call of a closed step has one answer, by position."""
        if hasattr(self, "graph") and not self.graph.get_state(self.thread).next:
            assert_valid(self.messages())


TestRandomThread = RandomThread.TestCase
TestRandomThread.settings = settings(stateful_step_count=12)
