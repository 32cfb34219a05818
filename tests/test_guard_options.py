"""What `Guard` and whoever takes a guard say about options that are none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from scripted_agents import Scripted, calls, make_tools

from mosaic_guard import Guard, Limits, MosaicMiddleware, ScriptedGuardModel, guard_tools, guarded_graph

MODEL = ScriptedGuardModel()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"threshold": "0.5"}, TypeError, "threshold is a number"),
        ({"threshold": True}, TypeError, "threshold is a number"),
        ({"ask_threshold": "x"}, TypeError, "ask_threshold is a number"),
        ({"timeout": "20"}, TypeError, "timeout is a number"),
        ({"policy": {"refuse": ["pay"]}}, TypeError, r"such as Policy\(refuse="),
        ({"limits": 5}, TypeError, "'calls': 32"),
        ({"limits": {"call": 1}}, ValueError, "they are step, human"),
        ({"limits": {"calls": "a"}}, TypeError, "calls is a whole number"),
        ({"limits": {"calls": 0}}, ValueError, "calls is at least 1"),
        ({"limits": Limits(plan=-1)}, ValueError, "plan is at least 1"),
    ],
)
def test_an_option_of_another_type_is_named(options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Guard(MODEL, **options)


@pytest.mark.parametrize("name", ["default", "untrained"])
def test_the_name_of_a_guard_is_no_language_model(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"write Guard\.load\('{name}'\)"):
        Guard(name)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"write Guard\.load"):
        Guard(tmp_path)
    for nowhere in (str(tmp_path / "nowhere"), tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="no directory"):
            Guard(nowhere)


@pytest.mark.parametrize("guard", ["default", MODEL, Guard])
def test_what_is_no_guard_is_said_before_anything_runs(guard: Any) -> None:
    tools = make_tools([])
    agent = create_agent(Scripted(script=[calls(("look", {"x": 1}))]), tools)
    for take in (
        lambda: guarded_graph(agent, guard=guard),
        lambda: MosaicMiddleware(guard=guard),
        lambda: guard_tools(tools, guard=guard),
    ):
        with pytest.raises(TypeError, match=r"guard is a Guard, such as Guard\(\)"):
            take()


def test_who_runs_the_agent_reads_of_a_guard_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fails(step: Any) -> Any:
        raise MemoryError("out of memory")

    script = [calls(("look", {"x": 1})), calls(("look", {"x": 2}))]
    agent = create_agent(Scripted(script=script), make_tools([]))
    with caplog.at_level(logging.WARNING, "mosaic_guard"):
        guarded_graph(agent, guard=Guard(ScriptedGuardModel(fails)), max_refusals=2).invoke({"messages": ["look"]})
    assert [record.getMessage() for record in caplog.records] == [
        "the guard failed to judge a call of look: MemoryError: out of memory"
    ] * 2


def test_many_short_calls_of_a_step_fit() -> None:
    model = ScriptedGuardModel("act")
    model.window = 8192
    log: list[Any] = []
    step = calls(*(("look", {"x": f"{number} " + "some ordinary words " * 12}) for number in range(16)))
    agent = create_agent(Scripted(script=[step, calls()]), make_tools(log))
    guarded_graph(agent, guard=Guard(model)).invoke({"messages": ["look at all"]})
    assert len(log) == 16
