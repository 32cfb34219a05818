"""`ask`: one interrupt for a step, answered from any process; what a person edits is judged again."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from scripted_agents import Scripted, answers, assert_valid, calls, hand_written, make_tools

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


def build(kind: str, log: list[Any], asks: Asks, saver: Any, script: Any = (STEP, DONE), **options: Any) -> Any:
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
