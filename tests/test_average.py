"""Averaging guards: the mean of their adapters, and nothing that was fitted to one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mosaic_guard_training.average import main

pytestmark = pytest.mark.model


def guard(place: Path, value: float, size: int = 2, base: str = "tiny") -> str:
    from safetensors.torch import save_file

    (place / "adapter").mkdir(parents=True)
    save_file({"a": torch.full((size,), value)}, str(place / "adapter" / "adapter_model.safetensors"))
    (place / "adapter" / "adapter_config.json").write_text("{}")
    options = {"check": "never", "threshold": 0.9, "evidence_model": "x"}
    record = {"base_model": base, "guard_options": options, "calibration": {}, "metrics": {"steps": 3}}
    (place / "manifest.json").write_text(json.dumps(record))
    return str(place)


def test_each_weight_is_the_mean_and_nothing_fitted_is_kept(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    guards = ",".join([guard(tmp_path / "one", 1.0), guard(tmp_path / "other", 4.0)])
    assert main(["--guards", guards, "--output", str(tmp_path / "out")]) == 0
    (mean,) = load_file(str(tmp_path / "out" / "adapter" / "adapter_model.safetensors")).values()
    assert mean.tolist() == [2.5, 2.5]
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert record["guard_options"] == {"check": "never"}
    assert "calibration" not in record
    assert [part["metrics"] for part in record["averaged"]] == [{"steps": 3}] * 2


def test_what_cannot_be_averaged_is_one_sentence(tmp_path: Path, capsys: Any) -> None:
    one, big = guard(tmp_path / "one", 1.0), guard(tmp_path / "big", 1.0, size=3)
    for guards, output, said in (
        (one, "out", "fewer than two"),
        (f"{one},{tmp_path / 'none'}", "out", "no guard with an adapter"),
        (f"{one},{big}", "out", "another shape"),
        (f"{one},{one}", "big", "is there already"),
    ):
        assert main(["--guards", guards, "--output", str(tmp_path / output)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1


def test_the_mean_of_a_mean_says_of_what(tmp_path: Path) -> None:
    one, two, three = (guard(tmp_path / name, 1.0) for name in ("one", "two", "three"))
    assert main(["--guards", f"{one},{two}", "--output", str(tmp_path / "first")]) == 0
    assert main(["--guards", f"{tmp_path / 'first'},{three}", "--output", str(tmp_path / "second")]) == 0
    parts = json.loads((tmp_path / "second" / "manifest.json").read_text())["averaged"]
    assert [len(part.get("averaged", ())) for part in parts] == [2, 0]
