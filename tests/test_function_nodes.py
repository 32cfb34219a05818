"""Tool nodes that are functions, joins, and nodes placed by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, Send
from pydantic import BaseModel
from scripted_agents import Scripted, State, answers, assert_valid, by_name, calls, make_tools

from mosaic_guard import Guard, GuardedStateGraph, GuardNodes, ScriptedGuardModel, UnguardableGraphError, guarded_graph

ASK = {"messages": [HumanMessage("look at a, then pay b")]}
STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}))
DONE = AIMessage("done")


@dataclass
class DataState:
    messages: Annotated[list[AnyMessage], add_messages]


class ModelState(BaseModel):
    messages: Annotated[list[AnyMessage], add_messages]


def guard(**verdicts: Any) -> Guard:
    return Guard(ScriptedGuardModel(by_name(**(verdicts or {"pay": "refuse"}))))


def messages_of(state: Any) -> list[Any]:
    return state["messages"] if isinstance(state, dict) else state.messages


def answer(call: Any, log: list[Any]) -> ToolMessage:
    log.append((call["name"], call["args"]["x"]))
    return ToolMessage(f"{call['name']} did it", name=call["name"], tool_call_id=call["id"])


def with_function(node: Any, schema: Any = State, script: Any = (STEP, DONE), route: Any = None, **more: Any) -> Any:
    model = Scripted(script=list(script))
    builder = StateGraph(schema)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(messages_of(state))]})
    builder.add_node("tools", node)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", route or tools_condition)
    builder.add_edge("tools", "agent")
    return builder.compile(**more)


def returns_mapping(log: list[Any]) -> Any:
    return lambda state: {"messages": [answer(call, log) for call in messages_of(state)[-1].tool_calls]}


def returns_one_message(log: list[Any]) -> Any:
    """Runs the first call only, as some hand-written nodes do."""
    return lambda state: {"messages": answer(messages_of(state)[-1].tool_calls[0], log)}


def returns_command(log: list[Any]) -> Any:
    return lambda state: Command(update={"messages": [answer(c, log) for c in messages_of(state)[-1].tool_calls]})


def returns_commands(log: list[Any]) -> Any:
    return lambda state: [Command(update={"messages": [answer(c, log)]}) for c in messages_of(state)[-1].tool_calls]


def runs_a_tool_node(log: list[Any]) -> Any:
    node = ToolNode(make_tools(log))
    return lambda state: node.invoke({"messages": messages_of(state)})


def is_a_runnable(log: list[Any]) -> Any:
    return RunnableLambda(returns_mapping(log)).with_retry()


def is_async(log: list[Any]) -> Any:
    async def node(state: Any) -> Any:
        return {"messages": [answer(call, log) for call in messages_of(state)[-1].tool_calls]}

    return node


@pytest.mark.parametrize(
    "make",
    [returns_mapping, returns_command, returns_commands, runs_a_tool_node, is_a_runnable, is_async],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize("schema", [State, DataState, ModelState])
async def test_a_function_is_given_the_cleared_calls_only(make: Any, schema: Any) -> None:
    for verdict, want in (("act", [("look", "a"), ("pay", "b")]), ("refuse", [("look", "a")])):
        for run_async in (True,) if make is is_async else (False, True):
            log: list[Any] = []
            graph = guarded_graph(
                with_function(make(log), schema), guard=guard(look="act", pay=verdict), tool_nodes=["tools"]
            )
            out = await graph.ainvoke(ASK) if run_async else graph.invoke(ASK)
            assert sorted(log) == want, "a ToolNode runs its calls in threads"
            assert_valid(out["messages"])
            assert out["messages"][-1].text == "done"
            assert out["messages"][1].tool_calls == STEP.tool_calls, "the agent's own message stays what it was"


def test_a_function_whose_calls_are_all_refused_does_not_run() -> None:
    log: list[Any] = []
    entered: list[Any] = []

    def node(state: Any) -> Any:
        entered.append(1)
        return returns_mapping(log)(state)

    out = guarded_graph(with_function(node), guard=guard(look="refuse", pay="refuse"), tool_nodes=["tools"]).invoke(ASK)
    assert (log, entered) == ([], [])
    assert_valid(out["messages"])


@pytest.mark.parametrize("form", ["call", "calls", "inside", "state"])
def test_a_function_may_be_sent_its_calls(form: str) -> None:
    log: list[Any] = []

    def node(given: Any) -> Any:
        found = {
            "call": lambda: [given],
            "calls": lambda: given,
            "inside": lambda: [given["call"]],
            "state": lambda: given["messages"][-1].tool_calls,
        }[form]()
        return {"messages": [answer(call, log) for call in found]}

    def route(state: Any) -> Any:
        last = state["messages"][-1]
        if not last.tool_calls:
            return END
        if form == "state":
            return [Send("tools", state)]
        if form == "calls":
            return [Send("tools", last.tool_calls)]
        return [Send("tools", call if form == "call" else {"call": call}) for call in last.tool_calls]

    out = guarded_graph(with_function(node, route=route), guard=guard(), tool_nodes=["tools"]).invoke(ASK)
    assert log == [("look", "a")]
    assert_valid(out["messages"])


def test_a_function_that_gets_no_messages_and_no_calls_fails_loudly() -> None:
    def route(state: Any) -> Any:
        return [Send("tools", {"what": "pay"})] if state["messages"][-1].tool_calls else END

    graph = guarded_graph(with_function(lambda given: {}, route=route), guard=guard(), tool_nodes=["tools"])
    with pytest.raises((UnguardableGraphError, AssertionError), match="messages"):
        graph.invoke(ASK)


def test_a_function_that_answers_the_first_call_only_is_called_as_often_as_unguarded() -> None:
    log: list[Any] = []
    graph = guarded_graph(
        with_function(returns_one_message(log), script=[STEP, DONE]), guard=guard(look="act"), tool_nodes=["tools"]
    )
    graph.invoke(ASK)
    assert log == [("look", "a")]


def test_a_function_that_is_reached_by_a_command_is_sent_back() -> None:
    log: list[Any] = []
    builder = StateGraph(State)

    def agent(state: Any) -> Command[Any]:
        if isinstance(state["messages"][-1], HumanMessage):
            return Command(update={"messages": [STEP]}, goto="tools")
        return Command(update={"messages": [DONE]}, goto=END)

    builder.add_node("agent", agent, destinations=("tools", END))
    builder.add_node("tools", returns_mapping(log))
    builder.add_edge(START, "agent")
    builder.add_edge("tools", "agent")
    out = guarded_graph(builder.compile(), guard=guard(), tool_nodes=["tools"]).invoke(ASK)
    assert log == [("look", "a")]
    assert_valid(out["messages"])


@pytest.mark.parametrize("choice", ["approve", "edit", "reject", "respond"])
def test_a_person_decides_about_a_function_s_calls(choice: str) -> None:
    log: list[Any] = []
    asks = Guard(ScriptedGuardModel(lambda s: [0.3 if c.args["x"] == "b" else 0.0 for c in s.calls]), ask_threshold=0.2)
    graph = guarded_graph(
        with_function(returns_mapping(log), checkpointer=InMemorySaver()), guard=asks, tool_nodes=["tools"]
    )
    thread: Any = {"configurable": {"thread_id": "1"}}
    assert graph.invoke(ASK, thread)["__interrupt__"]
    said = {
        "type": choice,
        "message": "by hand",
        "edited_action": {"name": "pay", "args": {"x": "c"}},
    }
    out = graph.invoke(Command(resume={"decisions": [said]}), thread)
    paid = {"approve": [("pay", "b")], "edit": [("pay", "c")]}.get(choice, [])
    assert log == [("look", "a"), *paid]
    assert_valid(out["messages"])


# --- joins -------------------------------------------------------------------------------------------------------------


def joined(log: list[Any], node: Any, script: Any = (STEP, DONE)) -> Any:
    """agent -> tools and other, both -> join -> agent."""
    model = Scripted(script=list(script))
    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", node)
    builder.add_node("other", lambda state: log.append("other"))
    builder.add_node("join", lambda state: log.append("join"))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges(
        "agent", lambda s: ["tools", "other"] if s["messages"][-1].tool_calls else END, ["tools", "other", END]
    )
    builder.add_edge(["tools", "other"], "join")
    builder.add_edge("join", "agent")
    return builder.compile()


@pytest.mark.parametrize("kind", ["ToolNode", "function"])
@pytest.mark.parametrize("verdicts", [("act", "act"), ("act", "refuse"), ("refuse", "refuse")])
async def test_a_join_of_a_tool_node_is_reached_whatever_is_decided(kind: str, verdicts: tuple[str, str]) -> None:
    for run_async in (False, True):
        log: list[Any] = []
        node: Any = ToolNode(make_tools(log)) if kind == "ToolNode" else returns_mapping(log)
        plain = joined(log, node, [STEP, STEP, DONE])
        options: Any = {} if kind == "ToolNode" else {"tool_nodes": ["tools"]}
        graph = guarded_graph(plain, guard=guard(look=verdicts[0], pay=verdicts[1]), **options)
        out = await graph.ainvoke(ASK) if run_async else graph.invoke(ASK)
        ran = [entry for entry in log if isinstance(entry, tuple)]
        want = [call for call, v in zip([("look", "a"), ("pay", "b")], verdicts, strict=True) if v == "act"]
        assert sorted(ran) == sorted(want * 2)
        assert (log.count("other"), log.count("join")) == (2, 2)
        assert_valid(out["messages"])
        assert out["messages"][-1].text == "done"


def test_a_join_is_not_reached_where_the_run_ends() -> None:
    log: list[Any] = []
    graph = guarded_graph(joined(log, ToolNode(make_tools(log))), guard=guard(), on_refuse="end")
    out = graph.invoke(ASK)
    assert "join" not in log
    assert not [entry for entry in log if isinstance(entry, tuple)]
    assert_valid(out["messages"])
    assert "I stopped" in out["messages"][-1].text


# --- nodes placed by hand ----------------------------------------------------------------------------------------------


def by_hand(
    log: list[Any],
    script: list[Any],
    *,
    agent_to: str = "plan",
    branch: bool = True,
    given: Guard | None = None,
    node: Any = None,
    **options: Any,
) -> Any:
    """The user draws agent -> plan, tools -> agent, refuse -> agent."""
    model = Scripted(script=script)
    builder = GuardedStateGraph(State)
    tools = node or ToolNode(make_tools(log))
    builder.add_guard(GuardNodes(given or guard(), {"tools": tools}, **options))
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "agent")
    if branch:
        builder.add_conditional_edges("agent", tools_condition, {"tools": agent_to, END: END})
    else:
        builder.add_edge("agent", agent_to)
    builder.add_edge("tools", "agent" if branch else END)
    builder.add_edge("refuse", "agent" if branch else END)
    return builder.compile(checkpointer=InMemorySaver())


THREAD: Any = {"configurable": {"thread_id": "1"}}


@pytest.mark.parametrize("agent_to", ["plan", "tools"])
@pytest.mark.parametrize("branch", [True, False])
async def test_by_hand_refused_calls_do_not_run(agent_to: str, branch: bool) -> None:
    """With `agent_to="tools"` the user has drawn an edge past `plan`: the gate sends the calls back."""
    for run_async in (False, True):
        for refused, want in (({"pay": "refuse"}, [("look", "a")]), ({"pay": "refuse", "look": "refuse"}, [])):
            log: list[Any] = []
            graph = by_hand(log, [STEP, DONE], agent_to=agent_to, branch=branch, given=guard(**refused))
            out = await graph.ainvoke(ASK, THREAD) if run_async else graph.invoke(ASK, THREAD)
            assert log == want
            assert_valid(out["messages"])
            assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "tool", *(["ai"] if branch else [])]


@pytest.mark.parametrize("agent_to", ["plan", "tools"])
def test_by_hand_max_refusals_end_the_run(agent_to: str) -> None:
    log: list[Any] = []
    script = [calls(("pay", {"x": n}), ids=[str(n)]) for n in range(5)]
    out = by_hand(log, script, agent_to=agent_to, max_refusals=2).invoke(ASK, THREAD)
    assert log == []
    assert len(answers(out["messages"])) == 2
    assert "2 refused steps in a row" in out["messages"][-1].text
    assert_valid(out["messages"])


def test_by_hand_on_refuse_end_ends() -> None:
    log: list[Any] = []
    out = by_hand(log, [STEP, DONE], on_refuse="end").invoke(ASK, THREAD)
    assert log == []
    assert "I stopped" in out["messages"][-1].text
    assert_valid(out["messages"])


def test_by_hand_a_person_is_asked() -> None:
    log: list[Any] = []
    asks = Guard(ScriptedGuardModel(lambda s: [0.3 if c.name == "pay" else 0.0 for c in s.calls]), ask_threshold=0.2)
    graph = by_hand(log, [STEP, DONE], given=asks)
    assert graph.invoke(ASK, THREAD)["__interrupt__"]
    out = graph.invoke(Command(resume={"decisions": [{"type": "approve"}]}), THREAD)
    assert sorted(log) == [("look", "a"), ("pay", "b")]
    assert_valid(out["messages"])


def test_by_hand_a_function_as_tool_node() -> None:
    log: list[Any] = []
    out = by_hand(log, [STEP, DONE], node=returns_mapping(log)).invoke(ASK, THREAD)
    assert log == [("look", "a")]
    assert_valid(out["messages"])


def test_by_hand_two_tool_nodes_get_the_calls_of_their_tools() -> None:
    log: list[Any] = []
    model = Scripted(script=[STEP, DONE])
    look, pay, _ = make_tools(log)
    builder = GuardedStateGraph(State)
    builder.add_guard(GuardNodes(guard(pay="act"), {"read": ToolNode([look]), "write": ToolNode([pay])}))
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition, {"tools": "plan", END: END})
    for name in ("read", "write", "refuse"):
        builder.add_edge(name, "agent")
    out = builder.compile().invoke(ASK)
    assert sorted(log) == [("look", "a"), ("pay", "b")]
    assert_valid(out["messages"])


def test_add_guard_says_what_is_wrong() -> None:
    builder = GuardedStateGraph(State)
    builder.add_node("plan", lambda state: {})
    with pytest.raises(UnguardableGraphError, match="prefix="):
        builder.add_guard(GuardNodes(guard(), {"tools": ToolNode(make_tools([]))}))
    with pytest.raises(UnguardableGraphError, match="messages_key="):
        GuardedStateGraph(State).add_guard(GuardNodes(guard(), {"t": ToolNode(make_tools([]))}, messages_key="chat"))
