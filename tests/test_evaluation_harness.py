"""An evaluation from the settings to the files, on banking, without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mosaic_guard import Guard, ScriptedGuardModel, read_traces
from mosaic_guard.__main__ import app
from mosaic_guard_training.evaluation import (
    BASELINES,
    Evaluation,
    Rate,
    Settings,
    baseline,
    markdown,
    plan_runs,
    save,
    summarise,
)

pytestmark = pytest.mark.slow

SMALL = Settings(("banking",), limit=6, seed=1)


def guards() -> dict[str, Guard]:
    return {name: baseline(name) for name in BASELINES}


def test_the_plan_is_repeatable_and_covers_clean_runs() -> None:
    runs = plan_runs(SMALL)
    assert runs == plan_runs(SMALL)
    attacked = [r for r in runs if r.injection_task]
    assert len(attacked) == 6
    assert len({r.injection_task for r in attacked}) == 6
    assert {r.user_task for r in runs if r.injection_task is None} == {r.user_task for r in attacked}
    assert len(plan_runs(replace(SMALL, repeats=3))) == len(runs) + 12


def test_the_sample_keeps_the_proportion_of_side_effects() -> None:
    users = {r.user_task for r in plan_runs(Settings(("banking",), limit=16)) if r.injection_task}
    assert len(users) == 16


def test_baselines_on_a_few_pairs(tmp_path: Path) -> None:
    results = Evaluation(SMALL, guards(), tmp_path).run(traces=tmp_path / "traces")
    found = {s.guard: s for s in summarise(results)}
    assert list(found) == list(BASELINES)
    allowed, refused = found["allow all"], found["refuse all"]
    reachable = allowed.attacks.n
    assert allowed.attacks.k == reachable
    assert reachable >= 4  # now and then what an attacker wants to leak has changed before the agent gives in
    assert allowed.refused.k == allowed.refused_side_effecting.k == 0
    assert refused.attacks == Rate(0, reachable)
    assert refused.refused.value == 1
    assert refused.completed.k == refused.clean_completed.k == 0
    # The user's calls are the same under every guard: rates can be compared.
    assert len({(s.refused.n, s.refused_side_effecting.n, s.completed.n) for s in found.values()}) == 1
    assert len(read_traces(tmp_path / "traces" / "lock-down")) == len(results["lock down"])

    save(list(found.values()), SMALL, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["settings"]["limit"] == 6
    assert summary["summaries"][0]["attacks"]["interval"] == list(allowed.attacks.interval or ())
    assert f"| refuse all | 0/{reachable}<br>0.0 %<br>0–" in (tmp_path / "table.md").read_text()


class Counting:
    """A decision function that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, step: Any) -> str:
        self.asked += 1
        return "act"


def test_a_cut_off_evaluation_goes_on(tmp_path: Path) -> None:
    def run(settings: Settings) -> tuple[int, list[Any]]:
        counting = Counting()
        mine = {"allow all": baseline("allow all"), "mine": Guard(ScriptedGuardModel(counting), seed=0)}
        results = Evaluation(settings, mine, tmp_path).run()["mine"]
        return counting.asked, results

    asked, first = run(SMALL)
    assert asked > 0
    assert run(SMALL) == (0, first)
    file = tmp_path / "results.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][:20])  # a torn last line
    again, second = run(SMALL)
    assert 0 < again < asked
    assert [r.user_task for r in second] == [r.user_task for r in first]
    assert run(SMALL)[0] == 0
    more, _ = run(replace(SMALL, limit=7))
    assert 0 < more < asked + 20


def test_another_evaluation_does_not_mix_in(tmp_path: Path) -> None:
    Evaluation(SMALL, guards(), tmp_path)
    with pytest.raises(ValueError, match="holds another evaluation: name another output directory"):
        Evaluation(replace(SMALL, attack="direct"), guards(), tmp_path)
    stricter = {**guards(), "lock down": Guard(ScriptedGuardModel("act", name="other"))}
    with pytest.raises(ValueError, match="holds another evaluation"):
        Evaluation(SMALL, stricter, tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(("nowhere",)), "no suite 'nowhere'"),
        (Settings(("banking",), attack="dos"), "no text attack 'dos'"),
        (Settings(()), "nothing to run"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_written(settings: Settings, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        Evaluation(settings, guards(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_failures_of_the_guard_are_said(tmp_path: Path) -> None:
    def broken(step: Any) -> str:
        raise RuntimeError("broken")

    mine = {"allow all": baseline("allow all"), "mine": Guard(ScriptedGuardModel(broken))}
    results = Evaluation(replace(SMALL, limit=1), mine, tmp_path).run()
    failed = sum(len(r.calls) for r in results["mine"])
    assert f"mine failed to judge {failed} calls on banking" in markdown(summarise(results), SMALL)


def test_chat_models_get_a_warning_in_the_table(tmp_path: Path) -> None:
    results = Evaluation(replace(SMALL, limit=1), {"allow all": baseline("allow all")}, tmp_path).run()
    assert "approximate" in markdown(summarise(results), replace(SMALL, agent="openai:some"))


# The command line


def invoke(*args: str) -> Any:
    return CliRunner().invoke(app, ["evaluate", "agentdojo", *args])


def test_the_command_prints_and_saves(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = invoke(
        "--suite", "banking", "--guard", "lock-down", "--no-baselines", "--limit", "2", "--output", str(output)
    )
    assert done.exit_code == 0, done.output
    assert "lock down" in done.output
    assert "refuse all" not in done.output
    assert {p.name for p in output.iterdir()} == {"results.jsonl", "settings.json", "summary.json", "table.md"}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--suite", "nowhere", "--guard", "allow-all"), "AgentDojo v1.1.2 has no suite 'nowhere'; it has banking"),
        (("--suite", "banking", "--guard", "no/such/guard"), "no/such/guard"),
        (("--suite", "banking", "--guard", "allow-all", "--attack", "dos"), "no text attack 'dos'"),
        (("--suite", "banking", "--guard", "allow-all", "--agent", "nobody:x"), "nobody"),
    ],
)
def test_mistakes_are_one_sentence(args: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = invoke(*args, "--output", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def python(code: str) -> subprocess.CompletedProcess[str]:
    paths = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "
    return subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, check=False)


def test_a_missing_extra_is_one_sentence() -> None:
    done = python(
        "sys.modules['agentdojo'] = None; sys.argv = ['x', 'evaluate', 'agentdojo', '--suite', 'banking', "
        "'--guard', 'allow-all']; from mosaic_guard.__main__ import main; main()"
    )
    assert done.returncode == 2
    assert 'pip install "mosaic-guard[agentdojo]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_line_loads_nothing_heavy() -> None:
    done = python(
        "import mosaic_guard.__main__, mosaic_guard_agentdojo; "
        "print({'torch', 'agentdojo', 'langchain', 'transformers'} & set(sys.modules))"
    )
    assert done.stdout == "set()\n", done.stderr
