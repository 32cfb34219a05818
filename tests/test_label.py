"""Labelling in the terminal: what each answer writes, and that it goes on where it stopped."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from training_traces import log_traces

from mosaic_guard_training.judging import Judgement, read_judgements
from mosaic_guard_training.judging.label import LabelSettings, label, main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of two trajectories of three steps of two calls; the second trajectory refused call 2.2."""
    return log_traces(tmp_path_factory.mktemp("label") / "traces", "base", tasks=3)


def ask(traces: Path, output: Path, answers: str, **more: object) -> tuple[list[Judgement], str]:
    screen = io.StringIO()
    console = Console(file=screen, width=160)
    label(LabelSettings(traces=traces, output=output, **more), iter(answers.splitlines()), console)
    return read_judgements(output) if output.stat().st_size else [], screen.getvalue()


def test_each_answer_says_who_is_better(traces: Path, tmp_path: Path) -> None:
    said, shown = ask(traces, tmp_path / "j.jsonl", "1\nt\ns\n")
    assert [j.winner for j in said[1:]] == ["tie", "abstain"]
    assert said[0].winner == said[0].votes[0].first
    assert {j.judge for j in said} == {"human"}
    assert [(j.task, j.one, j.other) for j in said] == [(f"task {i}", f"0-{2 * i}", f"0-{2 * i + 1}") for i in range(3)]
    assert "1 of 3: task task 0" in shown
    again, shown = ask(traces, tmp_path / "j.jsonl", "2\n")
    assert again == said
    assert "nothing left to label" in shown


def test_which_stands_left_is_drawn_and_its_answer_is_of_the_trajectory(traces: Path, tmp_path: Path) -> None:
    sides = set()
    for seed in range(6):
        output = tmp_path / f"{seed}.jsonl"
        (left, *_), _ = ask(traces, output, "1\nq\n", seed=seed)
        (right, *_), _ = ask(traces, tmp_path / f"{seed}-2.jsonl", "2\nq\n", seed=seed)
        assert left.votes[0].first == right.votes[0].first == left.winner != right.winner
        sides.add(left.winner)
    assert sides == {"one", "other"}


def test_a_harmful_step_is_a_judgement_of_what_ran_there(traces: Path, tmp_path: Path) -> None:
    said, shown = ask(traces, tmp_path / "j.jsonl", "h 1 2\nh 2 2\nh 1 1.2\nh 1 9\nh 3 1\nwhat\n1\nq\n")
    steps = [j for j in said if j.step is not None]
    assert {(j.one, j.step, j.calls) for j in steps} == {
        ("0-0", 1, (0, 1)),
        ("0-1", 1, (0,)),  # the other call of the step was refused
        (steps[2].one, 0, (1,)),
    }
    assert all(j.winner == "other" and j.one == j.other for j in steps)
    assert shown.count("no call '9' there") == 1
    assert "not an answer: 'what'" in shown
    assert len(said) == 4


def test_one_trajectory_at_a_time(traces: Path, tmp_path: Path) -> None:
    output = tmp_path / "j.jsonl"
    said, _ = ask(traces, output, "2.2\nn\nx\ns\n", single=True, name="anna")
    assert {j.judge for j in said} == {"human:anna"}
    assert [(j.one, j.step, j.calls, j.winner) for j in said[:1]] == [("0-0", 1, (1,), "other")]
    assert {(j.step, *j.calls) for j in said if j.one == "0-1"} == {(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)}
    assert {j.winner for j in said if j.one == "0-1"} == {"one"}
    assert said[-1].winner == "abstain"
    more, shown = ask(traces, output, "3\n", single=True, name="anna")
    assert "1 of 3" in shown
    assert [(j.one, j.step, j.calls) for j in more[len(said) :]] == [("0-3", 2, (0, 1))]
    other, shown = ask(traces, output, "q\n", single=True, name="ben")
    assert "1 of 6" in shown
    assert len(other) == len(more)


@settings(max_examples=20)
@given(
    st.lists(st.sampled_from(["1", "2", "t", "s", "h 1 2", "?"]), max_size=8),
    st.lists(st.integers(0, 8), max_size=3),
)
def test_a_session_in_pieces_writes_what_one_session_would(
    traces: Path, tmp_path_factory: pytest.TempPathFactory, answers: list[str], cuts: list[int]
) -> None:
    root = tmp_path_factory.mktemp("pieces")
    whole, _ = ask(traces, root / "whole.jsonl", "\n".join(answers))
    bounds = [0, *sorted(cuts), len(answers)]
    pieces: list[Judgement] = []
    for start, end in itertools.pairwise(bounds):
        pieces, _ = ask(traces, root / "pieces.jsonl", "\n".join(answers[start:end]))
    assert pieces == whole


def test_the_command_reads_a_pipe(traces: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "training", "integrations"))
    command = [sys.executable, "-m", "mosaic_guard_training.judging.label"]
    done = subprocess.run(
        [*command, "--traces", str(traces), "--output", str(tmp_path / "j.jsonl")],
        input="1\n2\n",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=120,
        check=True,
    )
    assert "stopped; the same command goes on from here" in done.stdout
    assert len(read_judgements(tmp_path / "j.jsonl")) == 2


def test_a_name_that_means_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--traces", str(tmp_path), "--output", str(tmp_path / "j.jsonl"), "--name", "ask"])
    assert "--name must be a name other than 'ask'" in capsys.readouterr().err
