"""The guard as a LangChain decision model, where the installed LangChain has them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from scripted_agents import Scripted, answers, assert_valid, by_name, calls, make_tools

from mosaic_guard import Guard, Policy, ScriptedGuardModel, decision_model

HAS_DECISIONS = find_spec("langchain_core.decisions") is not None
needs_decisions = pytest.mark.skipif(
    not HAS_DECISIONS, reason="the installed langchain-core has no decision models (1.8 has)"
)

STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}))


@pytest.mark.skipif(HAS_DECISIONS, reason="the installed langchain-core has decision models")
def test_without_decision_models_it_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"langchain-core>=1\.8"):
        decision_model(Guard(ScriptedGuardModel()))


def ask(guard: Guard, **state: Any) -> float:
    decisions = import_module("langchain_core.decisions")
    given = {"messages": [HumanMessage("look at a"), STEP], "tool_call": STEP.tool_calls[1], **state}
    questions = {"risky": decisions.Noul(instructions="Is it risky?")}
    model = decision_model(guard)
    assert isinstance(model, decisions.BaseDecisionModel)
    return float(model.invoke({"state": given, "questions": questions}).nouls["risky"].noul)


@needs_decisions
@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("p_refuse", [0.0, 0.1, 0.2, 0.5, 0.9, 1.0])
def test_a_half_is_the_guards_threshold(threshold: float, p_refuse: float) -> None:
    p = ask(Guard(ScriptedGuardModel(p_refuse), threshold=threshold))
    assert 0 <= p <= 1
    assert (p >= 0.5) == (p_refuse >= threshold)


@needs_decisions
def test_policy_and_failures_have_the_last_word() -> None:
    assert ask(Guard(ScriptedGuardModel(1.0), policy=Policy(allow=["pay"]))) == 0.0
    assert ask(Guard(ScriptedGuardModel(0.0), policy=Policy(refuse=["pay"]))) == 1.0
    assert ask(Guard(ScriptedGuardModel(lambda step: 1 / 0))) == 1.0


@needs_decisions
def test_the_guard_sees_the_call_the_history_and_the_tool() -> None:
    seen: list[Any] = []

    def decide(step: Any) -> str:
        seen.append(
            (len(step.messages), [call.name for call in step.calls], [t.description for t in step.tools.values()])
        )
        return "act"

    ask(Guard(ScriptedGuardModel(decide)), tool_description="Pays.")
    ask(Guard(ScriptedGuardModel(decide)), messages=[("user", "pay b")])
    assert seen == [(2, ["pay"], ["Pays."]), (2, ["pay"], [])]


@needs_decisions
@pytest.mark.parametrize("state", ["a text", {"messages": []}])
def test_a_state_without_a_call_is_an_error(state: Any) -> None:
    decisions = import_module("langchain_core.decisions")
    model = decision_model(Guard(ScriptedGuardModel()))
    with pytest.raises(ValueError, match="tool_call"):
        model.invoke({"state": state, "questions": {"q": decisions.Noul(instructions="?")}})


@needs_decisions
def test_other_questions_are_errors() -> None:
    decisions = import_module("langchain_core.decisions")
    model = decision_model(Guard(ScriptedGuardModel()))
    question = decisions.Choice(instructions="?", criteria={"a": None})
    with pytest.raises(ValueError, match="choice"):
        model.invoke({"state": {"tool_call": STEP.tool_calls[0]}, "questions": {"q": question}})


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_langchains_auto_mode_takes_it(asynchronous: bool) -> None:
    middleware = pytest.importorskip("langchain.agents.middleware")
    if not hasattr(middleware, "AutoModeMiddleware"):
        pytest.skip("the installed langchain has no AutoModeMiddleware (1.5 has)")
    from langchain.agents import create_agent
    from langchain_core.messages import AIMessage

    log: list[Any] = []
    model = decision_model(Guard(ScriptedGuardModel(by_name(pay="refuse"))))
    auto = middleware.AutoModeMiddleware(tools=["look", "pay"], classifier=model)
    agent = create_agent(Scripted(script=[STEP, AIMessage("done")]), make_tools(log), middleware=[auto])
    given: Any = {"messages": [("user", "look at a")]}
    out = await agent.ainvoke(given) if asynchronous else agent.invoke(given)
    assert log == [("look", "a")]
    assert [m.status for m in answers(out["messages"])] == ["success", "error"]
    assert_valid(out["messages"])
