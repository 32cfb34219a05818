"""GRPO on roll-outs of a guarded graph: the rewards, where loss falls, groups, and how a run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training_methods import environment, kill_after
from tiny_model import tiny_model
from training_traces import step

from mosaic_guard import Guard, Limits, Outcome, read_traces
from mosaic_guard._decision import Decision
from mosaic_guard._transcript import Piece
from mosaic_guard.train import main
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.grpo import Roller, _unique, load_tasks, rewards
from mosaic_guard_training.outputs import read_losses
from mosaic_guard_training.rewards import ended, excess, scalar, wins
from mosaic_guard_training.settings import TrainSettings
from mosaic_guard_training.toy import SEEN, UNSEEN, held_out_tasks, log_traces, score, toy_tasks, training_tasks
from mosaic_guard_training.trainer import quiet_libraries

ROOT = Path(__file__).parent.parent
ENVIRONMENT = "mosaic_guard_training.toy:training_tasks"
outcomes = st.builds(Outcome, st.sampled_from([True, False, None]), st.sampled_from([True, False, None]))


# Rewards


@given(st.lists(outcomes, min_size=2, max_size=6))
def test_wins_are_shared_out(group: list[Outcome]) -> None:
    found = wins(group)
    assert sum(found) == len(group) * (len(group) - 1) / 2
    assert all(0 <= each <= len(group) - 1 for each in found)


def test_the_better_outcome_wins() -> None:
    done, not_done, harm = Outcome(False, True), Outcome(False, False), Outcome(True, True)
    assert wins([harm, done, not_done, done]) == [0, 2.5, 1, 2.5]
    assert wins([done, Outcome(None, None)]) == [0.5, 0.5]
    assert [scalar(each) for each in (done, not_done, harm, Outcome(False, None), Outcome())] == [1, 0.5, 0, 0.5, None]


def test_a_text_is_ended_or_cut() -> None:
    def turn(end: str) -> Any:
        pieces = [Piece("forced", "<think>\n", (2,)), Piece("sampled", "so", (3,)), Piece(end, "\n", (4,))]  # type: ignore[arg-type]
        from dataclasses import replace

        return replace(step(0, [("act", "sampled")]), pieces=pieces)

    assert ended([turn("sampled"), turn("forced")]) == 0.5
    from dataclasses import replace

    failed = replace(step(0, [], judged=False), decisions=[Decision(0, "refuse", source="error")])
    assert ended([turn("sampled"), failed]) == 0.5
    assert ended([]) == 1
    assert [excess(tokens, 400) for tokens in (0, 400, 600)] == [0, 0, 0.5]


def settings(**more: Any) -> TrainSettings:
    small = {"batch_size": 4, "rollouts": 2, "sample": "decisions", "plan_tokens": 1, "check": "never"}
    return TrainSettings(**{"method": "grpo", "environment": ENVIRONMENT, "output": Path("o"), **small, **more})


def test_each_reward_has_its_switch() -> None:
    def names(**more: Any) -> list[tuple[str, float]]:
        return [(function.__name__, weight) for function, weight in rewards(settings(**more))]

    assert names() == [("preference", 1), ("format", 1), ("length", 1)]
    assert names(format_weight=0.0, length_weight=2.0) == [("preference", 1), ("length", 2)]
    with pytest.raises(ValueError, match="every reward is switched off"):
        settings(preference_weight=0.0, format_weight=0.0, length_weight=0.0)
    with pytest.raises(ValueError, match="--rollouts 3 does not divide --batch-size 4"):
        settings(rollouts=3)


def test_tied_groups_are_counted_and_split_groups_refused() -> None:
    (preference, _), *_ = rewards(settings())
    logged: dict[str, float] = {}
    done, harm = Outcome(False, True), Outcome(True, True)
    found = preference(prompts=["a", "a", "b", "b"], outcome=[done, harm, done, done], log_metric=logged.__setitem__)
    assert found == [1, 0, 0.5, 0.5]
    assert logged == {"tied_groups": 0.5, "outcome": 0.75}
    with pytest.raises(ValueError, match="spans two processes"):
        preference(prompts=["a", "b", "b", "a"], outcome=[done] * 4, log_metric=logged.__setitem__)


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere:tasks", "No module named 'nowhere'"), ("json:nothing", "no attribute"), ("json:dumps", "missing")],
)
def test_an_environment_that_is_none(name: str, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        load_tasks(name)


# The toy environment


def test_the_toy_has_a_best_policy(tmp_path: Path) -> None:
    from mosaic_guard import Policy, ScriptedGuardModel

    assert not set(SEEN) & set(UNSEEN)
    assert len({task.id for task in training_tasks()}) == 64

    def knows(step: Any) -> list[str]:
        (call,) = step.calls
        return ["act" if call.args["to"] in str(step.messages[0].content) else "refuse"]

    assert score(Guard(ScriptedGuardModel(knows)), held_out_tasks()) == (1, 1)
    assert score(Guard(ScriptedGuardModel(), policy=Policy()), held_out_tasks()) == (1, 0)
    log_traces(tmp_path, Guard(ScriptedGuardModel(knows)), toy_tasks(1))
    assert [(t.outcome.harmful, t.outcome.completed) for t in read_traces(tmp_path) if t.outcome] == [(False, True)] * 2


# Roll-outs and training, on a tiny model


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with quiet_libraries():
        yield


def options(base: str, output: Path, *more: str) -> list[str]:
    few = ["--max-steps", "2", "--batch-size", "8", "--micro-batch", "4", "--rollouts", "4", "--lora-rank", "2"]
    drawn = ["--sample", "decisions", "--plan-tokens", "1", "--check", "never", "--learning-rate", "0.01"]
    where = ["--environment", ENVIRONMENT, "--base-model", base, "--output", str(output)]
    return ["--method", "grpo", *where, *few, *drawn, "--format-weight", "0", "--length-weight", "0", *more]


@pytest.mark.model
@pytest.mark.parametrize("sample", ["decisions", "all"])
def test_loss_falls_on_what_was_drawn(sample: Any) -> None:
    model, tokenizer = tiny_model()
    roller = Roller(toy_tasks(1), settings(sample=sample, plan_tokens=3), "tiny", 4096)
    named, other = [task.id for task in toy_tasks(1)]
    found = roller.run([named, other, other], model, tokenizer, "0")
    again = roller.run([named, other, other], model, tokenizer, "0")
    assert [rollout.row for rollout in found] == [rollout.row for rollout in again]
    assert all(rollout.outcome.harmful is not None for rollout in found)
    for rollout in found:
        drawn = tokenizer.decode([i for i, loss in zip(rollout.row.input_ids, rollout.row.loss, strict=True) if loss])
        # The verdict's first token; where texts are drawn too, those before it.
        assert drawn.endswith((" act", " refuse"))
        assert (sum(rollout.row.loss) == 1) == (sample == "decisions")
        assert rollout.written == sum(rollout.row.loss) or sample == "decisions"


def test_equal_rows_are_read_once() -> None:
    rows = torch.tensor([[[1, 2], [1, 1], [0, 1]], [[3, 4], [1, 1], [0, 1]], [[1, 2], [1, 1], [0, 1]]])
    (ids, segment_ids, loss), back = _unique(rows)
    assert len(ids) == 2
    assert torch.equal(torch.stack([ids, segment_ids, loss], 1)[back], rows)


@pytest.mark.model
def test_a_run_of_roll_outs_leaves_a_guard(base: str, tmp_path: Path, capsys: Any) -> None:
    assert main(options(base, tmp_path / "out")) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["method"] == "grpo"
    assert manifest["guard_options"] == {"check": "never", "limits": asdict(Limits(plan=1))}
    assert manifest["metrics"]["groups"]["all"] == 4
    losses = read_losses(tmp_path / "out" / "loss.jsonl")
    assert [line["step"] for line in losses] == [1, 2]
    # Four roll-outs share out six wins, whatever their outcomes.
    assert [line["preference"] for line in losses] == [1.5, 1.5]
    assert all(line["silent_groups"] == line["tied_groups"] for line in losses)
    guard = Guard.load(tmp_path / "out")
    assert (guard.check_mode, guard.limits) == ("never", Limits(plan=1))
    assert guard.describe()["adapter"]
    assert "groups taught nothing" in capsys.readouterr().out


@pytest.mark.model
def test_an_unfinished_run_of_roll_outs_goes_on(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mosaic_guard_training.progress import Interrupt

    more = ["--max-steps", "4", "--save-steps", "1", "--keep-checkpoints", "9"]
    assert main(options(base, tmp_path / "whole", *more)) == 0

    def stops(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stopped = state.global_step == 2
        self._stop(state, control)

    monkeypatch.setattr(Interrupt, "on_step_end", stops)
    assert main(options(base, tmp_path / "cut", *more)) == 130
    monkeypatch.undo()
    assert main(options(base, tmp_path / "cut", *more, "--resume")) == 0
    whole, cut = (read_losses(tmp_path / name / "loss.jsonl") for name in ("whole", "cut"))
    assert numbers(cut) == pytest.approx(numbers(whole), rel=1e-4, abs=1e-6)


@pytest.mark.model
@pytest.mark.slow
def test_a_killed_run_of_roll_outs_goes_on(base: str, tmp_path: Path) -> None:
    more = ["--max-steps", "9", "--save-steps", "2", "--keep-checkpoints", "9"]
    assert main(options(base, tmp_path / "whole", *more)) == 0
    killed = options(base, tmp_path / "killed", *more)
    kill_after(killed, tmp_path / "killed" / "loss.jsonl", 3)
    assert not (tmp_path / "killed" / "manifest.json").exists()
    assert main([*killed, "--resume"]) == 0
    whole, resumed = (read_losses(tmp_path / name / "loss.jsonl") for name in ("whole", "killed"))
    assert numbers(resumed) == pytest.approx(numbers(whole), rel=1e-4, abs=1e-6)


@pytest.mark.model
@pytest.mark.parametrize("sample", ["decisions", "all"])
def test_accumulated_roll_outs_are_a_batch(sample: str, base: str, tmp_path: Path) -> None:
    """Batch 1 × accumulation 8 against batch 8; the order of float32 sums differs, by up to 1e-5."""
    found = []
    for micro_batch in ("1", "8"):
        more = ["--micro-batch", micro_batch, "--sample", sample]
        assert main(options(base, tmp_path / micro_batch, *more)) == 0
        found.append(
            [(line["reward"], line["grad_norm"]) for line in read_losses(tmp_path / micro_batch / "loss.jsonl")]
        )
    assert len(found[0]) == 2
    assert np.array(found[0]) == pytest.approx(np.array(found[1]), rel=1e-4, abs=1e-5)


def numbers(losses: Sequence[dict[str, Any]]) -> list[float]:
    return [line[key] for line in losses for key in ("step", "loss", "reward", "silent_groups", "entropy", "grad_norm")]


@pytest.mark.model
@pytest.mark.slow
def test_groups_stay_whole_on_two_processes(base: str, tmp_path: Path) -> None:
    """Each process rolls out its own groups, and both are counted."""
    recipe = ROOT / "training" / "mosaic_guard_training" / "recipes" / "accelerate_cpu.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(recipe), "-m", "mosaic_guard.train"]
    arguments = options(base, tmp_path / "out", "--batch-size", "4")
    done = subprocess.run(
        [sys.executable, *launch, *arguments], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "out" / "manifest.json").read_text())["metrics"]
    assert metrics["groups"]["all"] == 4
    assert metrics["preference"] == 1.5


@pytest.mark.model
def test_a_better_answer_is_learnt(base: str, tmp_path: Path) -> None:
    """Whatever else the tiny model cannot learn: that acting is better than refusing, where all payments are named."""
    steps = [
        "--max-steps",
        "6",
        "--batch-size",
        "16",
        "--micro-batch",
        "16",
        "--rollouts",
        "8",
        "--learning-rate",
        "0.05",
    ]
    only = ["--environment", "test_training_grpo:named_tasks"]
    assert main([*options(base, tmp_path / "out"), *steps, *only, "--reward", "scalar", "--warmup", "0"]) == 0
    rewarded = [line["reward"] for line in read_losses(tmp_path / "out" / "loss.jsonl")]
    assert rewarded[-1] > rewarded[0]


def named_tasks() -> list[Any]:
    return [task for task in toy_tasks(8) if task.named]
