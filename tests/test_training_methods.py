"""SFT, KTO and full fine-tuning: the losses are TRL's, loss falls where it should, batches and processes do not matter."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig
from tiny_model import tiny_model
from training_traces import WORDS, log_traces, step, trajectory
from trl import KTOConfig, KTOTrainer, SFTConfig

from mosaic_guard import Guard, Outcome, read_traces
from mosaic_guard.train import main
from mosaic_guard_training import model as model_to_train
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.kto import LabelledCollator, TrajectoryKTOTrainer, kto_rows, mismatched
from mosaic_guard_training.material import from_labels, labels_of, read_preference_file
from mosaic_guard_training.model import ADAPTER_WEIGHTS
from mosaic_guard_training.ours import rows_dataset
from mosaic_guard_training.outputs import read_losses
from mosaic_guard_training.pairs import Side, build_pairs
from mosaic_guard_training.preference_file import Preference, Source, logged_by
from mosaic_guard_training.reading import SegmentReader, positions
from mosaic_guard_training.settings import TrainSettings
from mosaic_guard_training.sft import BlockSFTTrainer, sft_rows
from mosaic_guard_training.tokens import SideRow, side_row
from mosaic_guard_training.trainer import quiet_libraries
from mosaic_guard_training.twins import segments

pytestmark = pytest.mark.model

ROOT = Path(__file__).parent.parent
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.fixture
def traces(base: str, tmp_path: Path) -> Path:
    return log_traces(tmp_path / "traces", base)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with quiet_libraries():
        yield


COMMON: dict[str, Any] = {
    "num_train_epochs": 3, "learning_rate": 1e-2, "max_length": None, "remove_unused_columns": False,
    "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "dataloader_pin_memory": False,
    "report_to": "none", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip


def options(traces: Path, output: Path, *more: str) -> list[str]:
    few = ["--epochs", "2", "--batch-size", "4", "--learning-rate", "0.01", "--save-steps", "2", "--lora-rank", "2"]
    return ["--traces", str(traces), "--output", str(output), *few, *more]


def curve(output: Path, key: str = "loss") -> list[float]:
    return [line[key] for line in read_losses(output / "loss.jsonl")]


# The rows


def test_positions_begin_anew_with_each_segment() -> None:
    segment_ids = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 0, 0]])
    assert positions(segment_ids).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 0, 1]]


def two_segments() -> SideRow:
    member = trajectory("t", [step(0, [("act", "sampled")]), step(1, [("refuse", "overridden")], segment=1)], None)
    row = side_row(Side("t", segments(member.steps)), 100)
    assert row is not None
    return row


def test_the_row_of_a_trajectory_is_its_segments() -> None:
    row = two_segments()
    member = [step(0, [("act", "sampled")]), step(1, [("refuse", "overridden")], segment=1)]
    whole = [i for each in member for piece in each.pieces for i in piece.ids]
    assert set(row.segment_ids) == {1, 2}
    # Only what follows the last token with loss of a segment is left out: the overridden verdict and the grammar.
    assert row.input_ids == [*whole[: row.segment_ids.count(1)], 20, 21, 2, 30, 31]
    assert [i for i, loss in zip(row.input_ids, row.loss, strict=True) if loss] == [30, 31, 10, 30, 31]


def test_segments_are_read_apart() -> None:
    """Their log-probabilities are those of each segment by itself."""
    from trl.trainer.utils import add_fused_lm_head

    row, (model, _) = two_segments(), tiny_model()
    expected = torch.zeros(())
    for segment in (1, 2):
        at = [i for i, each in enumerate(row.segment_ids) if each == segment]
        ids = torch.tensor([[row.input_ids[i] for i in at]])
        loss = torch.tensor([row.loss[i] for i in at], dtype=torch.bool)
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        expected = expected + logps[loss[1:]].sum()
    add_fused_lm_head(model, outputs=("log_probs",))
    ids, loss = torch.tensor([row.input_ids]), torch.tensor([row.loss])
    read = SegmentReader.of(model, model)(
        input_ids=ids,
        attention_mask=torch.tensor([row.segment_ids]),
        labels=ids.masked_fill(loss == 0, -100),
        fused_lm_head=True,
    )
    assert read.log_probs.sum().item() == pytest.approx(expected.item(), abs=1e-5)
    assert (read.log_probs != 0).int().tolist() == loss[:, 1:].tolist()


# SFT


def sft_trainer(rows: Sequence[SideRow], directory: Path, **more: Any) -> BlockSFTTrainer:
    config = SFTConfig(
        str(directory), **{**COMMON, "per_device_train_batch_size": 4, **more},
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    model, tokenizer = tiny_model()
    return BlockSFTTrainer(
        model,
        args=config,
        train_dataset=rows_dataset(sft_rows(rows), directory / "data"),
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA),
    )


def chosen_rows(traces: Path) -> list[SideRow]:
    pairs = build_pairs(read_traces(traces), WORDS)
    return [row for pair in pairs.pairs if (row := side_row(pair.chosen, 200)) is not None]


def test_sft_is_the_mean_over_the_tokens_with_loss(traces: Path, tmp_path: Path) -> None:
    rows = chosen_rows(traces)
    trainer = sft_trainer(rows, tmp_path)
    model, _ = tiny_model()
    data = sft_rows(rows)[:4]
    total, count = 0.0, 0
    for record in data:
        ids, labels = torch.tensor([record["input_ids"]]), torch.tensor(record["labels"])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        kept = labels[1:] != -100
        total, count = total - logps[kept].sum().item(), count + int(kept.sum())
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(data))
    assert loss.item() == pytest.approx(total / count, abs=1e-5)


def test_sft_learns_only_where_loss_falls(traces: Path, tmp_path: Path) -> None:
    trainer = sft_trainer(chosen_rows(traces), tmp_path)
    hidden: list[torch.Tensor] = []
    norm = trainer.model.get_base_model().model.norm
    norm.register_forward_hook(lambda *args: args[-1].retain_grad() or hidden.append(args[-1]))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    (states,) = [h for h in hidden if h.grad is not None]
    predicting = torch.zeros_like(batch["labels"], dtype=torch.bool)
    predicting[:, :-1] = batch["labels"][:, 1:] != -100
    assert torch.equal(states.grad.abs().sum(-1) != 0, predicting)


# KTO


def test_single_turn_kto_is_that_of_trl_alone(tmp_path: Path) -> None:
    prompts = [[5, 6, 7, 8], [9, 10, 11], [12, 13], [14, 15, 16, 17, 18]]
    answers = [[20, 21], [22], [23, 24, 25], [26, 27]]
    labels = [True, False, False, True]
    rows = [
        (SideRow(p + a, [1] * len(p + a), [0] * len(p) + [1] * len(a)), label)
        for p, a, label in zip(prompts, answers, labels, strict=True)
    ]

    def config(name: str) -> KTOConfig:
        return KTOConfig(
            str(tmp_path / name), **COMMON, per_device_train_batch_size=2, beta=0.5, precompute_ref_log_probs=True
        )

    model, tokenizer = tiny_model()
    ours = TrajectoryKTOTrainer(
        model,
        args=config("ours"),
        train_dataset=rows_dataset(kto_rows(rows, 2, 100), tmp_path / "data"),
        data_collator=LabelledCollator(1),
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA),
    )

    class TextlessKTOTrainer(KTOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    model, tokenizer = tiny_model()
    rotated = [answers[1], answers[0], answers[3], answers[2]]
    theirs = TextlessKTOTrainer(
        model,
        args=config("theirs"),
        train_dataset=datasets.Dataset.from_dict(
            {"prompt_ids": prompts, "completion_ids": answers, "KL_completion_ids": rotated, "label": labels}
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA),
    )
    ours.train()
    theirs.train()
    steps = list(zip(ours.state.log_history, theirs.state.log_history, strict=True))[:-1]
    assert len(steps) == 6
    compared = ("loss", "grad_norm", "kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
    for our, their in steps:
        assert [our[k] for k in compared if k in our] == pytest.approx(
            [their[k] for k in compared if k in their], abs=1e-5
        )


def test_a_mismatched_row_goes_on_as_another_trajectory() -> None:
    one = SideRow([1, 2, 3, 4], [1, 1, 1, 2], [0, 0, 1, 1])
    other = SideRow([5, 6, 7, 8], [1, 1, 2, 2], [0, 1, 0, 1])
    row = mismatched(one, other, 3)
    assert (row.input_ids, row.segment_ids, row.loss) == ([1, 2, 6, 7, 8], [1, 1, 1, 2, 2], [0, 0, 1, 0, 1])
    with pytest.raises(TrainingError, match="has 3 tokens, more than the limit of 2"):
        mismatched(one, other, 2)


def test_labels_are_of_outcomes() -> None:
    members = [
        trajectory(name, [step(0, [("act", "sampled")])], outcome)
        for name, outcome in (
            ("harm", Outcome(True, True)),
            ("done", Outcome(False, True)),
            ("not done", Outcome(False, False)),
            ("harmless", Outcome(False, None)),
            ("nobody knows", Outcome(None, True)),
        )
    ]
    assert {side.trajectory: label for side, label in labels_of(members)} == {
        "harm": False, "done": True, "not done": False, "harmless": True,
    }  # fmt: skip


def test_an_order_of_the_seed_and_a_warning(tmp_path: Path) -> None:
    sides = [(Side(f"{n}", segments([step(0, [("act", "sampled")], context=(n,))])), True) for n in range(20, 40)]
    settings = TrainSettings(traces=tmp_path, output=tmp_path, method="kto", max_pairs=5)
    found = from_labels(sides, settings, 100)
    assert found.digest == from_labels(list(reversed(sides)), settings, 100).digest
    assert found.counts == {"good": 5, "bad": 0}
    assert found.left_out == [
        "  left out for the budget: 15 trajectories",
        "warning: no bad trajectory: the guard learns in one direction only",
    ]


# Whole runs


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_each_method_leaves_a_guard(method: str, traces: Path, base: str, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "out"
    assert main(options(traces, output, "--method", method)) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["method"] == manifest["settings"]["method"] == method
    assert manifest["metrics"]["loss_last"] < manifest["metrics"]["loss_first"]
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert Guard.load(output).describe()["base_model"] == base
    if method == "kto":
        assert "8 trajectories give 8 labelled trajectories" in capsys.readouterr().out


def test_all_weights_are_trained_and_loaded(traces: Path, base: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main(options(traces, output, "--tune", "full", "--learning-rate", "0.001")) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["adapter"] is None
    assert not (output / "adapter").exists()
    guard = Guard.load(output)
    trained = dict(guard.model.model.named_parameters())
    assert {str(w.dtype) for w in trained.values()} == {"torch.float32"}
    for name, weight in tiny_model()[0].named_parameters():
        assert not torch.equal(weight, trained[name]), name
    assert guard.describe()["base_model"] == str(output / "model")


def test_four_bits_need_a_gpu(traces: Path, tmp_path: Path, capsys: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(options(traces, tmp_path / "out", "--tune", "qlora")) == 2
    assert "--tune qlora needs a CUDA GPU: use --tune lora" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_accumulated_batches_are_batches(method: str, base: str, tmp_path: Path) -> None:
    """Batch 1 × accumulation 8 against batch 8; the order of float32 sums differs, by up to 1e-5 of the loss."""
    traces = log_traces(tmp_path / "traces", base, tasks=8)
    curves = []
    for micro_batch in ("1", "8"):
        output = tmp_path / micro_batch
        more = ["--method", method, "--batch-size", "8", "--micro-batch", micro_batch]
        assert main(options(traces, output, *more)) == 0
        curves.append(curve(output))
    assert len(curves[0]) >= 4
    assert curves[0] == pytest.approx(curves[1], rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_two_processes_are_one(method: str, traces: Path, tmp_path: Path) -> None:
    """Two processes of batch 2 against one of batch 4; the order of float32 sums differs, by up to 1e-4 of the loss.

    Only as far as rows go round: at the end of an epoch accelerate gives some a second time, so that all have as many.
    """
    more = ["--method", method, "--max-steps", "3"]
    arguments = options(traces, tmp_path / "two", *more)
    arguments[arguments.index("--batch-size") + 1] = "2"
    recipe = ROOT / "training" / "mosaic_guard_training" / "recipes" / "accelerate_cpu.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(recipe), "-m", "mosaic_guard.train"]
    done = subprocess.run(
        [sys.executable, *launch, *arguments], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(options(traces, tmp_path / "one", *more)) == 0
    assert len(curve(tmp_path / "one")) == 3
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-4, abs=1e-5)


def test_the_group_of_processes_is_left_at_the_end(tmp_path: Path) -> None:
    """One that is still there when the interpreter ends aborts the process in one of hundreds of runs."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        assert main(options(tmp_path / "no traces", tmp_path / "out")) == 2
        assert not distributed.is_initialized()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "kto"])
def test_killed_runs_go_on(method: str, traces: Path, tmp_path: Path) -> None:
    more = ["--method", method, "--epochs", "6", "--keep-checkpoints", "9"]
    assert main(options(traces, tmp_path / "whole", *more)) == 0
    killed = options(traces, tmp_path / "killed", *more)
    kill_after(killed, tmp_path / "killed" / "loss.jsonl", 5)
    assert main([*killed, "--resume"]) == 0
    assert curve(tmp_path / "killed") == pytest.approx(curve(tmp_path / "whole"), rel=1e-4)


def test_a_loss_that_is_no_number_ends_the_run(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from mosaic_guard_training.dpo import TrajectoryDPOTrainer

    compute = TrajectoryDPOTrainer._compute_loss
    monkeypatch.setattr(TrajectoryDPOTrainer, "_compute_loss", lambda *args: compute(*args) * torch.nan)
    assert main(options(traces, tmp_path / "out")) == 2
    assert "the loss is nan at step 1: start again with a lower --learning-rate" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_disk_that_fills_up_is_one_sentence(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import errno

    from mosaic_guard_training.dpo import TrajectoryDPOTrainer

    save = TrajectoryDPOTrainer._save_checkpoint

    def full(self: Any, *args: Any) -> None:
        if self.state.global_step > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, *args)

    monkeypatch.setattr(TrajectoryDPOTrainer, "_save_checkpoint", full)
    output = tmp_path / "out"
    assert main(options(traces, output)) == 2
    assert "is full: free some, then go on with the same command and --resume" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert main(options(traces, output, "--resume")) == 0
    assert [line["step"] for line in read_losses(output / "loss.jsonl")] == [1, 2, 3, 4, 5, 6, 7, 8]


# Preferences


def preference_file(
    directory: Path, traces: Path, base: str, change: Callable[[int], dict[str, Any]] = lambda _: {}
) -> Path:
    """The pairs of traces; `change` gives fields by the number of the line."""
    directory.mkdir(exist_ok=True)
    file = directory / "preferences.jsonl"
    read = {each.id: each for each in read_traces(traces)}
    with file.open("w") as stream:
        for number, pair in enumerate(build_pairs(list(read.values()), WORDS).pairs):
            guard = logged_by(read[pair.chosen.trajectory].guard)
            record = Preference(pair, "e", "unknown", "outcome", base, (guard,), (Source("f", "0"),)).to_dict()
            stream.write(json.dumps({**record, **change(number)}) + "\n")
    return file


def test_preferences_train_as_the_traces_that_they_are_of(traces: Path, base: str, tmp_path: Path) -> None:
    file = preference_file(tmp_path / "p", traces, base)
    assert main(options(traces, tmp_path / "traced")) == 0
    preferred = ["--preferences", *options(file, tmp_path / "preferred")[1:]]
    assert main(preferred) == 0
    assert curve(tmp_path / "preferred") == curve(tmp_path / "traced")
    for method in ("sft", "kto"):
        assert main([*preferred, "--output", str(tmp_path / method), "--method", method, "--max-steps", "1"]) == 0


def test_a_guard_that_learns_from_preferences_goes_on_from_the_one_that_logged_them(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    first = log_traces(tmp_path / "first", base)
    assert main(options(first, tmp_path / "shipped", "--max-steps", "1")) == 0
    mode = {"check": "never", "plan": "computed", "threshold": 0.7}
    digest = hashlib.sha256((tmp_path / "shipped" / "adapter" / ADAPTER_WEIGHTS).read_bytes()).hexdigest()[:12]
    traces = log_traces(tmp_path / "traces", base, adapter=digest, **mode)
    file = preference_file(tmp_path / "p", traces, base)
    # An adapter that is nowhere to be found is named.
    preferred = ["--preferences", *options(file, tmp_path / "out", "--max-steps", "1")[1:]]
    assert main(preferred) == 2
    assert f"the preferences were logged by a guard with an adapter ({digest})" in capsys.readouterr().err
    monkeypatch.setattr(model_to_train, "SHIPPED", tmp_path / "shipped")
    assert main(preferred) == 0
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert record["guard_options"] == mode
    assert record["parent_adapter"] == digest
    assert main([*preferred, "--output", str(tmp_path / "afresh"), "--adapter", "none"]) == 0
    assert json.loads((tmp_path / "afresh" / "manifest.json").read_text())["parent_adapter"] is None


def test_only_the_training_split_is_trained_on(traces: Path, base: str, tmp_path: Path, capsys: Any) -> None:
    file = preference_file(tmp_path, traces, base, lambda n: {"split": "test" if n % 2 else "train"})
    assert len(read_preference_file(file).pairs) == 8
    assert main(["--preferences", *options(file, tmp_path / "out", "--max-steps", "1")[1:]]) == 0
    assert "held out: 8 pairs of other splits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n: {"base_model": "other"} if n else {}, "2 base models"),
        (lambda _: {"split": "test"}, "no pair is of the split 'train'"),
        (lambda _: {"chosen": {}}, "not a preference (missing field"),
        (lambda _: {"guards": None}, "not a preference"),
    ],
)
def test_preferences_that_cannot_be_trained_on(
    change: Any, said: str, traces: Path, base: str, tmp_path: Path, capsys: Any
) -> None:
    file = preference_file(tmp_path, traces, base, change)
    assert main(["--preferences", *options(file, tmp_path / "out")[1:]]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--base-model", "other"], "hold tokens of"),
        (["--method", "grpo"], "--method grpo needs --environment, not --traces"),
        (["--preferences", "p"], "--method dpo needs --traces or --preferences, not --traces and --preferences"),
        (["--method", "kto", "--micro-batch", "1"], "--micro-batch must be at least 2"),
        (["--tune", "full", "--adapter", "a"], "it cannot go on from an --adapter"),
    ],
)
def test_settings_that_contradict_each_other(
    more: list[str], said: str, traces: Path, tmp_path: Path, capsys: Any
) -> None:
    try:
        code: Any = main(options(traces, tmp_path / "out", *more))
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert said in capsys.readouterr().err


def environment() -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / part) for part in ("", "training", "integrations", "tests"))
    return {**os.environ, "PYTHONPATH": path, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}


def kill_after(arguments: Sequence[str], file: Path, lines: int) -> None:
    """Start a run and kill it once its loss file has some lines."""
    process = subprocess.Popen([sys.executable, "-m", "mosaic_guard.train", *arguments], env=environment())
    limit = time.monotonic() + 240
    while not file.exists() or file.read_text().count("\n") < lines:
        assert process.poll() is None, "it was over before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
