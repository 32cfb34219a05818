"""Agents of every kind of graph that propose what a person's message says: deterministic in the history alone."""

from __future__ import annotations

import json
import operator
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ToolRetryMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, Send
from scripted_agents import State, assert_valid, calls, hand_written
from witness import Flaky, WatchedSaver, Witness

from mosaic_guard import Guard, MosaicMiddleware, Policy, ScriptedGuardModel, guarded_graph

TOOLS = ("look", "pay", "send")
REWRITTEN: dict[int, Any] = {1: 2, 6: 3, 0: False}
"""What a meddling wrapper makes of arguments: what is cleared, what is refused, what equals itself and is another."""

MIDDLEWARE = ("middleware", "middleware first")
RETRYING = ("retrying middleware", "retried node")
INSIDE = ("nested", "map")
"""Kinds whose tool nodes are in graphs inside the graph."""
NOT_EDITED = (*INSIDE, "command", "join")
"""Kinds where langgraph goes nowhere from an edited state: what the node has written beside the messages is not repeated."""
KINDS = (
    *("create_agent", "condition", "send", "function", "two", "beside", "command", "join"),
    *INSIDE,
    *RETRYING,
    *MIDDLEWARE,
)

Steps = list[list[tuple[str, int, str]]]
"""The calls of each step: tool, argument, id."""


def task(steps: Steps, note: int = 0) -> HumanMessage:
    """What a person says, so that the agent does these steps."""
    return HumanMessage(json.dumps({"steps": steps, "note": note}))


def noted(message: HumanMessage, note: int) -> HumanMessage:
    """The same message in other words."""
    said = json.loads(message.text)
    return message.model_copy(update={"content": json.dumps({**said, "note": note})})


class Agent(BaseChatModel):
    """Proposes the next step of what the last person to speak has said; insists on a valid history, as vendors do."""

    @property
    def _llm_type(self) -> str:
        return "agent"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Agent:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        assert_valid(messages)
        last = max(index for index, message in enumerate(messages) if isinstance(message, HumanMessage))
        done = sum(isinstance(message, AIMessage) for message in messages[last:])
        steps: Steps = json.loads(messages[last].text)["steps"]
        said = AIMessage("done")
        if done < len(steps):
            wanted = [(name, {"x": x}) for name, x, _ in steps[done]]
            said = calls(*wanted, ids=[call_id for _, _, call_id in steps[done]])
        return ChatResult(generations=[ChatGeneration(message=said)])


class Rewrites(AgentMiddleware):
    """Rewrites some arguments."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(_rewritten(request))

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        return await handler(_rewritten(request))


def _rewritten(request: Any) -> Any:
    call = request.tool_call
    x = call["args"]["x"]
    return request.override(tool_call={**call, "args": {"x": REWRITTEN.get(x, x)}})


def build(
    kind: str,
    witness: Witness,
    saver: WatchedSaver,
    policy: Policy | None = None,
    *,
    guarded: bool = True,
    **options: Any,
) -> Any:
    """A graph.

    Args:
        kind: One of `KINDS`.
        witness: Sees what runs and what is cleared.
        saver: Where threads are kept.
        policy: What needs no judgement.
        guarded: Whether it is guarded.
        **options: As for `guarded_graph`; of `MosaicMiddleware` where that guards.
    """
    model, tools = Agent(), witness.tools(TOOLS)
    guard = Guard(ScriptedGuardModel(witness.decide), policy=policy, ask_threshold=0.2)
    meddling: list[Any] = [Rewrites()] if witness.rewritten else []
    if kind in MIDDLEWARE:
        guarding = [MosaicMiddleware(guard=guard, **options)] if guarded else []
        middleware = [*guarding, *meddling] if kind == "middleware first" else [*meddling, *guarding]
        return create_agent(model, tools, middleware=middleware, checkpointer=saver)
    if kind in ("create_agent", "retrying middleware"):
        retrying = [ToolRetryMiddleware(max_retries=1, retry_on=(Flaky,), on_failure="error", initial_delay=0)]
        middleware = [*(retrying if kind == "retrying middleware" else ()), *meddling]
        plain: Any = create_agent(model, tools, middleware=middleware, checkpointer=saver)
    else:
        plain = _plain(kind, model, tools, meddling).compile(checkpointer=saver)
    if not guarded:
        return plain
    return guarded_graph(plain, guard=guard, tool_nodes=["tools"] if kind == "function" else [], **options)


def _plain(kind: str, model: Agent, tools: list[BaseTool], meddling: list[Any]) -> StateGraph[Any, Any, Any, Any]:
    wraps = [{"wrap_tool_call": one.wrap_tool_call, "awrap_tool_call": one.awrap_tool_call} for one in meddling]
    node = ToolNode(tools, **(wraps[0] if wraps else {}))
    if kind in ("condition", "send"):
        return hand_written(model, node, kind).builder
    if kind == "nested":
        builder = StateGraph(State)
        builder.add_node("inner", hand_written(model, node))
        builder.add_edge(START, "inner")
        return builder
    if kind == "map":
        return _map(model, node)
    return _loop(kind, model, node, tools)


def _loop(kind: str, model: Agent, node: ToolNode, tools: list[BaseTool]) -> StateGraph[Any, Any, Any, Any]:
    def agent(state: State) -> Any:
        said = model.invoke(state["messages"])
        if kind == "command":
            return Command(update={"messages": [said]}, goto="tools" if said.tool_calls else END)
        return {"messages": [said]}

    def run(state: State) -> Any:
        by_name = {t.name: t for t in tools}
        proposed = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
        return {"messages": [by_name[c["name"]].invoke(c) for c in proposed.tool_calls]}

    def route(state: State) -> str | list[str]:
        calls = getattr(state["messages"][-1], "tool_calls", [])
        if not calls:
            return END
        if kind == "beside":
            return ["tools", "notes"]
        return "more" if kind == "two" and calls[0]["args"]["x"] % 2 else "tools"

    builder = StateGraph(State)
    builder.add_node("agent", agent)
    again = RetryPolicy(initial_interval=0, jitter=False, max_attempts=2, retry_on=Flaky)
    builder.add_node(
        "tools", run if kind == "function" else node, retry_policy=again if kind == "retried node" else None
    )
    builder.add_edge(START, "agent")
    if kind == "join":
        _join(builder)
        return builder
    builder.add_edge("tools", "agent")
    if kind == "command":
        return builder
    if kind == "two":
        builder.add_node("more", ToolNode(tools))
        builder.add_edge("more", "agent")
    if kind == "beside":
        builder.add_node("notes", lambda state: {})
    builder.add_conditional_edges("agent", route)
    return builder


def _join(builder: StateGraph[Any, Any, Any, Any]) -> None:
    """The tools wait for the agent and for a node beside it: a way that leads past the plan."""

    def on(state: State) -> Any:
        last = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
        return ["agent", "beside"] if last.tool_calls else END

    builder.add_node("beside", lambda state: {})
    builder.add_edge(START, "beside")
    builder.add_edge(["agent", "beside"], "tools")
    builder.add_conditional_edges("tools", on, ["agent", "beside", END])


class Part(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    results: Annotated[list[str], operator.add]


class Whole(State):
    results: Annotated[list[str], operator.add]


class Found(TypedDict):
    results: Annotated[list[str], operator.add]


def _map(model: Agent, node: ToolNode) -> StateGraph[Any, Any, Any, Any]:
    """Two agents side by side, each with a part of the task and a history of its own."""
    worker = StateGraph(Part, output_schema=Found)
    worker.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    worker.add_node("tools", node)
    worker.add_node("sum", lambda state: {"results": [state["messages"][-1].text]})
    worker.add_edge(START, "agent")
    worker.add_conditional_edges("agent", lambda state: "tools" if state["messages"][-1].tool_calls else "sum")
    worker.add_edge("tools", "agent")

    def parts(state: Whole) -> list[Send]:
        said = next(m for m in reversed(state["messages"]) if isinstance(m, HumanMessage))
        steps = json.loads(said.text)["steps"]
        return [Send("worker", {"messages": [task(part, number)]}) for number, part in enumerate((steps, steps[::-1]))]

    builder = StateGraph(Whole)
    builder.add_node("worker", worker.compile())
    builder.add_node("reduce", lambda state: {"messages": [AIMessage(", ".join(state["results"]))]})
    builder.add_conditional_edges(START, parts, ["worker"])
    builder.add_edge("worker", "reduce")
    return builder
