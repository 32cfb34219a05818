"""A call that the guard has judged and refused stays refused until a person speaks; failures and other calls do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from scripted_agents import Scripted, answers, assert_valid, calls, make_tools

from mosaic_guard import Guard, MosaicMiddleware, ScriptedGuardModel, conversation, guard_tools, guarded_graph
from mosaic_guard._evidence import JUDGED, REFUSAL_MARK, REFUSED
from mosaic_guard._refusals import call_subject, standing_refusals

PAY, DONE = calls(("pay", {"x": 5})), AIMessage("done")
THREAD: Any = {"configurable": {"thread_id": "1"}}


def build(way: str, log: list[Any], script: list[AIMessage], answers_in_turn: list[Any], **options: Any) -> Any:
    """An agent whose guard model gives some answers, one for each step that it is asked about."""
    turn: Iterator[Any] = iter(answers_in_turn)

    def decide(step: Any) -> Any:
        answer = next(turn)
        if isinstance(answer, Exception):
            raise answer
        return answer

    guard, saver = Guard(ScriptedGuardModel(decide)), InMemorySaver()
    model, tools = Scripted(script=script), make_tools(log)
    if way == "middleware":
        middleware = MosaicMiddleware(guard=guard, **options)
        return create_agent(model, tools, middleware=[middleware], checkpointer=saver)
    return guarded_graph(create_agent(model, tools, checkpointer=saver), guard=guard, **options)


def ask(graph: Any, words: str) -> list[Any]:
    messages: list[Any] = graph.invoke({"messages": [HumanMessage(words)]}, THREAD)["messages"]
    assert_valid(messages)
    return messages


WAYS = pytest.mark.parametrize("way", ["graph", "middleware"])


@WAYS
def test_what_was_refused_stays_refused_however_often_it_is_proposed(way: str) -> None:
    log: list[Any] = []
    graph = build(way, log, [PAY, calls(("pay", {"x": 5}), ids=["other"]), DONE], [0.9, 0.1])
    messages = ask(graph, "look at a")
    assert log == []
    assert [m.status for m in answers(messages)] == ["error", "error"]
    assert "refused before, and nobody has asked for it since" in answers(messages)[1].text


@WAYS
def test_a_person_who_speaks_has_it_judged_anew(way: str) -> None:
    log: list[Any] = []
    graph = build(way, log, [PAY, DONE, PAY, DONE], [0.9, 0.1])
    ask(graph, "look at a")
    ask(graph, "yes, pay the 5")
    assert log == [("pay", 5)]


@WAYS
def test_other_arguments_are_another_call(way: str) -> None:
    log: list[Any] = []
    ask(build(way, log, [PAY, calls(("pay", {"x": 6})), DONE], [0.9, 0.1]), "pay 6")
    assert log == [("pay", 6)]


@WAYS
def test_a_failure_is_no_judgement_of_the_call(way: str) -> None:
    log: list[Any] = []
    ask(build(way, log, [PAY, PAY, DONE], [RuntimeError("no memory left"), 0.1]), "pay 5")
    assert log == [("pay", 5)]


def test_a_call_that_did_not_run_beside_a_refused_one_is_not_refused_itself() -> None:
    log: list[Any] = []
    script = [calls(("look", {"x": 1}), ("pay", {"x": 5})), calls(("look", {"x": 1})), DONE]
    graph = build("graph", log, script, [[0.1, 0.9], 0.1], on_refuse="end")
    ask(graph, "look at 1")
    ask(graph, "go on")
    assert log == [("look", 1)]


def test_a_guard_that_samples_is_asked_each_time() -> None:
    asked: list[Any] = []

    def decide(step: Any) -> float:
        asked.append(step)
        return float(len(asked) == 1)

    log: list[Any] = []
    guard = Guard(ScriptedGuardModel(decide), sample="decisions")
    agent = create_agent(Scripted(script=[PAY, PAY, DONE]), make_tools(log))
    guarded_graph(agent, guard=guard).invoke({"messages": [HumanMessage("pay 5")]})
    assert log == [("pay", 5)]


proposals = st.lists(st.tuples(st.sampled_from(["pay", "look"]), st.integers(0, 2)), max_size=6)


@given(proposals, st.integers(0, 6))
def test_only_the_guards_own_judgements_since_the_last_words_stand(made: list[tuple[str, int]], spoke: int) -> None:
    messages: list[Any] = [HumanMessage("go")]
    expected: set[str] = set()
    for at, (name, x) in enumerate(made):
        if at == spoke:
            messages.append(HumanMessage("and now?"))
            expected.clear()
        mark = (JUDGED, REFUSED, None)[x]
        marked = {} if mark is None else {"additional_kwargs": {REFUSAL_MARK: mark}}
        messages += [calls((name, {"x": x})), ToolMessage("no", tool_call_id="call_0", **marked)]
        if mark == JUDGED:
            expected.add(call_subject(name, {"x": x}))
    messages.append(calls(("look", {"x": 9})))
    assert standing_refusals(messages) == expected


def test_guarded_tools_answer_so_that_it_stands() -> None:
    log: list[Any] = []
    turn = iter([0.9, 0.1])
    tools = guard_tools(make_tools(log), guard=Guard(ScriptedGuardModel(lambda _: next(turn))))
    pay = next(each for each in tools if each.name == "pay")
    history: list[Any] = [HumanMessage("look at a")]
    for name in ("one", "two"):
        proposed = calls(("pay", {"x": 5}), ids=[name])
        with conversation([*history, proposed]):
            history += [proposed, pay.invoke(proposed.tool_calls[0])]
    assert log == []
