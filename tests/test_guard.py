"""Guard: policy, then model, then threshold; failures refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from scripted_agents import Scripted, answers, assert_valid, by_name, calls, hand_written, make_tools

from mosaic_guard import Call, Guard, GuardWarning, Limits, Policy, ScriptedGuardModel, Step, guarded_graph
from mosaic_guard._transcript import Prompt
from mosaic_guard.models.guard_model import Checked, Decide, GuardModel, Planned


def step(*proposed: tuple[str, dict[str, Any]]) -> Step:
    message = calls(*proposed)
    made = tuple(Call(i, c["id"], c["name"], c["args"]) for i, c in enumerate(message.tool_calls))
    return Step([HumanMessage("please look at a"), message], made)


def judge(guard: Guard, asked: Step) -> Any:
    return guard.check(asked, guard.plan(asked))


def test_the_threshold_decides_and_says_where_it_overrode_the_model() -> None:
    asked = step(("look", {"x": "a"}))
    for p, threshold, verdict, source in [
        (0.4, 0.5, "act", "model"),
        (0.6, 0.5, "refuse", "model"),
        (0.4, 0.3, "refuse", "threshold"),
        (0.6, 0.7, "act", "threshold"),
    ]:
        decision = judge(Guard(ScriptedGuardModel(p), threshold=threshold), asked).decisions[0]
        assert (decision.verdict, decision.source, decision.p_refuse) == (verdict, source, p)


def test_what_a_threshold_overrode_is_not_marked_as_sampled() -> None:
    for threshold, kind in [(0.5, "sampled"), (0.7, "overridden")]:
        judged = judge(Guard(ScriptedGuardModel(0.6), threshold=threshold), step(("look", {"x": "a"}))).judged
        pieces = judged.turns[-1].pieces
        assert [p.kind for p in pieces if p.text.strip() in ("act", "refuse")] == [kind]


async def test_a_conversation_is_judged_without_a_graph() -> None:
    guard = Guard(ScriptedGuardModel(by_name(look="act", pay="refuse")))
    proposed = calls(("look", {"x": "a"}), ("pay", {"x": "4711 euros"}))
    for judgement in (guard.judge([("user", "look at a"), proposed]), await guard.ajudge(["look at a", proposed])):
        assert [decision.verdict for decision in judgement.decisions] == ["act", "refuse"]
        assert "nowhere in this thread" in judgement.decisions[1].reason
    with pytest.raises(ValueError, match="proposes no tool call"):
        guard.judge([("user", "look"), AIMessage("done")])


def test_a_policy_is_final_both_ways() -> None:
    asked = step(("look", {"x": "a"}), ("pay", {"x": 1}), ("send", {"x": 2}))
    policy = Policy(allow=["look"], refuse=["p*"])
    decisions = judge(
        Guard(ScriptedGuardModel(by_name(look="refuse", pay="act", send="refuse")), policy=policy), asked
    ).decisions
    assert [(d.verdict, d.source) for d in decisions] == [("act", "policy"), ("refuse", "policy"), ("refuse", "model")]
    assert "'p*'" in decisions[1].reason


def test_a_step_that_rules_decide_needs_no_model() -> None:
    def never(asked: Step) -> str:
        raise AssertionError("the model was asked")

    guard = Guard(ScriptedGuardModel(never), policy=Policy(allow=["look"], refuse=["pay"]))
    decisions = judge(guard, step(("look", {"x": "a"}), ("pay", {"x": 1}))).decisions
    assert [d.verdict for d in decisions] == ["act", "refuse"]


def test_a_refusal_rule_wins_over_an_allow_rule() -> None:
    guard = Guard(ScriptedGuardModel("act"), policy=Policy(allow=["*"], refuse=["pay"]))
    assert judge(guard, step(("pay", {"x": 1}))).decisions[0].verdict == "refuse"


def test_one_string_is_no_list_of_patterns() -> None:
    with pytest.raises(TypeError, match=r"allow=\['look'\]"):
        Policy(allow="look")


class Broken(GuardModel):
    """Fails in one of the ways that a model can."""

    name = "broken"

    def __init__(self, how: str) -> None:
        self.how = how

    def plan(self, prompt: Prompt) -> Planned:
        if self.how == "plan":
            raise MemoryError("no memory")
        return Planned("")

    def check(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        if self.how == "check":
            raise RuntimeError("crash")
        if self.how == "nan":
            decide(0, math.nan)
        if self.how == "range":
            decide(0, 1.5)
        if self.how == "order":
            decide(1, 0.0)
        if self.how == "more":
            for index in range(9):
                decide(index, 0.0)
        return Checked(None, ())


@pytest.mark.parametrize("how", ["plan", "check", "nan", "range", "order", "more", "silent"])
async def test_a_guard_that_fails_refuses_and_says_why(how: str) -> None:
    asked = step(("look", {"x": "a"}), ("pay", {"x": 1}))
    guard = Guard(Broken(how))
    judged = judge(guard, asked)
    ajudged = await guard.acheck(asked, await guard.aplan(asked))
    for judgement in (judged, ajudged):
        assert [(d.verdict, d.source) for d in judgement.decisions] == [("refuse", "error")] * 2
        assert "could not judge" in judgement.decisions[0].reason
        assert judgement.judged is None


def test_on_error_act_lets_through_and_warns_each_time() -> None:
    guard = Guard(Broken("check"), on_error="act")
    with pytest.warns(GuardWarning, match="lets look through"):
        decision = judge(guard, step(("look", {"x": "a"}))).decisions[0]
    assert (decision.verdict, decision.source) == ("act", "error")


def test_more_calls_than_are_judged_are_refused() -> None:
    guard = Guard(ScriptedGuardModel("act"), limits=Limits(calls=2))
    decisions = judge(guard, step(*[("look", {"x": n}) for n in range(3)])).decisions
    assert {d.verdict for d in decisions} == {"refuse"}
    assert "more than the 2" in decisions[0].reason


def test_a_failing_guard_leaves_a_valid_thread() -> None:
    log: list[Any] = []
    graph = guarded_graph(
        hand_written(Scripted(script=[calls(("look", {"x": 1}), ("pay", {"x": 2})), AIMessage("done")]), ToolNode(log)),
        guard=Guard(Broken("check")),
    )
    out = graph.invoke({"messages": [HumanMessage("go")]})
    assert log == []
    assert_valid(out["messages"])
    assert "crash" in answers(out["messages"])[0].text


def ToolNode(log: list[Any]) -> Any:
    from langgraph.prebuilt import ToolNode as Node

    return Node(make_tools(log))


def test_sampled_decisions_are_repeatable_and_vary_with_the_step() -> None:
    asked = step(("look", {"x": "a"}))

    def draw(seed: int, key: str) -> str:
        guard = Guard(ScriptedGuardModel(0.5), sample="decisions", seed=seed)
        return guard.check(asked, guard.plan(asked, key=key), key=key).decisions[0].verdict

    drawn = [draw(1, str(n)) for n in range(40)]
    assert drawn == [draw(1, str(n)) for n in range(40)]
    assert set(drawn) == {"act", "refuse"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.1}, "threshold"),
        ({"check": "sometimes"}, "check"),
        ({"on_error": "stop"}, "on_error"),
        ({"ask_threshold": 0.6}, "ask_threshold"),
        ({"sample": "text"}, "sample"),
    ],
)
def test_bad_options_are_named(options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Guard(ScriptedGuardModel(), **options)


def test_what_is_no_model_is_named() -> None:
    with pytest.raises(TypeError, match="not 3"):
        Guard(3)  # type: ignore[arg-type]


def test_a_directory_without_a_guard_says_what_to_name(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match="--output"):
        Guard.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not"):
        Guard.load(tmp_path)


def test_a_refusal_tells_where_the_values_come_from() -> None:
    reason = judge(Guard(ScriptedGuardModel("refuse")), step(("pay", {"to": "UK12"}))).decisions[0].reason
    assert "'UK12' comes from nowhere" in reason
    assert "please look at a" in reason
