"""`ask`: one interrupt for a step, answered from any process; what a person edits is judged again."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command
from scripted_agents import Scripted, State, answers, assert_valid, calls, hand_written, make_tools

from mosaic_guard import Guard, ScriptedGuardModel, guarded_graph

THREAD: Any = {"configurable": {"thread_id": "1"}}
ASK = {"messages": [HumanMessage("look at a, then pay b and send c")]}
STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}), ("send", {"x": "c"}))
DONE = AIMessage("done")
KINDS = ["create_agent", "condition", "send"]


class Asks:
    """Asks for `pay` and `send`, refuses the value `evil`, and remembers what it judged."""

    def __init__(self) -> None:
        self.judged: list[list[Any]] = []

    def __call__(self, step: Any) -> list[float]:
        self.judged.append([call.args["x"] for call in step.calls])
        return [
            0.9 if call.args["x"] == "evil" else 0.3 if call.name != "look" and call.args["x"] != "fine" else 0.0
            for call in step.calls
        ]


def build(kind: str, log: list[Any], asks: Any, saver: Any, script: Any = (STEP, DONE), **options: Any) -> Any:
    model, tools = Scripted(script=list(script)), make_tools(log)
    plain: Any = (
        create_agent(model, tools, checkpointer=saver)
        if kind == "create_agent"
        else hand_written(model, ToolNode(tools), kind, checkpointer=saver)
    )
    return guarded_graph(plain, guard=Guard(ScriptedGuardModel(asks), ask_threshold=0.2), **options)


def decisions(*types: Any) -> Command[Any]:
    return Command(resume={"decisions": [t if isinstance(t, dict) else {"type": t} for t in types]})


@pytest.mark.parametrize("kind", KINDS)
async def test_asked_calls_of_a_step_are_one_interrupt_and_run_as_answered(kind: str) -> None:
    for run_async in (False, True):
        log: list[Any] = []
        asks, saver = Asks(), InMemorySaver()
        graph = build(kind, log, asks, saver)
        out = await graph.ainvoke(ASK, THREAD) if run_async else graph.invoke(ASK, THREAD)
        assert log == []
        (interrupt,) = out["__interrupt__"]
        assert [(a["name"], a["args"]) for a in interrupt.value["action_requests"]] == [
            ("pay", {"x": "b"}),
            ("send", {"x": "c"}),
        ]
        assert [c["action_name"] for c in interrupt.value["review_configs"]] == ["pay", "send"]
        # Another process: nothing but the saver is shared.
        again = build(kind, log, asks, saver, [DONE])
        answer = decisions("approve", {"type": "reject", "message": "too dear"})
        out = await again.ainvoke(answer, THREAD) if run_async else again.invoke(answer, THREAD)
        assert sorted(log) == [("look", "a"), ("pay", "b")]
        assert asks.judged == [["a", "b", "c"]], "the check is not repeated"
        assert_valid(out["messages"])
        assert "too dear" in answers(out["messages"])[2].text


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_call_is_judged_again(kind: str) -> None:
    for value, ran in (("fine", True), ("evil", False)):
        log: list[Any] = []
        asks = Asks()
        graph = build(kind, log, asks, InMemorySaver())
        graph.invoke(ASK, THREAD)
        edit = {"type": "edit", "edited_action": {"name": "pay", "args": {"x": value}}}
        out = graph.invoke(decisions(edit, "approve"), THREAD)
        assert asks.judged == [["a", "b", "c"], [value]]
        assert sorted(log) == sorted([("look", "a"), ("send", "c"), *([("pay", value)] if ran else [])])
        assert_valid(out["messages"])
        told = answers(out["messages"])[1].text
        assert ("changed this call" in told) if ran else told.startswith("Refused")


@pytest.mark.parametrize("kind", ["create_agent", "condition"])
def test_the_values_of_an_edited_call_are_a_persons(kind: str) -> None:
    origins: list[Any] = []
    log: list[Any] = []

    def decide(step: Any) -> list[float]:
        origins.append([origin.kind for found in step.evidence for origin in found.origins])
        return [0.3 if call.name == "pay" and len(origins) == 1 else 0.0 for call in step.calls]

    graph = build(kind, log, decide, InMemorySaver())
    graph.invoke(ASK, THREAD)
    graph.invoke(decisions({"type": "edit", "edited_action": {"name": "pay", "args": {"x": "4711 euros"}}}), THREAD)
    assert origins[-1] == ["user"]
    assert ("pay", "4711 euros") in log


def test_an_edit_that_is_asked_again_can_be_approved_and_edited_again() -> None:
    log: list[Any] = []
    asks = Asks()
    graph = build("create_agent", log, asks, InMemorySaver())
    graph.invoke(ASK, THREAD)

    def edit(value: str) -> dict[str, Any]:
        return {"type": "edit", "edited_action": {"name": "pay", "args": {"x": value}}}

    out = graph.invoke(decisions(edit("1"), "reject"), THREAD)
    assert [a["args"] for a in out["__interrupt__"][0].value["action_requests"]] == [{"x": "1"}]
    out = graph.invoke(decisions(edit("2")), THREAD)
    assert [a["args"] for a in out["__interrupt__"][0].value["action_requests"]] == [{"x": "2"}]
    out = graph.invoke(decisions("approve"), THREAD)
    assert sorted(log) == [("look", "a"), ("pay", "2")]
    assert_valid(out["messages"])


def test_an_answer_in_the_place_of_the_tool() -> None:
    log: list[Any] = []
    graph = build("create_agent", log, Asks(), InMemorySaver())
    graph.invoke(ASK, THREAD)
    out = graph.invoke(decisions({"type": "respond", "message": "paid by hand"}, "reject"), THREAD)
    assert log == [("look", "a")]
    assert (answers(out["messages"])[1].text, answers(out["messages"])[1].status) == ("paid by hand", "success")
    assert_valid(out["messages"])


@pytest.mark.parametrize(
    "bad", ["yes", {"decisions": [{"type": "approve"}]}, {"decisions": [{"type": "maybe"}, {"type": "approve"}]}]
)
def test_a_bad_answer_asks_again_and_says_why(bad: Any) -> None:
    log: list[Any] = []
    graph = build("create_agent", log, Asks(), InMemorySaver())
    graph.invoke(ASK, THREAD)
    out = graph.invoke(Command(resume=bad), THREAD)
    assert "decision" in out["__interrupt__"][0].value["error"]
    assert log == []
    out = graph.invoke(decisions("approve", "approve"), THREAD)
    assert len(log) == 3
    assert_valid(out["messages"])


def test_without_a_checkpointer_an_asked_call_is_refused() -> None:
    log: list[Any] = []
    out = build("create_agent", log, Asks(), None).invoke(ASK)
    assert log == [("look", "a")]
    assert "no checkpointer" in answers(out["messages"])[1].text
    assert_valid(out["messages"])


@pytest.mark.parametrize("kind", KINDS)
async def test_new_input_on_a_paused_thread_closes_the_step_as_cancelled(kind: str) -> None:
    for run_async in (False, True):
        log: list[Any] = []
        graph = build(kind, log, Asks(), InMemorySaver())
        new = {"messages": [HumanMessage("never mind")]}
        if run_async:
            await graph.ainvoke(ASK, THREAD)
            out = await graph.ainvoke(new, THREAD)
        else:
            graph.invoke(ASK, THREAD)
            out = graph.invoke(new, THREAD)
        assert log == []
        assert_valid(out["messages"])
        assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "tool", "tool", "human", "ai"]
        assert all("cancelled" in m.text for m in answers(out["messages"]))


@pytest.mark.parametrize("goto", [True, False])
@pytest.mark.parametrize("kind", KINDS)
async def test_new_words_in_a_command_close_the_open_step_too(kind: str, goto: bool) -> None:
    agent = "model" if kind == "create_agent" else "agent"
    for run_async in (False, True):
        words = HumanMessage("never mind")
        for update in (
            {"messages": words},
            {"messages": [("user", "never mind")]},
            [("messages", [words]), ("messages", [])],
        ):
            log: list[Any] = []
            graph = build(kind, log, Asks(), InMemorySaver())
            new: Any = Command(update=update, goto=agent if goto else ())
            if run_async:
                await graph.ainvoke(ASK, THREAD)
                out = await graph.ainvoke(new, THREAD)
            else:
                graph.invoke(ASK, THREAD)
                out = graph.invoke(new, THREAD)
            assert log == []
            assert_valid(out["messages"])
            assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "tool", "tool", "human", "ai"]
            assert all("cancelled" in m.text for m in answers(out["messages"]))
            assert not graph.get_state(THREAD).next


def with_note(log: list[Any], asks: Asks, **options: Any) -> Any:
    """A guarded graph with a node that nothing but a command leads to."""
    builder = StateGraph(State)
    model = Scripted(script=[STEP, DONE])
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_node("note", lambda state: {"messages": [AIMessage("noted")]})
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    plain = builder.compile(checkpointer=InMemorySaver(), **options)
    return guarded_graph(plain, guard=Guard(ScriptedGuardModel(asks), ask_threshold=0.2))


def test_a_command_with_new_words_goes_where_it_says_and_nowhere_else() -> None:
    for options in ({}, {"interrupt_before": ["tools"]}):
        asks = Asks()
        graph = with_note([], asks, **options)
        graph.invoke(ASK if not options else {"messages": [HumanMessage("go")]}, THREAD)
        paused = graph.get_state(THREAD).config
        new: Any = Command(update={"messages": [HumanMessage("note that")]}, goto="note")
        for config in (THREAD, paused):
            out = graph.invoke(new, config)
            assert_valid(out["messages"])
            assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "tool", "tool", "human", "ai"]
            assert out["messages"][-1].text == "noted"
        assert len(asks.judged) == 1


@pytest.mark.parametrize(
    "update",
    [None, {"messages": []}, {"messages": [ToolMessage("sent already", tool_call_id="call_2")]}],
    ids=["nothing", "no words", "an answer"],
)
def test_a_command_without_new_words_leaves_the_step_open(update: Any) -> None:
    log: list[Any] = []
    graph = with_note(log, Asks())
    graph.invoke(ASK, THREAD)
    graph.invoke(Command(update=update, goto="note") if update is None else Command(update=update), THREAD)
    assert "ask" in graph.get_state(THREAD).next
    assert not any("cancelled" in m.text for m in answers(graph.get_state(THREAD).values["messages"]))


def test_a_command_that_answers_and_says_more_is_an_answer() -> None:
    log: list[Any] = []
    graph = build("create_agent", log, Asks(), InMemorySaver(), [STEP, DONE])
    graph.invoke(ASK, THREAD)
    resume = {"decisions": [{"type": "approve"}, {"type": "reject"}]}
    graph.invoke(Command(resume=resume, update={"messages": [HumanMessage("go on")]}), THREAD)
    said = answers(graph.get_state(THREAD).values["messages"])
    assert not any("cancelled" in m.text for m in said)


@pytest.mark.parametrize("command", [False, True])
def test_a_step_that_new_input_takes_back_is_not_answered(command: bool) -> None:
    log: list[Any] = []
    graph = with_note(log, Asks())
    proposed = graph.invoke(ASK, THREAD)["messages"][-1]
    new = {"messages": [RemoveMessage(proposed.id), HumanMessage("note that")]}
    out = graph.invoke(Command(update=new, goto="note") if command else new, THREAD)
    assert log == []
    assert "__interrupt__" not in out
    assert_valid(out["messages"])


def test_after_repeated_refusals_a_person_is_asked() -> None:
    log: list[Any] = []
    script = [calls(("pay", {"x": "evil"}), ids=[str(n)]) for n in range(2)] + [DONE]
    graph = build("create_agent", log, Asks(), InMemorySaver(), script, max_refusals=2, after_refusals="ask")
    out = graph.invoke(ASK, THREAD)
    assert len(answers(out["messages"])) == 1
    assert out["__interrupt__"][0].value["action_requests"][0]["name"] == "pay"
    out = graph.invoke(decisions("approve"), THREAD)
    assert log == [("pay", "evil")]
    assert_valid(out["messages"])


def test_on_refuse_end_ends_at_a_rejection() -> None:
    log: list[Any] = []
    graph = build("create_agent", log, Asks(), InMemorySaver(), on_refuse="end")
    graph.invoke(ASK, THREAD)
    out = graph.invoke(decisions("approve", "reject"), THREAD)
    assert log == []
    assert_valid(out["messages"])
    assert "I stopped" in out["messages"][-1].text


def test_on_error_ask_asks() -> None:
    def fails(step: Any) -> Any:
        raise RuntimeError("no decision")

    log: list[Any] = []
    agent = create_agent(Scripted(script=[STEP, DONE]), make_tools(log), checkpointer=InMemorySaver())
    graph = guarded_graph(agent, guard=Guard(ScriptedGuardModel(fails), on_error="ask"))
    out = graph.invoke(ASK, THREAD)
    assert len(out["__interrupt__"][0].value["action_requests"]) == 3
    graph.invoke(decisions("approve", "reject", "reject"), THREAD)
    assert log == [("look", "a")]
