"""Judges, and the file of their judgements: what each says, what is kept, what a crash costs."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from judges import SAMPLED_ACT, Answering, answered, careful, ran, said_of
from rich.console import Console
from training_traces import log_traces, step, trajectories, trajectory

from mosaic_guard import Outcome, TraceWriter, Trajectory, read_traces
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.judging import (
    AskedJudge,
    HindsightJudge,
    Judgement,
    JudgementLog,
    OutcomeJudge,
    latest,
    read_judgements,
)
from mosaic_guard_training.judging.__main__ import main
from mosaic_guard_training.judging.cache import JudgementWarning
from mosaic_guard_training.judging.stage import JudgeSettings, judge, pairs_to_judge
from mosaic_guard_training.pairs import prefer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
DONE, HARM = Outcome(False, True), Outcome(True, True, [(0, 0)])
QUIET = Console(quiet=True)

known = st.sampled_from([True, False, None])
outcomes = st.none() | st.builds(Outcome, known, known)


@given(outcomes, outcomes)
def test_the_outcome_judge_prefers_as_pairs_do_and_abstains_where_nothing_is_known(
    one: Outcome | None, other: Outcome | None
) -> None:
    said = OutcomeJudge().judge(ran("a", "act", outcome=one), ran("b", "act", outcome=other))
    back = OutcomeJudge().judge(ran("b", "act", outcome=other), ran("a", "act", outcome=one))
    better = prefer(one, other)
    assert {"one": 1, "other": -1}.get(said.winner, 0) == better
    assert back.winner == {"one": "other", "other": "one"}.get(said.winner, said.winner)
    if one is None or other is None or None in (one.harmful, other.harmful):
        assert said.winner == "abstain"


@given(trajectories())
def test_hindsight_names_the_first_harm_or_the_right_decisions(found: Trajectory) -> None:
    said = list(HindsightJudge().judgements(found))
    acted = {(s.step, d.call) for s in found.steps for d in s.decisions if d.verdict == "act"}
    if found.outcome is None or found.outcome.harmful is None:
        assert not said
        return
    named = {(j.step, call) for j in said for call in j.calls}
    harmful = set(found.outcome.harmful_calls)
    if found.outcome.harmful:
        first = min((step for step, _ in acted & harmful), default=None)
        assert named == {(step, call) for step, call in acted & harmful if step == first}
        assert all(j.winner == "other" for j in said)
    else:
        # Without tokens no model judged it; a policy's word is `overridden`.
        own = {(s.step, d.call) for s in found.steps for d in s.decisions if s.pieces and d.source == "model"}
        right = (own - acted) & harmful
        stopped = {(step, call) for step, call in right if step == min(step for step, _ in right)}
        assert named == (acted - harmful) | stopped
        assert all(j.winner == ("other" if {(j.step, call) for call in j.calls} & stopped else "one") for j in said)


@pytest.mark.parametrize(
    ("answer", "winner"), [("approve", "one"), ("reject", "other"), ("edit", "other"), ("respond", "abstain")]
)
def test_what_a_person_answered_is_a_judgement_of_that_call(answer: str, winner: str) -> None:
    asked = answered(step(0, [SAMPLED_ACT, SAMPLED_ACT]), (1, "approve"), (1, answer))
    (said,) = AskedJudge().judgements(trajectory("t", [asked], None))
    assert (said.winner, said.step, said.calls, said.judge) == (winner, 0, (1,), "human:ask")
    assert said.reason.endswith(": because")


def test_answers_to_unknown_calls_and_of_unknown_types_say_nothing() -> None:
    asked = answered(step(0, [SAMPLED_ACT]), (7, "approve"), (0, "shrug"))
    assert not list(AskedJudge().judgements(trajectory("t", [asked, step(1, [SAMPLED_ACT])], None)))


def test_identical_calls_of_a_step_share_an_answer() -> None:
    asked = answered(step(0, [SAMPLED_ACT, SAMPLED_ACT]), (0, "reject"))
    twice = replace(asked, calls=[{**call, "digest": "d0"} for call in asked.calls])
    object.__setattr__(twice, "feedback", asked.feedback)
    (said,) = AskedJudge().judgements(trajectory("t", [twice], None))
    assert said.calls == (0, 1)


words = st.text(max_size=8)
judgements = st.builds(
    Judgement,
    key=words,
    task=words,
    one=st.sampled_from("abc"),
    other=st.sampled_from("abc"),
    winner=st.sampled_from(["one", "other", "tie", "abstain"]),
    judge=st.sampled_from(["human", "llm:x"]),
    reason=words,
    step=st.none() | st.integers(0, 3),
    calls=st.lists(st.integers(0, 3), max_size=2).map(tuple),
)


SAID = Judgement("k", "t", "a", "b", "one", "human")


@settings(max_examples=25)
@given(st.lists(judgements, max_size=8))
@example([SAID, replace(SAID, winner="other")])
def test_what_is_kept_is_read_back_and_the_last_judgement_counts(
    tmp_path_factory: pytest.TempPathFactory, said: list[Judgement]
) -> None:
    file = tmp_path_factory.mktemp("log") / "sub" / "j.jsonl"
    with JudgementLog(file) as log:
        for each in said:
            log.add(each)
        assert len(log) <= len(said)
    found = read_judgements(file)
    expected = {(j.judge, j.subject): j for j in said}
    assert {(j.judge, j.subject): j.winner for j in latest(found)} == {k: j.winner for k, j in expected.items()}
    with JudgementLog(file) as log:
        before = len(log)
        for each in latest(found):
            log.add(each)
        assert len(log) == before


def stage(traces: Path, output: Path, *more: str) -> list[str]:
    return ["--traces", str(traces), "--output", str(output), "--judges", "outcome", "hindsight", "llm", *more,
            "--model", "scripted"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(traces, judgements of all of them)."""
    root = tmp_path_factory.mktemp("judged")
    traces = log_traces(root / "traces", "base", tasks=3)
    for seed in (1, 2):
        log_traces(traces, "base", tasks=3, seed=seed)
    assert main(stage(traces, root / "all.jsonl"), chat=Answering(answer=careful)) == 0
    return traces, root / "all.jsonl"


@settings(max_examples=20)
@given(data=st.data())
def test_a_file_that_was_cut_anywhere_is_completed_to_the_same_judgements(
    finished: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    traces, whole = finished
    content = whole.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    output = tmp_path_factory.mktemp("cut") / "j.jsonl"
    output.write_bytes(content[:cut])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(stage(traces, output), chat=Answering(answer=careful)) == 0
    torn = content[:cut] and not content[:cut].endswith(b"\n")
    assert [w.category for w in caught if "torn" in str(w.message)] == ([JudgementWarning] if torn else [])
    assert said_of(read_judgements(output)) == said_of(read_judgements(whole))
    assert len(output.read_text().splitlines()) == len(content.splitlines())


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_judgements(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    traces, whole = finished
    output = tmp_path / "j.jsonl"
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "training", "integrations", "tests"))
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "judges.py"), *stage(traces, output)]
    kills = 0
    for more in (20, 12, 3, None):
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL)
        start = output.stat().st_size if output.exists() else 0
        while more is not None and process.poll() is None:
            now = output.read_bytes()[start:].count(b"\n") if output.exists() else 0
            if now >= more:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        kills += process.wait(timeout=120) == -signal.SIGKILL
    assert kills >= 2
    assert said_of(read_judgements(output)) == said_of(read_judgements(whole))


def test_nothing_is_asked_twice_and_what_changed_is_judged_again(tmp_path: Path) -> None:
    traces = log_traces(tmp_path / "traces", "base", tasks=2)
    asked: list[str] = []

    def counting(first: str, second: str) -> str:
        asked.append(first)
        return careful(first, second)

    options = JudgeSettings(
        traces=traces, output=tmp_path / "j.jsonl", judges=("outcome", "hindsight", "llm"), model="x"
    )
    run = judge(options, QUIET, chat=Answering(answer=counting))
    assert run.judged == {"outcome": 2, "hindsight": 2 + 2 * (5 + 1), "llm:x": 2}
    assert len(asked) == 4
    again = judge(options, QUIET, chat=Answering(answer=counting))
    assert not +again.judged
    assert again.cached == run.judged
    assert len(asked) == 4

    before = {(j.judge, j.subject): j.winner for j in latest(read_judgements(options.output))}
    (first,) = (each.outcome for each in read_traces(traces) if each.id == "0-0")

    with TraceWriter(traces) as writer:  # somebody looks at it again: the harmful one did no harm
        writer.outcome("0-0", Outcome(False, True, source="second look"))
    third = judge(options, QUIET, chat=Answering(answer=counting))
    assert len(asked) == 4
    assert third.judged["outcome"] == 1
    now = {(j.judge, j.subject): j.winner for j in latest(read_judgements(options.output))}
    assert now["outcome", ("0-0", "0-1", None, ())] == "tie"
    # The call that was called harmful is one of those that were right to run.
    assert now["hindsight", ("0-0", "0-0", 1, (1,))] == "one"

    with TraceWriter(traces) as writer:  # and a third time: harmful after all
        writer.outcome("0-0", replace(first, source="third look"))
    judge(options, QUIET, chat=Answering(answer=counting))
    now = {(j.judge, j.subject): j.winner for j in latest(read_judgements(options.output))}
    assert now["outcome", ("0-0", "0-1", None, ())] == before["outcome", ("0-0", "0-1", None, ())]
    assert now["hindsight", ("0-0", "0-0", 1, (1,))] == "other"

    with TraceWriter(traces) as writer:
        writer.outcome("0-0", Outcome(None, None))
    judge(options, QUIET, chat=Answering(answer=counting))
    now = {(j.judge, j.subject): j for j in latest(read_judgements(options.output))}
    assert now["hindsight", ("0-0", "0-0", 1, (1,))].winner == "abstain"
    assert now["hindsight", ("0-0", "0-0", 1, (1,))].reason.startswith("withdrawn")


@given(st.lists(trajectories(), max_size=8), st.integers(1, 5), st.integers(0, 3))
def test_pairs_are_of_one_task_and_do_not_depend_on_who_was_logged_first(
    found: list[Trajectory], most: int, seed: int
) -> None:
    named = [replace(each, id=f"t{i}") for i, each in enumerate(found)]
    pairs = [(one.id, other.id) for one, other in pairs_to_judge(named, most, seed)]
    assert pairs == [(one.id, other.id) for one, other in pairs_to_judge(named[::-1], most, seed)]
    tasks = {each.id: each.task for each in named}
    for task in set(tasks.values()):
        members = sum(t == task for t in tasks.values())
        of_task = [pair for pair in pairs if tasks[pair[0]] == task]
        assert len(set(of_task)) == min(most, members * (members - 1) // 2)
        assert all(one < other and tasks[other] == task for one, other in of_task)


def test_one_process_at_a_time_writes(tmp_path: Path) -> None:
    with (
        JudgementLog(tmp_path / "j.jsonl"),
        pytest.raises(TrainingError, match="another process writes"),
        JudgementLog(tmp_path / "j.jsonl"),
    ):
        pass


def add_all(log: JudgementLog, said: list[Judgement]) -> None:
    for each in said:
        log.add(each)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Files cannot grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing_that_was_judged(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, whole = finished
    said = read_judgements(whole)
    output = tmp_path / "j.jsonl"
    with JudgementLog(output) as log:
        with disk_of(1500), pytest.raises(TrainingError, match=r"judgements are kept there; make room"):
            add_all(log, said)
        kept = len(log)
        assert 0 < kept < len(said)
        assert len(read_judgements(output)) == kept
        add_all(log, said)
    assert said_of(read_judgements(output)) == said_of(said)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("[]", "not a JSON object"),
        ("{}", "missing field"),
        ('{"key":"k","task":"t","one":"a","other":"b","winner":"both","judge":"x"}', "the winner is 'both'"),
    ],
)
def test_a_bad_line_is_named(line: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(TrainingError, match=f"j.jsonl:1: not a judgement .*{what}"):
        read_judgements(file)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (["--judges", "oracle"], "--judges must be some of"),
        (["--judges", "llm"], "needs --model"),
        (["--model-options", "[]"], "must be a JSON object"),
        (["--parallel", "0"], "--parallel"),
    ],
)
def test_a_bad_command_line_is_one_sentence(
    change: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--traces", str(tmp_path), "--output", str(tmp_path / "j.jsonl"), *change])
    assert what in capsys.readouterr().err


def test_what_cannot_be_read_or_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces = log_traces(tmp_path / "traces", "base", tasks=1)
    assert main(["--traces", str(tmp_path / "none"), "--output", str(tmp_path / "j.jsonl")]) == 2
    assert "no trace files" in capsys.readouterr().err
    assert main(["--traces", str(traces), "--output", str(traces / "j.jsonl")]) == 2
    assert "name another place" in capsys.readouterr().err
    (traces / "later.jsonl").write_text(json.dumps({"type": "header", "version": 9, "id": "x", "guard": {}}) + "\n")
    assert main(["--traces", str(traces), "--output", str(tmp_path / "j.jsonl")]) == 2
    assert "later.jsonl:1: bad trace record: trace version 9" in capsys.readouterr().err


def test_a_judgement_can_be_audited(finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    traces, output = finished
    said = next(j for j in read_judgements(output) if j.judge.startswith("llm") and j.winner != "tie")
    assert main([*stage(traces, output), "--show", said.key[:12]]) == 0
    shown = capsys.readouterr().out
    assert f"{said.judge} on task {said.task}: {said.winner}" in shown
    assert "saw one first and said" in shown
    assert "saw other first and said" in shown
    assert said.one in shown
    assert said.other in shown
    assert "refused" in shown
    assert main([*stage(traces, output), "--show", "nothing"]) == 2
    assert "0 judgements have a key" in capsys.readouterr().err
