"""The threshold of a trained guard: so low that a stated share of harmless calls is refused, on work that it never saw.

    python -m mosaic_guard_training.calibrate --guard DIR --traces LESSONS --rate 0.01 [--learn OTHER-LESSONS]

LESSONS are lessons (`lessons.py`) of tasks held out from training. With `--learn` an evidence model is fitted first
(`evidence_fit.py`), and the threshold is that of both together. What is found, and what it does on LESSONS, is written into the
guard's manifest: `Guard.load(DIR)` then uses it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_guard._errors import ModelLoadError
from mosaic_guard._trace import TraceError, read_traces
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.evaluation.labelled import ScoredCall, auc, score_traces, stopped, threshold_at
from mosaic_guard_training.evaluation.metrics import Rate
from mosaic_guard_training.evidence_fit import fit_evidence, numbers_of, weighed_beside
from mosaic_guard_training.options import check_ranges, parse, setting
from mosaic_guard_training.outputs import data_digest, trace_files, write_json

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """What is calibrated on what; `help` of each field says what it does.

    Raises:
        ValueError: If a number is outside its range.
    """

    guard: Path = setting("directory that training wrote a guard to; its manifest gets what is found")
    traces: Path = setting("lessons of tasks that it was not trained on")
    rate: float = setting("share of the harmless calls that may be refused", default=0.01, low=0.0, high=0.5)
    without: tuple[str, ...] = setting(
        "leave lessons whose ids begin like one of these out of the threshold; an evidence model is weighed on all",
        default=(),
    )
    learn: Path | None = setting(
        "fit an evidence model on these lessons, such as those that the guard was trained on; default: it gets none",
        default=None,
    )
    device: str | None = setting("where the model runs; default: a GPU where there is one", default=None)

    def __post_init__(self) -> None:
        check_ranges(self)


def calibration(calls: Sequence[ScoredCall], rate: float) -> dict[str, Any]:
    """The threshold for a rate of false alarms, and what it does, as JSON.

    Args:
        calls: Scored calls, at least one harmless.
        rate: Share of the harmless ones that may be refused.

    Raises:
        ValueError: If none is harmless, or too many of these are refused at any threshold.
    """
    threshold = threshold_at(calls, rate)
    if threshold > 1:
        raise ValueError(
            f"more than {rate:.1%} of the harmless calls are refused with certainty, whatever the threshold: train the guard "
            "further, or allow more with --rate"
        )
    threshold = min(round(threshold + 5e-5, 4), 1.0)
    refused, false = stopped(calls, threshold), stopped(calls, threshold, harmful=False)
    return {
        "threshold": threshold,
        "rate": rate,
        "harmful_refused": Rate(sum(refused), len(refused)).to_dict(),
        "harmless_refused": Rate(sum(false), len(false)).to_dict(),
        "auc": auc(calls),
    }


def calibrate(settings: CalibrationSettings) -> dict[str, Any]:
    """Score the held-out calls and write the threshold into the guard's manifest.

    Returns:
        What `calibration` found; `evidence` says whether the guard has an evidence model.

    Raises:
        TrainingError: If there is no guard, or no lesson with a harmless call.
        MissingExtraError: If scikit-learn is not installed and an evidence model is wanted.
        TraceError: For a bad trace.
        ModelLoadError: If the guard cannot be loaded.
    """
    from rich.progress import track

    from mosaic_guard.models.local import LocalGuardModel
    from mosaic_guard.models.manifest import read_manifest

    try:
        manifest = read_manifest(settings.guard)
        trajectories = read_traces(settings.traces)
        learnt = read_traces(settings.learn) if settings.learn else []
    except (FileNotFoundError, ValueError) as error:
        raise TrainingError(str(error)) from error
    model = LocalGuardModel(manifest.base_model, adapter=manifest.adapter, device=settings.device, cache_tokens=0)
    # What can fail at once does so before the long part.
    network = fit_evidence(learnt) if settings.learn else None
    if network is None:
        trajectories = _ordinary(trajectories, settings)
    shown = track(trajectories, "scoring", disable=not sys.stderr.isatty())
    calls, weigher = list(score_traces(shown, model)), None
    if network is not None:
        numbers = numbers_of(trajectories)
        read = [numbers[call.trajectory, call.step, call.call] for call in calls]
        weigher = weighed_beside(network, calls, read)
        calls = [
            replace(call, p_refuse=weigher.weigh(call.p_refuse, each) if weigher else call.p_refuse)
            for call, each in zip(calls, read, strict=True)
        ]
    kept = {each.id for each in _ordinary(trajectories, settings)}
    try:
        found = calibration([call for call in calls if call.trajectory in kept], settings.rate)
    except ValueError as error:
        raise TrainingError(f"{str(settings.traces)!r}: {error}") from error
    file = settings.guard / "manifest.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    options = {**(record.get("guard_options") or {}), "threshold": found["threshold"]}
    options.pop("evidence_model", None)
    record["guard_options"] = {**options, **({"evidence_model": weigher.to_text()} if weigher else {})}
    record["calibration"] = {
        **found,
        "without": [*settings.without],
        "data": data_digest(trace_files(settings.traces)),
        "learnt": data_digest(trace_files(settings.learn)) if settings.learn else None,
    }
    write_json(file, record)
    return {**found, "evidence": weigher is not None}


def _ordinary(trajectories: Sequence[Trajectory], settings: CalibrationSettings) -> list[Trajectory]:
    return [each for each in trajectories if not each.id.startswith(tuple(settings.without))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 when the threshold is written, 2 for an error that its user can mend.
    """
    settings = parse(
        CalibrationSettings,
        "python -m mosaic_guard_training.calibrate",
        "Find the threshold of a trained guard on work that it never saw, and write it into its manifest.",
        arguments,
    )
    try:
        found = calibrate(settings)
    except (TrainingError, TraceError, ModelLoadError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    harmful, harmless = found["harmful_refused"], found["harmless_refused"]
    if not found["evidence"]:
        why = "its own word is no better than none: train it further" if settings.learn else "--learn LESSONS fits one"
        print(f"the guard has no evidence model: {why}")
    print(
        f"threshold {found['threshold']}: {harmful['k']} of {harmful['n']} harmful calls refused, "
        f"{harmless['k']} of {harmless['n']} harmless ones"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
