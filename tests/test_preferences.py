"""The preference file: who is heard, what stays, on which side of the split it is, and that nothing is lost unseen."""

from __future__ import annotations

import json
import random
import resource
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import answered, ran
from training_traces import GUARD, WORDS, log_traces, step, trajectories, trajectory

from mosaic_guard import Outcome, Trajectory
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.judging import AskedJudge, HindsightJudge, Judgement, OutcomeJudge
from mosaic_guard_training.judging.__main__ import main as judge_main
from mosaic_guard_training.judging.stage import pairs_to_judge
from mosaic_guard_training.pairs import PreferencePair, Side, build_pairs
from mosaic_guard_training.preference_file import (
    Preference,
    Source,
    bare,
    logged_by,
    read_preference_records,
    read_preferences,
    write_preferences,
)
from mosaic_guard_training.preference_split import balance, environments_of, families, split_families
from mosaic_guard_training.preferences import PreferenceSettings, main, make_preferences
from mosaic_guard_training.tokens import pair_row
from mosaic_guard_training.twins import segments

pytestmark = pytest.mark.slow

SAMPLED_ACT = ("act", "sampled")
TRACE = Path(__file__)  # any file: the trajectories of these tests are made in memory
ENVIRONMENTS = ("mail", "bank", "shop")


def rules(**more: object) -> PreferenceSettings:
    return PreferenceSettings(traces=Path(), judgements=Path(), output=Path(), **more)


def words() -> tuple[Sequence[int], Sequence[int]]:
    return WORDS


def judged(found: Sequence[Trajectory]) -> list[Judgement]:
    """What outcomes and hindsight say of some trajectories."""
    said = [OutcomeJudge().judge(*pair) for pair in pairs_to_judge(found, 10**6, 0)]
    return said + [judgement for each in found for judgement in HindsightJudge().judgements(each)]


@st.composite
def worlds(draw: st.DrawFn) -> list[Trajectory]:
    """Trajectories of a few tasks of a few environments; some outcomes name a second environment."""
    found = []
    for number, each in enumerate(draw(st.lists(trajectories(), min_size=1, max_size=10))):
        task = f"{draw(st.sampled_from(ENVIRONMENTS))}/{each.task}"
        outcome = each.outcome
        if outcome is not None and draw(st.integers(0, 2)) == 0:
            outcome = replace(outcome, details={"suite": draw(st.sampled_from(ENVIRONMENTS))})
        found.append(replace(each, id=f"t{number}", task=task, outcome=outcome, file=TRACE))
    return found


numbers = st.fixed_dictionaries(
    {
        "balance": st.sampled_from([0.0, 1.0, 2.5]),
        "held_out": st.sampled_from([0.0, 0.2, 0.5]),
        "harmless_twins": st.integers(0, 3),
        "pairs_per_task": st.sampled_from([0, 1, 16]),
        "seed": st.integers(0, 3),
    }
)


@given(worlds(), numbers, st.randoms())
def test_the_file_depends_on_nothing_but_traces_judgements_and_settings(
    found: list[Trajectory], chosen: dict[str, float], draw: random.Random
) -> None:
    said = [replace(each, time="") for each in judged(found)]
    made = make_preferences(found, said, rules(**chosen), words)
    shuffled = draw.sample(found, len(found))
    again = make_preferences(shuffled, draw.sample(said, len(said)), rules(**chosen), words)
    assert again.preferences == made.preferences
    assert again.dropped == made.dropped
    assert again.notes == made.notes


@given(worlds(), numbers)
def test_no_environment_and_no_task_is_on_both_sides(found: list[Trajectory], chosen: dict[str, float]) -> None:
    made = make_preferences(found, judged(found), rules(**chosen), words)
    for task in {each.task for each in found}:
        members = [each for each in found if each.task == task]
        splits = {
            p.split
            for p in made.preferences
            for name in environments_of(task, members)
            if name in environments_of(p.pair.task, [each for each in found if each.task == p.pair.task])
        }
        assert len(splits) <= 1
    assert len({(p.environment, p.split) for p in made.preferences}) == len({p.environment for p in made.preferences})


@given(worlds(), numbers)
def test_every_judgement_becomes_a_pair_or_is_counted(found: list[Trajectory], chosen: dict[str, float]) -> None:
    said = judged(found)
    made = make_preferences(found, said, rules(**chosen), words)
    left_out = sum(number for reason, number in made.dropped.items() if not reason.startswith("trajectories"))
    assert len(said) == len(made.preferences) + left_out
    assert all(made.dropped.values())


@given(worlds(), numbers)
def test_no_pair_is_there_twice_or_contradicted_or_says_nothing(
    found: list[Trajectory], chosen: dict[str, float]
) -> None:
    made = make_preferences(found, judged(found), rules(**chosen), words)
    ids = [p.id for p in made.preferences]
    assert len(set(ids)) == len(ids)
    assert not {p.opposite for p in made.preferences} & set(ids)
    assert all(pair_row(p.pair, 10_000) is not None for p in made.preferences)


@given(worlds(), numbers)
def test_harmful_and_benign_tasks_are_balanced_on_each_side(found: list[Trajectory], chosen: dict[str, float]) -> None:
    whole = make_preferences(found, judged(found), rules(**{**chosen, "balance": 0.0}), words).preferences
    made = make_preferences(found, judged(found), rules(**chosen), words).preferences
    assert set(made) <= set(whole)
    for split in ("train", "test"):
        before, after = (Counter(p.category for p in some if p.split == split) for some in (whole, made))
        assert before["unknown"] == after["unknown"]
        few, many = sorted([before["harmful"], before["benign"]])
        limit = int(chosen["balance"] * few) if few and chosen["balance"] else many
        assert sorted([after["harmful"], after["benign"]]) == sorted([few, min(many, limit)])


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9)), min_size=3, max_size=12), st.integers(0, 5))
def test_balance_keeps_tasks_before_repetitions(sizes: list[tuple[str, int]], seed: int) -> None:
    benign = [prefer(f"{name}{i}", "benign", j) for i, (name, size) in enumerate(sizes) for j in range(size)]
    harmful = [prefer("h", "harmful", -1 - j) for j in range(2)]
    kept = [p for p in balance([*benign, *harmful], 1.0, seed) if p.category == "benign"]
    assert len(kept) == 2
    assert len({p.pair.task for p in kept}) == 2


def prefer(task: str, category: str, number: int) -> Preference:
    one, other = (bare(Side(name, turn_of(ran(name, verdict)))) for name, verdict in (("a", "act"), ("b", "refuse")))
    pair = PreferencePair(f"{task}", "outcome", one, other, number, (number,))
    return Preference(pair, task, category, "outcome", "base", (logged_by({}),), (Source("f", "0"),))


def turn_of(found: Trajectory) -> tuple:
    return (tuple(found.steps[0].pieces),)


@given(worlds(), st.integers(0, 3))
def test_outcomes_and_hindsight_give_the_pairs_that_the_traces_alone_give(found: list[Trajectory], seed: int) -> None:
    made = make_preferences(found, judged(found), rules(balance=0.0, harmless_twins=2, seed=seed), words)
    alone = build_pairs(found, WORDS, per_task=10**6, harmless_twins=2, seed=seed).pairs
    expected = {}
    for pair in alone:
        plain = prefer("x", "benign", 0)
        whole = replace(plain, pair=replace(pair, chosen=bare(pair.chosen), rejected=bare(pair.rejected)))
        if not whole.says_nothing:
            expected[whole.id] = whole
    contradicted = {p.id for p in expected.values() if p.opposite in expected}
    assert {p.id for p in made.preferences} == set(expected) - contradicted
    twins = {
        (p.pair.chosen.twin, p.pair.rejected.twin, p.pair.kind) for p in made.preferences if p.pair.step is not None
    }
    assert twins <= {
        (True, False, "hindsight_harmful"),
        (False, True, "hindsight_harmful"),
        (False, True, "hindsight_harmless"),
    }


@given(trajectories(), trajectories())
def test_a_pair_says_nothing_where_its_row_would_be_empty(one: Trajectory, other: Trajectory) -> None:
    pair = PreferencePair("t", "outcome", *(Side(each.id, segments(each.steps)) for each in (one, other)))
    for found in (pair, replace(pair, rejected=pair.chosen)):
        assert replace(prefer("x", "benign", 0), pair=found).says_nothing == (pair_row(found, 10_000) is None)


def about(judge: str, winner: str, time: str = "1", step: int | None = None, calls: tuple[int, ...] = ()) -> Judgement:
    names = ("a", "b") if step is None else ("a", "a")
    return Judgement(f"{judge}{winner}{time}", "shop/1", *names, winner, judge, time=time, step=step, calls=calls)


@pytest.fixture
def two() -> list[Trajectory]:
    """A rash and a safe trajectory of one task, outcome unknown."""
    return [replace(ran(name, verdict, "act"), file=TRACE) for name, verdict in (("a", "act"), ("b", "refuse"))]


@pytest.mark.parametrize(
    ("said", "chosen", "judge"),
    [
        ([about("llm:m", "one"), about("outcome", "other")], "b", "outcome"),
        ([about("llm:m", "one", "2"), about("human", "other")], "b", "human"),
        ([about("outcome", "abstain"), about("llm:m", "one")], "a", "llm:m"),
        ([about("human:anna", "one", "2"), about("human:ben", "other", "1")], "a", "human:anna"),
        ([about("human", "one", "1"), about("human", "other", "2")], "b", "human"),
        ([about("human", "tie"), about("outcome", "one")], None, None),
        ([about("human", "abstain")], None, None),
    ],
)
def test_the_judge_of_the_highest_rank_that_can_say_is_heard(
    two: list[Trajectory], said: list[Judgement], chosen: str | None, judge: str | None
) -> None:
    made = make_preferences(two, said, rules(), words)
    assert [(p.pair.chosen.trajectory, p.judge) for p in made.preferences] == ([(chosen, judge)] if chosen else [])
    assert [p.pair.kind for p in made.preferences] == ([judge.split(":")[0]] if judge else [])


def test_a_judge_that_was_not_asked_for_is_not_heard(two: list[Trajectory]) -> None:
    said = [about("llm:m", "one"), about("outcome", "other")]
    made = make_preferences(two, said, rules(judges=("llm",)), words)
    assert [p.judge for p in made.preferences] == ["llm:m"]
    assert made.dropped["judgements of judges that were not asked for"] == 1


def test_a_person_overrules_hindsight_call_by_call(two: list[Trajectory]) -> None:
    said = [about("hindsight", "other", step=0, calls=(0,)), about("human:ask", "one", step=0, calls=(0,))]
    (made,) = make_preferences(two, said, rules(), words).preferences
    assert (made.judge, made.pair.kind, made.pair.rejected.twin) == ("human:ask", "human", True)


@pytest.mark.parametrize("word", ["act", "refuse"])
@pytest.mark.parametrize(("answer", "runs"), [("approve", True), ("reject", False), ("edit", False)])
def test_an_answer_to_what_the_guard_asked_is_a_pair_at_that_call(word: str, answer: str, runs: bool) -> None:
    """Whatever word the model itself wrote before the person was asked."""
    asked = answered(step(1, [SAMPLED_ACT, (word, "sampled"), SAMPLED_ACT]), (1, answer))
    found = replace(trajectory("t", [step(0, [SAMPLED_ACT]), asked, step(2, [SAMPLED_ACT])], None), file=TRACE)
    (made,) = make_preferences([found], list(AskedJudge().judgements(found)), rules(), words).preferences
    pair = made.pair
    assert (pair.kind, pair.step, pair.calls, made.judge) == ("human", 1, (1,), "human:ask")
    texts = ["".join(p.text for s in side.segments for p in s) for side in (pair.chosen, pair.rejected)]
    act, refuse = texts if runs else texts[::-1]
    assert act.endswith("1: act\n2: act\n3: act\n</decision>")
    assert refuse.endswith("1: act\n2: refuse\n3: act\n</decision>")
    acts, refuses = (pair.chosen, pair.rejected) if runs else (pair.rejected, pair.chosen)
    assert (acts.twin, refuses.twin) == (word == "refuse", word == "act")
    row = pair_row(pair, 1000)
    assert sum(row.chosen_loss) == sum(row.rejected_loss) == 1


def test_duplicates_and_contradictions_are_left_out_token_for_token() -> None:
    outcomes = {
        "a": Outcome(True, True),
        "b": Outcome(False, True),
        "c": Outcome(True, True),
        "d": Outcome(False, True),
    }
    same = {"a": "act", "b": "refuse", "c": "act", "d": "refuse"}
    found = [
        replace(trajectory(name, [step(0, [(verdict, "sampled")])], outcomes[name], task="shop/1"), file=TRACE)
        for name, verdict in same.items()
    ]
    made = make_preferences(
        found, [OutcomeJudge().judge(*pair) for pair in pairs_to_judge(found, 99, 0)], rules(), words
    )
    assert len(made.preferences) == 1
    assert made.dropped["pairs that repeat another pair token for token"] == 3
    turned = [about("llm:m", "other"), replace(about("llm:m", "one"), one="c", other="d")]
    made = make_preferences(found, turned, rules(), words)
    assert not made.preferences
    assert made.dropped["pairs that another pair contradicts token for token"] == 2


def test_several_base_models_need_a_choice(two: list[Trajectory]) -> None:
    others = [replace(each, id=f"{each.id}2", guard={**GUARD, "base_model": "larger"}) for each in two]
    said = [about("llm:m", "one"), replace(about("llm:m", "one"), one="a2", other="b2")]
    with pytest.raises(TrainingError, match=r"2 base models \(base, larger\): name one with --base-model"):
        make_preferences([*two, *others], said, rules(), words)
    made = make_preferences([*two, *others], said, rules(base_model="larger"), words)
    assert [p.base_model for p in made.preferences] == ["larger"]
    assert made.dropped["trajectories of other base models"] == 2
    assert made.dropped["judgements of trajectories that are not among those with tokens"] == 1


def test_what_the_model_did_not_judge_is_counted(two: list[Trajectory]) -> None:
    blind = replace(trajectory("a", [step(0, [SAMPLED_ACT], judged=False), step(1, [SAMPLED_ACT])], None), file=TRACE)
    said = [about("human", "other", step=0, calls=(0,)), about("hindsight", "one", step=0, calls=(0,), time="0")]
    made = make_preferences([blind], said, rules(), words)
    assert made.dropped == {
        "judged steps without the guard model's own tokens": 1,
        "judgements overruled by a judge of a higher rank, or by a later one": 1,
    }


@pytest.mark.parametrize(
    ("task", "details", "expected"),
    [
        ("bank/7", {}, {"bank"}),
        ("bank:7/x", {}, {"bank"}),
        ("3f2a", {}, {"3f2a"}),
        ("/x", {}, {"/x"}),
        ("bank/7", {"environment": "slack"}, {"slack"}),
        ("bank/7", {"suite": "travel", "environment": ""}, {"travel"}),
    ],
)
def test_where_a_task_belongs(task: str, details: dict[str, str], expected: set[str]) -> None:
    assert environments_of(task, [ran("a", "act", outcome=Outcome(details=details)), ran("b", "act")]) == expected


sizes = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 50), max_size=8)


@given(sizes, st.floats(0, 0.9), st.integers(0, 9))
def test_families_are_held_out_up_to_the_share(found: dict[str, int], share: float, seed: int) -> None:
    sides = split_families(found, share, (), seed)
    held = [name for name, side in sides.items() if side == "test"]
    assert set(sides) == set(found)
    if not share or len(found) < 2:
        assert not held
        return
    assert 0 < len(held) < len(found)
    assert len(held) == 1 or sum(found[name] for name in held) <= share * sum(found.values())


@given(st.dictionaries(st.integers(0, 9), st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3)))
def test_environments_that_share_a_task_are_one_family(tasks: dict[int, set[str]]) -> None:
    found = families({str(task): names for task, names in tasks.items()})
    assert all(len({found[name] for name in names}) == 1 for names in tasks.values())
    for name, other in ((a, b) for a in found for b in found if found[a] == found[b] and a != b):
        reached, grown = {name}, set()
        while reached != grown:
            grown = set(reached)
            reached |= {n for names in tasks.values() if names & reached for n in names}
        assert other in reached


def test_environments_can_be_held_out_by_name(two: list[Trajectory]) -> None:
    other = [replace(each, id=f"{each.id}2", task="bank/1") for each in two]
    said = [about("llm:m", "one"), replace(about("llm:m", "other"), one="a2", other="b2", task="bank/1")]
    steps = [about("human", "one", step=0, calls=(0,))]
    made = make_preferences([*two, *other], said + steps, rules(held_out_environments=("bank",), balance=0.0), words)
    assert {(p.environment, p.split) for p in made.preferences} <= {("shop", "train"), ("bank", "test")}
    with pytest.raises(TrainingError, match="no environment 'slack' to hold out: there are bank, shop"):
        make_preferences([*two, *other], said, rules(held_out_environments=("slack",)), words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preferences")


@settings(max_examples=30)
@given(worlds(), numbers)
def test_what_is_written_is_read_back(folder: Path, found: list[Trajectory], chosen: dict[str, float]) -> None:
    made = make_preferences(found, judged(found), rules(**chosen), words)
    file = folder / "round.jsonl"
    write_preferences(file, made.preferences)
    assert list(read_preference_records(file)) == made.preferences
    assert read_preferences(file) == [p.pair for p in made.preferences]
    for split in ("train", "test"):
        assert read_preferences(file, split) == [p.pair for p in made.preferences if p.split == split]
    assert [p.id for p in read_preference_records(file)] == [p.id for p in made.preferences]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(traces, judgements) of two environments."""
    root = tmp_path_factory.mktemp("stages")
    for seed in range(3):
        log_traces(root / "traces", "base", tasks=6, seed=seed)
    for file in (root / "traces").iterdir():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            if line["type"] == "step":
                line["task"] = line["task"].replace("task ", "bank/" if int(line["task"][-1]) % 2 else "mail/")
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert judge_main(["--traces", str(root / "traces"), "--output", str(root / "j.jsonl")]) == 0
    return root / "traces", root / "j.jsonl"


@pytest.fixture
def command(stages: tuple[Path, Path], tmp_path: Path) -> Callable[..., list[str]]:
    traces, judgements = stages

    def build(output: str = "p.jsonl", *more: str) -> list[str]:
        return ["--traces", str(traces), "--judgements", str(judgements), "--output", str(tmp_path / output), *more]

    return build


def test_the_command_writes_a_file_with_a_report_twice_the_same(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("p.jsonl", "--held-out", "0.4")) == 0
    text = capsys.readouterr().out
    assert "environments: bank (split test" in text or "environments: bank (split train" in text
    report = json.loads((tmp_path / "p.jsonl.report.json").read_text())
    records = list(read_preference_records(tmp_path / "p.jsonl"))
    assert report["pairs"] == len(records) == sum(report["splits"].values())
    assert min(report["splits"].values()) > 0
    assert f"left out: {sum(report['dropped'].values())}" in text or len(report["dropped"]) > 1
    assert {source.file for record in records for source in record.sources} == {s["file"] for s in report["sources"]}
    assert {record.environment for record in records} == set(report["environments"]) == {"bank", "mail"}
    assert main(command("again.jsonl", "--held-out", "0.4")) == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "p.jsonl").read_bytes()
    assert (tmp_path / "again.jsonl.report.json").read_bytes() == (tmp_path / "p.jsonl.report.json").read_bytes()
    assert str(tmp_path) not in (tmp_path / "p.jsonl").read_text() + (tmp_path / "p.jsonl.report.json").read_text()


@pytest.mark.model
@pytest.mark.parametrize("chunk", [1, 20_000, 10 << 20])
@pytest.mark.parametrize("judges", [["outcome"], ["hindsight"], ["outcome", "hindsight"]])
def test_datasets_reads_it_with_one_schema_whatever_its_parts_hold(
    command: Callable[..., list[str]], tmp_path: Path, chunk: int, judges: list[str]
) -> None:
    import datasets

    assert main(command("p.jsonl", "--judges", *judges)) == 0
    assert main(command("whole.jsonl", "--judges", "outcome")) == 0
    datasets.disable_progress_bars()
    both = [str(tmp_path / "whole.jsonl"), str(tmp_path / "p.jsonl")]
    found = datasets.load_dataset(
        "json", data_files=both, split="train", cache_dir=str(tmp_path / "c"), chunksize=chunk
    )
    records = [record for file in both for record in read_preference_records(file)]
    assert [Preference.from_dict(line) for line in found] == records
    assert found.features["step"].dtype == found.features["calls"].feature.dtype == "int64"


def test_a_full_disk_leaves_the_file_as_it_was(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command()) == 0
    before = (tmp_path / "p.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        assert main(command("p.jsonl", "--seed", "1", "--harmless-twins", "4")) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "make room, or name another --output" in capsys.readouterr().err
    assert (tmp_path / "p.jsonl").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"p.jsonl", "p.jsonl.report.json"}


def test_what_cannot_be_done_is_one_sentence(
    command: Callable[..., list[str]], stages: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command()[:2], "--judgements", str(tmp_path / "none"), *command()[4:]]) == 2
    assert "no judgements at" in capsys.readouterr().err
    assert main([*command()[:4], "--output", str(stages[0] / "p.jsonl")]) == 2
    assert "name another place" in capsys.readouterr().err
    assert main(command("p.jsonl", "--judges", "llm")) == 2
    captured = capsys.readouterr()
    assert "no pair is left" in captured.err
    assert "judgements of judges that were not asked for" in captured.out
    with pytest.raises(SystemExit):
        main(command("p.jsonl", "--balance", "0.5"))
    assert "--balance must be 0 or at least 1" in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(TrainingError, match=r"bad.jsonl:1: not a preference \(missing field 'split'\)"):
        read_preferences(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(TrainingError, match=r"bad.jsonl:1: not a preference \('utf-8' codec"):
        read_preferences(tmp_path / "bad.jsonl")
    with pytest.raises(TrainingError, match="no preference file at"):
        read_preferences(tmp_path / "none.jsonl")
