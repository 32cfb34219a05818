"""Replay: the steps of a logged trajectory again, under the same guard and under another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.prebuilt import ToolNode
from scripted_agents import Scripted, by_name, calls, hand_written, make_tools
from tiny_model import tiny_model

from mosaic_guard import Guard, ScriptedGuardModel, Trajectory, guarded_graph, read_traces
from mosaic_guard.models.local import LocalGuardModel
from mosaic_guard_training.replay import as_tool, rejudge, score, scores, steps_as_judged

SCRIPT = [calls(("look", {"x": "a"}), ("pay", {"x": "b"})), calls(("send", {"x": 1})), AIMessage("done")]


def logged(directory: Path, guard: Guard) -> Trajectory:
    graph = guarded_graph(hand_written(Scripted(script=SCRIPT), ToolNode(make_tools([]))), guard=guard, trace=directory)
    graph.invoke({"messages": [HumanMessage("look at a")]}, {"metadata": {"mosaic_trajectory": "x"}})
    (found,) = read_traces(directory)
    return found


def test_another_guard_decides_about_the_same_steps(tmp_path: Path) -> None:
    trajectory = logged(tmp_path, Guard(ScriptedGuardModel()))
    again = rejudge(trajectory, Guard(ScriptedGuardModel(by_name(pay="refuse", send=0.3))))
    assert [[d.verdict for d in judgement.decisions] for judgement in again] == [["act", "refuse"], ["act"]]
    found = score(trajectory, Guard(ScriptedGuardModel(by_name(pay=0.7, send=0.3))))
    assert found.calls == ((0.0, 0.7), (0.3,))
    assert found.highest == 0.7
    assert (found.trajectory, found.failures) == ("x", 0)


def test_a_step_is_judged_with_its_own_messages_and_tools(tmp_path: Path) -> None:
    trajectory = logged(tmp_path, Guard(ScriptedGuardModel()))
    steps = [step for _, step in steps_as_judged(trajectory)]
    assert [len(step.messages) for step in steps] == [2, 5]
    assert isinstance(steps[0].messages[-1], AIMessage)
    assert [[call.name for call in step.calls] for step in steps] == [["look", "pay"], ["send"]]
    assert [call.digest for call in steps[0].calls] == [call["digest"] for call in trajectory.steps[0].calls]
    known = {tool.name: tool for tool in make_tools([])}
    assert set(steps[0].tools) == set(known)
    assert steps[0].tools["pay"].description == known["pay"].description
    with pytest.raises(NotImplementedError, match="from a trace only"):
        steps[0].tools["pay"].invoke({"x": "b"})


def test_a_guard_that_fails_is_counted_and_has_no_score(tmp_path: Path) -> None:
    def broken(step: Any) -> Any:
        raise RuntimeError("no")

    trajectory = logged(tmp_path, Guard(ScriptedGuardModel()))
    (found,) = scores([trajectory], Guard(ScriptedGuardModel(broken)))
    assert found.highest is None
    assert found.failures == 3


def test_a_tool_without_parameters_can_be_described() -> None:
    assert as_tool({"name": "look"}).name == "look"


@pytest.mark.model
def test_the_same_local_guard_reads_and_writes_the_same_tokens_again(tmp_path: Path) -> None:
    model, tokenizer = tiny_model()
    trajectory = logged(tmp_path, Guard(LocalGuardModel.of(model, tokenizer, name="tiny"), threshold=1.0))
    local = LocalGuardModel.of(model, tokenizer, name="tiny")
    again = rejudge(trajectory, Guard(local, threshold=1.0))
    for step, judgement in zip(trajectory.steps, again, strict=True):
        assert judgement.judged is not None
        pieces = [piece for turn in judgement.judged.turns for piece in turn.pieces]
        assert [(p.kind, p.text, p.ids) for p in pieces] == [(p.kind, p.text, p.ids) for p in step.pieces]
        assert [d.p_refuse for d in judgement.decisions] == pytest.approx(
            [d.p_refuse for d in step.decisions], abs=1e-5
        )
        assert judgement.judged.segment == step.segment
