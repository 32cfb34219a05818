"""`check_final`: the answer that ends a run is judged as well."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command
from scripted_agents import Scripted, assert_valid, calls, hand_written, make_tools, visible

from mosaic_guard import Guard, ScriptedGuardModel, UnguardableGraphError, guarded_graph

ASK = {"messages": [HumanMessage("look at a")]}
STEP = calls(("look", {"x": "a"}))
KINDS = ["create_agent", "condition", "send"]


def build(kind: str, log: list[Any], answer: str, **compile_args: Any) -> Any:
    model, tools = Scripted(script=[STEP, AIMessage(answer)]), make_tools(log)
    if kind == "create_agent":
        return create_agent(model, tools, **compile_args)
    return hand_written(model, ToolNode(tools), kind, **compile_args)


def leaks(step: Any) -> list[float]:
    return [0.9 if "1234" in str(call.args) else 0.3 if "perhaps" in str(call.args) else 0.0 for call in step.calls]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_answer_is_replaced_and_the_run_ends(kind: str) -> None:
    for run_async in (False, True):
        log: list[Any] = []
        graph = guarded_graph(
            build(kind, log, "the PIN is 1234"), guard=Guard(ScriptedGuardModel(leaks)), check_final=True
        )
        out = await graph.ainvoke(ASK) if run_async else graph.invoke(ASK)
        assert log == [("look", "a")]
        assert_valid(out["messages"])
        assert "1234" not in str(out)
        assert out["messages"][-1].text.startswith("I cannot give this answer")


@pytest.mark.parametrize("kind", KINDS)
def test_an_allowed_answer_changes_nothing(kind: str) -> None:
    outs = []
    for checked in (False, True):
        graph = guarded_graph(build(kind, [], "all well"), guard=Guard(ScriptedGuardModel(leaks)), check_final=checked)
        outs.append(graph.invoke(ASK, {"recursion_limit": 4}))
    assert visible(outs[0]["messages"]) == visible(outs[1]["messages"])


def test_a_person_can_be_asked_about_an_answer() -> None:
    for said, shown in (("approve", True), ("reject", False)):
        thread: Any = {"configurable": {"thread_id": "1"}}
        graph = guarded_graph(
            build("create_agent", [], "perhaps so", checkpointer=InMemorySaver()),
            guard=Guard(ScriptedGuardModel(leaks), ask_threshold=0.2),
            check_final=True,
        )
        out = graph.invoke(ASK, thread)
        assert out["__interrupt__"][0].value["review_configs"][0]["allowed_decisions"] == ["approve", "reject"]
        out = graph.invoke(Command(resume={"decisions": [{"type": said}]}), thread)
        assert ("perhaps" in out["messages"][-1].text) == shown


def test_a_state_that_cannot_replace_a_message_fails_loudly() -> None:
    class State(TypedDict):
        messages: Annotated[list[Any], operator.add]

    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [AIMessage("hi")]})
    builder.add_node("tools", ToolNode(make_tools([])))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition, {"tools": "tools", END: END})
    with pytest.raises(UnguardableGraphError, match="add_messages"):
        guarded_graph(builder.compile(), guard=Guard(ScriptedGuardModel()), check_final=True)


@pytest.mark.parametrize("subgraphs", [False, True])
async def test_with_hold_the_words_of_a_refused_answer_are_never_streamed(subgraphs: bool) -> None:
    for answer, shown in (("the PIN is 1234", False), ("perhaps so", False), ("all well", True)):
        for run_async in (False, True):
            graph = guarded_graph(
                build("create_agent", [], answer, checkpointer=InMemorySaver()),
                guard=Guard(ScriptedGuardModel(leaks), ask_threshold=0.2),
                check_final=True,
                hold=True,
            )
            thread: Any = {"configurable": {"thread_id": "1"}}
            options: Any = {"stream_mode": "messages", "subgraphs": subgraphs}
            chunks = (
                [c async for c in graph.astream(ASK, thread, **options)]
                if run_async
                else list(graph.stream(ASK, thread, **options))
            )
            assert (answer in str(chunks)) == shown
