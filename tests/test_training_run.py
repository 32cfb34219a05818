"""`python -m mosaic_guard.train`: what it refuses to start, what it leaves behind, how it goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted_agents import Scripted, calls, hand_written, make_tools
from training_traces import log_traces

from mosaic_guard import Guard, Limits, LocalGuardModel, Outcome, TraceWriter, guarded_graph, read_traces
from mosaic_guard.train import main
from mosaic_guard_training.manifest import guard_options
from mosaic_guard_training.outputs import Output, data_digest, read_losses, trace_files
from mosaic_guard_training.settings import TrainSettings, parse_settings

pytestmark = pytest.mark.model

ROOT = Path(__file__).parent.parent


@pytest.fixture
def traces(base: str, tmp_path: Path) -> Path:
    return log_traces(tmp_path / "traces", base)


@pytest.fixture(autouse=True)
def _no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")


def options(traces: Path, output: Path, *more: str) -> list[str]:
    few = ["--epochs", "2", "--batch-size", "4", "--learning-rate", "0.01", "--save-steps", "2", "--lora-rank", "2"]
    return ["--traces", str(traces), "--output", str(output), *few, *more]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_a_run_leaves_a_guard_a_manifest_and_a_curve(
    traces: Path, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(options(traces, output)) == 0
    text = said(capsys)
    assert "8 trajectories give 16 pairs (outcome 4, hindsight_harmful 8, hindsight_harmless 4)" in text
    assert {path.name for path in output.iterdir()} == {
        "adapter",
        "manifest.json",
        "loss.jsonl",
        "loss.png",
        "checkpoints",
    }
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["base_model"] == base
    assert manifest["parent_adapter"] is None
    assert manifest["data"] == {"digest": data_digest(trace_files(traces)), "files": 1, "trajectories": 8}
    assert manifest["metrics"]["pairs"] == {"outcome": 4, "hindsight_harmful": 8, "hindsight_harmless": 4}
    assert manifest["metrics"]["steps"] == len(read_losses(output / "loss.jsonl")) == 8
    assert manifest["metrics"]["loss_last"] < manifest["metrics"]["loss_first"]
    assert manifest["settings"]["dtype"] in ("float32", "bfloat16")
    assert str(tmp_path) not in json.dumps(manifest["settings"])
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == base

    guard = Guard.load(output)
    assert guard.describe()["base_model"] == base
    assert guard.describe()["adapter"]

    assert main(options(traces, output)) == 2
    assert "already holds a trained guard: name another --output" in said(capsys)
    assert main(options(traces, output, "--resume")) == 0
    assert "nothing to do" in said(capsys)


def test_a_trained_guard_is_trained_on_from_its_own_traces(
    traces: Path, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(traces, tmp_path / "first", "--max-steps", "2")) == 0
    digest = Guard.load(tmp_path / "first").describe()["adapter"]
    again = log_traces(tmp_path / "again", base, adapter=digest)
    assert main(options(again, tmp_path / "second", "--max-steps", "2")) == 2
    assert f"adapter ({digest}): name its directory with --adapter" in said(capsys)
    assert main(options(again, tmp_path / "second", "--max-steps", "2", "--adapter", str(tmp_path / "first"))) == 0
    assert json.loads((tmp_path / "second" / "manifest.json").read_text())["parent_adapter"] == digest
    # It starts as the guard that it goes on from, so the first loss is that of no difference.
    assert read_losses(tmp_path / "second" / "loss.jsonl")[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert Guard.load(tmp_path / "second").describe()["adapter"] not in (None, digest)
    assert not (tmp_path / "second" / "adapter" / "ref").exists()


def test_the_loop_closes_on_the_traces_of_a_graph(base: str, tmp_path: Path) -> None:
    """A guarded graph logs, its traces train the guard, the guard runs the graph."""
    limits = Limits(plan=4, safety=4)
    model = LocalGuardModel(base)
    with TraceWriter(tmp_path / "traces") as writer:
        for number in range(4):
            guard = Guard(model, sample=True, seed=number, limits=limits)
            run_graph(guard, f"t{number}", writer)
            writer.outcome(f"t{number}", Outcome(number % 2 == 0, True, [(0, 1), (1, 0)]))
    assert main(options(tmp_path / "traces", tmp_path / "out", "--max-steps", "2")) == 0
    run_graph(Guard.load(tmp_path / "out", limits=limits), "new", None)


def run_graph(guard: Guard, name: str, writer: TraceWriter | None) -> None:
    script = [
        calls(("look", {"x": 1}), ("pay", {"x": 2}), ids=["a", "b"]),
        calls(("send", {"x": 3}), ids=["c"]),
        _last(),
    ]
    from langgraph.prebuilt import ToolNode

    graph = hand_written(Scripted(script=script), ToolNode(make_tools([])))
    config = {"metadata": {"mosaic_task": "pay", "mosaic_trajectory": name}}
    guarded_graph(graph, guard=guard, trace=writer).invoke({"messages": [("user", "pay 2")]}, config)


def _last() -> Any:
    from langchain_core.messages import AIMessage

    return AIMessage("done")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as the process that is killed has: with others sums differ in their last places, and in time that shows."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_as_if_nothing_had_happened(traces: Path, base: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ["--epochs", "8", "--keep-checkpoints", "19"]
    assert main(options(traces, whole, *more)) == 0

    process = start(options(traces, killed, *more))
    wait_for_line(killed / "loss.jsonl", 7, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    checkpoints = killed / "checkpoints"
    # As if the kill had come in the middle of writing a checkpoint.
    torn = checkpoints / "checkpoint-999"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step":')

    assert not (killed / "manifest.json").exists()
    assert main(options(traces, killed, *more)) == 2
    assert main(options(traces, killed, *more, "--resume")) == 0
    assert not torn.exists()
    ours, theirs = read_losses(killed / "loss.jsonl"), read_losses(whole / "loss.jsonl")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for key in ("loss", "logp_chosen", "grad_norm", "learning_rate"):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in theirs], rel=1e-4)


def test_a_signal_leaves_a_checkpoint(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from mosaic_guard_training.progress import Interrupt

    output = tmp_path / "out"
    on_step_end = Interrupt.on_step_end

    def interrupted(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        on_step_end(self, args, state, control, **more)

    monkeypatch.setattr(Interrupt, "on_step_end", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    assert main(options(traces, output)) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert "stopped after checkpoint-3: go on with the same command and --resume" in said(capsys)
    monkeypatch.undo()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert main(options(traces, output, "--seed", "1", "--resume")) == 2
    assert "--seed is not what it was when the run began" in said(capsys)
    assert main(options(traces, output, "--resume")) == 0
    assert "resuming from checkpoint-3" in said(capsys)
    assert len(read_losses(output / "loss.jsonl")) == 8


def test_a_budget_says_what_it_drops(traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options(traces, tmp_path / "out", "--max-pairs", "6", "--max-steps", "1")) == 0
    text = said(capsys)
    assert "left out for the budget: 10 pairs (outcome 2, hindsight_harmful 6, hindsight_harmless 2)" in text
    assert "training on 6 pairs" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min-pairs", "99"], "too few preference pairs to train on: 16 pairs"),
        (["--max-pairs", "1", "--min-pairs", "2"], "too few preference pairs to train on: 1 pairs"),
        (["--max-length", "20"], "tokens in segment 0, more than the limit of 20"),
        (["--adapter", "nowhere"], "no adapter at 'nowhere'"),
    ],
)
def test_what_cannot_be_trained_fails_before_it_starts(
    more: list[str], message: str, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(options(traces, output, *more)) == 2
    errors = [line for line in said(capsys).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not output.exists()


def test_mixed_base_models_are_refused_by_name(
    traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_traces(traces, "other/model", seed=1)
    assert main(options(traces, tmp_path / "out")) == 2
    text = said(capsys)
    assert "2 base models" in text
    assert "'other/model' in" in text
    assert all(file.name in text for file in trace_files(traces))


def test_traces_that_are_not_there_or_not_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "missing"):
        assert main(options(nothing, tmp_path / "out")) == 2
        assert "no trace files at" in said(capsys)
    (tmp_path / "empty" / "bad.jsonl").write_text('{"type": "header"\n{}\n')
    assert main(options(tmp_path / "empty", tmp_path / "out")) == 2
    assert "bad.jsonl:1: not a trace record" in said(capsys)


def test_a_torn_last_line_is_only_noted(traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = trace_files(traces)
    with file.open("a") as stream:
        stream.write('{"type": "outcome", "traj')
    assert main(options(traces, tmp_path / "out", "--max-steps", "1")) == 0
    assert "torn last line skipped" in " ".join(said(capsys).split())


def test_traces_of_a_scripted_guard_have_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TraceWriter(tmp_path / "traces") as writer:
        from mosaic_guard import ScriptedGuardModel

        run_graph(Guard(ScriptedGuardModel()), "t", writer)
    assert main(options(tmp_path / "traces", tmp_path / "out")) == 2
    assert "no trajectory was judged by a local guard model" in said(capsys)


def test_an_output_that_cannot_be_written(traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(options(traces, tmp_path / "file" / "out")) == 2
    assert "cannot write to" in said(capsys)


def test_a_full_disk_is_seen_before_training(
    traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert main(options(traces, tmp_path / "out")) == 2
    assert "training needs some" in said(capsys)
    monkeypatch.undo()
    assert main(options(traces, tmp_path / "out", "--max-steps", "1")) == 0


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mosaic_guard.train._NEEDED", ("not_installed_anywhere",))
    assert main(["--traces", "t", "--output", "o"]) == 2
    assert said(capsys).strip() == (
        'error: training needs packages that are not installed: run pip install "mosaic-guard[train]"'
    )


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom mosaic_guard.train import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "assert not {'torch', 'transformers', 'trl', 'langgraph'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    for name in TrainSettings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in done.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--beta", "0"], "--beta must be between"),
        (["--batch-size", "6", "--micro-batch", "4"], "--micro-batch 4 does not divide --batch-size 6"),
        (["--dtype", "int8"], "invalid choice"),
    ],
)
def test_bad_settings_are_named(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_settings(["--traces", "t", "--output", "o", *more])
    assert stopped.value.code == 2
    assert message in said(capsys)


def test_settings_are_the_options() -> None:
    parsed = parse_settings(["--traces", "t", "--output", "o", "--max-tokens", "9", "--resume", "--warmup", "0.5"])
    assert parsed == TrainSettings(traces=Path("t"), output=Path("o"), resume=True, max_tokens=9, warmup=0.5)


def test_outputs_that_are_not_of_this_run_are_left_alone(tmp_path: Path) -> None:
    output = Output(tmp_path)
    output.adapter.mkdir()
    from mosaic_guard_training.errors import TrainingError

    with pytest.raises(TrainingError, match="exists and is not of this run"):
        output.claim(resume=False)


def test_the_digest_is_of_names_and_contents(base: str, tmp_path: Path) -> None:
    directory = log_traces(tmp_path / "a", base)
    before = data_digest(trace_files(directory))
    assert before == data_digest(list(reversed(trace_files(directory))))
    (file,) = trace_files(directory)
    assert len(read_traces(file)) == 8
    file.rename(file.with_name("z.jsonl"))
    assert data_digest(trace_files(directory)) != before


def environment() -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / part) for part in ("", "training", "integrations"))
    return {**os.environ, "PYTHONPATH": path, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "mosaic_guard.train", *arguments], env=environment())


def wait_for_line(file: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 240
    while not file.exists() or file.read_text().count("\n") < number:
        assert process.poll() is None, "it was over before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_a_trained_guard_runs_with_the_options_of_those_that_it_learnt_from() -> None:
    own = {
        "check": "never",
        "plan": "computed",
        "threshold": 0.3,
        "limits": {"plan": 9},
        "sample": True,
        "adapter": "a1",
    }
    found = guard_options([own, {**own, "sample": False}], "a1")
    assert found == {"check": "never", "plan": "computed", "threshold": 0.3, "limits": {"plan": 9}}
    assert guard_options([own, {**own, "threshold": 0.5, "plan": "written"}], "a1") == {
        "check": "never",
        "limits": {"plan": 9},
    }


@pytest.mark.parametrize("adapter", [None, "b2"])
def test_what_was_fitted_to_one_adapter_is_not_kept_for_another(adapter: str | None) -> None:
    logged = {"check": "never", "threshold": 0.3, "evidence_model": "{}", "adapter": "a1"}
    assert guard_options([logged], adapter) == {"check": "never"}
    assert guard_options([{**logged, "adapter": None}], None) == {k: v for k, v in logged.items() if k != "adapter"}
