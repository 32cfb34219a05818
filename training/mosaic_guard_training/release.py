"""A trained and calibrated guard into the package: its adapter in bfloat16, and its manifest.

python -m mosaic_guard_training.release --guard DIR --output mosaic_guard/shipped
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
from mosaic_guard_training.model import ADAPTER_WEIGHTS
from mosaic_guard_training.options import parse, setting
from mosaic_guard_training.outputs import write_json

OURS = ("adapter", "manifest.json")
"""What a released guard consists of."""


@dataclass(frozen=True, kw_only=True)
class ReleaseSettings:
    """What is released where; `help` of each field says what it does."""

    guard: Path = setting("directory that training wrote a guard to, with a calibrated threshold")
    output: Path = setting("directory of the package's guard; what is there is replaced")


def release(settings: ReleaseSettings) -> dict[str, Any]:
    """Write the guard in the form in which it ships.

    Returns:
        Its manifest; `adapter_sha256` is the digest of the weights.

    Raises:
        TrainingError: If there is no guard with an adapter, its threshold was never calibrated, or something else is where it
            is to go.
    """
    import torch
    from safetensors.torch import load_file, save_file

    source, manifest = settings.guard / "adapter", settings.guard / "manifest.json"
    if not manifest.is_file() or not (source / ADAPTER_WEIGHTS).is_file():
        raise TrainingError(
            f"no guard with an adapter at {str(settings.guard)!r}: name what python -m mosaic_guard.train wrote"
        )
    record = json.loads(manifest.read_text(encoding="utf-8"))
    if "calibration" not in record:
        raise TrainingError(
            f"the threshold of {str(settings.guard)!r} was never calibrated: "
            "run python -m mosaic_guard_training.calibrate first"
        )
    there = sorted(each.name for each in settings.output.iterdir()) if settings.output.exists() else []
    if there and set(there) - set(OURS):
        raise TrainingError(f"{str(settings.output)!r} holds more than a guard ({there[0]}): name another --output")
    part = settings.output.with_name(settings.output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "adapter").mkdir(parents=True)
    weights = {name: each.to(torch.bfloat16) for name, each in load_file(str(source / ADAPTER_WEIGHTS)).items()}
    save_file(weights, str(part / "adapter" / ADAPTER_WEIGHTS), metadata={"format": "pt"})
    shutil.copy(source / "adapter_config.json", part / "adapter" / "adapter_config.json")
    digest = hashlib.sha256((part / "adapter" / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    record = {**record, "adapter": "adapter", "adapter_sha256": digest}
    write_json(part / "manifest.json", record)
    shutil.rmtree(settings.output, ignore_errors=True)
    part.rename(settings.output)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 when it is written, 2 for an error that its user can mend.
    """
    settings = parse(
        ReleaseSettings,
        "python -m mosaic_guard_training.release",
        "Write a trained and calibrated guard in the form in which it ships with the package.",
        arguments,
    )
    try:
        record = release(settings)
    except (TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = (settings.output / "adapter" / ADAPTER_WEIGHTS).stat().st_size
    print(f"{size / 1e6:.1f} MB, sha256 {record['adapter_sha256'][:12]}, in {settings.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
