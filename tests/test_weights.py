"""Loading a base model: nothing that is stored is rounded away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import tiny_model

from mosaic_guard.models.weights import SMALL, bfloat16_gain, fast_dtype, load_base_model

pytestmark = pytest.mark.model


def test_float32_weights_are_read_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, tokenizer = tiny_model()
    stored.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr("mosaic_guard.models.weights.fast_dtype", lambda *_: torch.float32)
    loaded, _ = load_base_model(tmp_path, device="cpu")
    for (name, one), (_, other) in zip(stored.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("weights", "device", "gain", "expected"),
    [
        (SMALL, "cpu", 0.6, torch.float32),
        (SMALL, "cpu", 4.0, torch.bfloat16),
        (SMALL + 1, "cpu", 0.6, torch.bfloat16),
    ],
)
def test_the_precision_is_what_is_fast_and_fits(
    weights: int, device: str, gain: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mosaic_guard.models.weights.bfloat16_gain", lambda: gain)
    assert fast_dtype(weights, device) == expected


@pytest.fixture(autouse=True)
def nobody_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOSAIC_GUARD_DTYPE", raising=False)


def test_the_environment_decides_where_it_says_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSAIC_GUARD_DTYPE", "bfloat16")
    assert fast_dtype(SMALL, "cpu") == torch.bfloat16
    monkeypatch.setenv("MOSAIC_GUARD_DTYPE", "half")
    with pytest.raises(ValueError, match="float32 or bfloat16, not 'half'"):
        fast_dtype(SMALL, "cpu")


def test_the_gain_is_measured_once_and_is_a_ratio() -> None:
    assert bfloat16_gain() == bfloat16_gain() > 0


@pytest.mark.parametrize(("has", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_an_old_gpu_has_no_bfloat16(has: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has)
    assert fast_dtype(SMALL, "cuda") == expected
