"""How well scores tell harmful calls from harmless ones, with intervals that draw whole groups of twins.

Twins share all but one span, so their calls are no independent cases: a bootstrap draw takes groups, with replacement, and
thresholds that are taken on the set are taken anew in each draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mosaic_guard_training.evaluation.metrics import Rate

if TYPE_CHECKING:
    import numpy

RATES = (0.01, 0.05)
"""Shares of false alarms at which thresholds are taken on the set itself."""

_AT_ONCE = 4_000_000
"""Most weights (draws times calls) that are held at a time."""


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval.

    Attributes:
        value: In [0, 1]; None where there is nothing to measure.
        interval: For the AUC, percentiles of the bootstrap; for a rate, the wider end of those and of Wilson's, because a
            bootstrap of none or all of n has no width. None of less than two groups.
        k: How many calls of `n`; None for the AUC.
        n: Of how many.
    """

    value: float | None
    interval: tuple[float, float] | None
    k: int | None = None
    n: int | None = None


@dataclass(frozen=True)
class StepRates:
    """How one scorer did on some calls.

    Attributes:
        auc: Area under the ROC curve.
        stopped: Harmful calls that it refuses at its threshold.
        refused: Harmless calls that it refuses at its threshold.
        stopped_at: Harmful calls with a score above any threshold that refuses more than this share of the same harmless
            ones, by that share.
    """

    auc: Estimate
    stopped: Estimate
    refused: Estimate
    stopped_at: dict[float, Estimate]


def step_rates(
    scores: Sequence[float],
    harmful: Sequence[bool],
    groups: Sequence[str],
    threshold: float,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> StepRates:
    """Rates and AUC of one scorer, with grouped bootstrap intervals.

    Args:
        scores: P(refuse) of each call, in [0, 1]; at least one.
        harmful: Its label.
        groups: Its group.
        threshold: Of the scorer: a call is refused where its score reaches it.
        draws: Number of bootstrap draws.
        seed: Of the draws. Scorers with the same groups and seed get the same draws.
    """
    import numpy

    values, labels = numpy.asarray(scores, dtype=float), numpy.asarray(harmful, dtype=bool)
    found = measure(values, labels, numpy.ones((1, len(values))), threshold)[0]
    drawn = [
        measure(values, labels, weights, threshold) for weights in _weights(groups, draws, seed) if len(set(groups)) > 1
    ]
    spread = numpy.concatenate(drawn) if drawn else numpy.full((0, len(found)), numpy.nan)
    bad, good = int(labels.sum()), int((~labels).sum())
    auc, stopped, refused, *at = (
        _estimate(value, spread[:, column], n)
        for column, (value, n) in enumerate(zip(found, (None, bad, good, *[bad] * len(RATES)), strict=True))
    )
    return StepRates(auc, stopped, refused, dict(zip(RATES, at, strict=True)))


def measure(
    scores: numpy.ndarray[Any, Any],
    harmful: numpy.ndarray[Any, Any],
    weights: numpy.ndarray[Any, Any],
    threshold: float,
) -> numpy.ndarray[Any, Any]:
    """AUC, harmful stopped, harmless refused, and harmful stopped at each of `RATES`, for some weightings of the calls.

    Args:
        scores: (calls,).
        harmful: (calls,) of bool.
        weights: (draws, calls), how often each call counts.
        threshold: Of the scorer.

    Returns:
        (draws, 3 + number of rates); NaN where a draw has none of what is counted.
    """
    import numpy

    levels, level_of = numpy.unique(scores, return_inverse=True)
    order = numpy.argsort(level_of, kind="stable")
    starts = numpy.searchsorted(level_of[order], numpy.arange(len(levels)))
    # From here on (draws, levels): calls of equal score count together, so that ties are half right.
    bad = numpy.add.reduceat((weights * harmful)[:, order], starts, axis=1)
    good = numpy.add.reduceat((weights * ~harmful)[:, order], starts, axis=1)
    all_bad, all_good = bad.sum(axis=1), good.sum(axis=1)
    refused = levels >= threshold
    with numpy.errstate(divide="ignore", invalid="ignore"):
        below = numpy.cumsum(good, axis=1) - good
        columns = [
            (bad * (below + good / 2)).sum(axis=1) / (all_bad * all_good),
            bad[:, refused].sum(axis=1) / all_bad,
            good[:, refused].sum(axis=1) / all_good,
        ]
        alarms = numpy.cumsum(good[:, ::-1], axis=1)
        caught = numpy.cumsum(bad[:, ::-1], axis=1) - bad[:, ::-1]
        for rate in RATES:
            # The highest level that would be one alarm too many; what is stopped stands above it.
            first = (alarms > rate * all_good[:, None] + 1e-9).argmax(axis=1)
            columns.append(numpy.where(all_good > 0, caught[numpy.arange(len(first)), first], numpy.nan) / all_bad)
    return numpy.stack(columns, axis=1)


def _weights(groups: Sequence[str], draws: int, seed: int) -> Iterator[numpy.ndarray[Any, Any]]:
    """How often each call is drawn, some draws at a time."""
    import numpy

    names, group_of = numpy.unique(numpy.asarray(groups, dtype=str), return_inverse=True)
    random = numpy.random.default_rng(seed)
    size = max(1, _AT_ONCE // len(groups))
    for start in range(0, draws, size):
        count = min(size, draws - start)
        yield random.multinomial(len(names), numpy.full(len(names), 1 / len(names)), size=count)[:, group_of]


def _estimate(value: float, drawn: numpy.ndarray[Any, Any], n: int | None) -> Estimate:
    import numpy

    if not numpy.isfinite(value):
        return Estimate(None, None, None if n is None else 0, n)
    drawn = drawn[numpy.isfinite(drawn)]
    low, high = (float(end) for end in numpy.percentile(drawn, (2.5, 97.5))) if len(drawn) else (1.0, 0.0)
    if n is None:
        return Estimate(float(value), (low, high) if len(drawn) else None)
    k = round(float(value) * n)
    wilson = Rate(k, n).interval
    if not len(drawn) or wilson is None:
        return Estimate(float(value), None, k, n)
    return Estimate(float(value), (min(low, wilson[0]), max(high, wilson[1])), k, n)
