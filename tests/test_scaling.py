"""Recipes, computed memory, the GPU script and the training bench: on tiny models, without looking at the clock."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from test_training_methods import environment
from tiny_model import tiny_model

from mosaic_guard_training.architectures import ARCHITECTURES, GIB, config_of, memory_of, shape_of, table
from mosaic_guard_training.options import read_recipe
from mosaic_guard_training.settings import TrainSettings
from mosaic_guard_training.trainer import quiet_libraries

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "training" / "mosaic_guard_training" / "recipes"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with quiet_libraries():
        yield


@pytest.mark.parametrize("file", sorted(RECIPES.glob("toy_*.yaml")), ids=lambda file: file.stem)
def test_recipes_are_settings(file: Path) -> None:
    assert TrainSettings(**read_recipe(TrainSettings, file)).output == Path("runs/toy", file.stem.removeprefix("toy_"))


@pytest.mark.model
@pytest.mark.parametrize("file", sorted(RECIPES.glob("accelerate_*.yaml")), ids=lambda file: file.stem)
def test_recipes_for_many_devices_are_accelerates(file: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    assert config.num_processes == yaml.safe_load(file.read_text())["num_processes"] > 1


@pytest.mark.model
def test_the_shapes_are_the_published_ones() -> None:
    weights = {name: shape_of(config_of(name)).weights for name in ARCHITECTURES}
    assert weights == {
        "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
        "Qwen/Qwen3-4B-Thinking-2507": 4_022_468_096,
        "microsoft/phi-4": 14_659_507_200,
    }


@pytest.mark.model
def test_memory_is_ordered_as_it_must_be() -> None:
    shape = shape_of(config_of("Qwen/Qwen2.5-7B-Instruct"))
    lora, qlora, full = (memory_of(shape, tune, 4096) for tune in ("lora", "qlora", "full"))
    assert qlora.total < lora.total < full.total
    assert lora.weights == 2 * shape.weights
    assert full.training == 16 * shape.weights
    assert memory_of(shape, "full", 4096, gpus=8).weights == full.weights / 8
    assert memory_of(shape, "lora", 8192).activations > 2 * lora.activations
    assert 13 * GIB < lora.total < 24 * GIB


@pytest.mark.model
def test_the_document_says_what_is_computed() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert "\n".join(table()) in text
    for file in RECIPES.glob("accelerate_*.yaml"):
        assert file.name in text


@pytest.mark.model
@pytest.mark.slow
def test_the_gpu_script_runs_on_small_copies() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gpu_step.py"), "--tiny", "--tokens", "100", "--steps", "1"],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["model"] for line in lines] == list(ARCHITECTURES)
    assert all(line["tokens"] == 100 and line["tokens_per_second"] > 0 for line in lines)


@pytest.mark.model
def test_the_bench_trains_both_on_the_same() -> None:
    from mosaic_guard_training.evaluation.bench_training import bench_training

    found = bench_training(lambda: tiny_model()[0], tiny_model()[1], shared=20, own=5, turns=2)
    assert len(found.ours) == len(found.bare) == 2
    assert found.tokens == 2 * 2 * 25
    assert found.to_dict()["ratio"] == round(found.ratio, 3) > 0
