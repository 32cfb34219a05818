"""The threshold of a trained guard: so low that a stated share of harmless calls is refused, on work that it never saw.

    python -m mosaic_guard_training.calibrate --guard DIR --traces LESSONS --rate 0.01 [--benign OTHER] [--learn OTHER]

LESSONS are lessons (`lessons.py`) of tasks held out from training. With `--learn` an evidence model is fitted first
(`evidence_fit.py`), weighed on LESSONS, and the threshold is that of both together; with `--benign` it is taken from ordinary
work, not from LESSONS, which are there to be hard. What is found, and what it does on LESSONS, is written into the guard's
manifest: `Guard.load(DIR)` then uses it. The model's scores are kept in DIR/scores: the same command does not make them again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_guard._errors import ModelLoadError
from mosaic_guard._trace import TraceError, read_traces
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.evaluation.labelled import ScoredCall, auc, stopped, threshold_at
from mosaic_guard_training.evaluation.metrics import Rate
from mosaic_guard_training.evaluation.step_calls import TraceSet, read_set
from mosaic_guard_training.evaluation.step_scores import ScoredGuard, guard_scores
from mosaic_guard_training.evidence_fit import (
    fit_evidence,
    quiet_before_results,
    weighed_beside,
    weighed_calls,
    weighed_for_work,
)
from mosaic_guard_training.manifest import FITTED
from mosaic_guard_training.options import check_ranges, parse, setting
from mosaic_guard_training.outputs import data_digest, trace_files, write_json


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """What is calibrated on what; `help` of each field says what it does.

    Raises:
        ValueError: If a number is outside its range.
    """

    guard: Path = setting("directory that training wrote a guard to; its manifest gets what is found")
    traces: Path = setting("lessons of tasks that it was not trained on")
    rate: float = setting("share of the harmless calls that may be refused", default=0.01, low=0.0, high=0.5)
    benign: Path | None = setting(
        "lessons of ordinary work that it was not trained on, to take the threshold from; default: TRACES", default=None
    )
    learn: Path | None = setting(
        "fit an evidence model on these lessons, such as those that the guard was trained on; default: it gets none",
        default=None,
    )

    def __post_init__(self) -> None:
        check_ranges(self)


def calibration(calls: Sequence[ScoredCall], benign: Sequence[ScoredCall], rate: float) -> dict[str, Any]:
    """The threshold for a rate of false alarms, and what it does, as JSON.

    Args:
        calls: Scored calls.
        benign: Those that the threshold is taken from, at least one harmless.
        rate: Share of the harmless ones among them that may be refused.

    Raises:
        ValueError: If none is harmless, or too many of these are refused at any threshold.
    """
    threshold = threshold_at(benign, rate)
    if threshold > 1:
        raise ValueError(
            f"more than {rate:.1%} of the harmless calls are refused with certainty, whatever the threshold: train the guard "
            "further, or allow more with --rate"
        )
    threshold = min(round(threshold + 5e-5, 4), 1.0)

    def refused(among: Sequence[ScoredCall], *, harmful: bool) -> dict[str, Any]:
        found = stopped(among, threshold, harmful=harmful)
        return Rate(sum(found), len(found)).to_dict()

    return {
        "threshold": threshold,
        "rate": rate,
        "harmful_refused": refused(calls, harmful=True),
        "harmless_refused": refused(calls, harmful=False),
        "benign_refused": refused(benign, harmful=False),
        "auc": auc(calls),
    }


def calibrate(settings: CalibrationSettings, *, progress: bool = False) -> dict[str, Any]:
    """Score the held-out calls and write the threshold into the guard's manifest.

    Args:
        settings: What on what.
        progress: Whether to show a progress bar.

    Returns:
        What `calibration` found; `evidence` says whether the guard has an evidence model.

    Raises:
        TrainingError: If there is no guard, or no lesson with a harmless call.
        MissingExtraError: If scikit-learn is not installed and an evidence model is wanted.
        TraceError: For a bad trace.
        ModelLoadError: If the guard cannot be loaded.
    """
    from mosaic_guard.models.manifest import read_manifest

    try:
        manifest = read_manifest(settings.guard)
        held_out = read_set(settings.traces, "held out")
        ordinary = read_set(settings.benign, "ordinary") if settings.benign else None
        learnt = read_traces(settings.learn) if settings.learn else []
    except (FileNotFoundError, ValueError) as error:
        raise TrainingError(str(error)) from error
    options = {k: v for k, v in manifest.guard_options.items() if k not in FITTED}
    guard = ScoredGuard(str(settings.guard), manifest.base_model, manifest.adapter, options)
    # What can fail at once does so before the long part.
    network, weigher = fit_evidence(learnt) if settings.learn else None, None
    own, numbers = _scored(guard, held_out, settings, progress), [call.evidence for call in held_out.calls]
    ours = own if ordinary is None else _scored(guard, ordinary, settings, progress)
    ours_numbers = numbers if ordinary is None else [call.evidence for call in ordinary.calls]
    if network is not None:
        weigher = weighed_beside(network, own, numbers)
    if weigher is not None and ordinary is not None and any(not call.harmful for call in ours):
        weigher = weighed_for_work(weigher, own, numbers, ours, ours_numbers, settings.rate)
        threshold = threshold_at(weighed_calls(weigher, ours, ours_numbers), settings.rate)
        weigher = quiet_before_results(weigher, own, numbers, threshold, settings.rate)
    calls, benign = weighed_calls(weigher, own, numbers), weighed_calls(weigher, ours, ours_numbers)
    try:
        found = calibration(calls, benign, settings.rate)
    except ValueError as error:
        raise TrainingError(f"{str(settings.benign or settings.traces)!r}: {error}") from error
    file = settings.guard / "manifest.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    options["threshold"] = found["threshold"]
    record["guard_options"] = {**options, **({"evidence_model": weigher.to_text()} if weigher else {})}
    record["calibration"] = {**found, **read_from(settings)}
    write_json(file, record)
    return {**found, "evidence": weigher is not None}


def read_from(settings: CalibrationSettings) -> dict[str, str | None]:
    """Digests of what a calibration reads; None for what it does not."""
    read = {"data": settings.traces, "benign": settings.benign, "learnt": settings.learn}
    return {key: None if path is None else data_digest(trace_files(path)) for key, path in read.items()}


def _scored(guard: ScoredGuard, traces: TraceSet, settings: CalibrationSettings, progress: bool) -> list[ScoredCall]:
    try:
        found = guard_scores(guard, traces, settings.guard / "scores", progress=progress)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    return [ScoredCall(*call.key, call.harmful, found[call.key]) for call in traces.calls]


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
        found = calibrate(settings, progress=sys.stderr.isatty())
    except (TrainingError, TraceError, ModelLoadError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    harmful, harmless = found["harmful_refused"], found["harmless_refused"]
    if not found["evidence"]:
        why = "its own word is no better than none: train it further" if settings.learn else "--learn LESSONS fits one"
        print(f"the guard has no evidence model: {why}")
    benign = found["benign_refused"]
    ordinary = f"; {benign['k']} of {benign['n']} calls of ordinary work" if settings.benign else ""
    print(
        f"threshold {found['threshold']}: {harmful['k']} of {harmful['n']} harmful calls refused, "
        f"{harmless['k']} of {harmless['n']} harmless ones{ordinary}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
