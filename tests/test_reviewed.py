"""What a review found: ways past the gate, and threads that the short way for settled steps broke."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import CachePolicy, Command, Send
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

    def agent(state: State) -> Any:
        assert_valid(state["messages"])  # what a chat model's vendor would insist on
        return {"messages": [model.invoke(state["messages"])]}

    builder.add_node("agent", agent)
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
        plain = chain(log, [("agent", "fa"), ("agent", "fb"), ("fa", "agent"), ("fb", "agent")])
        guard = Guard(ScriptedGuardModel("act"), policy=policy)
        graph = guarded_graph(plain, guard=guard, tool_nodes=["fa", "fb"])
        states = list(graph.stream(ASK, {"recursion_limit": 4}, stream_mode="values", interrupt_after=["fa", "fb"]))
        assert sorted(log) == [("look", 1), ("pay", 2)]
        assert_valid(states[-1]["messages"])


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


def test_calls_beside_the_messages_are_told_apart_by_more_than_their_ids() -> None:
    log: list[Any] = []
    by_name = {t.name: t for t in make_tools(log, ("look", "pay"))}

    def run(state: Any) -> Any:
        todo = [state[key] for key in ("first", "second") if state[key]]
        return {"messages": [by_name[c["name"]].invoke(c) for c in todo]}

    builder = StateGraph(State)
    same_ids = calls(("pay", {"x": 2}), ("look", {"x": 1}), ids=["1", "1"])
    model = Scripted(script=[same_ids, DONE])
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("one", run)
    builder.add_edge(START, "agent")

    def both(state: Any) -> Any:
        first, second = state["messages"][-1].tool_calls
        return [Send("one", {"messages": state["messages"], "first": first, "second": second})]

    builder.add_conditional_edges("agent", both, ["one"])
    builder.add_edge("one", END)
    guarded_graph(builder.compile(), guard=Guard(ScriptedGuardModel(refuse_pay)), tool_nodes=["one"]).invoke(ASK)
    assert log == [("look", 1)]


def cached(log: list[Any], guard: Guard, cache: Any, *, agent: bool, **options: Any) -> Any:
    builder = StateGraph(State)
    step = calls(("pay", {"x": 1}))
    builder.add_node(
        "agent",
        lambda state: {"messages": [DONE if isinstance(state["messages"][-1], ToolMessage) else step]},
        cache_policy=CachePolicy(key_func=lambda state: str(len(state["messages"]))) if agent else None,
    )
    policy = None if agent else CachePolicy(key_func=lambda state: "same")
    builder.add_node("tools", ToolNode(make_tools(log)), cache_policy=policy)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    return guarded_graph(builder.compile(cache=cache, **options), guard=guard)


def test_a_cached_agent_does_not_replay_a_clearance() -> None:
    cache, log = InMemoryCache(), []
    for policy, ran in ((Policy(allow=["pay"]), 1), (Policy(refuse=["pay"]), 0)):
        log.clear()
        guard = Guard(ScriptedGuardModel("act"), policy=policy)
        out = cached(log, guard, cache, agent=True).invoke({"messages": [HumanMessage("go", id="h")]})
        assert len(log) == ran
        assert_valid(out["messages"])


def test_the_result_of_an_edited_call_is_not_cached_for_the_proposed_one() -> None:
    cache, log = InMemoryCache(), []
    edit = {"type": "edit", "edited_action": {"name": "pay", "args": {"x": 2}}}
    for number, answer in enumerate((edit, {"type": "approve"})):
        guard = Guard(ScriptedGuardModel(lambda step: [0.3 if call.args["x"] == 1 else 0.0 for call in step.calls]))
        guard.ask_threshold = 0.2
        graph = cached(log, guard, cache, agent=False, checkpointer=InMemorySaver())
        thread: Any = {"configurable": {"thread_id": str(number)}}
        graph.invoke(ASK, thread)
        graph.invoke(Command(resume={"decisions": [answer]}), thread)
    assert log == [("pay", 2), ("pay", 1)]


def test_an_allowed_call_of_a_tool_node_that_others_wait_for_runs() -> None:
    for policy in (Policy(), Policy(allow=["*"])):
        log: list[Any] = []
        builder = StateGraph(State)
        builder.add_node("agent", lambda state: {"messages": [STEP]})
        builder.add_node("tools", ToolNode(make_tools(log)))
        builder.add_node("a_search", lambda state: {"messages": [HumanMessage("found")]})
        builder.add_node("join", lambda state: {"messages": [DONE]})
        builder.add_edge(START, "agent")
        builder.add_edge(START, "a_search")
        builder.add_edge("agent", "tools")
        builder.add_edge(["tools", "a_search"], "join")
        guarded_graph(builder.compile(), guard=Guard(ScriptedGuardModel("act"), policy=policy)).invoke(ASK)
        assert sorted(log) == [("look", 1), ("pay", 2)]


def test_a_tool_node_that_once_sent_its_calls_back_is_left_as_ever_after() -> None:
    log: list[Any] = []
    builder = StateGraph(State)
    model = Scripted(script=[calls(("look", {"x": 1}), ids=["a"]), calls(("pay", {"x": 2}), ids=["b"]), DONE])
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    graph = guarded_graph(
        builder.compile(checkpointer=InMemorySaver()),
        guard=Guard(ScriptedGuardModel("act"), policy=Policy(allow=["pay"])),
    )
    thread: Any = {"configurable": {"thread_id": "1"}}
    graph.invoke(ASK, thread, interrupt_before=["tools"])
    # The step is edited behind the check, so that the gate sends it back; the run stops before it is judged again.
    proposal = graph.get_state(thread).values["messages"][-1]
    edited = proposal.model_copy(update={"tool_calls": [{**proposal.tool_calls[0], "args": {"x": 5}}]})
    graph.update_state(thread, {"messages": [edited]}, as_node="check")
    graph.invoke(None, thread, interrupt_before=["plan"])
    out = graph.invoke({"messages": [HumanMessage("pay")]}, thread)
    assert ("pay", 2) in log
    assert out["messages"][-1].text == "done"
    assert_valid(out["messages"])


def test_a_clearance_does_not_hold_for_the_same_call_in_a_later_step() -> None:
    """By a join edge, which leads past `plan`: only the gate sees that the history is another one."""
    log: list[Any] = []
    judged: list[int] = []

    def decide(step: Any) -> list[str]:
        judged.append(len(step.calls))
        return ["act" if len(judged) == 1 else "refuse"] * len(step.calls)

    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [calls(("pay", {"x": 1}), ids=["same"])]})
    builder.add_node("beside", lambda state: {})
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_edge(START, "agent")
    builder.add_edge(START, "beside")
    builder.add_edge(["agent", "beside"], "tools")
    builder.add_conditional_edges(
        "tools",
        lambda state: END if sum(isinstance(m, ToolMessage) for m in state["messages"]) > 1 else ["agent", "beside"],
        ["agent", "beside", END],
    )
    out = guarded_graph(builder.compile(), guard=Guard(ScriptedGuardModel(decide))).invoke(ASK)
    assert judged == [1, 1]
    assert log == [("pay", 1)]
    assert_valid(out["messages"])
