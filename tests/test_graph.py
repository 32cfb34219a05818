"""guarded_graph: routes, partly refused steps, ends, and what must stay as it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, Send
from pydantic import BaseModel
from scripted_agents import Scripted, answers, assert_valid, by_name, calls, hand_written, make_tools, visible

from mosaic_guard import Guard, ScriptedGuardModel, UnguardableGraphError, guarded_graph

ASK = {"messages": [HumanMessage("look at a, then pay b")]}
STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}))
DONE = AIMessage("done")


def scripted_guard(**verdicts: Any) -> Guard:
    return Guard(ScriptedGuardModel(by_name(**verdicts)))


def build(kind: str, log: list[Any], script: list[AIMessage], **compile_args: Any) -> Any:
    tools = make_tools(log)
    if kind == "create_agent":
        return create_agent(Scripted(script=script), tools, **compile_args)
    return hand_written(Scripted(script=script), ToolNode(tools), kind, **compile_args)


KINDS = ["create_agent", "condition", "send", "edge"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verdict", ["act", "refuse"])
async def test_a_partly_refused_step_runs_the_cleared_calls_only(kind: str, verdict: str) -> None:
    for run_async in (False, True):
        log: list[Any] = []
        graph = guarded_graph(build(kind, log, [STEP, DONE]), guard=scripted_guard(pay=verdict))
        out = await graph.ainvoke(ASK) if run_async else graph.invoke(ASK)
        assert sorted(log) == ([("look", "a"), ("pay", "b")] if verdict == "act" else [("look", "a")])
        assert_valid(out["messages"])
        assert [m.status for m in answers(out["messages"])] == ["success", "success" if verdict == "act" else "error"]
        assert set(out) == {"messages"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wholly_refused_step_is_answered_by_refuse(kind: str) -> None:
    log: list[Any] = []
    graph = guarded_graph(build(kind, log, [STEP, DONE]), guard=scripted_guard(look="refuse", pay="refuse"))
    updates = list(graph.stream(ASK, stream_mode="updates"))
    assert log == []
    assert [name for update in updates for name in update][:2] in (["model", "refuse"], ["agent", "refuse"])
    assert_valid([m for update in updates for value in update.values() for m in value["messages"]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_drawing_shows_the_three_nodes(kind: str) -> None:
    drawing = guarded_graph(build(kind, [], [DONE]), guard=scripted_guard()).get_graph().draw_mermaid()
    for edge in ("plan --> check", "check -.-> refuse", "check -.-> tools"):
        assert edge in drawing


@pytest.mark.parametrize("kind", ["create_agent", "condition", "send"])
def test_on_refuse_end_runs_nothing_of_the_step_and_ends(kind: str) -> None:
    log: list[Any] = []
    graph = guarded_graph(build(kind, log, [STEP, DONE]), guard=scripted_guard(pay="refuse"), on_refuse="end")
    out = graph.invoke(ASK)
    assert log == []
    assert_valid(out["messages"])
    assert isinstance(out["messages"][-1], AIMessage)
    assert "guard refused" in out["messages"][-1].text


def test_the_run_ends_after_max_refusals_in_a_row() -> None:
    log: list[Any] = []
    graph = guarded_graph(
        build("create_agent", log, [calls(("pay", {"x": n})) for n in range(9)]),
        guard=scripted_guard(pay="refuse"),
        max_refusals=3,
    )
    out = graph.invoke(ASK)
    assert len(answers(out["messages"])) == 3
    assert "3 refused steps in a row" in out["messages"][-1].text
    assert_valid(out["messages"])


def test_a_step_without_refusals_and_new_human_words_start_the_count_again(saver: Any) -> None:
    log: list[Any] = []
    bad, good = calls(("pay", {"x": 1})), calls(("look", {"x": 1}))
    script = [bad, bad, good, bad, bad, DONE, bad, bad, DONE]
    graph = guarded_graph(
        build("create_agent", log, script, checkpointer=saver),
        guard=scripted_guard(pay="refuse"),
        max_refusals=3,
    )
    thread: Any = {"configurable": {"thread_id": "1"}}
    for words in ("pay", "pay now"):
        assert graph.invoke({"messages": [HumanMessage(words)]}, thread)["messages"][-1].text == "done"


@pytest.mark.parametrize("kind", ["create_agent", "condition", "send"])
@pytest.mark.parametrize("mode", ["values", "updates", "messages", "custom", "tasks", "checkpoints", "debug"])
async def test_streams_show_what_the_unguarded_graph_shows(kind: str, mode: Any) -> None:
    script = [STEP, calls(("send", {"x": 1})), DONE]

    def shown(chunks: list[Any]) -> str:
        return repr(chunks)

    thread: Any = {"configurable": {"thread_id": "1"}}
    for run_async in (False, True):
        plain = build(kind, [], script, checkpointer=InMemorySaver())
        guarded = guarded_graph(build(kind, [], script, checkpointer=InMemorySaver()), guard=scripted_guard())
        if run_async:
            want = [c async for c in plain.astream(ASK, thread, stream_mode=mode)]
            got = [c async for c in guarded.astream(ASK, thread, stream_mode=mode)]
        else:
            want = list(plain.stream(ASK, thread, stream_mode=mode))
            got = list(guarded.stream(ASK, thread, stream_mode=mode))
        assert "mosaic" not in shown(got)
        assert "scripted" not in shown(got) or "scripted" in shown(want)
        if mode in ("values", "updates", "messages", "custom", "tasks"):
            assert len(got) == len(want)
        assert "mosaic" not in repr(guarded.get_state(thread).values)
        assert visible(guarded.get_state(thread).values["messages"]) == visible(
            plain.get_state(thread).values["messages"]
        )


def test_events_are_sent_to_the_custom_stream_only_where_asked_for() -> None:
    graph = guarded_graph(build("create_agent", [], [STEP, DONE]), guard=scripted_guard(pay="refuse"), events=True)
    events = list(graph.stream(ASK, stream_mode="custom"))
    assert [event["event"] for event in events] == ["plan", "decision"]
    assert [d["verdict"] for d in events[1]["decisions"]] == ["act", "refuse"]


@pytest.mark.parametrize("kind", ["create_agent", "condition", "send"])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
async def test_recursion_limit_counts_the_users_steps(kind: str, limit: int) -> None:
    script = [STEP, STEP, DONE]
    for verdict in ("act", "refuse"):
        for run_async in (False, True):
            outcomes = []
            for guard in (None, scripted_guard(look=verdict, pay=verdict)):
                graph = build(kind, [], script)
                graph = graph if guard is None else guarded_graph(graph, guard=guard)
                try:
                    config: Any = {"recursion_limit": limit}
                    out = await graph.ainvoke(ASK, config) if run_async else graph.invoke(ASK, config)
                    outcomes.append(len(out["messages"]))
                except GraphRecursionError as error:
                    outcomes.append(str(error))
            assert outcomes[0] == outcomes[1]


def test_interrupt_before_the_tools_stops_once_after_the_check(saver: Any) -> None:
    log: list[Any] = []
    graph = guarded_graph(
        build("condition", log, [STEP, DONE], checkpointer=saver, interrupt_before=["tools"]),
        guard=scripted_guard(pay="refuse"),
    )
    thread: Any = {"configurable": {"thread_id": "1"}}
    graph.invoke(ASK, thread)
    assert graph.get_state(thread).next == ("tools",)
    assert log == []
    out = graph.invoke(None, thread)
    assert log == [("look", "a")]
    assert_valid(out["messages"])


def test_a_call_that_was_edited_after_the_check_is_judged_again(saver: Any) -> None:
    log: list[Any] = []
    graph = guarded_graph(
        build(
            "condition",
            log,
            [calls(("look", {"x": "a"})), DONE],
            checkpointer=saver,
            interrupt_before=["tools"],
        ),
        guard=Guard(ScriptedGuardModel(lambda s: ["refuse" if c.args["x"] == "evil" else "act" for c in s.calls])),
    )
    thread: Any = {"configurable": {"thread_id": "1"}}
    graph.invoke(ASK, thread)
    proposal = graph.get_state(thread).values["messages"][-1]
    edited = proposal.model_copy(update={"tool_calls": [{**proposal.tool_calls[0], "args": {"x": "evil"}}]})
    graph.update_state(thread, {"messages": [edited]})
    out: Any = None
    for _ in range(3):
        out = graph.invoke(None, thread)
        if not graph.get_state(thread).next:
            break
    assert log == []
    assert_valid(out["messages"])


def test_a_checkpoint_of_the_unguarded_graph_is_judged_on_resume(new_saver: Any) -> None:
    for kind in ("create_agent", "condition", "send"):
        log: list[Any] = []
        saver = new_saver()
        thread: Any = {"configurable": {"thread_id": "1"}}
        plain = build(kind, log, [STEP, DONE], checkpointer=saver, interrupt_before=["tools"])
        plain.invoke(ASK, thread)
        graph = guarded_graph(build(kind, log, [DONE], checkpointer=saver), guard=scripted_guard(pay="refuse"))
        out = graph.invoke(None, thread)
        assert log == [("look", "a")], kind
        assert_valid(out["messages"])


def test_a_command_into_the_tools_is_sent_back_to_plan() -> None:
    log: list[Any] = []
    builder = StateGraph(dict_state())

    def agent(state: Any) -> Command[Any]:
        if isinstance(state["messages"][-1], HumanMessage):
            return Command(update={"messages": [STEP]}, goto="tools")
        return Command(update={"messages": [DONE]}, goto=END)

    builder.add_node("agent", agent, destinations=("tools", END))
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_edge(START, "agent")
    builder.add_edge("tools", "agent")
    out = guarded_graph(builder.compile(), guard=scripted_guard(pay="refuse")).invoke(ASK)
    assert log == [("look", "a")]
    assert_valid(out["messages"])
    assert out["messages"][-1].text == "done"


def dict_state() -> Any:
    from scripted_agents import State

    return State


def test_a_send_from_a_command_is_sent_back_to_plan() -> None:
    log: list[Any] = []
    builder = StateGraph(dict_state())

    def agent(state: Any) -> Command[Any]:
        if isinstance(state["messages"][-1], HumanMessage):
            return Command(update={"messages": [STEP]}, goto=[Send("tools", [call]) for call in STEP.tool_calls])
        return Command(update={"messages": [DONE]}, goto=END)

    builder.add_node("agent", agent, destinations=("tools", END))
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_edge(START, "agent")
    builder.add_edge("tools", "agent")
    out = guarded_graph(builder.compile(), guard=scripted_guard(pay="refuse")).invoke(ASK)
    assert log == [("look", "a")]
    assert_valid(out["messages"])


@dataclass
class DataState:
    messages: Annotated[list[AnyMessage], add_messages]


class ModelState(BaseModel):
    messages: Annotated[list[AnyMessage], add_messages]


@pytest.mark.parametrize("schema", [DataState, ModelState])
def test_state_may_be_a_dataclass_or_a_pydantic_model(schema: Any) -> None:
    log: list[Any] = []
    model = Scripted(script=[STEP, DONE])
    builder = StateGraph(schema)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state.messages)]})
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    out = guarded_graph(builder.compile(), guard=scripted_guard(pay="refuse")).invoke(ASK)
    assert log == [("look", "a")]
    assert_valid(out["messages"])
    assert set(out) == {"messages"}


def test_other_targets_of_a_route_are_always_taken() -> None:
    log: list[Any] = []
    model = Scripted(script=[STEP, DONE])
    builder = StateGraph(dict_state())
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_node("audit", lambda state: log.append("audit") or {})
    builder.add_edge(START, "agent")
    builder.add_conditional_edges(
        "agent", lambda s: ["tools", "audit"] if s["messages"][-1].tool_calls else END, ["tools", "audit", END]
    )
    builder.add_edge("tools", "agent")
    guarded_graph(builder.compile(), guard=scripted_guard(look="refuse", pay="refuse")).invoke(ASK)
    assert log == ["audit"]


def test_the_given_graph_is_left_as_it_is() -> None:
    log: list[Any] = []
    plain = build("create_agent", log, [STEP, DONE])
    before = plain.get_graph().draw_mermaid()
    guarded_graph(plain, guard=scripted_guard(pay="refuse"))
    assert plain.get_graph().draw_mermaid() == before
    plain.invoke(ASK)
    assert len(log) == 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: StateGraph(dict_state()), "not compiled"),
        (object, "builtins.object"),
        (lambda: Scripted(script=[DONE]), "compiled LangGraph"),
        (lambda: create_agent(Scripted(script=[DONE]), []), "no tool node found"),
        (lambda: guarded_graph(build("condition", [], [DONE]), guard=scripted_guard()), "guarded already"),
    ],
)
def test_an_unguardable_graph_says_what_was_looked_for(make: Any, says: str) -> None:
    with pytest.raises(UnguardableGraphError, match=says):
        guarded_graph(make(), guard=scripted_guard())


def test_unknown_node_names_and_options_are_errors() -> None:
    graph = build("condition", [], [DONE])
    with pytest.raises(UnguardableGraphError, match=r"no node 'tool': the graph's nodes are 'agent', 'tools'"):
        guarded_graph(graph, guard=scripted_guard(), tool_nodes=["tool"])
    with pytest.raises(ValueError, match="on_refuse"):
        guarded_graph(graph, guard=scripted_guard(), on_refuse="stop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_refusals"):
        guarded_graph(graph, guard=scripted_guard(), max_refusals=0)


def test_a_node_of_the_users_may_be_called_plan() -> None:
    log: list[Any] = []
    model = Scripted(script=[STEP, DONE])
    builder = StateGraph(dict_state())
    builder.add_node("plan", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", tools_condition)
    builder.add_edge("tools", "plan")
    graph = builder.compile()
    with pytest.raises(UnguardableGraphError, match="prefix="):
        guarded_graph(graph, guard=scripted_guard())
    guarded_graph(graph, guard=scripted_guard(pay="refuse"), prefix="guard_").invoke(ASK)
    assert log == [("look", "a")]


def test_bound_config_and_names_are_carried_over() -> None:
    plain = build("create_agent", [], [DONE], name="mine").with_config({"recursion_limit": 7, "tags": ["t"]})
    graph = guarded_graph(plain, guard=scripted_guard())
    assert graph.name == "mine"
    assert graph.config == plain.config
    assert type(graph.with_config({"tags": ["u"]})) is type(graph)
