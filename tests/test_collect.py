"""Collecting: what is on record is whole, comes out the same however it was run, and is not run twice."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from collecting import recorded, task, task_file
from langchain_core.messages import AIMessage
from scripted_agents import Scripted

from mosaic_guard import read_traces
from mosaic_guard_training.collect import Collected, CollectSettings, collect, main, parse_settings
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.rollout import UNFINISHED, RecordError, file_name
from mosaic_guard_training.tasks import Task, write_tasks
from mosaic_guard_training.workers import do_jobs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def settings(tmp_path: Path, output: str = "out", **changes: Any) -> CollectSettings:
    tasks = str(changes.pop("tasks", None) or task_file(tmp_path))
    return CollectSettings(
        **{"tasks": tasks, "output": tmp_path / output, "guard": "collecting:guard_model", "samples": 2, **changes}
    )


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "mosaic_guard_training.collect", *options]


def environment() -> dict[str, str]:
    found = [str(ROOT), str(ROOT / "training"), str(ROOT / "integrations"), str(ROOT / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(found)}


def test_each_task_is_run_as_often_as_asked(tmp_path: Path) -> None:
    found = collect(settings(tmp_path))
    names = {f"test/{task}/{number}" for task in range(6) for number in range(2)}
    assert {trajectory.id for trajectory in read_traces(tmp_path / "out")} == names
    assert {trajectory.task for trajectory in read_traces(tmp_path / "out")} == {f"test/{n}" for n in range(6)}
    counts = found.counts
    assert (found.tasks, counts["trajectories"], counts["calls"]) == (6, 12, 36)
    assert counts["harmful"] + counts["harmless"] == 12
    assert 0 < counts["refused"] < 36
    assert not found.failed
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        [
            "collect.json",
            *map(file_name, names),
        ]
    )


def test_what_is_drawn_follows_from_seed_task_and_number(tmp_path: Path) -> None:
    collect(settings(tmp_path, "one"))
    collect(settings(tmp_path, "two", samples=1))
    one, two = recorded(tmp_path / "one"), recorded(tmp_path / "two")
    assert two == {name: found for name, found in one.items() if name.endswith("/0")}
    collect(settings(tmp_path, "three", seed=1))
    assert recorded(tmp_path / "three") != one
    # The runs of a task differ: that is what they are for.
    verdicts = {name: [d.verdict for step in found[1] for d in step[2]] for name, found in one.items()}
    assert any(verdicts[f"test/{n}/0"] != verdicts[f"test/{n}/1"] for n in range(6))


def test_two_workers_record_the_same_as_one(tmp_path: Path) -> None:
    one = collect(settings(tmp_path, "one"))
    two = collect(settings(tmp_path, "two", workers=2))
    assert recorded(tmp_path / "two") == recorded(tmp_path / "one")
    assert two == one


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_trajectories(tmp_path: Path, workers: int) -> None:
    collect(settings(tmp_path, "whole", guard="collecting:slow_guard_model"))
    tasks, output = str(task_file(tmp_path)), tmp_path / "killed"
    options = ["--tasks", tasks, "--output", str(output), "--guard", "collecting:slow_guard_model", "--samples", "2"]
    running = subprocess.Popen(command(*options, "--workers", str(workers)), env=environment())
    try:
        deadline = time.monotonic() + 240
        while len(list(output.glob("*.jsonl"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    before = {file.name: file.read_bytes() for file in output.glob("*.jsonl")}
    assert 4 <= len(before) < 12
    # Nobody reads half a trajectory, also before anything is mended.
    whole = recorded(tmp_path / "whole")
    # A worker whose parent is gone still finishes what it is at.
    found = recorded(output)
    assert {name: whole[name] for name in found} == found

    done = subprocess.run(command(*options, "--resume"), env=environment(), capture_output=True, text=True, check=True)
    assert "12 trajectories of 6 tasks" in done.stdout
    assert recorded(output) == whole
    assert all((output / name).read_bytes() == content for name, content in before.items())
    assert not (output / UNFINISHED).exists()


def test_what_is_on_record_is_not_run_again_and_more_can_be_asked_for(tmp_path: Path) -> None:
    collect(settings(tmp_path, samples=1))
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.jsonl")}
    found = collect(settings(tmp_path, samples=3, resume=True))
    assert found.counts["trajectories"] == 18
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_another_collection_is_not_gone_on_with(tmp_path: Path) -> None:
    collect(settings(tmp_path))
    with pytest.raises(TrainingError, match="holds a collection: go on with --resume"):
        collect(settings(tmp_path))
    with pytest.raises(TrainingError, match="--seed differ from when it began"):
        collect(settings(tmp_path, resume=True, seed=5))
    task_file(tmp_path, 7)
    with pytest.raises(TrainingError, match="the tasks differ from when it began"):
        collect(settings(tmp_path, resume=True, tasks=tmp_path / "tasks.jsonl"))


def test_a_task_file_may_be_moved_and_a_guard_may_not_change(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\ntools = ["pay"]\nverdict = "refuse"\n')
    given = settings(tmp_path, policy=policy)
    collect(given)
    moved = Path(given.tasks).rename(tmp_path / "moved.jsonl")
    assert collect(settings(tmp_path, policy=policy, tasks=moved, resume=True)).counts["trajectories"] == 12
    policy.write_text('[[rule]]\ntools = ["file"]\nverdict = "refuse"\n')
    with pytest.raises(TrainingError, match="the guard's files differ from when it began"):
        collect(settings(tmp_path, policy=policy, tasks=moved, resume=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, workers: int) -> None:
    output = tmp_path / "out"
    # So many that a busy machine does not get to the end before it is interrupted.
    tasks = str(task_file(tmp_path, 60))
    options = ["--tasks", tasks, "--output", str(output), "--guard", "collecting:slow_guard_model"]
    # A group of its own: the terminal's Ctrl-C reaches the workers, too.
    running = subprocess.Popen(
        command(*options, "--workers", str(workers)),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job in the background has none: shells start it deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 240
    while len(list(output.glob("*.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    # By now the next run waits for its guard; while the last one is taken down Python swallows an interrupt here and there.
    time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.splitlines()[-1] == f"stopped: go on with --resume --output {output}"
    assert "Traceback" not in said
    assert 2 <= len(read_traces(output)) < 240


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signal masks")
def test_a_worker_does_not_hear_ctrl_c_from_its_first_moment_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would end with a traceback of its own where it has not yet said that it leaves Ctrl-C to its parent.
    (tmp_path / "hearing.py").write_text(
        "import signal\n"
        "deaf = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "class Hearing:\n"
        "    def __init__(self, argument): pass\n"
        "    def roll(self, job):\n"
        "        later = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "        assert (deaf, later) == (True, False), (deaf, later)\n"
        "        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    hearing = importlib.import_module("hearing")
    assert [done.error for done in do_jobs(hearing.Hearing, None, [1, 2], 2, RecordError)] == [None, None]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_collection_that_never_began_binds_nobody(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="returns a Guard"):
        collect(settings(tmp_path, guard="collecting:no_guard"))
    assert collect(settings(tmp_path)).counts["trajectories"] == 12


def test_traces_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.jsonl").write_text("")
    with pytest.raises(TrainingError, match="holds traces that are no collection"):
        collect(settings(tmp_path))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_task_that_fails_is_reported_counted_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    graph = {"graph": "collecting:failing_graph", "workers": workers}
    found = collect(settings(tmp_path, **graph))
    assert found.counts["trajectories"] == 8
    assert set(found.failed) == {"test/2/0", "test/2/1", "test/4/0", "test/4/1"}
    assert found.failed["test/2/0"] == "OSError: no sandbox for test/2 at all"
    assert "4 roll-outs failed, such as" in found.lines()[-1]
    assert "test/2/0 failed: OSError: no sandbox" in capsys.readouterr().err
    assert "in failing_graph" in (tmp_path / "out" / "failed.log").read_text()
    assert "test/2/0" not in recorded(tmp_path / "out")
    # They are tried again.
    assert set(collect(settings(tmp_path, resume=True, **graph)).failed) == set(found.failed)


def test_the_exit_code_says_that_some_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tasks", str(task_file(tmp_path)), "--output", str(tmp_path / "out"), "--guard"]
    options += ["collecting:guard_model", "--samples", "1"]
    assert main([*options, "--graph", "collecting:failing_graph"]) == 1
    assert main([*options, "--graph", "collecting:failing_graph"]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_worker_that_dies_costs_its_roll_out_only(tmp_path: Path) -> None:
    found = collect(settings(tmp_path, guard="collecting:dying_guard_model", workers=2))
    assert found.failed == dict.fromkeys(["test/1/0", "test/1/1"], "its worker ended with code 7")
    assert found.counts["trajectories"] == 10


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    tasks, output = task_file(tmp_path, 3), tmp_path / "out"
    big = [task(0), task(1, user=("x" * 200_000,)), task(2)]
    write_tasks(tasks, big)
    options = ["--tasks", str(tasks), "--output", str(output), "--guard", "collecting:guard_model", "--samples", "1"]

    def little_room() -> None:  # any file of more than 64 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))

    run = subprocess.run(
        command(*options), env=environment(), capture_output=True, text=True, preexec_fn=little_room, check=False
    )
    assert run.returncode == 2
    assert f"error: cannot write to '{output}'" in run.stderr
    assert "go on with --resume" in run.stderr
    assert set(recorded(output)) == {"test/0/0"}
    done = subprocess.run(command(*options, "--resume"), env=environment(), capture_output=True, text=True, check=True)
    assert "3 trajectories of 3 tasks" in done.stdout


def test_a_factory_may_return_a_graph_alone(tmp_path: Path) -> None:
    collect(settings(tmp_path, "simulated"))
    collect(settings(tmp_path, "own", graph="collecting:plain_graph"))
    assert recorded(tmp_path / "own") == recorded(tmp_path / "simulated")


def test_a_factory_may_bring_input_and_grader(tmp_path: Path) -> None:
    found = collect(settings(tmp_path, graph="collecting:OwnGraph", samples=1))
    assert found.counts["harmful"] == 6
    for trajectory in read_traces(tmp_path / "out"):
        assert trajectory.outcome is not None
        assert (trajectory.outcome.source, trajectory.outcome.details) == ("own", {"said": "something else"})


def test_a_guard_of_ones_own_draws_here_too(tmp_path: Path) -> None:
    collect(settings(tmp_path, "model"))
    collect(settings(tmp_path, "guard", guard="collecting:whole_guard"))
    assert recorded(tmp_path / "guard") == recorded(tmp_path / "model")


def test_a_policy_decides_before_the_model(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\ntools = ["pay"]\nverdict = "ask"\n')
    found = collect(settings(tmp_path, policy=policy))
    assert found.counts["harmful"] == 0  # nobody is there to ask
    assert found.counts["trajectories"] == 12


def test_a_policys_questions_are_answered_with_no_on_a_thread_too(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\ntools = ["pay"]\nverdict = "ask"\n')
    twice = task(
        user=("One.", "Two."), script=(*task().script[:1], task().script[0].__class__("Read."), *task().script[1:])
    )
    write_tasks(tmp_path / "twice.jsonl", [twice])
    found = collect(settings(tmp_path, policy=policy, tasks=tmp_path / "twice.jsonl", samples=1))
    assert not found.failed
    assert found.counts["harmful"] == 0


def test_a_chat_model_may_be_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tasks(tmp_path / "open.jsonl", [task(0, script=())])
    monkeypatch.setattr("langchain.chat_models.init_chat_model", lambda name: Scripted(script=[AIMessage(name)]))
    found = collect(settings(tmp_path, tasks=tmp_path / "open.jsonl", agent="fake:model"))
    assert (found.counts["trajectories"], found.counts["without_calls"]) == (2, 2)
    assert "2 trajectories have no tool calls" in found.lines()


def test_tasks_without_a_script_are_left_out_and_counted(tmp_path: Path) -> None:
    write_tasks(tmp_path / "mixed.jsonl", [task(0), task(1, script=())])
    found = collect(settings(tmp_path, tasks=tmp_path / "mixed.jsonl"))
    assert (found.tasks, found.left_out) == (1, 1)
    write_tasks(tmp_path / "open.jsonl", [task(1, script=())])
    with pytest.raises(TrainingError, match="name a chat model with --agent"):
        collect(settings(tmp_path, "other", tasks=tmp_path / "open.jsonl"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"graph": "collecting:nothing"}, "--graph collecting:nothing: module 'collecting' has no attribute 'nothing'"),
        ({"graph": "no_such_module:x"}, "--graph no_such_module:x: No module named 'no_such_module'"),
        ({"graph": "collecting"}, "write module:factory"),
        ({"graph": "collecting:SCHEMA"}, "--graph collecting:SCHEMA is dict, not a function"),
        ({"guard": "collecting:no_guard"}, "gave str: its factory returns a Guard or GuardModel"),
        ({"guard": "collecting:whole_guard", "check": "never"}, "say check and policy there"),
        ({"guard": "nowhere"}, "nowhere"),
        ({"tasks": "none.jsonl"}, "no tasks at 'none.jsonl'"),
        ({"tasks": "agentdojo:travel"}, "AgentDojo's travel suite, on which nobody trains or tunes"),
        ({"tasks": "agentdojo:slack"}, "AgentDojo's slack suite, on which nobody trains or tunes"),
        ({"tasks": "agentdojo:workspace", "graph": "collecting:plain_graph"}, "bring graphs of their own"),
        ({"split": "train"}, "is not split"),
        ({"policy": Path("none.toml")}, "none.toml"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    given = settings(tmp_path, **changes)
    options = [f"--{name}={value}" for name, value in changes.items() if name not in ("tasks", "guard")]
    base = ["--tasks", given.tasks, "--output", str(given.output), "--guard", given.guard]
    assert main([*base, *options]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("change", [{"id": "agentdojo/travel/user_task_0"}, {"environment": "AgentHarm/mail"}])
def test_tasks_of_held_out_data_are_refused(tmp_path: Path, change: dict[str, str]) -> None:
    write_tasks(tmp_path / "held.jsonl", [task(0), task(1, **change)])
    with pytest.raises(TrainingError, match="nobody trains or tunes"):
        collect(settings(tmp_path, tasks=tmp_path / "held.jsonl"))
    assert not (tmp_path / "out").exists()


def test_a_guard_that_cannot_be_loaded_by_a_worker_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="gave str: its factory returns"):
        collect(settings(tmp_path, guard="collecting:no_guard", workers=2))


def test_a_limit_takes_some_tasks_and_the_same_each_time(tmp_path: Path) -> None:
    def drawn(output: str, **changes: Any) -> set[str]:
        collect(settings(tmp_path, output, limit=3, samples=1, **changes))
        return {trajectory.task for trajectory in read_traces(tmp_path / output)}

    assert len(drawn("a")) == 3
    assert drawn("a", resume=True) == drawn("b")


def test_a_split_takes_its_side(tmp_path: Path) -> None:
    def of(number: int, agent: str) -> Task:
        return task(number, id=f"asb/{agent}/task/{number}", environment=f"asb/{agent}")

    write_tasks(tmp_path / "asb.jsonl", [of(0, "medical_advisor_agent"), of(1, "system_admin_agent")])
    collect(settings(tmp_path, tasks=tmp_path / "asb.jsonl", split="dev", samples=1))
    assert [trajectory.task for trajectory in read_traces(tmp_path / "out")] == ["asb/system_admin_agent/task/1"]


def test_agentdojo_runs_under_its_own_graders(tmp_path: Path) -> None:
    pytest.importorskip("agentdojo")
    found = collect(settings(tmp_path, tasks="agentdojo:banking", limit=2, samples=2))
    assert found.counts["trajectories"] == 4
    for trajectory in read_traces(tmp_path / "out"):
        assert trajectory.outcome is not None
        assert trajectory.outcome.source == "grader:agentdojo"
        assert trajectory.task.startswith("agentdojo/banking/")
        assert trajectory.id in {f"{trajectory.task}/{number}" for number in range(2)}


def test_no_two_trajectories_share_a_file() -> None:
    names: Sequence[str] = [
        "a/b/0",
        "a-b/0",
        "a b/0",
        "A/b/0",
        "ä/0",
        "o/0",
        "x" * 300 + "/0",
        "x" * 300 + "/1",
        "\ud800/0",
    ]
    files = [file_name(name) for name in names]
    assert len({file.casefold() for file in files}) == len(names)
    assert all(file.endswith(".jsonl") and file.isascii() and len(file) < 200 for file in files)


def test_settings_are_checked_and_noted(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["--tasks", "x", "--output", "y", "--samples", "0"])
    parsed = parse_settings(["--tasks", "x", "--output", "y", "--check", "never", "--workers", "3"])
    assert (parsed.check, parsed.workers, parsed.samples) == ("never", 3, 4)
    collect(settings(tmp_path, samples=1))
    noted = json.loads((tmp_path / "out" / "collect.json").read_text())
    assert noted["guard"] == "collecting:guard_model"
    assert "output" not in noted


def test_the_summary_counts_a_failing_guard() -> None:
    found = Collected(tasks=1)
    found.counts.update(trajectories=2, harmful=1, harmless=1, calls=3, refused=3, failed_guard=2)
    assert found.lines() == [
        "2 trajectories of 1 tasks: 1 harmful, 1 harmless, 0 unknown; 0 completed",
        "3 calls judged, 3 refused",
        "2 of the decisions are those of a guard that failed",
    ]


@pytest.mark.model
def test_a_local_guards_tokens_are_on_record_and_drawn_alike_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from tiny_model import tiny_model

    model, tokenizer = tiny_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("TINY_GUARD", str(tmp_path / "model"))
    given = {"guard": "collecting:tiny_guard_model", "tasks": task_file(tmp_path, 1), "samples": 3}
    collect(settings(tmp_path, "one", **given))
    collect(settings(tmp_path, "two", **given))
    assert recorded(tmp_path / "one") == recorded(tmp_path / "two")
    drawn = [step for found in read_traces(tmp_path / "one") for step in found.steps]
    sampled = [piece for step in drawn for piece in step.pieces if piece.kind == "sampled"]
    assert sampled
    assert all(len(piece.ids) == len(piece.logprobs) > 0 for piece in sampled)
    assert len({step.think for step in drawn}) > 1
    collect(settings(tmp_path, "decisions", sample="decisions", **given))
    first = [found.steps[0] for found in read_traces(tmp_path / "decisions")]
    assert len({step.think for step in first}) == 1
