"""`check_final`: the answer that ends a run is judged as well."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command
from pydantic import BaseModel, Field
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
    return [
        0.9 if "swordfish" in str(call.args) else 0.3 if "perhaps" in str(call.args) else 0.0 for call in step.calls
    ]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_answer_is_replaced_and_the_run_ends(kind: str) -> None:
    for run_async in (False, True):
        log: list[Any] = []
        graph = guarded_graph(
            build(kind, log, "the word is swordfish"), guard=Guard(ScriptedGuardModel(leaks)), check_final=True
        )
        out = await graph.ainvoke(ASK) if run_async else graph.invoke(ASK)
        assert log == [("look", "a")]
        assert_valid(out["messages"])
        assert "swordfish" not in str(out)
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
    for answer, shown in (("the word is swordfish", False), ("perhaps so", False), ("all well", True)):
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


class Out(BaseModel):
    text: str
    note: str = Field(default="", exclude=True)


FORMS = ["tool", "beside a call", "provider", "node", "last node"]


def structured(form: str, words: str, **compile_args: Any) -> Any:
    """An agent whose answer is structured: a call of its own, one beside another tool's, the message, another node's."""
    if "node" in form:
        builder = StateGraph(Structured)
        builder.add_node("agent", lambda state: {"messages": [AIMessage("see the form")]})
        builder.add_node("tools", ToolNode(make_tools([])))
        builder.add_node("respond", lambda state: {"structured_response": {"text": words}})
        builder.add_edge(START, "agent")
        builder.add_conditional_edges("agent", tools_condition, {"tools": "tools", END: "respond"})
        builder.add_edge("tools", "agent")
        if form == "node":  # else it has no edge that says so
            builder.add_edge("respond", END)
        return builder.compile(**compile_args)
    said = calls(("Out", {"text": words}))
    if form == "beside a call":
        said = calls(("look", {"x": "a"}), ("Out", {"text": words}))
    shape: Any = ToolStrategy(Out)
    if form == "provider":
        said, shape = AIMessage(f'{{"text": "{words}"}}'), ProviderStrategy(Out)
    return create_agent(Scripted(script=[said]), make_tools([]), response_format=shape, **compile_args)


class Structured(TypedDict):
    messages: Annotated[list[Any], add_messages]
    structured_response: Any


@pytest.mark.parametrize("form", FORMS)
async def test_a_refused_structured_answer_does_not_leave(form: str) -> None:
    for run_async in (False, True):
        graph = guarded_graph(
            structured(form, "the word is swordfish", checkpointer=InMemorySaver()),
            guard=Guard(ScriptedGuardModel(leaks)),
            check_final=True,
        )
        thread: Any = {"configurable": {"thread_id": "1"}}
        out = await graph.ainvoke(ASK, thread) if run_async else graph.invoke(ASK, thread)
        assert out["structured_response"] is None
        assert "swordfish" not in str(out)
        assert out["messages"][-1].text.startswith("I cannot give this answer")
        assert_valid(out["messages"])
        assert "swordfish" not in str(graph.get_state(thread).values)
        assert not graph.get_state(thread).next


@pytest.mark.parametrize("form", FORMS)
def test_an_allowed_structured_answer_changes_nothing(form: str) -> None:
    plain = structured(form, "all well").invoke(ASK)
    judged: list[Any] = []

    def decide(step: Any) -> list[str]:
        judged.extend(call.args["text"] for call in step.calls if call.name == "final_answer")
        return ["act"] * len(step.calls)

    graph = guarded_graph(structured(form, "all well"), guard=Guard(ScriptedGuardModel(decide)), check_final=True)
    out = graph.invoke(ASK)
    assert visible(out.pop("messages")) == visible(plain.pop("messages"))
    assert out == plain
    words = '{"text": "all well", "note": ""}'
    beside = 'see the form\n{"text": "all well"}'
    assert judged == [
        {"provider": '{"text": "all well"}\n' + words, "node": beside, "last node": beside}.get(form, words)
    ]


@pytest.mark.parametrize("form", [None, *FORMS[:3]])
def test_words_that_follow_an_answer_do_not_cover_it(form: str | None) -> None:
    class Bye(AgentMiddleware):
        def after_agent(self, state: Any, runtime: Any) -> Any:
            return {"messages": [AIMessage("bye")]}

    for answer, shown in (("the word is swordfish", False), ("all well", True)):
        agent = (
            create_agent(Scripted(script=[AIMessage(answer)]), make_tools([]), middleware=[Bye()])
            if form is None
            else structured(form, answer, middleware=[Bye()])
        )
        out = guarded_graph(agent, guard=Guard(ScriptedGuardModel(leaks)), check_final=True).invoke(ASK)
        assert (answer in str(out)) == ("bye" in str(out)) == shown
        assert_valid(out["messages"])


@pytest.mark.parametrize("goto", [None, END, "more"])
def test_a_node_without_edges_ends_the_run_where_it_says_nothing_else(goto: Any) -> None:
    judged: list[Any] = []

    def decide(step: Any) -> list[float]:
        judged.extend(call.args["text"] for call in step.calls)
        return leaks(step)

    def agent(state: Any) -> Command[Any]:
        return Command(update={"messages": [AIMessage("the word is swordfish")]}, goto=goto or ())

    builder = StateGraph(Structured)
    builder.add_node("agent", agent)
    builder.add_node("more", lambda state: {"messages": [AIMessage("see above")]})
    builder.add_node("tools", ToolNode(make_tools([])))
    builder.add_edge(START, "agent")
    builder.add_edge("tools", "agent")
    out = guarded_graph(builder.compile(), guard=Guard(ScriptedGuardModel(decide)), check_final=True).invoke(ASK)
    assert judged == ["the word is swordfish" + ("\nsee above" if goto == "more" else "")]
    assert "swordfish" not in str(out)


def test_fields_that_a_structured_answer_hides_when_written_are_judged() -> None:
    builder = StateGraph(Structured)
    builder.add_node("agent", lambda state: {"structured_response": Out(text="all well", note="swordfish")})
    builder.add_node("tools", ToolNode(make_tools([])))
    builder.add_edge(START, "agent")
    builder.add_edge("tools", END)
    builder.add_conditional_edges("agent", tools_condition)
    out = guarded_graph(builder.compile(), guard=Guard(ScriptedGuardModel(leaks)), check_final=True).invoke(ASK)
    assert out["structured_response"] is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("said", ["approve", "reject"])
def test_a_person_can_be_asked_about_a_structured_answer(form: str, said: str) -> None:
    graph = guarded_graph(
        structured(form, "perhaps so", checkpointer=InMemorySaver()),
        guard=Guard(ScriptedGuardModel(leaks), ask_threshold=0.2),
        check_final=True,
    )
    thread: Any = {"configurable": {"thread_id": "1"}}
    (asked,) = graph.invoke(ASK, thread)["__interrupt__"]
    assert "perhaps so" in asked.value["action_requests"][0]["args"]["text"]
    out = graph.invoke(Command(resume={"decisions": [{"type": said}]}), thread)
    assert (out["structured_response"] is not None) == (said == "approve")
    assert ("perhaps" in str(out)) == (said == "approve")


@pytest.mark.parametrize("form", FORMS)
async def test_with_hold_no_word_of_a_refused_structured_answer_is_streamed(form: str) -> None:
    for answer, shown in (("the word is swordfish", False), ("perhaps so", False), ("all well", True)):
        for run_async in (False, True):
            graph = guarded_graph(
                structured(form, answer, checkpointer=InMemorySaver()),
                guard=Guard(ScriptedGuardModel(leaks), ask_threshold=0.2),
                check_final=True,
                hold=True,
            )
            thread: Any = {"configurable": {"thread_id": "1"}}
            options: Any = {"stream_mode": "messages"}
            chunks = (
                [c async for c in graph.astream(ASK, thread, **options)]
                if run_async
                else list(graph.stream(ASK, thread, **options))
            )
            # A node that writes no message streams none, but the words of the other one wait too.
            assert (("see the form" if "node" in form else answer) in str(chunks)) == shown


def test_a_state_that_cannot_take_back_a_structured_answer_fails_loudly() -> None:
    class State(BaseModel):
        messages: Annotated[list[Any], add_messages]
        structured_response: dict[str, Any] = {}

    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [AIMessage("hi")]})
    builder.add_node("tools", ToolNode(make_tools([])))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    with pytest.raises(UnguardableGraphError, match="be None"):
        guarded_graph(builder.compile(), guard=Guard(ScriptedGuardModel()), check_final=True)
