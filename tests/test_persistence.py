"""Threads that outlive their process: every node may be the last of one and the first of the next, on each saver."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from checkpointers import Stores
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolNode
from scripted_agents import Scripted, answers, assert_valid, by_name, calls, hand_written, make_tools, visible

from mosaic_guard import Guard, ScriptedGuardModel, guarded_graph

THREAD: Any = {"configurable": {"thread_id": "1"}}
ASK: Any = {"messages": [HumanMessage("look at a, then pay b")]}
STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}), ids=["1", "2"])
MORE = calls(("send", {"x": "c"}), ids=["3"])
DONE = AIMessage("done")
KINDS = ["create_agent", "condition", "send"]


class ByPlace(Scripted):
    """The scripted model, as a new process finds it: its turn is told by the history."""

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self._turn = sum(isinstance(message, AIMessage) for message in messages)
        return super()._generate(messages, *args, **kwargs)


def build(kind: str, tools: Any, saver: Any, script: Any, decide: Any = "act") -> Any:
    model = ByPlace(script=script)
    plain: Any = (
        create_agent(model, tools, checkpointer=saver)
        if kind == "create_agent"
        else hand_written(model, ToolNode(tools), kind, checkpointer=saver)
    )
    return guarded_graph(plain, guard=Guard(ScriptedGuardModel(decide)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_thread_that_changes_process_at_every_node_is_the_same_thread(kind: str, stores: Stores) -> None:
    if stores.kind == "memory":
        pytest.skip("memory does not outlive its process")
    script = [STEP, MORE, DONE]
    log: list[Any] = []
    judged: list[str] = []

    def decide(step: Any) -> list[str]:
        judged.extend(call.name for call in step.calls)
        return ["refuse" if call.name == "pay" else "act" for call in step.calls]

    address = stores.new()
    given: Any = ASK
    for _ in range(30):
        with stores.saver(address) as saver:
            graph = build(kind, make_tools(log), saver, script, decide)
            nodes = [name for name in graph.nodes if name != "__start__"]
            graph.invoke(given, THREAD, interrupt_after=nodes)
            given = None
            state = graph.get_state(THREAD)
            if not state.next:
                break
    assert sorted(log) == [("look", "a"), ("send", "c")]
    assert judged == ["look", "pay", "send"]
    assert_valid(state.values["messages"])

    with stores.saver(stores.new()) as other:
        straight = build(kind, make_tools([]), other, script, by_name(pay="refuse")).invoke(ASK, THREAD)
    assert visible(state.values["messages"]) == visible(straight["messages"])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_thread_is_resumed_on_async_savers(kind: str, async_saver: Any) -> None:
    log: list[Any] = []
    graph = build(kind, make_tools(log), async_saver, [STEP, MORE, DONE], by_name(pay="refuse"))
    given: Any = ASK
    for _ in range(30):
        await graph.ainvoke(given, THREAD, interrupt_before=["tools", "plan", "check"])
        given = None
        if not (await graph.aget_state(THREAD)).next:
            break
    state = await graph.aget_state(THREAD)
    assert sorted(log) == [("look", "a"), ("send", "c")]
    assert_valid(state.values["messages"])
    assert "mosaic" not in repr(state.values)


@pytest.mark.parametrize("kind", ["create_agent", "send"])
def test_a_sibling_of_a_failed_call_does_not_run_again(kind: str, saver: Any) -> None:
    log: list[Any] = []
    judged: list[int] = []
    failing = [True]

    def pay(x: Any) -> str:
        if failing.pop() if failing else False:
            raise ConnectionError("the bank is closed")
        log.append(("pay", x))
        return "paid"

    tools = [*make_tools(log, ["look"]), StructuredTool.from_function(pay, name="pay", description="Pays.")]

    def decide(step: Any) -> str:
        judged.append(len(step.calls))
        return "act"

    graph = build(kind, tools, saver, [STEP, DONE], decide)
    with pytest.raises(ConnectionError):
        graph.invoke(ASK, {**THREAD, "max_concurrency": 1})
    assert log == [("look", "a")]
    out = graph.invoke(None, THREAD)
    assert log == [("look", "a"), ("pay", "b")]
    assert judged == [2]
    assert_valid(out["messages"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_from_before_the_step_is_judged_again(kind: str, saver: Any) -> None:
    log: list[Any] = []
    verdicts = ["act"]
    graph = build(kind, make_tools(log), saver, [STEP, DONE], lambda step: verdicts[-1])
    graph.invoke(ASK, THREAD)
    assert len(log) == 2
    agent = "model" if kind == "create_agent" else "agent"
    before = [state for state in graph.get_state_history(THREAD) if state.next == (agent,)][-1]
    verdicts.append("refuse")
    out = graph.invoke(None, before.config)
    assert len(log) == 2
    assert [message.status for message in answers(out["messages"])] == ["error", "error"]
    assert_valid(out["messages"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_that_a_person_wrote_while_paused_stands(kind: str, saver: Any) -> None:
    log: list[Any] = []
    graph = build(kind, make_tools(log), saver, [STEP, MORE, DONE])
    graph.invoke(ASK, THREAD, interrupt_after=["tools"])
    first = answers(graph.get_state(THREAD).values["messages"])[0]
    graph.update_state(THREAD, {"messages": [said_otherwise(first)]}, as_node="tools")
    out = graph.invoke(None, THREAD)
    assert answers(out["messages"])[0].content == "somebody else's words"
    assert sorted(log) == [("look", "a"), ("pay", "b"), ("send", "c")]
    assert_valid(out["messages"])


@pytest.mark.parametrize("kind", ["create_agent", "send"])
def test_an_edit_of_a_result_without_its_node_runs_nothing_again(kind: str) -> None:
    """The unguarded graphs raise here (their routes expect an AI message), so nothing of theirs runs again either."""
    log: list[Any] = []
    graph = build(kind, make_tools(log), InMemorySaver(), [STEP, MORE, DONE])
    graph.invoke(ASK, THREAD, interrupt_after=["tools"])
    first = answers(graph.get_state(THREAD).values["messages"])[0]
    with contextlib.suppress(Exception):
        graph.update_state(THREAD, {"messages": [said_otherwise(first)]})
        graph.invoke(None, THREAD)
    assert log.count(("look", "a")) == log.count(("pay", "b")) == 1


def said_otherwise(message: ToolMessage) -> ToolMessage:
    return message.model_copy(update={"content": "somebody else's words"})
