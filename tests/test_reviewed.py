"""What a review found: ways past the gate, and threads that the short way for settled steps broke."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from scripted_agents import Scripted, State, assert_valid, calls, make_tools

from mosaic_guard import Guard, Policy, ScriptedGuardModel, conversation, guard_tools, guarded_graph

ASK: Any = {"messages": [HumanMessage("go")]}
STEP = calls(("look", {"x": 1}), ("pay", {"x": 2}))
DONE = AIMessage("done")


def refuse_pay(step: Any) -> list[str]:
    return ["refuse" if call.name == "pay" else "act" for call in step.calls]


def runner(log: list[Any], names: tuple[str, ...], key: str | None = None) -> Any:
    by_name = {t.name: t for t in make_tools(log, names)}

    def run(state: Any) -> Any:
        proposed = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
        todo = [state[key]] if key else proposed.tool_calls
        return {"messages": [by_name[c["name"]].invoke(c) for c in todo if c and c["name"] in by_name]}

    return run


def chain(log: list[Any], edges: list[tuple[str, str]]) -> Any:
    builder = StateGraph(State)
    model = Scripted(script=[STEP, DONE])
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("fa", runner(log, ("look",)))
    builder.add_node("fb", runner(log, ("pay",)))
    builder.add_edge(START, "agent")
    for edge in edges:
        builder.add_edge(*edge)
    return builder.compile()


def test_a_second_function_node_does_not_see_the_refused_call() -> None:
    log: list[Any] = []
    graph = guarded_graph(
        chain(log, [("agent", "fa"), ("fa", "fb"), ("fb", END)]),
        guard=Guard(ScriptedGuardModel(refuse_pay)),
        tool_nodes=["fa", "fb"],
    )
    out = graph.invoke(ASK)
    assert log == [("look", 1)]
    assert_valid(out["messages"])


def test_a_call_beside_the_messages_is_the_one_that_is_judged() -> None:
    log: list[Any] = []
    builder = StateGraph(State)
    model = Scripted(script=[STEP, DONE])
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("one", runner(log, ("look", "pay"), key="tool_call"))
    builder.add_edge(START, "agent")

    def fan(state: Any) -> Any:
        return [Send("one", {**state, "tool_call": c}) for c in state["messages"][-1].tool_calls] or END

    builder.add_conditional_edges("agent", fan, ["one", END])
    builder.add_edge("one", END)
    graph = guarded_graph(builder.compile(), guard=Guard(ScriptedGuardModel(refuse_pay)), tool_nodes=["one"])
    out = graph.invoke(ASK)
    assert log == [("look", 1)]
    assert_valid(out["messages"])


def test_two_ways_into_tool_nodes_are_judged_together_under_a_policy_too() -> None:
    for policy in (Policy(), Policy(allow=["*"])):
        log: list[Any] = []
        plain = chain(log, [("agent", "fa"), ("agent", "fb"), ("fa", END), ("fb", END)])
        guard = Guard(ScriptedGuardModel("act"), policy=policy)
        out = guarded_graph(plain, guard=guard, tool_nodes=["fa", "fb"]).invoke(ASK)
        assert sorted(log) == [("look", 1), ("pay", 2)]
        assert_valid(out["messages"])


def test_a_guarded_tool_that_is_called_again_is_judged_again() -> None:
    log: list[Any] = []
    judged: list[Any] = []

    def decide(step: Any) -> list[str]:
        judged.append(len(step.calls))
        return ["act" if len(judged) == 1 else "refuse"] * len(step.calls)

    (pay,) = guard_tools(make_tools(log, ["pay"]), guard=Guard(ScriptedGuardModel(decide)))
    call = {"type": "tool_call", "id": "1", "name": "pay", "args": {"x": 1}}
    with conversation("pay 1 once"):
        assert [pay.invoke(call).status for _ in range(3)] == ["success", "error", "error"]
    assert log == [("pay", 1)]
    assert judged == [1, 1, 1]


def test_the_tool_messages_of_refused_calls_are_marked() -> None:
    log: list[Any] = []
    out = guarded_graph(
        chain(log, [("agent", "fa"), ("fa", "fb"), ("fb", END)]),
        guard=Guard(ScriptedGuardModel(refuse_pay)),
        tool_nodes=["fa", "fb"],
    ).invoke(ASK)
    assert [m.status for m in out["messages"] if isinstance(m, ToolMessage)] == ["success", "error"]
