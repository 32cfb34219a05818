"""The recipe of the guard that ships, from its tasks to the directory that ships, on a tiny model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_lessons import task
from tiny_model import tiny_model

from mosaic_guard import Guard
from mosaic_guard_training.calibrate import CalibrationSettings
from mosaic_guard_training.lessons import LessonSettings
from mosaic_guard_training.options import read_recipe
from mosaic_guard_training.reproduce import RECIPE, Round, main
from mosaic_guard_training.settings import TrainSettings
from mosaic_guard_training.sources.composed import SCENARIOS
from mosaic_guard_training.sources.mixture import Shares
from mosaic_guard_training.tasks import write_tasks


@pytest.mark.model
def test_the_recipe_makes_a_guard_and_makes_nothing_twice(tmp_path: Path, capsys: Any) -> None:
    base, recipe, output = tmp_path / "base", tmp_path / "recipe", tmp_path / "out"
    for each in tiny_model(window=8192):
        each.save_pretrained(base)
    recipe.mkdir()
    each = {"count": 2, "seed": 0, "tokens": 100_000, "shares": {}}
    settings = {
        "tasks": {
            "train": 3,
            "dev": 2,
            "seed": 0,
            "rounds": [{**each, "average": True}, each, {**each, "average": True}],
        },
        "lessons": {"base_model": str(base), "check": "never", "plan": "computed", "plan_tokens": 9},
        "sft": {"method": "sft", "epochs": 1, "lora_rank": 2, "batch_size": 1, "min_pairs": 1},
        "further": {"method": "sft", "epochs": 1, "batch_size": 1, "min_pairs": 1, "warmup": 0.0},
        "calibrate": {"rate": 0.25},
    }
    for name, content in settings.items():
        (recipe / f"{name}.yaml").write_text(yaml.safe_dump(content))
    write_tasks(output / "train.jsonl", [task(number) for number in range(3)])
    write_tasks(output / "dev.jsonl", [task(number) for number in range(3, 5)])
    write_tasks(output / "benign.jsonl", [task(number) for number in range(5, 7)])
    for part in (1, 2, 3):
        write_tasks(output / f"further-{part}.jsonl", [task(number) for number in range(7, 7 + part)])
    command = ["--data", str(tmp_path), "--output", str(output), "--settings", str(recipe)]
    assert main(command) == 0
    assert not (output / "shipped-first").exists()
    assert main([*command, "--no-further"]) == 0
    assert Guard.load(output / "shipped-first").describe() != Guard.load(output / "shipped").describe()
    guards = ["guard", "guard-further-1", "guard-averaged-1", "guard-further-2", "guard-further-3", "guard-averaged-3"]
    assert len({(output / each / "adapter" / "adapter_model.safetensors").read_bytes() for each in guards}) == 6
    made = json.loads((output / "guard-averaged-3" / "manifest.json").read_text())
    digests = [
        hashlib.sha256((output / f"guard-{each}" / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
        for each in ("averaged-1", "further-3")
    ]
    assert [part["adapter_sha256"] for part in made["averaged"]] == digests
    trained = (output / "guard" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert Guard.load(output / "shipped").plan_mode == "computed"
    assert main(command) == 0
    assert (output / "guard" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == trained
    assert (
        main([*command[:2], "--output", str(tmp_path / "empty"), "--settings", str(recipe), "--stage", "release"]) == 2
    )
    assert "no guard with an adapter" in capsys.readouterr().err


@pytest.mark.model
def test_training_goes_on_with_some_suites_and_the_others_stay_unseen(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("agentdojo")
    base, recipe, output = tmp_path / "base", tmp_path / "recipe", tmp_path / "out"
    for each in tiny_model(window=8192):
        each.save_pretrained(base)
    shutil.copytree(RECIPE, recipe)
    read = {"base_model": str(base), "check": "never", "plan": "computed", "plan_tokens": 9}
    settings = {
        "lessons": read,
        "suite_lessons": {**read, "limit": 2, "attacks": 1, "registered": "direct"},
        "sft": {"method": "sft", "epochs": 1, "lora_rank": 2, "batch_size": 1, "min_pairs": 1},
        "suites": {"method": "sft", "epochs": 1, "batch_size": 1, "min_pairs": 1, "warmup": 0.0},
        "calibrate": {"rate": 0.25},
    }
    for name, content in settings.items():
        (recipe / f"{name}.yaml").write_text(yaml.safe_dump(content))
    write_tasks(output / "train.jsonl", [task(number) for number in range(3)])
    write_tasks(output / "dev.jsonl", [task(number) for number in range(3, 5)])
    write_tasks(output / "benign.jsonl", [task(number) for number in range(5, 7)])
    command = [
        "--data",
        str(tmp_path),
        "--output",
        str(output),
        "--settings",
        str(recipe),
        "--no-further",
        "--suites",
        "banking",
    ]
    assert main(command) == 0
    assert len(list((output / "lessons-suites-first-banking").glob("*.jsonl"))) == 5
    assert not (output / "lessons-workspace").exists()
    assert (output / "shipped-first-banking" / "manifest.json").exists()
    first = (output / "guard" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert first != (output / "guard-suites-first-banking" / "adapter" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        main([*command[:-1], "travel"])
    assert "workspace,banking" in capsys.readouterr().err


def test_the_recipes_settings_are_known() -> None:
    read_recipe(LessonSettings, RECIPE / "lessons.yaml")
    read_recipe(LessonSettings, RECIPE / "suite_lessons.yaml")
    read_recipe(TrainSettings, RECIPE / "sft.yaml")
    read_recipe(TrainSettings, RECIPE / "further.yaml")
    read_recipe(TrainSettings, RECIPE / "suites.yaml")
    read_recipe(CalibrationSettings, RECIPE / "calibrate.yaml")
    tasks = yaml.safe_load((RECIPE / "tasks.yaml").read_text())
    for each in tasks["rounds"]:
        shares = Shares(**Round(0, **each).shares).scenarios or {}
        assert set(shares) <= set(SCENARIOS)
        assert sum(shares.values()) == pytest.approx(1)
