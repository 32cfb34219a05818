"""Agents for the transparency tests: each builds the same graph anew, with a log of the tool bodies that ran."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, AgentState, HumanInTheLoopMiddleware, hook_config
from langchain.agents.structured_output import ToolStrategy
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, ToolException, tool
from langgraph.cache.memory import InMemoryCache
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import InjectedState, InjectedStore, ToolNode, tools_condition
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, Command, RetryPolicy, Send, interrupt
from pydantic import BaseModel
from scripted_agents import Scripted, State, calls, hand_written, make_tools

sys.path.append(str(Path(__file__).parents[1] / "examples"))

ASK = {"messages": [HumanMessage("look at a, then pay b")]}
STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}))
NEXT = calls(("send", {"x": 1}), ids=["next"])
DONE = AIMessage("done")

Build = Callable[[Any, list[Any]], Any]


@dataclass(frozen=True)
class Entry:
    """One agent.

    Attributes:
        build: Gets a checkpointer (or None) and the log.
        input: What it is asked.
        options: For `guarded_graph`.
        resume: What its interrupts are answered with; it then runs with a checkpointer only.
        context: Its run-time context.
        beside: Other nodes run beside its tools. They run in the superstep of `plan`, before the tools, so that the states in
            between are others.
        steps: At least as many of the user's steps as it takes.
    """

    build: Build
    input: Any = field(default_factory=lambda: ASK)
    options: dict[str, Any] = field(default_factory=dict)
    resume: Any = None
    context: Any = None
    beside: bool = False
    steps: int = 9


CORPUS: dict[str, Entry] = {}


def entry(name: str, build: Build, **more: Any) -> None:
    CORPUS[name] = Entry(build, **more)


def model(*script: AIMessage) -> Scripted:
    return Scripted(script=list(script))


def agent(*script: AIMessage, tools: Any = None, **more: Any) -> Build:
    def build(saver: Any, log: list[Any]) -> Any:
        made = make_tools(log) if tools is None else tools(log)
        options = {key: value(log) if callable(value) else value for key, value in more.items()}
        return create_agent(model(*(script or (STEP, NEXT, DONE))), made, checkpointer=saver, **options)

    return build


def written(route: str = "condition", node: Any = None, script: Any = (STEP, NEXT, DONE)) -> Build:
    def build(saver: Any, log: list[Any]) -> Any:
        made = node(log) if node else ToolNode(make_tools(log))
        return hand_written(model(*script), made, route, checkpointer=saver)

    return build


entry("create_agent", agent())
entry("no calls at all", agent(DONE))
entry("parallel calls of one tool", agent(calls(("look", {"x": 1}), ("look", {"x": 2}), ("look", {"x": 3})), DONE))
entry("the same call twice", agent(calls(("look", {"x": 1}), ("look", {"x": 1})), DONE))
entry("duplicate ids", agent(calls(("look", {"x": 1}), ("pay", {"x": 2}), ids=["same", "same"]), DONE))
entry("an id repeated in a later step", agent(calls(("look", {"x": 1})), calls(("look", {"x": 1})), DONE))
entry("empty ids", agent(calls(("look", {"x": 1}), ids=[""]), DONE))
entry("an unknown tool", agent(calls(("nothing", {"x": 1}), ("look", {"x": 1})), DONE))
entry("wrong arguments", agent(calls(("look", {"y": 1})), DONE))
entry("a text with the calls", agent(STEP.model_copy(update={"content": "I look and pay."}), DONE))
entry("condition", written())
entry("send", written("send"))
entry("edge", written("edge"))
entry("edge without calls", written("edge", script=[STEP]))


# --- tools -------------------------------------------------------------------------------------------------------------


def one_tool(make: Callable[[list[Any]], Any], args: Any = None) -> Build:
    return agent(calls(("special", args or {"x": 1}), ids=["s"]), DONE, tools=lambda log: [make(log), *make_tools(log)])


def special(body: Callable[..., Any], **options: Any) -> Any:
    return tool("special", **options)(body)


def raising(error: Exception, **options: Any) -> Callable[[list[Any]], Any]:
    def make(log: list[Any]) -> Any:
        def body(x: int) -> str:
            """Raise."""
            log.append(("special", x))
            raise error

        made = special(body)
        for key, value in options.items():
            setattr(made, key, value)
        return made

    return make


entry("a tool that raises", one_tool(raising(ValueError("no money"))))
entry("a tool whose error is its answer", one_tool(raising(ToolException("no money"), handle_tool_error=True)))
entry(
    "errors handled by the tool node",
    written(
        node=lambda log: ToolNode([raising(ValueError("no money"))(log)], handle_tool_errors=True),
        script=[calls(("special", {"x": 1})), DONE],
    ),
)


def logs(log: list[Any]) -> Any:
    def body(x: int) -> str:
        """Write."""
        log.append(("special", x))
        return f"special did {x}"

    return body


entry("return_direct", one_tool(lambda log: special(logs(log), return_direct=True)))


def streams(log: list[Any]) -> Any:
    def body(x: int) -> str:
        """Write to the stream."""
        get_stream_writer()({"at": x})
        return logs(log)(x)

    return special(body)


def with_artifact(log: list[Any]) -> Any:
    def body(x: int) -> tuple[str, Any]:
        """Return an artifact."""
        return logs(log)(x), {"raw": x}

    return special(body, response_format="content_and_artifact")


def injected(log: list[Any]) -> Any:
    def body(x: int, state: Annotated[Any, InjectedState], call_id: Annotated[str, InjectedToolCallId]) -> str:
        """Read the state."""
        log.append((x, len(state["messages"]), sorted(state), call_id))
        return f"{len(state['messages'])} messages"

    return special(body)


def runtime(log: list[Any]) -> Any:
    def body(x: int, runtime: ToolRuntime) -> str:
        """Read the runtime."""
        log.append((x, sorted(runtime.state), runtime.tool_call_id, runtime.context))
        return "read"

    return special(body)


def stored(log: list[Any]) -> Any:
    def body(x: int, store: Annotated[Any, InjectedStore]) -> str:
        """Use the store."""
        log.append(len(store.search(("a",))))
        store.put(("a",), str(len(log)), {"x": x})
        return "stored"

    return special(body)


def commands(log: list[Any]) -> Any:
    def body(x: int, call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Return a command."""
        log.append(("special", x))
        return Command(update={"messages": [ToolMessage("commanded", tool_call_id=call_id)]})

    return special(body)


def async_only(log: list[Any]) -> Any:
    async def body(x: int) -> str:
        """Write."""
        return str(logs(log)(x))

    return special(body)


entry("a tool that streams", one_tool(streams))
entry("a tool with an artifact", one_tool(with_artifact))
entry("InjectedState", one_tool(injected))
entry("ToolRuntime", one_tool(runtime))
entry("ToolRuntime with a context", Entry(one_tool(runtime)).build, context={"user": "anna"})
entry("a tool that returns a Command", one_tool(commands))
entry("an async tool", one_tool(async_only))
entry(
    "InjectedStore",
    agent(
        calls(("special", {"x": 1})),
        calls(("special", {"x": 2})),
        DONE,
        tools=lambda log: [stored(log)],
        store=lambda log: InMemoryStore(),
    ),
)


def asking(log: list[Any]) -> Any:
    def body(x: int) -> str:
        """Ask in the middle."""
        log.append("before")
        return str(interrupt({"question": x}))

    return special(body)


entry("an interrupt inside a tool", one_tool(asking), resume="yes")
entry(
    "human in the loop",
    agent(middleware=lambda log: [HumanInTheLoopMiddleware(interrupt_on={"pay": True})]),
    resume={"decisions": [{"type": "approve"}]},
)


# --- middleware and structured output ----------------------------------------------------------------------------------


class Answer(BaseModel):
    """The answer."""

    text: str


entry(
    "structured output",
    agent(STEP, calls(("Answer", {"text": "42"}), ids=["a"]), response_format=lambda log: ToolStrategy(Answer)),
)


class Wraps(AgentMiddleware):
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        self.log.append("wrapped")
        return handler(request)

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        self.log.append("wrapped")
        return await handler(request)

    def before_model(self, state: Any, runtime: Any) -> Any:
        self.log.append(sorted(state))


class Counted(AgentState[Any]):
    turns: Annotated[int, operator.add]


class Counts(AgentMiddleware):
    state_schema = Counted

    def after_model(self, state: Any, runtime: Any) -> Any:
        return {"turns": 1}


class Jumps(AgentMiddleware):
    @hook_config(can_jump_to=["end"])
    def before_model(self, state: Any, runtime: Any) -> Any:
        return {"jump_to": "end"} if isinstance(state["messages"][-1], ToolMessage) else None


entry("middleware around tools", agent(middleware=lambda log: [Wraps(log)]))
entry("middleware with a state", agent(middleware=lambda log: [Counts()]))
entry("middleware that jumps", agent(middleware=lambda log: [Jumps()]))


# --- state and graph ---------------------------------------------------------------------------------------------------


@dataclass
class DataState:
    messages: Annotated[list[AnyMessage], add_messages]
    count: Annotated[int, operator.add] = 0


class ModelState(BaseModel):
    messages: Annotated[list[AnyMessage], add_messages]
    count: Annotated[int, operator.add] = 0


class OtherKey(TypedDict):
    chat: Annotated[list[AnyMessage], add_messages]


class Added(TypedDict):
    messages: Annotated[list[AnyMessage], operator.add]
    count: Annotated[int, operator.add]


class Out(TypedDict):
    count: int


def graph(
    schema: Any = State,
    *,
    key: str = "messages",
    count: bool = False,
    script: Any = (STEP, NEXT, DONE),
    tools: Any = None,
    tools_options: Any = None,
    schema_options: Any = None,
    **compile_args: Any,
) -> Build:
    def build(saver: Any, log: list[Any]) -> Any:
        said = model(*script)
        builder: Any = StateGraph(schema, **(schema_options or {}))

        def run(state: Any) -> Any:
            history = state[key] if isinstance(state, dict) else getattr(state, key)
            return {key: [said.invoke(history)], **({"count": 1} if count else {})}

        builder.add_node("agent", run)
        node = tools(log) if tools else ToolNode(make_tools(log), messages_key=key)
        builder.add_node("tools", node, **(tools_options or {}))
        builder.add_edge(START, "agent")
        builder.add_conditional_edges("agent", lambda state: tools_condition(state, messages_key=key))
        builder.add_edge("tools", "agent")
        made = {name: value() if callable(value) else value for name, value in compile_args.items()}
        return builder.compile(checkpointer=saver, **made)

    return build


entry("dataclass state", graph(DataState, count=True))
entry("pydantic state", graph(ModelState, count=True))
entry("another messages key", graph(OtherKey, key="chat"), input={"chat": ASK["messages"]})
entry("operator.add", graph(Added, count=True), input={**ASK, "count": 0})
entry("an output schema", graph(Added, count=True, schema_options={"output_schema": Out}), input={**ASK, "count": 0})
entry("an input schema", graph(State, schema_options={"input_schema": State}))
entry("a cache policy", graph(tools_options={"cache_policy": CachePolicy()}, cache=InMemoryCache))


def flaky(log: list[Any]) -> Any:
    def body(x: int) -> str:
        """Fail twice."""
        log.append(x)
        if len(log) < 3:
            raise ConnectionError("try again")
        return "at last"

    return ToolNode([special(body)], handle_tool_errors=False)


RETRY = RetryPolicy(max_attempts=4, initial_interval=0.0, jitter=False)
entry(
    "a retry policy",
    graph(script=[calls(("special", {"x": 1})), DONE], tools=flaky, tools_options={"retry_policy": RETRY}),
)


def function_node(log: list[Any]) -> Any:
    def run_tools(state: Any) -> Any:
        proposed = state["messages"][-1].tool_calls
        log.extend(call["name"] for call in proposed)
        return {"messages": [ToolMessage("did it", tool_call_id=call["id"]) for call in proposed]}

    return run_tools


entry("a function as tool node", graph(tools=function_node), options={"tool_nodes": ["tools"]})


def with_others(*, defer: bool = False, join: bool = False) -> Build:
    """Beside the tools another node runs; both may be joined, or be followed by a deferred one."""

    def build(saver: Any, log: list[Any]) -> Any:
        said = model(STEP, DONE)
        builder = StateGraph(Added)
        builder.add_node("agent", lambda state: {"messages": [said.invoke(state["messages"])]})
        builder.add_node("tools", ToolNode(make_tools(log)))
        builder.add_node("other", lambda state: {"count": 1})
        builder.add_node("last", lambda state: {"count": 10}, defer=defer)
        builder.add_edge(START, "agent")
        builder.add_conditional_edges(
            "agent", lambda s: ["tools", "other"] if s["messages"][-1].tool_calls else END, ["tools", "other", END]
        )
        if join:
            builder.add_edge(["tools", "other"], "last")
            builder.add_edge("last", "agent")
        else:
            builder.add_edge("tools", "agent")
            builder.add_edge("other", "last")
        return builder.compile(checkpointer=saver)

    return build


entry("a node beside the tools", with_others(), input={**ASK, "count": 0}, beside=True)
entry("a deferred node", with_others(defer=True), input={**ASK, "count": 0}, beside=True)
entry("a join", with_others(join=True), input={**ASK, "count": 0}, beside=True)


def two_tool_nodes_in_a_row(saver: Any, log: list[Any]) -> Any:
    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [STEP]})
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_node("again", lambda state: {"messages": [NEXT]})
    builder.add_node("more", ToolNode(make_tools(log)))
    builder.add_edge(START, "agent")
    for start, end in (("agent", "tools"), ("tools", "again"), ("again", "more"), ("more", END)):
        builder.add_edge(start, end)
    return builder.compile(checkpointer=saver)


entry("two tool nodes in a row", two_tool_nodes_in_a_row)


def outer(saver: Any, log: list[Any], inner: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("inner", inner)
    builder.add_node("after", lambda state: {"messages": [AIMessage("after")]})
    builder.add_edge(START, "inner")
    builder.add_edge("inner", "after")
    return builder.compile(checkpointer=saver)


entry("a subgraph", lambda saver, log: outer(saver, log, agent()(None, log)))
entry("a subgraph with its own memory", lambda saver, log: outer(saver, log, agent()(True if saver else None, log)))
entry("a subgraph without memory", lambda saver, log: outer(saver, log, agent()(False, log)))


def in_closure(saver: Any, log: list[Any]) -> Any:
    inner = agent()(None, log)
    return outer(saver, log, lambda state: {"messages": inner.invoke({"messages": state["messages"]})["messages"]})


entry("an agent in a closure", in_closure)


def fan_out(saver: Any, log: list[Any]) -> Any:
    inner = agent(STEP, DONE)(None, log)
    builder = StateGraph(State)
    builder.add_node("inner", inner)
    builder.add_conditional_edges(START, lambda state: [Send("inner", state)], ["inner"])
    return builder.compile(checkpointer=saver)


entry("a Send to a subgraph", fan_out)


# --- examples ----------------------------------------------------------------------------------------------------------

EXAMPLES = (
    *("several_tool_nodes", "function_tool_node", "map_reduce", "command_goto", "several_agents", "subgraph"),
    *("supervisor", "swarm", "deep_agent", "react_agent", "ask_person", "by_hand"),
)


def from_example(name: str) -> Entry:
    def build(saver: Any, log: list[Any]) -> Any:
        return load(name).build(saver)

    options = {"tool_nodes": ["run_tools"]} if name == "function_tool_node" else {}
    return Entry(build, input=load(name).INPUT, options=options, steps=12)


def load(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


for name in EXAMPLES:
    CORPUS[f"examples/{name}.py"] = from_example(name)
entry("examples/react_agent.py, v1", lambda saver, log: load("react_agent").build(saver, version="v1"))
