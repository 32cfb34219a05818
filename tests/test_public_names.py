"""`mosaic_guard.__all__` is exactly what can be imported, and importing it stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mosaic_guard

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "transformers", "peft", "accelerate", "trl", "datasets", "gguf", "numpy", "matplotlib", "agentdojo")


def test_every_public_name_can_be_imported() -> None:
    missing = [name for name in mosaic_guard.__all__ if not hasattr(mosaic_guard, name)]
    assert not missing


def test_every_public_name_is_listed() -> None:
    # Lazy names are in no module dictionary until they are used, hence dir().
    assert set(mosaic_guard.__all__) <= set(dir(mosaic_guard))
    ours = {
        name
        for name, value in vars(mosaic_guard).items()
        if not name.startswith("_") and str(getattr(value, "__module__", "")).startswith("mosaic_guard")
    }
    assert ours <= set(mosaic_guard.__all__)


def test_public_names_are_listed_once() -> None:
    assert len(mosaic_guard.__all__) == len(set(mosaic_guard.__all__))


def test_star_import_gives_the_public_names() -> None:
    namespace: dict[str, object] = {}
    exec("from mosaic_guard import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(mosaic_guard.__all__)


def test_import_is_light() -> None:
    code = f"import sys, mosaic_guard; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
