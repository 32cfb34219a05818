"""The mean of guards whose adapters have one shape: what one learnt last, and what the other had not forgotten.

    python -m mosaic_guard_training.average --guards runs/guard/guard,runs/guard/guard-further --output runs/averaged

The weights of the adapters are averaged one by one, which makes sense of guards that come of one another, or of one start. What
was fitted to one of them (threshold, evidence model) is left out: calibrate the result. Source: the interpolation of weights
before and after fine-tuning of arXiv 2109.01903, there of all weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.manifest import FITTED
from mosaic_guard_training.model import ADAPTER_WEIGHTS
from mosaic_guard_training.options import parse, setting
from mosaic_guard_training.outputs import write_json

CONFIG = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class AverageSettings:
    """What is averaged; `help` of each field says what it does."""

    guards: str = setting("directories of the guards, separated by commas; the first gives all but the weights")
    output: Path = setting("directory for the averaged guard; it must not be there yet")


def average(settings: AverageSettings) -> dict[str, Any]:
    """Write the averaged guard.

    Returns:
        Its manifest: the first guard's without what was fitted to it; `averaged` has the digest and manifest of each.

    Raises:
        TrainingError: If there are fewer than two guards, they differ in base model or shape, or OUTPUT is there.
    """
    from safetensors.torch import load_file, save_file

    places = [Path(name.strip()) for name in settings.guards.split(",") if name.strip()]
    if len(places) < 2:
        raise TrainingError("--guards names fewer than two guards: write for example runs/one,runs/other")
    if settings.output.exists():
        raise TrainingError(f"{str(settings.output)!r} is there already: name another --output")
    for place in places:
        if not (place / "manifest.json").is_file() or not (place / "adapter" / ADAPTER_WEIGHTS).is_file():
            raise TrainingError(
                f"no guard with an adapter at {str(place)!r}: name what python -m mosaic_guard.train wrote"
            )
    records = [json.loads((place / "manifest.json").read_text(encoding="utf-8")) for place in places]
    weights = [load_file(str(place / "adapter" / ADAPTER_WEIGHTS)) for place in places]
    shapes = [{name: tuple(each.shape) for name, each in of.items()} for of in weights]
    alike = [(record["base_model"], shape) for record, shape in zip(records, shapes, strict=True)]
    if odd := next((place for place, each in zip(places, alike, strict=True) if each != alike[0]), None):
        raise TrainingError(f"{str(odd)!r} has another base model or another shape of adapter than {str(places[0])!r}")
    mean = {name: sum(of[name].float() for of in weights) / len(weights) for name in weights[0]}
    part = settings.output.with_name(settings.output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "adapter").mkdir(parents=True)
    save_file(mean, str(part / "adapter" / ADAPTER_WEIGHTS), metadata={"format": "pt"})
    shutil.copy(places[0] / "adapter" / CONFIG, part / "adapter" / CONFIG)
    options = {key: value for key, value in records[0]["guard_options"].items() if key not in FITTED}
    kept = ("data", "settings", "metrics", "git_revision", "parent_adapter", "method", "averaged")
    parts = [
        {
            "adapter_sha256": _digest(place / "adapter" / ADAPTER_WEIGHTS),
            **{key: record[key] for key in kept if record.get(key) is not None},
        }
        for place, record in zip(places, records, strict=True)
    ]
    first = {key: value for key, value in records[0].items() if key not in ("calibration", "adapter_sha256")}
    record = {**first, "guard_options": options, "averaged": parts}
    write_json(part / "manifest.json", record)
    part.rename(settings.output)
    return record


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 when it is written, 2 for an error that its user can mend.
    """
    settings = parse(
        AverageSettings,
        "python -m mosaic_guard_training.average",
        "Average guards whose adapters have one shape.",
        arguments,
    )
    try:
        record = average(settings)
    except (TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"the mean of {len(record['averaged'])} guards in {settings.output}; calibrate it before it is used")
    return 0


if __name__ == "__main__":
    sys.exit(main())
