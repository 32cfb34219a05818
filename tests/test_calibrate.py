"""From a trained guard to one that ships: scores on lessons, the threshold, and the release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_lessons import lessons, task

from mosaic_guard import Guard, read_traces
from mosaic_guard.models import manifest
from mosaic_guard.models.local import LocalGuardModel
from mosaic_guard.train import main as train
from mosaic_guard_training.calibrate import calibration
from mosaic_guard_training.calibrate import main as calibrate
from mosaic_guard_training.evaluation import step_scores
from mosaic_guard_training.evaluation.labelled import ScoredCall, auc, score_traces, stopped, threshold_at
from mosaic_guard_training.evaluation.step_calls import read_set
from mosaic_guard_training.evaluation.step_scores import ScoredGuard, guard_scores
from mosaic_guard_training.manifest import guard_options
from mosaic_guard_training.release import main as release
from mosaic_guard_training.replay import rejudge


def scored(harmful: bool, p_refuse: float) -> ScoredCall:
    return ScoredCall("t", 0, 0, harmful, p_refuse)


probabilities = st.floats(0, 1)
some_calls = st.lists(st.builds(scored, st.booleans(), probabilities | st.sampled_from([0.25, 0.5])), max_size=40)


@given(some_calls, st.floats(0, 0.5))
def test_the_threshold_keeps_the_rate_and_could_not_be_lower(calls: list[ScoredCall], rate: float) -> None:
    calls = [*calls, scored(False, 0.5)]
    threshold = threshold_at(calls, rate)
    refused = stopped(calls, threshold, harmful=False)
    assert sum(refused) <= rate * len(refused)
    lower = [call.p_refuse for call in calls if not call.harmful and call.p_refuse < threshold]
    if lower:
        assert sum(stopped(calls, max(lower), harmful=False)) > rate * len(refused)


def test_a_guard_that_is_sure_of_too_much_cannot_be_calibrated() -> None:
    calls = [scored(False, 1.0), scored(False, 0.5)]
    with pytest.raises(ValueError, match="--rate"):
        calibration(calls, calls, 0.1)
    assert calibration(calls, calls, 0.5)["threshold"] == 0.5001


def test_the_threshold_is_that_of_ordinary_work() -> None:
    found = calibration([scored(True, 0.6), scored(False, 0.7)], [scored(False, 0.2), scored(False, 0.4)], 0.5)
    assert found["threshold"] == pytest.approx(0.2, abs=1e-3)
    assert [found[key]["k"] for key in ("harmful_refused", "harmless_refused", "benign_refused")] == [1, 1, 1]


@given(some_calls)
def test_auc_is_the_share_of_pairs_in_order(calls: list[ScoredCall]) -> None:
    pairs = [
        (one.p_refuse > other.p_refuse) + (one.p_refuse == other.p_refuse) / 2
        for one in calls
        for other in calls
        if one.harmful and not other.harmful
    ]
    found = auc(calls)
    assert found is None if not pairs else found == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.model
def test_scores_are_what_the_guard_would_say(base: str, tmp_path: Path) -> None:
    _, found = lessons(base, tmp_path, [task()], plan="computed", check="never")
    (trajectory,) = found.values()
    model = LocalGuardModel(base)
    calls = list(score_traces([trajectory], model))
    assert [call.harmful for call in calls] == [False, True, False]
    # Up to the first refusal a guard that lets everything through stands where the lesson does.
    said = [d.p_refuse for j in rejudge(trajectory, Guard(model, plan="computed", check="never")) for d in j.decisions]
    assert [call.p_refuse for call in calls][:2] == pytest.approx(said[:2], abs=1e-3)


@pytest.mark.model
def test_a_guard_is_trained_calibrated_released_and_then_the_default(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lessons(base, tmp_path, [task(number) for number in range(3)], plan="computed", check="never", plan_tokens=9)
    traces, guard, shipped = tmp_path / "traces", tmp_path / "guard", tmp_path / "shipped"
    few = ["--epochs", "1", "--lora-rank", "2", "--min-pairs", "1", "--batch-size", "1"]
    assert train(["--method", "sft", "--traces", str(traces), "--output", str(guard), *few]) == 0
    assert release(["--guard", str(guard), "--output", str(shipped)]) == 2
    assert "calibrate first" in capsys.readouterr().err
    asked = ["--guard", str(guard), "--traces", str(traces), "--rate", "0.34"]
    assert calibrate(asked) == 0
    assert release(["--guard", str(guard), "--output", str(shipped)]) == 0
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text("")
    assert release(["--guard", str(guard), "--output", str(tmp_path / "package")]) == 2
    assert "holds more than a guard (module.py)" in capsys.readouterr().err
    record = json.loads((shipped / "manifest.json").read_text())
    assert record["calibration"]["harmless_refused"]["n"] == 6
    (tmp_path / "ordinary").mkdir()
    lessons(base, tmp_path / "ordinary", [task(9)], plan="computed", check="never", plan_tokens=9)
    scored, score = list[str](), step_scores.score_traces
    with monkeypatch.context() as patch:
        patch.setattr(
            step_scores, "score_traces", lambda them, model: scored.extend(t.id for t in them) or score(them, model)
        )
        assert calibrate([*asked, "--benign", str(tmp_path / "ordinary" / "traces")]) == 0
    again = json.loads((guard / "manifest.json").read_text())["calibration"]
    assert (again["harmless_refused"]["n"], again["benign_refused"]["n"]) == (6, 2)
    assert again["data"] == record["calibration"]["data"] != again["benign"]
    assert scored == ["test/9"]  # the others' scores were kept
    assert record["guard_options"]["plan"] == "computed"
    monkeypatch.setattr(manifest, "SHIPPED", shipped)
    default = Guard()
    assert (default.check_mode, default.plan_mode, default.limits.plan) == ("never", "computed", 9)
    assert default.threshold == record["calibration"]["threshold"]
    assert default.describe()["adapter"] == record["adapter_sha256"][:12]
    assert Guard(threshold=0.7, check="always").threshold == 0.7
    assert default.evidence_model is None


@pytest.mark.model
def test_an_evidence_model_is_fitted_beside_the_threshold_and_goes_where_the_guard_goes(
    base: str, tmp_path: Path, capsys: Any
) -> None:
    lessons(base, tmp_path, [task(number) for number in range(4)], plan="computed", check="never", plan_tokens=9)
    traces, guard, shipped = tmp_path / "traces", tmp_path / "guard", tmp_path / "shipped"
    # Until its word is worth something.
    much = ["--epochs", "12", "--lora-rank", "8", "--min-pairs", "1", "--batch-size", "1", "--learning-rate", "2e-2"]
    assert train(["--method", "sft", "--traces", str(traces), "--output", str(guard), *much]) == 0
    asked = ["--guard", str(guard), "--traces", str(traces), "--rate", "0.34"]
    assert calibrate([*asked, "--learn", str(traces)]) == 0
    assert release(["--guard", str(guard), "--output", str(shipped)]) == 0
    loaded = Guard.load(shipped)
    assert loaded.evidence_model is not None
    record = json.loads((shipped / "manifest.json").read_text())
    assert record["guard_options"]["evidence_model"] == loaded.evidence_model.to_text()
    assert record["calibration"]["learnt"] == record["calibration"]["data"]

    # Scores of lessons are what the guard would say, weighed.
    found = ScoredGuard.find(str(shipped))
    known = guard_scores(found, read_set(traces, "traces"), tmp_path / "scores")
    trajectory = read_traces(traces)[0]
    said = [d.p_refuse for j in rejudge(trajectory, loaded) for d in j.decisions]
    assert [p for key, p in known.items() if key[0] == trajectory.id][:2] == pytest.approx(said[:2], abs=2e-3)

    # It stays with the guard that learns from what this one logs, and goes where it is not asked for.
    assert (
        guard_options([told := loaded.describe()], told["adapter"])["evidence_model"] == loaded.evidence_model.to_text()
    )
    assert calibrate(asked) == 0
    assert Guard.load(guard).evidence_model is None


@pytest.mark.model
def test_what_cannot_be_calibrated_or_released_is_one_sentence(tmp_path: Path, capsys: Any) -> None:
    assert calibrate(["--guard", str(tmp_path), "--traces", str(tmp_path)]) == 2
    assert release(["--guard", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("error: no guard") for line in said)
