"""`guard_tools`: tools without a graph, in a loop of one's own, in the functional API, in an unguarded graph."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import add_messages
from langgraph.prebuilt import ToolNode
from scripted_agents import Scripted, answers, assert_valid, calls, hand_written, make_tools

from mosaic_guard import Guard, RefusedCallError, ScriptedGuardModel, conversation, guard_tools, read_traces

STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}))
DONE = AIMessage("done")


class Judge:
    """Refuses `pay`; remembers the steps."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def __call__(self, step: Any) -> list[str]:
        self.steps.append(step)
        return ["refuse" if call.name == "pay" else "act" for call in step.calls]


def guarded(log: list[Any], judge: Judge, **options: Any) -> dict[str, Any]:
    tools = guard_tools(make_tools(log), guard=Guard(ScriptedGuardModel(judge)), **options)
    return {t.name: t for t in tools}


async def test_the_calls_of_a_message_are_judged_together_before_the_first_runs(tmp_path: Any) -> None:
    for run_async in (False, True):
        log: list[Any] = []
        judge = Judge()
        tools = guarded(log, judge, trace=tmp_path)
        with conversation([HumanMessage("look at a"), STEP]):
            results = [
                await tools[c["name"]].ainvoke(c) if run_async else tools[c["name"]].invoke(c) for c in STEP.tool_calls
            ]
        assert log == [("look", "a")]
        assert [[c.name for c in step.calls] for step in judge.steps] == [["look", "pay"]]
        assert [m.status for m in results] == ["success", "error"]
    assert len(read_traces(tmp_path)) >= 1


def test_bare_arguments_are_judged_and_a_refusal_is_raised() -> None:
    log: list[Any] = []
    judge = Judge()
    tools = guarded(log, judge)
    with conversation("look at a, please"):
        assert tools["look"].invoke({"x": "a"}) == "look did a"
        with pytest.raises(RefusedCallError, match="pay was refused by the guard"):
            tools["pay"].invoke({"x": "b"})
    assert log == [("look", "a")]
    assert [m.text for m in judge.steps[0].messages if isinstance(m, HumanMessage)] == ["look at a, please"]


def test_without_a_conversation_nobody_asked() -> None:
    judge = Judge()
    guarded([], judge)["look"].invoke({"x": "a"})
    assert not [m for m in judge.steps[0].messages if isinstance(m, HumanMessage)]


def test_a_failing_guard_refuses() -> None:
    def fails(step: Any) -> Any:
        raise RuntimeError("no decision")

    log: list[Any] = []
    (look,) = guard_tools(make_tools(log, ["look"]), guard=Guard(ScriptedGuardModel(fails)))
    with pytest.raises(RefusedCallError, match="could not judge"):
        look.invoke({"x": 1})
    assert log == []


def functional_agent(model: Scripted, tools: dict[str, Any]) -> Any:
    @task
    def propose(messages: list[AnyMessage]) -> AIMessage:
        return model.invoke(messages)

    @task
    def run(call: Any) -> ToolMessage:
        return tools[call["name"]].invoke(call)

    @entrypoint(checkpointer=InMemorySaver())
    def agent(messages: list[AnyMessage]) -> list[AnyMessage]:
        while True:
            said = propose(messages).result()
            messages = add_messages(messages, [said])
            if not said.tool_calls:
                return messages
            with conversation(messages):
                running = [run(call) for call in said.tool_calls]
            messages = add_messages(messages, [future.result() for future in running])

    return agent


async def test_the_functional_api() -> None:
    for run_async in (False, True):
        log: list[Any] = []
        judge = Judge()
        agent = functional_agent(Scripted(script=[STEP, DONE]), guarded(log, judge))
        thread: Any = {"configurable": {"thread_id": "1"}}
        given = [HumanMessage("look at a")]
        messages = await agent.ainvoke(given, thread) if run_async else agent.invoke(given, thread)
        assert log == [("look", "a")]
        assert_valid(messages)
        assert [m.status for m in answers(messages)] == ["success", "error"]
        assert len(judge.steps) == 1


def test_in_an_unguarded_graph_the_state_is_the_conversation() -> None:
    log: list[Any] = []
    judge = Judge()
    node = ToolNode(list(guarded(log, judge).values()))
    out = hand_written(Scripted(script=[STEP, DONE]), node).invoke({"messages": [HumanMessage("look at a")]})
    assert log == [("look", "a")]
    assert_valid(out["messages"])
    assert any(m.text == "look at a" for m in judge.steps[0].messages)


def test_what_is_no_tool_is_named() -> None:
    with pytest.raises(TypeError, match="wrap the function with @tool"):
        guard_tools([len], guard=Guard(ScriptedGuardModel()))  # type: ignore[list-item]


def test_a_guarded_tool_stays_an_instance_of_its_class() -> None:
    @tool
    def look(x: str) -> str:
        """Look."""
        return x

    (again,) = guard_tools([look], guard=Guard(ScriptedGuardModel()))
    assert isinstance(again, type(look))
    assert again.args == look.args
