"""How good a guard is: attacks that reach their goal and legitimate calls refused, next to baselines."""

from __future__ import annotations

from mosaic_guard_training.evaluation.baselines import BASELINES, baseline
from mosaic_guard_training.evaluation.harness import Evaluation, Run, Settings, plan_runs
from mosaic_guard_training.evaluation.metrics import REFERENCE, Rate, Summary, summarise
from mosaic_guard_training.evaluation.report import markdown, save, table
from mosaic_guard_training.evaluation.sample import stratified

__all__ = [
    "BASELINES",
    "REFERENCE",
    "Evaluation",
    "Rate",
    "Run",
    "Settings",
    "Summary",
    "baseline",
    "markdown",
    "plan_runs",
    "save",
    "stratified",
    "summarise",
    "table",
]
