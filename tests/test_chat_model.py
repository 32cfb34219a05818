"""ChatGuardModel: any LangChain chat model, its answer parsed, its tokens kept out of the user's streams."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from scripted_agents import Scripted, answers, assert_valid, calls, make_tools

from mosaic_guard import Call, ChatGuardModel, Guard, Step, guarded_graph

STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}))
GOOD = "<think>\nthe user wants a\n</think>\n<decision>\n1: act\n2: refuse\n</decision>"


def guarded(answer: Any, log: list[Any], **options: Any) -> Any:
    chat = GenericFakeChatModel(messages=iter([answer] * 4))
    agent = create_agent(Scripted(script=[STEP, AIMessage("done")]), make_tools(log))
    return guarded_graph(agent, guard=Guard(chat, **options))


async def test_the_answer_decides() -> None:
    for run_async in (False, True):
        log: list[Any] = []
        graph = guarded(AIMessage(GOOD), log)
        out = (
            await graph.ainvoke({"messages": [HumanMessage("a")]})
            if run_async
            else graph.invoke({"messages": [HumanMessage("a")]})
        )
        assert log == [("look", "a")]
        assert_valid(out["messages"])


@pytest.mark.parametrize(
    "answer", ["act", "", "<think>a</think><decision>1: act</decision>", GOOD + "2: act", "I will act"]
)
def test_an_answer_outside_the_grammar_refuses(answer: str) -> None:
    log: list[Any] = []
    out = guarded(AIMessage(answer), log).invoke({"messages": [HumanMessage("a")]})
    assert log == []
    assert "GrammarError" in answers(out["messages"])[0].text


def test_a_chat_model_is_told_the_form_even_where_plans_could_be_computed() -> None:
    guard = Guard(ChatGuardModel(GenericFakeChatModel(messages=iter([]))), plan="computed", check="never")
    asked = Step([HumanMessage("hi"), calls(("look", {"x": "a"}))], (Call(0, "1", "look", {"x": "a"}),))
    assert "<think>" in guard._prompt(asked, (), "").new[0][1]
    assert guard.describe()["plan"] == "written"


def test_text_before_the_turn_is_left_out() -> None:
    log: list[Any] = []
    guarded(AIMessage("Sure!\n" + GOOD), log).invoke({"messages": [HumanMessage("a")]})
    assert log == [("look", "a")]


def test_probabilities_are_read_from_logprobs() -> None:
    tokens = [
        ("<decision>", 0.0),
        ("\n", 0.0),
        ("1", 0.0),
        (":", 0.0),
        (" act", -0.5),
        ("\n2:", 0.0),
        (" refuse", -0.1),
    ]
    answer = AIMessage(
        GOOD, response_metadata={"logprobs": {"content": [{"token": t, "logprob": p} for t, p in tokens]}}
    )
    log: list[Any] = []
    graph = guarded(answer, log, threshold=0.3)
    graph.invoke({"messages": [HumanMessage("a")]})
    assert log == [], "P(refuse) of the first call is 1 - exp(-0.5) = 0.39"


@pytest.mark.parametrize("mode", ["messages", "updates", "values", "custom", "debug"])
async def test_no_guard_token_reaches_the_users_streams(mode: Any) -> None:
    graph = guarded(AIMessage(GOOD), [])
    chunks = list(graph.stream({"messages": [HumanMessage("a")]}, stream_mode=mode))
    chunks += [c async for c in graph.astream({"messages": [HumanMessage("a")]}, stream_mode=mode)]
    assert "the user wants a" not in repr(chunks)


async def test_no_guard_token_reaches_astream_events() -> None:
    graph = guarded(AIMessage(GOOD), [])
    events = [event async for event in graph.astream_events({"messages": [HumanMessage("a")]}, version="v2")]
    assert not [e for e in events if "the user wants a" in repr(e) or "__mosaic_guard__" in repr(e)]


def test_the_model_is_named_in_traces() -> None:
    chat = GenericFakeChatModel(messages=iter([]))
    assert ChatGuardModel(chat).describe()["model"] == "GenericFakeChatModel"
    assert ChatGuardModel(chat, name="judge").name == "judge"
