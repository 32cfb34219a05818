"""Reading what `mosaic_guard.train` wrote beside an adapter."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mosaic_guard.models.weights import DEFAULT_BASE

SHIPPED = Path(__file__).parent.parent / "shipped"
"""The guard that comes with the package: an adapter for the default base model, and its manifest."""


@dataclass(frozen=True)
class Manifest:
    """What a trained guard consists of.

    Attributes:
        base_model: Path or hub id of the base model, or of a model all of whose weights were trained.
        adapter: Directory of the PEFT adapter; None where all weights were trained.
        guard_options: Options of `Guard` that the guard was made for, such as a calibrated threshold.
    """

    base_model: str
    adapter: Path | None
    guard_options: Mapping[str, Any] = field(default_factory=dict)


def find_guard(name: str | os.PathLike[str]) -> Manifest:
    """What a guard's name stands for.

    Args:
        name: `default` (the guard that comes with the package; without one, its base model), `untrained` (the base model), or
            a directory that training wrote.

    Raises:
        FileNotFoundError: If the directory holds no guard.
        ValueError: If its manifest cannot be read.
    """
    if str(name) == "untrained" or (str(name) == "default" and not SHIPPED.is_dir()):
        return Manifest(DEFAULT_BASE, None)
    return read_manifest(SHIPPED if str(name) == "default" else Path(name))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a trained guard.

    Raises:
        FileNotFoundError: If the directory holds no guard.
        ValueError: If its manifest cannot be read.
    """
    file = directory / "manifest.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"no guard at {str(directory)!r}: name 'default', 'untrained', or the --output directory of "
            "python -m mosaic_guard.train"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        options = record.get("guard_options") or {}
        if record["adapter"] is None:
            return Manifest(str(directory / record["model"]), None, options)
        return Manifest(record["base_model"], directory / record["adapter"], options)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not the manifest of a guard: {error!r}") from error
