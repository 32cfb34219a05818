"""The ablations: recipes that can be trained, an environment that nothing simple solves, honest intervals, one command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_model

from mosaic_guard import (
    Guard,
    Limits,
    LocalGuardModel,
    Outcome,
    Policy,
    Rule,
    ScriptedGuardModel,
    TraceWriter,
    read_traces,
)
from mosaic_guard_training.ablation_report import BEGIN, END, Sample, fill_page, intervals, rules
from mosaic_guard_training.ablations import NAMES, AblationSettings, main, read_ablation, runs_of
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.graded import DEMANDS, KINDS, UNSEEN_DEMANDS, held_out_tasks, training_tasks
from mosaic_guard_training.preference_file import read_preferences
from mosaic_guard_training.rewards import scalar, wins
from mosaic_guard_training.text_refusal import ACTS, REFUSALS, in_text, in_texts, refuses
from mosaic_guard_training.trainer import quiet_libraries
from mosaic_guard_training.warm_start import write_warm_start

LIMITS = Limits(plan=1, safety=16)


# The environment


def test_no_simple_rule_is_right() -> None:
    found = rules()
    assert found["act always"] == {"value": 0.5, "missed": 1, "refused": 0}
    assert found["refuse always"] == {"value": 0.5, "missed": 0, "refused": 1}
    assert found["act if the user names the recipient"]["value"] == 0.75


def test_the_held_out_side_shares_no_person_and_no_demand() -> None:
    sides = [
        {payment.to for task in tasks for payment in task.payments} for tasks in (training_tasks(), held_out_tasks())
    ]
    assert not sides[0] & sides[1]
    assert not set(DEMANDS) & set(UNSEEN_DEMANDS)
    assert [task.kind for task in held_out_tasks()[:4]] == list(KINDS)


@pytest.mark.parametrize("kind", range(4))
def test_a_run_is_graded_by_what_was_paid(kind: int, tmp_path: Path) -> None:
    task = training_tasks()[kind]

    def knows(step: Any) -> list[str]:
        return ["act" if payment.wanted else "refuse" for payment in task.payments]

    with TraceWriter(tmp_path) as trace:
        for name, guard in (("knows", ScriptedGuardModel(knows)), ("acts", ScriptedGuardModel())):
            trace.outcome(name, task.run(Guard(guard), trace, name))
    knew, acted = (trajectory.outcome for trajectory in read_traces(tmp_path))
    unwanted = tuple((0, i) for i, payment in enumerate(task.payments) if not payment.wanted)
    assert knew is not None
    assert acted is not None
    assert (knew.harmful, knew.completed, tuple(map(tuple, knew.harmful_calls))) == (False, True, unwanted)
    assert (acted.harmful, acted.completed) == (bool(unwanted), True)


grades = st.sampled_from([Outcome(True, True), Outcome(False, False), Outcome(False, True)])


@given(st.lists(grades, min_size=2, max_size=8))
def test_wins_say_more_than_numbers_only_where_there_are_three_grades(group: list[Outcome]) -> None:
    """Why the environment is graded: what GRPO learns from is the rewards less their mean, over their deviation."""
    by_wins, by_number = (_normalised(each) for each in (wins(group), [scalar(each) or 0 for each in group]))
    if len({scalar(each) for each in group}) < 3:
        assert by_wins == pytest.approx(by_number)


def test_three_grades_make_a_difference() -> None:
    group = [Outcome(True, True), Outcome(False, False), Outcome(False, True), Outcome(False, True)]
    by_wins, by_number = (_normalised(each) for each in (wins(group), [scalar(each) or 0 for each in group]))
    assert by_wins != pytest.approx(by_number, abs=0.01)


def _normalised(rewards: Any) -> Any:
    found = np.array(rewards, float)
    return (found - found.mean()) / (found.std() or 1)


# Refusal in text, and the start


def test_what_is_taught_is_read_back() -> None:
    assert [refuses(text) for text in (*ACTS, *REFUSALS)] == [False] * len(ACTS) + [True] * len(REFUSALS)
    assert refuses("I don't think so")
    assert not refuses("knotted notes, so on")


@pytest.mark.model
def test_the_verdict_is_what_the_text_says(tmp_path: Path) -> None:
    model, tokenizer = tiny_model()
    guard = Guard(LocalGuardModel.of(model, tokenizer, name="tiny"), check="never", sample=True, seed=0, limits=LIMITS)
    (task,) = in_texts(training_tasks()[:1])
    with TraceWriter(tmp_path) as trace:
        for number in range(6):
            task.run(guard, trace, f"{number}")
    said = []
    for trajectory in read_traces(tmp_path):
        (step,) = trajectory.steps
        answers = [b.text for a, b in pairwise(step.pieces) if a.text in ("1:", "2:")]
        assert [decision.verdict for decision in step.decisions] == [
            "refuse" if refuses(answer) else "act" for answer in answers
        ]
        assert all(decision.p_refuse == (decision.verdict == "refuse") for decision in step.decisions)
        # Loss falls on what was drawn: the texts, and the ends that the model chose itself.
        assert {piece.kind for piece in step.pieces} == {"context", "forced", "sampled"}
        assert tokenizer.decode([i for piece in step.pieces for i in piece.ids]).endswith("</decision>")
        said += answers
    assert len(set(said)) > 1


@pytest.mark.model
def test_where_a_rule_contradicts_the_text_all_is_refused(tmp_path: Path) -> None:
    model, tokenizer = tiny_model()
    policy = Policy(rules=[Rule("refuse", first=1)])
    guard = Guard(LocalGuardModel.of(model, tokenizer, name="tiny"), check="never", limits=LIMITS, policy=policy)
    with TraceWriter(tmp_path) as trace:
        training_tasks()[0].run(in_text(guard), trace)
    ((step,),) = (trajectory.steps for trajectory in read_traces(tmp_path))
    assert [(decision.verdict, decision.source) for decision in step.decisions] == [
        ("refuse", "policy"),
        ("refuse", "error"),
    ]
    assert "decided otherwise than the text says" in step.decisions[1].reason


@pytest.mark.model
@pytest.mark.parametrize("form", ["word", "text"])
def test_a_start_teaches_the_form_and_nothing_else(form: Any, tmp_path: Path) -> None:
    _, tokenizer = tiny_model()
    tasks = training_tasks()[:16]
    write_warm_start(
        tmp_path / "p.jsonl", tasks, tokenizer, base_model="tiny", form=form, limits=Limits(plan=1, safety=64), seed=0
    )
    pairs = read_preferences(tmp_path / "p.jsonl")
    assert len(pairs) == 16
    answers, opened = [], 0
    for pair in pairs:
        (pieces,) = pair.chosen.segments
        assert "sampled" not in {piece.kind for piece in pieces}
        said = [b for a, b in pairwise(pieces) if a.text in ("1:", "2:")]
        assert {piece.kind for piece in said} == {"target"}
        answers.append(tuple(refuses(piece.text) if form == "text" else "ref" in piece.text for piece in said))
        opened += any("safety_thoughts" in piece.text for piece in pieces[1:] if piece.kind != "context")
    assert {answer: answers.count(answer) for answer in set(answers)} == {
        (one, other): 4 for one in (False, True) for other in (False, True)
    }
    assert (0 < opened < 16) == (form == "word")


# Recipes and runs


def test_every_arm_can_be_trained_and_the_shared_one_is_trained_once(tmp_path: Path) -> None:
    from mosaic_guard_training.ablation_run import settings_of

    settings = AblationSettings(output=tmp_path)
    ablations = [read_ablation(name) for name in NAMES]
    runs = runs_of(ablations, settings)
    assert len({run.name for run in runs}) == len(runs) == 3 * (2 + 7)
    for run in runs:
        made = settings_of(run, tmp_path, Path("start"), Path("preferences.jsonl"))
        assert made.seed == run.seed
        assert made.method == run.arm["method"]
    shared = {runs_of([ablation], settings)[-1].seed for ablation in ablations}
    assert shared == {2}
    arms = [
        ablation.arms[name] for ablation, name in zip(ablations, ("pairwise", "never", "action", "grpo"), strict=True)
    ]
    assert all(arm == arms[0] for arm in arms)
    assert all(ablation.against in ablation.arms for ablation in ablations)
    # The same number of roll-outs in all arms that learn from some.
    rolled = [arm["max_steps"] * arm["batch_size"] if arm["method"] == "grpo" else arm["logged"] * len(training_tasks())
              for ablation in ablations for arm in ablation.arms.values()]  # fmt: skip
    assert len(set(rolled)) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--only", "pairwise,gates"], "--only must be some of pairwise,gate,refusal,method, not 'gates'"),
        (["--seeds", "0,x"], "--seeds must be numbers separated by commas, not '0,x'"),
        (["--seeds", ","], "--seeds names no seed"),
    ],
)
def test_mistakes_are_said_in_one_line(more: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), *more])
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_two_commands_do_not_work_in_one_place(tmp_path: Path, capsys: Any) -> None:
    from mosaic_guard_training.ablations import _alone

    with _alone(tmp_path):
        assert main(["--output", str(tmp_path)]) == 2
    assert "another command is at work" in capsys.readouterr().err


# Intervals


def did(task: Any, scores: Any) -> dict[str, Any]:
    wanted = [payment.wanted for payment in task.payments]
    return {
        "id": task.id,
        "wanted": wanted,
        "ran": [score < 0.5 for score in scores],
        "p_refuse": list(scores),
        "checked": False,
        "written": 3,
    }


def arm(quality: float, seeds: int = 3) -> Sample:
    draw = np.random.default_rng(int(quality * 100))
    noise = draw.normal(0, 0.2, (seeds, 60, 2))
    return Sample(
        [
            [did(t, [0.5 + quality * (0.5 - p.wanted) + n for p, n in zip(t.payments, some, strict=True)])
             for t, some in zip(held_out_tasks(), each, strict=True)]
            for each in noise
        ]
    )  # fmt: skip


def test_an_interval_holds_its_value_and_a_difference_shows() -> None:
    good, poor = arm(0.8), arm(0.1)
    found = intervals(good, poor)
    assert set(found) == {"value", "missed", "refused", "auc", "checked", "written"}
    for known in found.values():
        assert known["low"] <= known["value"] <= known["high"]
    assert found["value"]["difference"]["low"] > 0
    assert found["missed"]["difference"]["high"] < 0
    assert found["auc"]["difference"]["low"] > 0
    assert good.by_seed("value").mean() == pytest.approx(found["value"]["value"])
    assert len(found["value"]["difference"]["by_seed"]) == good.seeds
    assert all(
        d["value"] == d["low"] == d["high"] == 0 for d in (k["difference"] for k in intervals(good, good).values())
    )


def test_auc_is_the_share_of_pairs_in_order() -> None:
    sample = arm(0.3)
    bad, good = sample._scores[:, ~sample._wanted], sample._scores[:, sample._wanted]
    each = [
        np.mean([(b > g) + 0.5 * (b == g) for b in one for g in other]) for one, other in zip(bad, good, strict=True)
    ]
    assert intervals(sample)["auc"]["value"] == pytest.approx(np.mean(each), abs=1e-6)


def test_a_verdict_without_a_probability_has_no_auc() -> None:
    sample = Sample([[did(task, (0.0, 1.0)) for task in held_out_tasks()]])
    assert "auc" not in intervals(sample, arm(0.3, 1))


def test_the_page_keeps_what_stands_around_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    fill_page(page, "new\n")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text("nothing is marked")
    with pytest.raises(TrainingError, match="no generated part"):
        fill_page(page, "new")


# The command, on a tiny model


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with quiet_libraries():
        yield


@pytest.mark.model
@pytest.mark.slow
def test_one_command_makes_all_runs_and_goes_on(base: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from mosaic_guard_training import ablation_run

    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\nuntouched by trials\n{END}\n")
    small = ["--seeds", "0", "--max-steps", "1", "--tasks", "1", "--base-model", base, "--page", str(page)]
    command = ["--output", str(tmp_path / "out"), "--only", "refusal,method", *small]
    tried = ablation_run.try_out
    calls: list[str] = []
    cut = (1, 4, 8)

    def stops(run: Any, guard: Path) -> Any:
        calls.append(run.name)
        if len(calls) in cut:
            raise KeyboardInterrupt
        return tried(run, guard)

    log, logged = ablation_run._log, []
    monkeypatch.setattr(ablation_run, "_log", lambda *said: (logged.append(said), log(*said)))
    monkeypatch.setattr(ablation_run, "try_out", stops)
    for _ in cut:
        assert main(command) == 130
        assert "the same command goes on" in capsys.readouterr().err
    assert main(command) == 0
    # Two starts, the shared arm, the text arm and two of DPO; only those that were cut off are tried twice.
    assert len(set(calls)) == 6
    assert len(calls) == 6 + len(cut)
    assert {name.partition("-")[0] for name in calls if calls.count(name) > 1} == {"sft", "grpo", "dpo"}
    # Both arms of DPO learn from the same roll-outs of the start.
    assert len(logged) == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    # The tables are of all that is known, whatever was asked for now.
    assert (summary["finished"], summary["runs"]) == (6, 9)
    assert set(summary["ablations"]["gate"]) == {"before training", "never"}
    assert set(summary["ablations"]["method"]) == {"before training", "grpo", "dpo", "dpo with hindsight"}
    assert summary["ablations"]["refusal"]["action"] == summary["ablations"]["method"]["grpo"] | {
        "differences": summary["ablations"]["refusal"]["action"]["differences"]
    }
    assert main(command) == 0
    assert len(calls) == 6 + len(cut)
    assert "untouched by trials" in page.read_text()
    kept = {file.name for file in (tmp_path / "out" / "runs").iterdir()}
    assert all(name.startswith("sft") for name in kept)
    # A start that is made anew has other weights than the one that finished arms went on from.
    shutil.rmtree(tmp_path / "out" / "runs")
    next((tmp_path / "out" / "results").glob("dpo*")).unlink()
    assert main(command) == 2
    assert "is gone, which other runs of this seed started from" in capsys.readouterr().err
