"""Graphs inside graphs: wherever an agent sits, a refused call does not run; where the guard cannot stand, it says so."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableBranch, RunnableLambda, RunnableParallel
from langchain_core.tools import BaseTool, StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, Send
from langgraph_supervisor import create_supervisor
from langgraph_swarm import create_handoff_tool, create_swarm
from pydantic import PrivateAttr
from scripted_agents import Scripted, State, answers, assert_valid, by_name, calls, make_tools

from mosaic_guard import Guard, ScriptedGuardModel, UnguardableGraphError, guarded_graph

pytestmark = pytest.mark.slow

ASK = {"messages": [HumanMessage("look at a, then pay b")]}
STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}))
DONE = AIMessage("inner done")
SAID = AIMessage("outer done")


def guard(**verdicts: Any) -> Guard:
    return Guard(ScriptedGuardModel(by_name(**(verdicts or {"pay": "refuse"}))))


def agent(log: list[Any], **options: Any) -> Any:
    """Looks and pays in one step, then says that it is done."""
    return create_agent(Scripted(script=[STEP, DONE]), make_tools(log), **options)


def around(node: Any, **compile_args: Any) -> Any:
    """A graph with one node, and one after it that shows that the graph goes on."""
    builder = StateGraph(State)
    builder.add_node("inner", node)
    builder.add_node("after", lambda state: {"messages": [SAID]})
    builder.add_edge(START, "inner")
    builder.add_edge("inner", "after")
    return builder.compile(**compile_args)


def calls_tool(asked: BaseTool, **options: Any) -> Any:
    """An agent that calls one tool, and says that it is done."""
    return create_agent(Scripted(script=[calls((asked.name, {"q": "go"}), ids=["outer"]), SAID]), [asked], **options)


def run_agent(held: Any, state: Any) -> Any:
    """What a function of the user's does with an agent."""
    return {"messages": held.invoke({"messages": state["messages"]})["messages"]}


# --- where an agent can sit --------------------------------------------------------------------------------------------


def as_node(inner: Any) -> Any:
    return around(inner)


def depth_2(inner: Any) -> Any:
    return around(around(inner))


def depth_3(inner: Any) -> Any:
    return around(around(around(inner)))


def closure(inner: Any) -> Any:
    return around(lambda state: run_agent(inner, state))


def closure_depth_3(inner: Any) -> Any:
    middle = around(lambda state: run_agent(inner, state))
    return around(around(lambda state: run_agent(middle, state)))


def helper_in_closure(inner: Any) -> Any:
    def helper(state: Any) -> Any:
        return run_agent(inner, state)

    return around(lambda state: {**helper(state)})


def recursive_helper(inner: Any) -> Any:
    def helper(state: Any, depth: int = 2) -> Any:
        return helper(state, depth - 1) if depth else run_agent(inner, state)

    return around(lambda state: {**helper(state)})


def dict_in_closure(inner: Any) -> Any:
    agents = {"a": {"runnable": inner}}
    return around(lambda state: run_agent(agents["a"]["runnable"], state))


def list_in_closure(inner: Any) -> Any:
    agents = [("a", inner)]
    return around(lambda state: run_agent(agents[0][1], state))


def default(inner: Any) -> Any:
    def node(state: Any, held: Any = inner) -> Any:
        return run_agent(held, state)

    return around(RunnableLambda(lambda state: {**node(state)}))


def keyword_default(inner: Any) -> Any:
    def helper(state: Any, *, held: Any = inner) -> Any:
        return run_agent(held, state)

    return around(lambda state: {**helper(state)})


def partial(inner: Any) -> Any:
    return around(functools.partial(run_agent, inner))


def wrapped(inner: Any) -> Any:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(state: Any) -> Any:
            return function(state)

        return wrapper

    return around(logged(lambda state: run_agent(inner, state)))


def sequence(inner: Any) -> Any:
    return around(RunnableLambda(lambda state: state) | inner | RunnableLambda(lambda out: out))


def with_config(inner: Any) -> Any:
    return around(inner.with_config({"tags": ["t"]}))


def with_retry(inner: Any) -> Any:
    return around(inner.with_retry())


def with_fallbacks(inner: Any) -> Any:
    def fails(state: Any) -> Any:
        raise ValueError

    return around(RunnableLambda(fails).with_fallbacks([inner]))


def branch(inner: Any) -> Any:
    return around(RunnableBranch((lambda state: True, inner), RunnableLambda(lambda state: state)))


def parallel(inner: Any) -> Any:
    return around(RunnableParallel(a=inner) | RunnableLambda(lambda out: {"messages": out["a"]["messages"]}))


def assigned(inner: Any) -> Any:
    return around(RunnableParallel(q=lambda s: s).assign(a=lambda s: s["q"]) | (lambda out: out["a"]) | inner)


class Holds(Runnable):  # type: ignore[type-arg]
    def __init__(self, held: Any) -> None:
        self.held = held

    def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
        return run_agent(self.held, input)


def runnable_of_ones_own(inner: Any) -> Any:
    return around(Holds(inner))


def tool_closure(inner: Any) -> Any:
    @tool
    def ask(q: str) -> str:
        """Ask the agent."""
        return str(inner.invoke(ASK)["messages"][-1].text)

    return calls_tool(ask)


def tool_in_tool(inner: Any) -> Any:
    return tool_closure(tool_closure(inner))


class Asks(BaseTool):
    name: str = "ask"
    description: str = "Asks the agent."
    held: Any = None

    def _run(self, q: str) -> str:
        return str(self.held.invoke(ASK)["messages"][-1].text)


class AsksPrivately(BaseTool):
    name: str = "ask"
    description: str = "Asks the agent."
    _held: Any = PrivateAttr(default=None)

    def _run(self, q: str) -> str:
        return str(self._held.invoke(ASK)["messages"][-1].text)


def tool_field(inner: Any) -> Any:
    return calls_tool(Asks(held=inner))


def tool_private_field(inner: Any) -> Any:
    made = AsksPrivately()
    made._held = inner
    return calls_tool(made)


def branch_function(inner: Any) -> Any:
    def route(state: Any) -> str:
        run_agent(inner, state)
        return END

    builder = StateGraph(State)
    builder.add_node("first", lambda state: {"messages": [SAID]})
    builder.add_edge(START, "first")
    builder.add_conditional_edges("first", route)
    return builder.compile()


def send_to_subgraph(inner: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("inner", inner)
    builder.add_conditional_edges(START, lambda state: [Send("inner", state)], ["inner"])
    return builder.compile()


def supervisor(inner: Any) -> Any:
    inner.name = "payer"
    model = Scripted(script=[calls(("transfer_to_payer", {}), ids=["handoff"]), SAID])
    return create_supervisor([inner], model=model, output_mode="full_history").compile()


def swarm(inner: Any) -> Any:
    inner.name = "payer"
    to_payer = create_handoff_tool(agent_name="payer")
    first = create_agent(
        Scripted(script=[calls(("transfer_to_payer", {}), ids=["handoff"]), SAID]), [to_payer], name="first"
    )
    return create_swarm([first, inner], default_active_agent="first").compile()


def deep_compiled(inner: Any) -> Any:
    payer: Any = {"name": "payer", "description": "pays", "runnable": inner}
    model = Scripted(script=[calls(("task", {"subagent_type": "payer", "description": "go"}), ids=["task"]), SAID])
    return create_deep_agent(model, subagents=[payer])


PLACES: list[Callable[[Any], Any]] = [
    as_node,
    depth_2,
    depth_3,
    closure,
    closure_depth_3,
    helper_in_closure,
    recursive_helper,
    dict_in_closure,
    list_in_closure,
    default,
    keyword_default,
    partial,
    wrapped,
    sequence,
    with_config,
    with_retry,
    with_fallbacks,
    branch,
    parallel,
    assigned,
    runnable_of_ones_own,
    tool_closure,
    tool_in_tool,
    tool_field,
    tool_private_field,
    branch_function,
    send_to_subgraph,
    supervisor,
    swarm,
    deep_compiled,
]


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved:DeprecationWarning")  # langgraph-supervisor
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
async def test_a_refused_call_of_an_agent_inside_does_not_run(place: Callable[[Any], Any]) -> None:
    for verdict, want in (("act", [("look", "a"), ("pay", "b")]), ("refuse", [("look", "a")])):
        for run_async in (False, True):
            log: list[Any] = []
            histories: list[Any] = []

            def seen(state: Any, histories: list[Any] = histories) -> None:
                histories.append(list(state["messages"]))

            inner = agent(log, middleware=[_Records(seen)])
            graph = guarded_graph(place(inner), guard=guard(pay=verdict))
            out = await graph.ainvoke(ASK) if run_async else graph.invoke(ASK)
            assert sorted(log) == want
            assert_valid(out["messages"])
            assert_valid(histories[-1])
            assert [m.status for m in answers(histories[-1])][-2:] == [
                "success",
                "success" if verdict == "act" else "error",
            ]
            # The agent goes on after the refusal; where it sits in a graph, that goes on as well.
            assert out["messages"][-1].text in ("inner done", "outer done")


class _Records(AgentMiddleware):
    """Shows the history of the inner agent at its end."""

    def __init__(self, seen: Callable[[Any], None]) -> None:
        self.seen = seen

    def after_agent(self, state: Any, runtime: Any) -> None:
        self.seen(state)


async def test_an_agent_in_an_async_closure() -> None:
    log: list[Any] = []
    inner = agent(log)

    async def node(state: Any) -> Any:
        return await inner.ainvoke(state)

    await guarded_graph(around(node), guard=guard()).ainvoke(ASK)
    assert log == [("look", "a")]


async def test_a_declared_subagent_and_its_own_file_tools() -> None:
    for run_async in (False, True):
        log: list[Any] = []
        payer: Any = {
            "name": "payer",
            "description": "pays",
            "system_prompt": "pay",
            "model": Scripted(script=[STEP, calls(("write_file", {"file_path": "/x", "content": "y"})), DONE]),
            "tools": make_tools(log),
        }
        script = [calls(("task", {"subagent_type": "payer", "description": "go"})), SAID]
        graph = guarded_graph(
            create_deep_agent(Scripted(script=script), subagents=[payer]),
            guard=guard(pay="refuse", write_file="refuse"),
        )
        out = await graph.ainvoke(ASK) if run_async else graph.invoke(ASK)
        assert log == [("look", "a")]
        assert not out.get("files")
        assert answers(out["messages"])[0].text == "inner done"


def test_an_agent_that_asks_itself_is_guarded_at_every_depth() -> None:
    log: list[Any] = []
    script = [calls(("ask", {"q": "go"})), calls(("ask", {"q": "go"})), STEP, DONE, DONE, DONE]

    @tool
    def ask(q: str) -> str:
        """Ask yourself."""
        return str(itself.invoke(ASK)["messages"][-1].text)

    itself = create_agent(Scripted(script=script), [ask, *make_tools(log)])
    out = guarded_graph(itself, guard=guard()).invoke(ASK)
    assert log == [("look", "a")]
    assert_valid(out["messages"])


def test_two_agents_that_ask_each_other_are_guarded_at_every_depth() -> None:
    log: list[Any] = []
    agents: dict[str, Any] = {}

    def asks(name: str, other: str) -> BaseTool:
        def body(q: str) -> str:
            return str(agents[other].invoke(ASK)["messages"][-1].text)

        return StructuredTool.from_function(body, name=name, description="Asks the other.")

    model = Scripted(script=[calls(("b", {"q": "go"})), calls(("a", {"q": "go"})), STEP, DONE, DONE, DONE])
    agents["a"] = create_agent(model, [asks("b", "b"), *make_tools(log)])
    agents["b"] = create_agent(model, [asks("a", "a"), *make_tools(log)])
    guarded_graph(agents["a"], guard=guard()).invoke(ASK)
    assert log == [("look", "a")]


# --- what cannot be replaced -------------------------------------------------------------------------------------------

ran: list[Any] = []
payer = agent(ran)
TEAM = {"payer": payer}
team = SimpleNamespace(payer=payer)


class Team:
    shared = payer

    def __init__(self, held: Any = None) -> None:
        self.held = held

    def node(self, state: Any) -> Any:
        return run_agent(self.held, state)

    def other(self, state: Any) -> Any:
        return self.node(state)

    def __call__(self, state: Any) -> Any:
        return run_agent(self.held, state)

    @classmethod
    def of_class(cls, state: Any) -> Any:
        return run_agent(cls.shared, state)


class App:
    def __init__(self, held: Any) -> None:
        self.team = Team(held)

    def node(self, state: Any) -> Any:
        return self.team.node(state)


class AsksGlobal(BaseTool):
    name: str = "ask"
    description: str = "Asks the agent."

    def _run(self, q: str) -> str:
        return str(payer.invoke(ASK)["messages"][-1].text)


def calls_global(state: Any) -> Any:
    return run_agent(payer, state)


@tool
def ask_global(q: str) -> str:
    """Ask the agent."""
    return str(payer.invoke(ASK)["messages"][-1].text)


class HoldsInMiddleware(AgentMiddleware):
    def __init__(self, held: Any) -> None:
        self.held = held

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        self.held.invoke(ASK)
        return handler(request)


class HoldsBeforeModel(AgentMiddleware):
    def __init__(self, held: Any) -> None:
        self.held = held

    def before_model(self, state: Any, runtime: Any) -> None:
        self.held.invoke(ASK)


def in_closure_object(inner: Any) -> Any:
    mine = Team(inner)
    return around(lambda state: {**mine.node(state)})


ONLY_NAMED: dict[str, Callable[[Any], Any]] = {
    "a global": lambda inner: around(lambda state: run_agent(payer, state)),
    "a global of a helper": lambda inner: around(lambda state: {**calls_global(state)}),
    "a global of a tool": lambda inner: calls_tool(ask_global),
    "a global of a tool's method": lambda inner: calls_tool(AsksGlobal()),
    "a dict in a global": lambda inner: around(lambda state: run_agent(TEAM["payer"], state)),
    "an attribute of a global": lambda inner: around(lambda state: run_agent(team.payer, state)),
    "an attribute of a bound method's object": lambda inner: around(Team(inner).node),
    "an attribute that another method uses": lambda inner: around(Team(inner).other),
    "an attribute of an attribute": lambda inner: around(App(inner).node),
    "an attribute of a callable object": lambda inner: around(Team(inner)),
    "an attribute of an object in a closure": in_closure_object,
    "an attribute of a class": lambda inner: around(Team.of_class),
    "a wrapper of tool calls": lambda inner: create_agent(
        Scripted(script=[STEP, DONE]), make_tools([]), middleware=[HoldsInMiddleware(inner)]
    ),
    "a hook before the model": lambda inner: create_agent(
        Scripted(script=[STEP, DONE]), make_tools([]), middleware=[HoldsBeforeModel(inner)]
    ),
}


@pytest.mark.parametrize("where", ONLY_NAMED)
def test_an_agent_that_is_only_named_fails_loudly_and_says_what_to_do(where: str) -> None:
    graph = ONLY_NAMED[where](agent([]))
    with pytest.raises(UnguardableGraphError, match=r"guard it where it is made, .* = guarded_graph\("):
        guarded_graph(graph, guard=guard())


def test_a_graph_that_is_named_by_a_node_of_its_own_is_told_to_be_local(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = around(lambda state: run_agent(payer, state))
    monkeypatch.setitem(globals(), "payer", create_agent(Scripted(script=[DONE]), [ask_global]))
    with pytest.raises(UnguardableGraphError, match="make it in a function"):
        guarded_graph(payer, guard=guard())
    with pytest.raises(UnguardableGraphError, match="'payer'"):
        guarded_graph(graph, guard=guard())


class _NothingToGuardError(Exception):
    """All that runs tools is guarded already."""


def _guarded_or_nothing(graph: Any) -> Any:
    try:
        return guarded_graph(graph, guard=guard())
    except UnguardableGraphError as error:
        if "no tool node found" in str(error):
            raise _NothingToGuardError from error
        raise


@pytest.mark.parametrize("where", ONLY_NAMED)
def test_guarded_where_it_is_made_it_is_left_alone(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = guarded_graph(agent([]), guard=guard())
    monkeypatch.setitem(globals(), "payer", done)
    monkeypatch.setitem(TEAM, "payer", done)
    monkeypatch.setattr(team, "payer", done)
    monkeypatch.setattr(Team, "shared", done)
    graph = ONLY_NAMED[where](done)
    with contextlib.suppress(_NothingToGuardError):
        _guarded_or_nothing(graph)


@pytest.mark.parametrize("wrap", ["with_retry", "with_fallbacks", "sequence", "lambda"])
def test_a_tool_node_in_a_wrapper_fails_loudly(wrap: str) -> None:
    node: Any = ToolNode(make_tools([]))
    made = {
        "with_retry": node.with_retry,
        "with_fallbacks": lambda: node.with_fallbacks([RunnableLambda(lambda state: state)]),
        "sequence": lambda: RunnableLambda(lambda state: state) | node,
        "lambda": lambda: lambda state: {"messages": node.invoke(state)["messages"]},
    }[wrap]()
    model = Scripted(script=[STEP, DONE])
    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", made)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    with pytest.raises(UnguardableGraphError, match=r"holds a ToolNode.*tool_nodes="):
        guarded_graph(builder.compile(), guard=guard())


# --- what the guard is told, and asking --------------------------------------------------------------------------------


async def test_the_outer_agents_words_are_not_a_humans_inside_a_tool() -> None:
    for run_async in (False, True):
        steps: list[Any] = []

        def decide(step: Any, steps: list[Any] = steps) -> str:
            steps.append(step)
            return "act"

        text = "The user wants you to pay b."
        outer = create_agent(Scripted(script=[calls(("ask", {"q": text})), SAID]), [ask_with(agent([]))])
        graph = guarded_graph(outer, guard=Guard(ScriptedGuardModel(decide)))
        if run_async:
            await graph.ainvoke(ASK)
        else:
            graph.invoke(ASK)
        inside = next(step for step in steps if step.calls[0].name == "look")
        human = [m.text for m in inside.messages if m.type == "human"]
        assert human == ["look at a, then pay b"]
        assert next(m.text for m in inside.messages if m.type == "ai") == text


def ask_with(inner: Any) -> BaseTool:
    @tool
    def ask(q: str) -> str:
        """Ask the agent."""
        return str(inner.invoke({"messages": [HumanMessage(q)]})["messages"][-1].text)

    return ask


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved:DeprecationWarning")  # langgraph-supervisor
@pytest.mark.parametrize(
    "place",
    [as_node, depth_3, closure, dict_in_closure, tool_closure, tool_in_tool, supervisor, swarm, deep_compiled],
    ids=lambda place: place.__name__,
)
@pytest.mark.parametrize("answer", ["approve", "reject"])
async def test_asking_inside_resumes_where_it_stopped(place: Callable[[Any], Any], answer: str) -> None:
    for run_async in (False, True):
        log: list[Any] = []
        judged: list[Any] = []

        def decide(step: Any, judged: list[Any] = judged) -> list[float]:
            judged.append([call.name for call in step.calls])
            return [0.3 if call.name == "pay" else 0.0 for call in step.calls]

        plain = place(agent(log))
        plain.checkpointer = InMemorySaver()
        graph = guarded_graph(plain, guard=Guard(ScriptedGuardModel(decide), ask_threshold=0.2))
        thread: Any = {"configurable": {"thread_id": "1"}}
        out = await graph.ainvoke(ASK, thread) if run_async else graph.invoke(ASK, thread)
        (question,) = out["__interrupt__"]
        assert [request["name"] for request in question.value["action_requests"]] == ["pay"]
        assert log == []
        resume: Any = Command(resume={"decisions": [{"type": answer}]})
        out = await graph.ainvoke(resume, thread) if run_async else graph.invoke(resume, thread)
        assert "__interrupt__" not in out
        assert sorted(log) == ([("look", "a"), ("pay", "b")] if answer == "approve" else [("look", "a")])
        assert judged.count(["look", "pay"]) == 1, "the check is not repeated"
        assert_valid(out["messages"])


def test_max_refusals_ends_the_inner_run_only() -> None:
    log: list[Any] = []
    script = [calls(("pay", {"x": n}), ids=[str(n)]) for n in range(5)]
    inner = create_agent(Scripted(script=script), make_tools(log))
    out = guarded_graph(around(inner), guard=guard(), max_refusals=2).invoke(ASK)
    assert log == []
    assert len(answers(out["messages"])) == 2
    assert "I stopped" in out["messages"][-2].text
    assert out["messages"][-1].text == "outer done"
    assert_valid(out["messages"])


def test_the_given_agents_are_left_as_they_are() -> None:
    for place in (as_node, closure, dict_in_closure, default, partial, tool_field, tool_private_field, with_retry):
        log: list[Any] = []
        plain = place(agent(log))
        guarded_graph(plain, guard=guard())
        plain.invoke(ASK)
        assert sorted(log) == [("look", "a"), ("pay", "b")]


def test_objects_in_a_closure_stay_the_same_objects() -> None:
    inner, seen = agent([]), []

    def node(state: Any) -> Any:
        seen.append("here")
        return run_agent(inner, state)

    guarded_graph(around(node), guard=guard()).invoke(ASK)
    assert seen == ["here"]


def test_middleware_whose_tool_holds_an_agent_is_guarded() -> None:
    log: list[Any] = []
    asked = ask_with(agent(log))

    class Brings(AgentMiddleware):
        tools = (asked,)

        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request)

    outer = create_agent(Scripted(script=[calls(("ask", {"q": "go"})), SAID]), [], middleware=[Brings()])
    guarded_graph(outer, guard=guard()).invoke(ASK)
    assert log == [("look", "a")]


@pytest.mark.xfail(
    reason="deepagents builds this subagent anew inside its tool, after the guard has looked", strict=True
)
def test_a_subagent_that_is_built_while_running() -> None:
    log: list[Any] = []
    payer: Any = {
        "name": "payer",
        "description": "pays",
        "system_prompt": "pay",
        "model": Scripted(script=[STEP, DONE]),
        "tools": make_tools(log),
    }
    script = [calls(("task", {"subagent_type": "payer", "description": "go"})), SAID]
    graph = guarded_graph(create_deep_agent(Scripted(script=script), subagents=[payer]), guard=guard())
    schema = {"title": "Answer", "type": "object", "properties": {"text": {"type": "string"}}}
    graph.invoke(ASK, {"configurable": {"__deepagents_subagent_response_format": schema}})
    assert log == [("look", "a")]
