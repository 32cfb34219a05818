"""Fitting an `EvidenceModel`: what it reads from the lessons that the guard learnt from, what it weighs from those held out.

The network learns from evidence alone, so it may read the lessons that the guard model was trained on. How much its word
weighs beside the model's must come of other lessons: on its own the model is surer than it deserves. Each gets the weight that
makes it a calibrated probability alone, and only their sum is fitted then. Fitted together, the model's word takes nearly all:
lessons held out are still of the same making, and on work of another making evidence holds better. That was seen on AgentDojo's
`workspace` and `banking`, the suites to develop on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mosaic_guard._errors import MissingExtraError
from mosaic_guard._evidence_model import FAR, READ, EvidenceModel, logit
from mosaic_guard._evidence_numbers import DIRECTIONS, NAMES
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.evaluation.labelled import stopped, threshold_at
from mosaic_guard_training.evaluation.step_calls import labelled_calls

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory
    from mosaic_guard_training.evaluation.labelled import ScoredCall

UNITS = 16
"""Hidden units of the network."""
DECAY = 30.0
"""Weight of the squares of its weights: it is to hold on work unlike the lessons. On those held out 10 to 100 did alike."""
FEWEST = 10
"""Harmful and harmless calls before any result, from which on these get weights of their own."""
SHARES = tuple(round(0.05 * part, 2) for part in range(1, 21))
"""Of its weight that the guard model's word may be left with, once tools have answered."""
NARROWEST = 0.01
"""The least standard deviation that a number is divided by."""


def fit_evidence(trajectories: Iterable[Trajectory], *, seed: int = 0) -> EvidenceModel:
    """A network that tells the harmful calls of some lessons from the others, by their evidence alone.

    Its weights have the signs that let each number speak in its direction only.

    Args:
        trajectories: Lessons.
        seed: Decides where the weights start.

    Raises:
        MissingExtraError: If scikit-learn, which brings what is needed, is not installed.
        TrainingError: If all calls are harmful, or none is.
    """
    if find_spec("sklearn") is None:
        raise MissingExtraError("fitting an evidence model", "fit")
    import numpy

    calls = list(labelled_calls(trajectories))
    read = numpy.array([call.evidence for call in calls], dtype=float).reshape(len(calls), len(NAMES))
    harmful = numpy.array([call.harmful for call in calls], dtype=float)
    if not 0 < harmful.sum() < len(calls):
        raise TrainingError("an evidence model learns from harmful and harmless calls: name lessons that have both")
    mean, scale = read.mean(axis=0), numpy.maximum(read.std(axis=0), NARROWEST)
    hidden, hidden_bias, out = _fitted(numpy.clip((read - mean) / scale, -FAR, FAR), harmful, seed)
    return EvidenceModel(
        names=NAMES,
        mean=_rounded(mean),
        scale=_rounded(scale),
        hidden=tuple(map(_rounded, hidden)),
        hidden_bias=_rounded(hidden_bias),
        out=_rounded(out),
    )


def weighed_beside(
    model: EvidenceModel, calls: Sequence[ScoredCall], numbers: Sequence[tuple[float, ...]]
) -> EvidenceModel | None:
    """The network with the weights that make its word and the guard model's one calibrated probability.

    Args:
        model: The network.
        calls: Calls that neither learnt from, scored by the guard model.
        numbers: `evidence_numbers` of each.

    Returns:
        None where the guard model's word is no better than none: evidence alone gives no verdict. Evidence that is no better
        than none weighs nothing.

    Raises:
        TrainingError: If all calls are harmful, or none is.
    """
    from sklearn.linear_model import LogisticRegression

    harmful = [call.harmful for call in calls]
    if len(set(harmful)) < 2:
        raise TrainingError("an evidence model is weighed on harmful and harmless calls: name lessons that have both")
    own, evidence = [logit(call.p_refuse) for call in calls], [model.logit(each) for each in numbers]

    def fit(logits: Sequence[float]) -> tuple[float, float]:
        found = LogisticRegression().fit([[each] for each in logits], harmful)
        return float(found.coef_[0][0]), float(found.intercept_[0])

    alone, louder = max(fit(own)[0], 0.0), max(fit(evidence)[0], 0.0)
    again, bias = fit([alone * one + louder * other for one, other in zip(own, evidence, strict=True)])
    weight = round(again * alone, 4)
    if weight <= 0:
        return None
    beside = replace(
        model, out=_rounded(again * louder * each for each in model.out), weight=weight, bias=round(bias, 4)
    )
    first = [at for at, each in enumerate(numbers) if not each[READ]]
    return _before_all_results(
        beside, [own[at] for at in first], [numbers[at] for at in first], [harmful[at] for at in first]
    )


def weighed_calls(
    model: EvidenceModel | None, calls: Sequence[ScoredCall], numbers: Sequence[tuple[float, ...]]
) -> list[ScoredCall]:
    """The calls with the probabilities that decide, of the guard model's own; unchanged without an evidence model.

    Args:
        model: The network, weighed.
        calls: Scored by the guard model.
        numbers: `evidence_numbers` of each.
    """
    if model is None:
        return list(calls)
    pairs = zip(calls, numbers, strict=True)
    return [replace(call, p_refuse=model.weigh(call.p_refuse, each)) for call, each in pairs]


def weighed_for_work(
    model: EvidenceModel,
    calls: Sequence[ScoredCall],
    numbers: Sequence[tuple[float, ...]],
    benign: Sequence[ScoredCall],
    benign_numbers: Sequence[tuple[float, ...]],
    rate: float,
) -> EvidenceModel:
    """The network with less weight for the model's word after results, where more is stopped so at one rate of false alarms.

    A calibrated probability is right on the whole, and the threshold is set by the few calls of ordinary work that the model is
    most wrong about. Of `SHARES` the one is taken at which, with the threshold that refuses `rate` of ordinary work, the share
    of the harmful calls that are stopped is furthest above that of the harmless ones that are refused.

    Args:
        model: What `weighed_beside` made.
        calls: Calls that neither learnt from, scored by the guard model.
        numbers: `evidence_numbers` of each.
        benign: Likewise, of ordinary work; at least one.
        benign_numbers: Theirs.
        rate: Share of the ordinary calls that may be refused.
    """

    def gain(candidate: EvidenceModel) -> float:
        threshold = threshold_at(weighed_calls(candidate, benign, benign_numbers), rate)
        weighed = weighed_calls(candidate, calls, numbers)
        right, wrong = (stopped(weighed, threshold, harmful=harmful) for harmful in (True, False))
        return sum(right) / max(len(right), 1) - sum(wrong) / max(len(wrong), 1)

    # The first of those that do alike: of the most weight.
    return max((replace(model, weight=round(model.weight * share, 4)) for share in reversed(SHARES)), key=gain)


def quiet_before_results(
    model: EvidenceModel,
    calls: Sequence[ScoredCall],
    numbers: Sequence[tuple[float, ...]],
    threshold: float,
    rate: float,
) -> EvidenceModel:
    """The network with so low a bias before any result that no more than `rate` of the harmless calls there are refused.

    The threshold comes of ordinary work, in which the calls after results are what the model is most wrong about: before
    results it promises nothing by itself. Too few calls (fewer than one in `rate`) say nothing, and change nothing.

    Args:
        model: What `weighed_beside` or `weighed_for_work` made.
        calls: Calls that it did not learn from, scored by the guard model.
        numbers: `evidence_numbers` of each.
        threshold: Of the guard.
        rate: Share of the harmless calls that may be refused.
    """
    first = [(call, each) for call, each in zip(calls, numbers, strict=True) if not each[READ] and not call.harmful]
    if not first or len(first) * rate < 1:
        return model
    weighed = weighed_calls(model, [call for call, _ in first], [each for _, each in first])
    # A hair above the most that may be let through as it is.
    excess = logit(threshold_at(weighed, rate)) - logit(threshold)
    return model if excess <= 0 else replace(model, first_bias=round(model.first_bias - excess - 5e-5, 4))


def _before_all_results(
    model: EvidenceModel, own: Sequence[float], numbers: Sequence[tuple[float, ...]], harmful: Sequence[bool]
) -> EvidenceModel:
    """The weights for calls before any result, fitted to these alone; the others' where there are too few."""
    import numpy
    from scipy.optimize import minimize

    usual = (model.weight, model.bias)
    if min(sum(harmful), len(harmful) - sum(harmful)) < FEWEST:
        return replace(model, first_weight=usual[0], first_bias=usual[1])
    word, told = numpy.array(own), numpy.array([model.logit(each) for each in numbers])
    wrong = numpy.array(harmful, dtype=float)

    def loss(ends: Any) -> float:
        logits = ends[0] * word + ends[1] + told
        return float((numpy.logaddexp(0, logits) - wrong * logits).sum() + ends[0] ** 2 / 2)

    weight, bias = minimize(loss, usual, method="L-BFGS-B", bounds=[(0.01, None), (None, None)]).x
    return replace(model, first_weight=round(float(weight), 4), first_bias=round(float(bias), 4))


def _fitted(read: Any, harmful: Any, seed: int) -> tuple[Any, Any, Any]:
    """Hidden weights, hidden biases and output weights that minimise the logistic loss, with the signs of `DIRECTIONS`.

    Source: L-BFGS-B, of scipy; scikit-learn's own networks know no bounds.
    """
    import numpy
    from scipy.optimize import minimize

    columns = len(NAMES)
    signs = numpy.array([DIRECTIONS[name] for name in NAMES])
    draw = numpy.random.default_rng(seed)
    hidden = draw.normal(0, 0.3, (UNITS, columns))
    hidden = numpy.where(signs, numpy.abs(hidden) * signs, hidden)
    start = numpy.concatenate(
        [hidden.ravel(), draw.normal(0, 0.5, UNITS), numpy.abs(draw.normal(0, 0.3, UNITS)), numpy.zeros(1)]
    )
    cuts = numpy.cumsum([UNITS * columns, UNITS, UNITS])

    def parts(weights: Any) -> tuple[Any, Any, Any, Any]:
        hidden, bias, out, rest = numpy.split(weights, cuts)
        return hidden.reshape(UNITS, columns), bias, out, rest[0]

    def loss(weights: Any) -> tuple[float, Any]:
        hidden, bias, out, rest = parts(weights)
        units = numpy.tanh(read @ hidden.T + bias)
        logits = units @ out + rest
        value = (numpy.logaddexp(0, logits) - harmful * logits).sum() + DECAY / 2 * ((hidden**2).sum() + (out**2).sum())
        wrong = 1 / (1 + numpy.exp(-logits)) - harmful
        inner = numpy.outer(wrong, out) * (1 - units**2)
        slopes = [
            (inner.T @ read + DECAY * hidden).ravel(),
            inner.sum(axis=0),
            units.T @ wrong + DECAY * out,
            [wrong.sum()],
        ]
        return float(value), numpy.concatenate(slopes)

    sides = {1: (0, None), -1: (None, 0), 0: (None, None)}
    bounds = [sides[int(sign)] for _ in range(UNITS) for sign in signs]
    bounds += [(None, None)] * UNITS + [(0, None)] * UNITS + [(None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000})
    return parts(found.x)[:3]


def _rounded(numbers: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(each), 4) for each in numbers)
