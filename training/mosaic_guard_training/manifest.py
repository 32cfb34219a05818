"""The manifest of a trained guard: what `Guard.load` needs, and what it takes to make the guard again."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_guard._transcript import Limits

if TYPE_CHECKING:
    from mosaic_guard_training.model import Start
    from mosaic_guard_training.settings import TrainSettings

MANIFEST_VERSION = 1
GUARD_DEFAULTS: Mapping[str, Any] = {
    "check": "adaptive",
    "plan": "written",
    "threshold": 0.5,
    "limits": asdict(Limits()),
    "evidence_model": "",
}
"""The options of `Guard` that a trained guard keeps of those that it learnt from, as they are where nobody says anything."""

FITTED = ("threshold", "evidence_model")
"""Those of them that were fitted to what one adapter says."""

LIBRARIES = ("mosaic-guard", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


def manifest(
    *,
    start: Start,
    settings: TrainSettings,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
    guard_options: Mapping[str, Any],
    dtype: str,
) -> dict[str, Any]:
    """The manifest as JSON.

    Args:
        start: Base model and parent adapter.
        settings: The settings of the run.
        data: Digest and size of what was learnt from.
        metrics: What came of it.
        guard_options: Options of `Guard` that the guard is for.
        dtype: Precision of the base model in training.
    """
    return {
        "version": MANIFEST_VERSION,
        "base_model": start.base_model,
        "adapter": None if settings.tune == "full" else "adapter",
        **({"model": "model"} if settings.tune == "full" else {}),
        "parent_adapter": start.adapter_digest,
        "guard_options": dict(guard_options),
        "method": settings.method,
        "data": dict(data),
        "settings": {**settings.to_dict(), "dtype": dtype},
        "metrics": dict(metrics),
        "git_revision": git_revision(Path(__file__).parent),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
    }


TAILED = (
    "reward_accuracy", "reward_margin", "token_accuracy", "outcome", "reward", "preference", "format", "length",
    "written", "kl",
)  # fmt: skip
"""What of the loss file's lines a manifest holds, where the method has it."""


def metrics_of(
    losses: Sequence[Mapping[str, Any]], counts: Mapping[str, int], tokens: int, groups_per_step: int | None = None
) -> dict[str, Any]:
    """What came of a run, from the lines of its loss file (at least one).

    Args:
        losses: One line per optimizer step.
        counts: Pairs (trajectories, tasks) trained on, by kind.
        tokens: Tokens read in one epoch.
        groups_per_step: GRPO's groups of roll-outs in one optimizer step.

    Returns:
        `loss_last`, `reward_accuracy` and the like are means over the last tenth of the steps; `groups` counts GRPO's groups:
        `silent` had equal rewards, so that they taught nothing, and in `tied` no outcome was better than another.
    """
    tail = losses[-max(1, len(losses) // 10) :]

    def mean(key: str) -> float | None:
        values = [float(line[key]) for line in tail if key in line]
        return round(sum(values) / len(values), 6) if values else None

    found = {key: value for key in TAILED if (value := mean(key)) is not None}
    if groups_per_step is not None:
        shares = {name: sum(line.get(f"{name}_groups", 0.0) for line in losses) for name in ("silent", "tied")}
        counted = {name: round(share * groups_per_step) for name, share in shares.items()}
        found["groups"] = {"all": groups_per_step * len(losses), **counted}
    return {
        "steps": losses[-1]["step"],
        "epochs": losses[-1]["epoch"],
        "pairs": dict(counts),
        "loss_first": round(losses[0]["loss"], 6),
        "loss_last": mean("loss"),
        **found,
        "tokens": round(tokens * losses[-1]["epoch"]),
        "seconds": losses[-1]["seconds"],
    }


def guard_options(guards: Sequence[Mapping[str, Any]], adapter: str | None) -> dict[str, Any]:
    """Options that the trained guard should run with, where all agree and it is not the default.

    Args:
        guards: What the guards that it learnt from say of themselves, as `Guard.describe` does.
        adapter: Digest of the adapter that it goes on from; None for a new one. What was fitted to another is not kept.
    """
    found: dict[str, Any] = {}
    fits = {guard.get("adapter") or None for guard in guards} == {adapter}
    for name, default in GUARD_DEFAULTS.items():
        if name in FITTED and not fits:
            continue
        values = [guard.get(name, default) for guard in guards]
        if values and values[0] != default and all(value == values[0] for value in values):
            found[name] = values[0]
    return found


def git_revision(directory: Path) -> str | None:
    """The commit of the checkout that a directory belongs to, with `-dirty` if tracked files differ from it.

    None where there is no git, or the directory is not tracked: an installed package inside somebody else's repository.
    """
    try:
        if not _git(directory, "ls-files", "."):
            return None
        dirty = "-dirty" if _git(directory, "status", "--porcelain", "--untracked-files=no") else ""
        return _git(directory, "rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
