"""The output directory: `adapter/` (or `model/`), `manifest.json`, `loss.*`, `checkpoints/`; what may be written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_guard_training.errors import TrainingError

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"
"""The last file of a checkpoint that the trainer writes."""


@dataclass(frozen=True)
class Output:
    """The paths of one training run.

    Attributes:
        root: The directory given as `--output`.
    """

    root: Path

    @property
    def adapter(self) -> Path:
        """Directory of the trained adapter."""
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        """Directory of the trained model, where all weights were trained."""
        return self.root / "model"

    @property
    def manifest(self) -> Path:
        """Written last: where it stands, training is finished."""
        return self.root / "manifest.json"

    @property
    def losses(self) -> Path:
        """One JSON line per optimizer step."""
        return self.root / "loss.jsonl"

    @property
    def curve(self) -> Path:
        """The losses as a picture."""
        return self.root / "loss.png"

    @property
    def checkpoints(self) -> Path:
        """What `--resume` goes on from."""
        return self.root / "checkpoints"

    @property
    def run(self) -> Path:
        """What the checkpoints belong to."""
        return self.checkpoints / "run.json"

    @property
    def data(self) -> Path:
        """The pairs as tokens, and their reference log-probabilities; removed when training is finished."""
        return self.checkpoints / "data"

    def claim(self, resume: bool) -> None:
        """Make sure that this run may and can write here.

        Raises:
            TrainingError: If there is a finished guard or another run, or the directory cannot be written.
        """
        if self.manifest.exists() and not resume:
            raise TrainingError(f"{str(self.root)!r} already holds a trained guard: name another --output")
        if self.run.exists() and not resume:
            raise TrainingError(
                f"{str(self.root)!r} holds an unfinished run: go on with --resume, or name another --output"
            )
        for result in (self.adapter, self.model):
            if result.exists() and not self.run.exists():
                raise TrainingError(f"{str(result)!r} exists and is not of this run: name another --output")
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for directory in (self.root, self.checkpoints):
                with tempfile.NamedTemporaryFile(dir=directory):
                    pass
        except OSError as error:
            raise TrainingError(
                f"cannot write to {str(self.root)!r} ({error.strerror}): name another --output"
            ) from error

    def forget(self) -> None:
        """Take back what `begin` noted, where no checkpoint came of it: nothing is left to resume."""
        if self.run.exists() and self.last_checkpoint() is None:
            self.run.unlink()
            shutil.rmtree(self.data, ignore_errors=True)

    def release(self) -> None:
        """Take back the directories that `claim` made, where nothing was written to them."""
        for directory in (self.checkpoints, self.root):
            with contextlib.suppress(OSError):
                directory.rmdir()

    def need_space(self, size: int) -> None:
        """Make sure that some bytes fit on the disk.

        Raises:
            TrainingError: If they do not.
        """
        free = shutil.disk_usage(self.root).free
        if free < size:
            raise TrainingError(
                f"training needs some {size / 1e6:,.0f} MB in {str(self.root)!r}, where {free / 1e6:,.0f} MB are free: "
                "free some, name another --output, or lower --keep-checkpoints"
            )

    def noted(self) -> dict[str, Any]:
        """What was noted when the run began; empty if it has not."""
        return dict(json.loads(self.run.read_text(encoding="utf-8"))) if self.run.exists() else {}

    def begin(self, run: Mapping[str, Any]) -> None:
        """Note what this run is, or check that it is the one that its checkpoints belong to.

        Args:
            run: What decides the result, as JSON.

        Raises:
            TrainingError: If the checkpoints belong to something else.
        """
        if not self.run.exists():
            write_json(self.run, run)
            return
        noted = self.noted()
        for key, value in run.items():
            if noted.get(key) != value:
                what = _difference(noted.get(key), value) if isinstance(value, Mapping) else key
                raise TrainingError(
                    f"cannot resume {str(self.root)!r}: {what} is not what it was when the run began; "
                    "resume with the same, or name another --output"
                )

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint; None if there is none. One that a crash left unfinished is removed."""
        found = {int(m[1]): path for path in self.checkpoints.iterdir() if (m := _CHECKPOINT.fullmatch(path.name))}
        for _, path in sorted(found.items(), reverse=True):
            try:
                json.loads((path / _STATE).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                shutil.rmtree(path)
                continue
            return path
        return None


def _difference(noted: Any, value: Mapping[str, Any]) -> str:
    changed = [k for k in value if not isinstance(noted, Mapping) or noted.get(k) != value[k]]
    return ", ".join(f"--{key.replace('_', '-')}" for key in changed)


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file so that it is either whole or not there."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, file)


def read_losses(file: Path) -> list[dict[str, Any]]:
    """The lines of a loss file; empty if there is none. A torn last line is left out."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def trace_files(traces: Path) -> list[Path]:
    """The trace files that `read_traces` reads.

    Raises:
        TrainingError: If there are none.
    """
    files = sorted(traces.glob("*.jsonl")) if traces.is_dir() else [traces] if traces.is_file() else []
    if not files:
        raise TrainingError(f"no trace files at {str(traces)!r}: name a directory that a TraceWriter wrote to")
    return files


def data_digest(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of some files, in order of their names, hexadecimal."""
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.name):
        content = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                content.update(block)
        whole.update(f"{file.name}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest()
