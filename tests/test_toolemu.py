"""ToolEmu's data: what becomes of it, how it is split, and the ranking experiment on a tiny model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_model
from toolemu_files import write_toolemu

from mosaic_guard import Trajectory, read_traces
from mosaic_guard_training.evaluation.toolemu_ranking import RankingSettings, main
from mosaic_guard_training.evaluation.toolemu_rows import group_row
from mosaic_guard_training.evaluation.trajectory_ranking import Accuracy, accuracy, bootstrap, rights
from mosaic_guard_training.importing import ImportingError, import_files
from mosaic_guard_training.importing import main as import_main
from mosaic_guard_training.sources.toolemu import (
    HUBS,
    agreed_pairs,
    families,
    only_reads,
    read_cases,
    split_cases,
)
from mosaic_guard_training.tokens import CHOSEN, REJECTED, TokenSequence


def trajectories(tmp_path: Path) -> list[Trajectory]:
    import_files("toolemu", [write_toolemu(tmp_path / "data")], tmp_path / "traces")
    return read_traces(tmp_path / "traces")


def test_trajectories_with_their_answers_tools_and_scores(tmp_path: Path) -> None:
    found = trajectories(tmp_path)
    assert len(found) == 32
    first, hasty = found[0], found[3]
    assert [[c["name"] for c in step.calls] for step in first.steps] == [["MailSearchMails"], ["final_answer"]]
    assert first.steps[-1].calls[0]["args"] == {"text": "Shall I send it now?"}
    assert first.steps[0].messages[1]["data"]["content"] == "I think."
    assert {spec["name"] for spec in first.steps[0].tools} == {"MailSearchMails", "MailSendMail"}
    assert first.steps[0].tools[0]["parameters"]["required"] == ["to"]
    assert first.outcome is not None
    assert hasty.outcome is not None
    assert (first.outcome.harmful, first.outcome.completed) == (False, None)
    assert (hasty.outcome.harmful, hasty.outcome.completed) == (True, False)
    assert first.outcome.details == {
        "safety_gpt5mini": 3,
        "safety_qwen32b": 2,
        "help_gpt5mini": 1,
        "help_qwen32b": 3,
        "agent": "agent 0",
    }
    # What is no JSON object is kept as the agent wrote it.
    assert hasty.steps[0].calls[0]["args"] == {"input": "to anna"}
    assert first.task == "case_0"


def test_pairs_on_which_both_judges_agree(tmp_path: Path) -> None:
    found = trajectories(tmp_path)
    pairs = agreed_pairs(found)
    assert len(pairs) == 8 * 4
    assert all(safer.task == worse.task for safer, worse in pairs)
    assert all(not safer.outcome.harmful and worse.outcome.harmful for safer, worse in pairs)  # type: ignore[union-attr]
    assert agreed_pairs(found, gap=3) == []


@pytest.mark.parametrize("name", ["all_cases.json", "all_toolkits.json", "scored_trajectories.jsonl.gz"])
def test_missing_and_broken_files_are_named(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_toolemu(tmp_path / "data") / name
    for content in (b"{", gzip.compress(b'{"case": 1}\n'), b'[{"a": 1}]', None):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        assert import_main(["toolemu", str(file.parent), "--output", str(tmp_path / "out")]) == 1
        assert name in capsys.readouterr().err
        file.touch()


KITS = st.lists(st.sampled_from(["A", "B", "C", "D", "E", *HUBS]), min_size=1, max_size=3, unique=True)


@settings(deadline=None)
@given(st.lists(KITS, min_size=1, max_size=20), st.integers(0, 9), st.integers(0, 20))
def test_no_family_is_on_both_sides(kits: list[list[str]], seed: int, held_out: int) -> None:
    cases = [{"name": str(i), "Toolkits": used} for i, used in enumerate(kits)]
    train, test = split_cases(cases, held_out=held_out, seed=seed)
    assert sorted(train + test) == sorted(c["name"] for c in cases)
    assert len(test) <= held_out
    assert (train, test) == split_cases(list(reversed(cases)), held_out=held_out, seed=seed) or sorted(test) == sorted(
        split_cases(list(reversed(cases)), held_out=held_out, seed=seed)[1]
    )
    of = families(cases)
    assert not {of[name] for name in train} & {of[name] for name in test}
    own = {c["name"]: set(c["Toolkits"]) - set(HUBS) for c in cases}
    assert not set().union(*(own[n] for n in train)) & set().union(*(own[n] for n in test))


def test_a_split_file_settles_it(tmp_path: Path) -> None:
    cases = read_cases(write_toolemu(tmp_path))
    splits = tmp_path / "splits.json"
    sides = {c["name"]: "test" if i < 3 else "train" for i, c in enumerate(cases)}
    splits.write_text(json.dumps({"sources": {"toolemu": {"cases": sides}}}))
    assert split_cases(cases, splits=splits)[1] == ["case_0", "case_1", "case_2"]
    splits.write_text(json.dumps({"sources": {"toolemu": {"cases": {"case_0": "test"}}}}))
    with pytest.raises(ImportingError, match="puts case_1 and 6 more on no side"):
        split_cases(cases, splits=splits)
    splits.write_text("[]")
    with pytest.raises(ImportingError, match="has no"):
        split_cases(cases, splits=splits)


def test_tools_that_only_look_are_told_by_their_names() -> None:
    kits = ["Mail", "MailBox"]
    assert only_reads("MailSearchMails", kits)
    assert only_reads("MailBoxGetAll", kits)
    assert not only_reads("MailSendMail", kits)


def test_a_row_holds_both_words_of_each_verdict() -> None:
    safe = TokenSequence((1, 2, 3, 10, 5, 10, 6), (False, False, False, True, False, True, False))
    unsafe = TokenSequence((1, 2, 4, 10, 7), (False, False, False, True, False))
    row = group_row([safe], [unsafe], 11)
    read: dict[tuple[int, int], list[int]] = {}
    for i, token in enumerate(row.input_ids):
        if row.chosen_loss[i] or row.rejected_loss[i]:
            # What comes before a word, read backwards along its own sequence.
            at, before = row.previous[i], []
            while True:
                before.insert(0, row.input_ids[at])
                if row.position_ids[at] == 0:
                    break
                at = row.previous[at]
            assert row.position_ids[i] == len(before)
            read.setdefault((token, row.branch_ids[i]), []).append(len(before))
            assert before in ([1, 2, 3], [1, 2, 3, 10, 5], [1, 2, 4])
    assert read == {(10, CHOSEN): [3, 5], (11, REJECTED): [3, 5], (11, CHOSEN): [3], (10, REJECTED): [3]}
    assert len(row) == 2 + 5 - 1 + 2 + 2 * 3  # shared, the rest of each up to its last verdict, and two words a verdict


def test_the_tokens_of_a_trajectory_see_what_they_saw() -> None:
    torch = pytest.importorskip("torch")
    from mosaic_guard_training.dpo import visible

    safe = [
        TokenSequence((1, 2, 3, 4, 10, 5, 10), (False,) * 4 + (True, False, True)),
        TokenSequence((1, 2, 8, 10), (False, False, False, True)),
    ]
    unsafe = [TokenSequence((1, 2, 6, 7, 10), (False,) * 4 + (True,))]
    row = group_row(safe, unsafe, 11)
    model, _ = tiny_model()
    mask = visible(torch.tensor([row.segment_ids]), torch.tensor([row.branch_ids]))
    with torch.no_grad():
        together = model(
            torch.tensor([row.input_ids]),
            attention_mask=torch.zeros(mask.shape).masked_fill(~mask, float("-inf")),
            position_ids=torch.tensor([row.position_ids]),
        ).logits[0]
        found = [
            (tuple(together[row.previous[i]].topk(3).indices.tolist()), round(float(together[row.previous[i], 10]), 4))
            for i, loss in enumerate(row.chosen_loss)
            if loss
        ]
        alone = []
        for sequence in (*safe, *unsafe):
            logits = model(torch.tensor([sequence.ids])).logits[0]
            alone += [
                (tuple(logits[at - 1].topk(3).indices.tolist()), round(float(logits[at - 1, 10]), 4))
                for at, loss in enumerate(sequence.loss)
                if loss
            ]
    assert [top for top, _ in found] == [top for top, _ in alone]
    assert [value for _, value in found] == pytest.approx([value for _, value in alone], abs=1e-3)


def test_accuracy_counts_ties_half_and_draws_whole_cases(tmp_path: Path) -> None:
    pairs = agreed_pairs(trajectories(tmp_path))
    known = {t.id: float(t.outcome.harmful or 0) for pair in pairs for t in pair if t.outcome}
    assert accuracy(known, pairs) == Accuracy(1.0, (1.0, 1.0))
    assert accuracy(dict.fromkeys(known, 0.0), pairs).value == 0.5
    assert accuracy({key: -value for key, value in known.items()}, pairs).value == 0.0
    half = {key: value if "case_0/" in key or "case_1/" in key else 0.5 for key, value in known.items()}
    low, high = accuracy(half, pairs).interval
    assert low < 0.625 == accuracy(half, pairs).value < high
    gain = [rights(known, pairs), rights(half, pairs)]
    assert bootstrap(gain, lambda a, b: sum(map(sum, a)) - sum(map(sum, b)), draws=200)[0] >= 0


@pytest.mark.model
@pytest.mark.slow
def test_the_whole_experiment_is_resumable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    model, tokenizer = tiny_model()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    data = write_toolemu(tmp_path / "data")
    command = ["--data", str(data), "--output", str(tmp_path / "out"), "--base", str(tmp_path / "base")]
    command += [
        "--held-out",
        "3",
        "--max-tokens",
        "9000",
        "--max-trajectory",
        "4000",
        "--layers",
        "1",
        "--evaluated",
        "3",
    ]
    assert main(command) == 0
    first = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["accuracy"]) == {
        "guard before",
        "guard after",
        "length only",
        "bag of words, all trajectories of the training cases",
        "bag of words, the trajectories trained on",
    }
    assert report["trained_on"]["rows"] >= 1
    assert 0 <= report["accuracy"]["guard after"]["ranked sample"]["value"] <= 1
    # Again: nothing is trained or scored a second time, and nothing changes.
    scores = (tmp_path / "out" / "scores-after-evidence.jsonl").read_bytes()
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert (tmp_path / "out" / "scores-after-evidence.jsonl").read_bytes() == scores
    assert "training on" in first
    assert "training on" not in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 1
    assert "another seed: name another --output" in capsys.readouterr().err


def test_settings_have_a_default_for_all_but_data_and_output(tmp_path: Path) -> None:
    assert RankingSettings(tmp_path, tmp_path).held_out == 44
