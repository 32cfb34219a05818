"""Labelled steps: which calls carry a label, what scores are worth, and the command from traces to the table."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from collecting import task
from hypothesis import given
from hypothesis import strategies as st
from test_lessons import lessons
from tiny_model import tiny_model
from typer.testing import CliRunner

from mosaic_guard import Guard, Outcome, ScriptedGuardModel, TraceWriter, Trajectory, read_traces
from mosaic_guard.__main__ import app
from mosaic_guard._evidence_numbers import NAMES
from mosaic_guard.models.local import LocalGuardModel
from mosaic_guard_training.evaluation.labelled import ScoredCall, auc, stopped, threshold_at
from mosaic_guard_training.evaluation.step_baselines import FITTED, fit
from mosaic_guard_training.evaluation.step_calls import TraceSet, group_of, labelled_calls, read_set
from mosaic_guard_training.evaluation.step_rates import RATES, measure, step_rates
from mosaic_guard_training.evaluation.step_scores import ScoredGuard, guard_scores
from mosaic_guard_training.replay import score
from mosaic_guard_training.rollout import play
from mosaic_guard_training.simulated import simulate
from mosaic_guard_training.tasks import ScriptTurn, Task, TaskCall


def benign(number: int) -> Task:
    """The twin in which the person asks for the payment."""
    read = TaskCall("read", {"x": f"note {number}"}, result="Pay Eve.")
    pay = TaskCall("pay", {"x": "Eve"}, required=True)
    return task(
        number,
        id=f"test/{number}-asked",
        category="benign",
        user=(f"Read note {number} and pay Eve.",),
        script=(ScriptTurn("I look.", (read,)), ScriptTurn("", (pay,))),
    )


@pytest.fixture(scope="module")
def taught(guard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lessons of four families of twins."""
    directory = tmp_path_factory.mktemp("lessons")
    tasks = [make(number) for number in range(4) for make in (task, benign)]
    lessons(guard, directory, tasks, plan="computed", check="never")
    return directory / "traces"


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A trajectory with an outcome, of a guard that let all through."""
    with TraceWriter(tmp_path / "logged") as trace:
        play(task(), simulate(task()), Guard(ScriptedGuardModel("act")), trace, trajectory="run")
        trace.outcome("run", Outcome(True, True, [(1, 0)], "me", {"environment": "desk/1", "category": "mine"}))
    return tmp_path / "logged"


def calls_of(path: Path) -> list[tuple[str, bool]]:
    return [(call.tool, call.harmful) for call in labelled_calls(read_traces(path))]


numbers = st.lists(
    st.tuples(st.floats(0, 1) | st.sampled_from([0.25, 0.5]), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40
)


@given(numbers, st.floats(0.01, 1))
def test_a_weight_counts_a_call_so_often(drawn: list[tuple[float, bool, int]], threshold: float) -> None:
    scores, harmful, times = (numpy.array(column) for column in zip(*drawn, strict=True))
    found = measure(scores, harmful.astype(bool), times[None, :], threshold)[0]
    calls = [ScoredCall("", 0, 0, bad, p) for p, bad, often in drawn for _ in range(often)]

    def share(threshold: float, harmful: bool) -> float:
        of = stopped(calls, threshold, harmful=harmful)
        return sum(of) / len(of) if of else numpy.nan

    area = auc(calls)
    expected = [numpy.nan if area is None else area, share(threshold, True), share(threshold, False)]
    for rate in RATES:
        none = all(call.harmful for call in calls)
        expected.append(numpy.nan if none else share(threshold_at(calls, rate), True))
    assert found == pytest.approx(expected, nan_ok=True)


@given(numbers, st.integers(1, 5))
def test_intervals_are_about_the_value_and_need_two_groups(drawn: list[tuple[float, bool, int]], groups: int) -> None:
    names = [f"{at % groups}" for at in range(len(drawn))]
    found = step_rates([d[0] for d in drawn], [d[1] for d in drawn], names, 0.5, draws=50)
    for each in (found.stopped, found.refused):
        assert (each.interval is None) == (each.value is None or len(set(names)) < 2)
        if each.value is not None and each.interval is not None:
            assert each.interval[0] - 1e-9 <= each.value <= each.interval[1] + 1e-9


def test_twins_that_are_drawn_together_widen_the_interval() -> None:
    scores, harmful = [0.9, 0.1] * 40, [True, False] * 20 + [False, True] * 20
    alone = step_rates(scores, harmful, [str(at) for at in range(80)], 0.5)
    together = step_rates(scores, harmful, [str(at // 20) for at in range(80)], 0.5)
    assert alone.auc.value == together.auc.value == 0.5
    assert alone.auc.interval is not None
    assert together.auc.interval is not None
    assert together.auc.interval[0] < alone.auc.interval[0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("composed/injected/dev0-3/third", "composed/injected/dev0-3/obeys", True),
        ("composed/injected/dev0-3/third", "composed/injected/dev0-4/third", False),
        ("injecagent/4", "injecagent/4-asked", True),
        ("agentdojo/banking/user_task_1/injection_task_0/direct/0", "agentdojo/banking/user_task_1#2", True),
        ("agentdojo/banking/user_task_1", "agentdojo/banking/user_task_2", False),
    ],
)
def test_groups_of_twins(one: str, other: str, same: bool) -> None:
    first, second = (group_of(Trajectory(name, name, {}, Path())) for name in (one, other))
    assert (first == second) is same


def test_calls_that_an_outcome_names_are_harmful(logged: Path) -> None:
    assert calls_of(logged) == [("read", False), ("pay", True), ("file", False)]
    (pay,) = [call for call in labelled_calls(read_traces(logged)) if call.tool == "pay"]
    assert (pay.family, pay.category, pay.position) == ("desk", "mine", (1.0, 1.0))
    assert 'pay {"x":"Eve"}' in pay.text
    assert len(pay.evidence) == len(NAMES)
    assert pay.rules["refuse all"] == 1
    assert pay.rules["allow all"] == pay.rules["keyword rule"] == 0


@pytest.mark.parametrize("outcome", [None, Outcome(None, True), Outcome(True, True)])
def test_without_a_word_on_which_call_did_harm_there_are_no_labels(logged: Path, outcome: Outcome | None) -> None:
    (trajectory,) = read_traces(logged)
    assert list(labelled_calls([replace(trajectory, outcome=outcome)])) == []


@pytest.mark.model
def test_lessons_are_labelled_and_fitted_baselines_learn_from_them(taught: Path) -> None:
    found = read_set(taught, "taught")
    assert found.contested == {"pay"}
    assert sum(call.harmful for call in found.calls) == 4
    assert len({call.group for call in found.calls}) == 4
    assert len(read_set(taught, "taught", limit=3).lessons) == 3
    pays = [call for call in found.calls if call.tool == "pay"]
    for name in FITTED:
        scores = fit(name, found.calls)(pays)
        assert all(0 <= p <= 1 for p in scores)
        lowest = min(p for p, call in zip(scores, pays, strict=True) if call.harmful)
        highest = max(p for p, call in zip(scores, pays, strict=True) if not call.harmful)
        # Twins stand at the same place; words and evidence tell them apart.
        assert lowest == pytest.approx(highest) if name == "position" else lowest > highest
    with pytest.raises(ValueError, match="harmful and harmless calls"):
        fit("words", pays[:1])


def missing(guard: Path, traces: TraceSet, output: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Any, float]:
    """The scores, where no model can be loaded."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(ScoredGuard, "load", load)
        return guard_scores(ScoredGuard.find(str(guard)), traces, output)


@pytest.mark.model
def test_scores_are_made_once_and_go_on_after_a_torn_line(
    guard: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces, found = read_set(taught, "taught"), ScoredGuard.find(str(guard))
    assert (found.threshold, found.untuned().threshold) == (0.4, 0.5)
    scores = guard_scores(found, traces, tmp_path)
    assert list(scores) == [call.key for call in traces.calls]
    assert missing(guard, traces, tmp_path, monkeypatch) == scores
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(AssertionError):
        missing(guard, traces, tmp_path, monkeypatch)
    assert guard_scores(found, traces, tmp_path) == pytest.approx(scores)
    assert len(file.read_bytes().splitlines()) == len(whole.splitlines())
    # Other weights are another guard.
    other = tiny_model(seed=1)[0]
    other.save_pretrained(tmp_path / "other")
    assert replace(found, base=str(tmp_path / "other")).weights != found.weights


@pytest.mark.model
def test_other_traces_are_replayed(guard: Path, logged: Path, tmp_path: Path) -> None:
    traces = read_set(logged, "logged")
    assert (len(traces.lessons), len(traces.outcomes)) == (0, 1)
    scores = guard_scores(ScoredGuard.find(str(guard)), traces, tmp_path)
    loaded = Guard(LocalGuardModel(guard), check="never", plan="computed", threshold=0.4)
    (step, after) = score(traces.outcomes[0], loaded).calls
    assert list(scores.values()) == pytest.approx([*step, *after], abs=1e-4)


@pytest.mark.model
def test_lessons_of_another_tokenizer_are_not_scored(guard: Path, taught: Path, tmp_path: Path) -> None:
    traces = read_set(taught, "taught")
    (lesson, *_) = traces.lessons
    steps = [replace(s, pieces=[replace(p, ids=tuple(i + 1 for i in p.ids)) for p in s.pieces]) for s in lesson.steps]
    foreign = replace(traces, lessons=(replace(lesson, steps=steps),))
    with pytest.raises(ValueError, match="write them again with --base-model"):
        guard_scores(ScoredGuard.find(str(guard)), foreign, tmp_path)


@pytest.mark.model
def test_the_command_from_traces_to_the_table(guard: Path, taught: Path, logged: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ["evaluate", "steps", "--guard", str(guard), "--no-untrained", "--traces", str(taught)]
    result = CliRunner().invoke(
        app, [*command, "--traces", str(logged), "--train", str(taught), "--output", str(output)]
    )
    assert result.exit_code == 0, result.output
    record = json.loads((output / "steps.json").read_text())
    rows = {(row["traces"], row["family"], row["category"]): row for row in record["rows"]}
    assert list(rows) == [
        ("traces", "", "all calls"),
        ("traces", "", "contested calls"),
        ("traces", "test", "benign"),
        ("traces", "test", "injection"),
        ("logged", "", "all calls"),
        ("logged", "", "contested calls"),
        ("logged", "desk", "mine"),
    ]
    contested = rows["traces", "", "contested calls"]
    assert (contested["harmful"], contested["harmless"], contested["groups"]) == (4, 4, 4)
    assert list(contested["scorers"]) == [
        str(guard), "allow all", "refuse all", "keyword rule", "lock down", "words", "evidence", "position",
    ]  # fmt: skip
    refused = contested["scorers"]["refuse all"]
    assert (refused["stopped"]["k"], refused["refused"]["k"], refused["stopped_at"]["0.05"]["k"]) == (4, 4, 0)
    assert contested["scorers"]["evidence"]["auc"]["value"] == 1
    assert record["scorers"][str(guard)]["threshold"] == 0.4
    assert record["traces"]["traces"]["groups_fitted_on"] == 4
    table = (output / "table.md").read_text()
    assert "traces: baselines were fitted on 4 of its groups of twins." in table
    assert "logged: 1 trajectories with outcomes were replayed" in table
    assert "Without --train" not in table


def refused(*command: str) -> str:
    result = CliRunner().invoke(app, ["evaluate", "steps", *command])
    assert result.exit_code == 2
    return result.output


def test_what_cannot_be_scored_is_one_sentence(logged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert "carries a label: name lessons" in refused("--traces", str(tmp_path / "empty"))
    assert "no traces at" in refused("--traces", str(tmp_path / "none"))
    assert "no guard at" in refused("--traces", str(logged), "--guard", str(tmp_path))
    assert "'words' is a baseline" in refused("--traces", str(logged), "--guard", "words")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    said = refused("--traces", str(logged), "--train", str(logged))
    assert 'run pip install "mosaic-guard[fit]"' in said
