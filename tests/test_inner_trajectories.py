"""Graphs inside graphs in the trace: each has a trajectory of its own; the run's name, and outcome, are the outer one's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command
from scripted_agents import Scripted, State, by_name, calls, make_tools

from mosaic_guard import Guard, MosaicMiddleware, Outcome, ScriptedGuardModel, TraceWriter, guarded_graph, read_traces

ASK: Any = {"messages": [HumanMessage("go")]}
DONE = AIMessage("done")
PAY = [calls(("look", {"x": 1})), calls(("pay", {"x": 2})), DONE]
RUN: Any = {"metadata": {"mosaic_trajectory": "run"}, "configurable": {"thread_id": "1"}}


def agent(script: list[Any], tools: list[BaseTool] | None = None, **options: Any) -> Any:
    return create_agent(Scripted(script=script), tools or make_tools([]), **options)


def asking(inner: Any) -> BaseTool:
    """A tool that asks an agent."""

    @tool
    async def adelegate(x: int) -> str:
        """Delegate."""
        return str((await inner.ainvoke({"messages": [HumanMessage(f"pay {x}")]}))["messages"][-1].text)

    @tool
    def delegate(x: int) -> str:
        """Delegate."""
        return str(inner.invoke({"messages": [HumanMessage(f"pay {x}")]})["messages"][-1].text)

    return delegate.model_copy(update={"coroutine": adelegate.coroutine})


def delegating(inner: Any, *more: Any, **options: Any) -> Any:
    """An agent that delegates once, then does more."""
    return agent([calls(("delegate", {"x": 1})), *more, DONE], [asking(inner)], **options)


def in_a_tool(inner: Any, **options: Any) -> Any:
    return delegating(inner, **options)


def in_a_node(inner: Any, **options: Any) -> Any:
    """Beside an agent with tools of its own; the inner one comes first."""
    builder = StateGraph(State)
    model = Scripted(script=[calls(("delegate", {"x": 1})), DONE])
    builder.add_node("inner", inner)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})

    @tool
    def delegate(x: int) -> str:
        """No agent."""
        return "ok"

    builder.add_node("tools", ToolNode([delegate]))
    builder.add_edge(START, "inner")
    builder.add_edge("inner", "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    return builder.compile(**options)


def logged(path: Path) -> dict[str, list[str]]:
    """The tools that each trajectory calls."""
    return {t.id: [call["name"] for step in t.steps for call in step.calls] for t in read_traces(path)}


Place = Callable[..., Any]


@pytest.mark.parametrize("place", [in_a_tool, in_a_node])
async def test_an_outcome_of_the_run_is_the_outer_graphs(place: Place, tmp_path: Path) -> None:
    for run_async in (False, True):
        path = tmp_path / str(run_async)
        trace = TraceWriter(path)
        graph = guarded_graph(place(agent(PAY)), guard=Guard(ScriptedGuardModel()), trace=trace)
        await graph.ainvoke(ASK, RUN) if run_async else graph.invoke(ASK, RUN)
        trace.outcome("run", Outcome(harmful=True))
        found = {trajectory.id: trajectory for trajectory in read_traces(path)}
        (inner,) = found.keys() - {"run"}
        assert inner.startswith("run/")
        assert logged(path) == {"run": ["delegate"], inner: ["look", "pay"]}
        assert found["run"].outcome is not None
        assert found[inner].outcome is None
        trace.outcome(inner, Outcome(harmful=False))
        assert {t.id: t.outcome and t.outcome.harmful for t in read_traces(path)} == {"run": True, inner: False}


def test_each_depth_adds_to_the_name(tmp_path: Path) -> None:
    graph = guarded_graph(delegating(delegating(agent(PAY))), guard=Guard(ScriptedGuardModel()), trace=tmp_path)
    graph.invoke(ASK, RUN)
    outer, middle, inner = sorted(logged(tmp_path), key=len)
    assert outer == "run"
    assert middle.startswith("run/")
    assert inner.startswith(f"{middle}/")


@pytest.mark.parametrize("at_once", [False, True])
def test_an_agent_that_is_asked_twice_has_two_trajectories(at_once: bool, tmp_path: Path) -> None:
    @tool
    def delegate(x: int) -> str:
        """Delegate."""
        inner = guarded_graph(agent(PAY), guard=Guard(ScriptedGuardModel()), trace=trace)
        return str(inner.invoke(ASK)["messages"][-1].text)

    trace = TraceWriter(tmp_path)
    asked = [("delegate", {"x": 1}), ("delegate", {"x": 2})]
    script = [calls(*asked)] if at_once else [calls(each) for each in asked]
    builder = StateGraph(State)
    model = Scripted(script=[*script, DONE])
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode([delegate]))  # one task for all calls of a step
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    guarded_graph(builder.compile(), guard=Guard(ScriptedGuardModel()), trace=trace).invoke(ASK, RUN)
    found = logged(tmp_path)
    assert found.pop("run") == ["delegate", "delegate"]
    assert list(found.values()) == [["look", "pay"]] * 2
    assert not any("#" in name for name in found)


@pytest.mark.parametrize("place", [in_a_tool, in_a_node])
def test_what_is_resumed_goes_on_in_its_trajectory(place: Place, tmp_path: Path) -> None:
    saver = InMemorySaver()
    guard = Guard(ScriptedGuardModel(by_name(look=0.3)), ask_threshold=0.2)
    graph = guarded_graph(place(agent(PAY), checkpointer=saver), guard=guard, trace=tmp_path)
    graph.invoke(ASK, RUN)
    graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), RUN)
    found = logged(tmp_path)
    assert found.pop("run") == ["delegate"]
    assert list(found.values()) == [["look", "pay"]]


def test_an_agent_that_keeps_its_thread_keeps_its_trajectory(tmp_path: Path) -> None:
    inner = agent([*PAY, *PAY], checkpointer=True)
    graph = guarded_graph(
        in_a_node(inner, checkpointer=InMemorySaver()), guard=Guard(ScriptedGuardModel()), trace=tmp_path
    )
    for _ in range(2):
        graph.invoke(ASK, RUN)
    assert logged(tmp_path)["run/inner"] == ["look", "pay", "look", "pay"]


@pytest.mark.parametrize("guarded", ["the agent", "the graph around it"])
def test_the_outermost_graph_that_judges_steps_has_the_runs_name(guarded: str, tmp_path: Path) -> None:
    """A graph without tools of its own has no steps that an outcome could be of."""
    guard = Guard(ScriptedGuardModel())
    inner = delegating(agent(PAY))
    builder = StateGraph(State)
    builder.add_node("inner", guarded_graph(inner, guard=guard, trace=tmp_path) if guarded == "the agent" else inner)
    builder.add_edge(START, "inner")
    builder.add_edge("inner", END)
    graph = builder.compile()
    graph = graph if guarded == "the agent" else guarded_graph(graph, guard=guard, trace=tmp_path)
    graph.invoke(ASK, RUN)
    found = logged(tmp_path)
    assert found.pop("run") == ["delegate"]
    assert list(found.values()) == [["look", "pay"]]


@pytest.mark.parametrize("outer", ["middleware", "graph"])
async def test_agents_with_the_middleware_are_named_the_same_way(outer: str, tmp_path: Path) -> None:
    for run_async in (False, True):
        trace = TraceWriter(tmp_path / str(run_async))
        guard = Guard(ScriptedGuardModel())
        inner = agent(PAY, middleware=[MosaicMiddleware(guard=guard, trace=trace)])
        own = [MosaicMiddleware(guard=guard, trace=trace)] if outer == "middleware" else []
        graph = delegating(inner, middleware=own)
        if outer == "graph":
            graph = guarded_graph(graph, guard=guard, trace=trace)
        await graph.ainvoke(ASK, RUN) if run_async else graph.invoke(ASK, RUN)
        found = logged(tmp_path / str(run_async))
        assert found.pop("run") == ["delegate"]
        ((name, called),) = found.items()
        assert name.startswith("run/")
        assert called == ["look", "pay"]


@pytest.mark.parametrize("name", ["run", None])
def test_a_graph_inside_that_is_run_under_a_name_of_its_own_has_it(name: str | None, tmp_path: Path) -> None:
    inner = delegating(agent(PAY))

    @tool
    def delegate(x: int) -> str:
        """Delegate."""
        return str(inner.invoke(ASK, {"metadata": {"mosaic_trajectory": "sub"}})["messages"][-1].text)

    outer = agent([calls(("delegate", {"x": 1})), DONE], [delegate])
    guarded_graph(outer, guard=Guard(ScriptedGuardModel()), trace=tmp_path).invoke(ASK, RUN if name else {})
    first, middle, inmost = sorted(logged(tmp_path), key=lambda one: (one.startswith("sub"), len(one)))
    assert (first == "run") == (name == "run")
    assert middle == "sub"
    assert inmost.startswith("sub/")


def test_a_run_without_a_name_leaves_each_graph_its_own(tmp_path: Path) -> None:
    graph = guarded_graph(delegating(agent(PAY)), guard=Guard(ScriptedGuardModel()), trace=tmp_path)
    graph.invoke(ASK)
    assert sorted(logged(tmp_path).values()) == [["delegate"], ["look", "pay"]]
    assert not any("/" in name for name in logged(tmp_path))


def test_the_outcome_of_a_roll_out_is_the_graphs_that_was_rolled_out(tmp_path: Path) -> None:
    from mosaic_guard_training.rollout import play
    from mosaic_guard_training.tasks import Task

    trace = TraceWriter(tmp_path)
    task = Task(id="shop/1", environment="shop", category="benign", user=["go"])
    outcome = play(task, delegating(agent(PAY)), Guard(ScriptedGuardModel()), trace, trajectory="shop/1/0")
    trace.outcome("shop/1/0", outcome)
    found = read_traces(tmp_path)
    assert [t.id for t in found if t.outcome is not None] == ["shop/1/0"]
    assert {t.task for t in found} == {"shop/1"}
