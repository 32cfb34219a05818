"""Nodes that an agent starts beside its tools: they run with the tools, whatever is decided."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Send
from scripted_agents import Scripted, State, assert_valid, by_name, calls, make_tools, visible

from mosaic_guard import Guard, ScriptedGuardModel, guarded_graph

ASK = {"messages": [HumanMessage("go", id="h")]}
STEP = calls(("look", {"x": 1}), ("pay", {"x": 2}))
FORMS = ("branch", "send", "edges", "edge and branch", "two branches", "command", "command and edge")


def build(form: str, log: list[Any], **compile_args: Any) -> Any:
    """An agent that starts `writer` beside its tools; `writer` says something after the results (by its name)."""
    model = Scripted(script=[STEP, AIMessage("done")])
    builder = StateGraph(State)

    def agent(state: State) -> Any:
        said = model.invoke(state["messages"])
        if form == "command and edge":
            return Command(update={"messages": [said]}, goto="tools" if said.tool_calls else END)
        if form == "command":
            return Command(update={"messages": [said]}, goto=["writer", "tools"] if said.tool_calls else END)
        return {"messages": [said]}

    def writer(state: State) -> Any:
        log.append(("writer", len(state["messages"])))
        return {"messages": [AIMessage("noted")]}

    def route(state: State) -> Any:
        if not state["messages"][-1].tool_calls:
            return END
        beside = Send("writer", state) if form == "send" else "writer"
        return [beside, "tools"] if form in ("branch", "send") else "tools"

    def aside(state: State) -> str:
        return "writer" if state["messages"][-1].tool_calls else END

    builder.add_node("agent", agent, destinations=("tools", "writer", END) if form.startswith("command") else None)
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_node("writer", writer)
    builder.add_edge(START, "agent")
    if form == "edges":
        builder.add_edge("agent", "tools")
    elif not form.startswith("command"):
        builder.add_conditional_edges("agent", route, ["tools", "writer", END])
    if form in ("edges", "edge and branch", "command and edge"):
        builder.add_edge("agent", "writer")
    if form == "two branches":
        builder.add_conditional_edges("agent", aside)
    if form not in ("edges", "edge and branch", "command and edge"):
        builder.add_edge("tools", "agent")
    return builder.compile(**compile_args)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_node_beside_the_tools_says_comes_after_their_results(form: str) -> None:
    logs: list[list[Any]] = [[], []]
    plain = build(form, logs[0]).invoke(ASK)["messages"]
    guarded = guarded_graph(build(form, logs[1]), guard=Guard(ScriptedGuardModel("act"))).invoke(ASK)["messages"]
    assert visible(guarded) == visible(plain)
    assert sorted(logs[1]) == sorted(logs[0])
    assert_valid(guarded)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("on_refuse", ["replan", "end"])
def test_it_runs_though_the_step_is_refused(form: str, on_refuse: Any) -> None:
    log: list[Any] = []
    guard = Guard(ScriptedGuardModel(by_name(look="refuse", pay="refuse")))
    result = guarded_graph(build(form, log), guard=guard, on_refuse=on_refuse).invoke(ASK)
    assert log == [("writer", 2)]
    assert_valid(result["messages"])
    assert "noted" in [message.content for message in result["messages"]]


@pytest.mark.parametrize("form", FORMS)
def test_it_waits_with_the_tools_for_a_person(form: str) -> None:
    log: list[Any] = []
    guard = Guard(ScriptedGuardModel(by_name(pay=0.3, look=0.0)), ask_threshold=0.2)
    graph = guarded_graph(build(form, log, checkpointer=InMemorySaver()), guard=guard)
    thread: Any = {"configurable": {"thread_id": "1"}}
    graph.invoke(ASK, thread)
    assert log == []
    edit = {"type": "edit", "edited_action": {"name": "send", "args": {"x": 3}}}
    result = graph.invoke(Command(resume={"decisions": [edit]}), thread)
    assert sorted(log) == [("look", 1), ("send", 3), ("writer", 2)]
    assert_valid(result["messages"])
