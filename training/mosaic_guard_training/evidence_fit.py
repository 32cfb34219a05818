"""Fitting an `EvidenceModel`: what it reads from the lessons that the guard learnt from, what it weighs from those held out.

The network learns from evidence alone, so it may read the lessons that the guard model was trained on. How much its word
weighs beside the model's must come of other lessons: on its own the model is surer than it deserves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mosaic_guard._errors import MissingExtraError
from mosaic_guard._evidence_model import EvidenceModel, logit
from mosaic_guard._evidence_numbers import NAMES
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.evaluation.step_calls import labelled_calls

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory
    from mosaic_guard_training.evaluation.labelled import ScoredCall

UNITS = 16
"""Hidden units of the network."""
DECAY = 100.0
"""Weight of the squares of its weights: it is to hold on work unlike the lessons. On those held out 30 to 300 did alike."""


def numbers_of(trajectories: Iterable[Trajectory]) -> dict[tuple[str, int, int], tuple[float, ...]]:
    """(trajectory, step, call) to `evidence_numbers`, of each call that carries a label."""
    return {call.key: call.evidence for call in labelled_calls(trajectories)}


def fit_evidence(trajectories: Sequence[Trajectory], *, seed: int = 0) -> EvidenceModel:
    """A network that tells the harmful calls of some lessons from the others, by their evidence alone.

    Args:
        trajectories: Lessons.
        seed: Decides where the weights start.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
        TrainingError: If all calls are harmful, or none is.
    """
    if find_spec("sklearn") is None:
        raise MissingExtraError("fitting an evidence model", "fit")
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    calls = list(labelled_calls(trajectories))
    numbers, harmful = [call.evidence for call in calls], [call.harmful for call in calls]
    if len(set(harmful)) < 2:
        raise TrainingError("an evidence model learns from harmful and harmless calls: name lessons that have both")
    scaler = StandardScaler().fit(numbers)
    network = MLPClassifier(
        (UNITS,), activation="tanh", solver="lbfgs", alpha=DECAY, max_iter=2000, random_state=seed
    ).fit(scaler.transform(numbers), harmful)
    (first, last), (first_bias, last_bias) = network.coefs_, network.intercepts_
    return EvidenceModel(
        names=NAMES,
        mean=_rounded(scaler.mean_),
        scale=_rounded(scaler.scale_),
        hidden=tuple(_rounded(row) for row in first.T),
        hidden_bias=_rounded(first_bias),
        out=_rounded(last[:, 0]),
        weight=0.0,
        bias=_rounded(last_bias)[0],
    )


def weighed_beside(
    model: EvidenceModel, calls: Sequence[ScoredCall], numbers: Sequence[tuple[float, ...]]
) -> EvidenceModel:
    """The network with the weights that make its word and the guard model's one calibrated probability.

    Args:
        model: The network.
        calls: Calls that neither learnt from, scored by the guard model; harmful and harmless ones.
        numbers: `evidence_numbers` of each.

    Returns:
        A guard model that tells nothing, or the wrong thing, gets no weight.
    """
    words = [
        [logit(call.p_refuse) for call in calls],
        [model.logit(each) for each in numbers],
    ]
    (own, evidence), bias = _weights(words, [call.harmful for call in calls])
    return replace(
        model,
        out=_rounded(evidence * weight for weight in model.out),
        weight=round(own, 4),
        bias=round(bias, 4),
    )


def _weights(words: Sequence[Sequence[float]], harmful: Sequence[bool]) -> tuple[list[float], float]:
    """Weights, none below 0, and bias of a logistic regression."""
    import numpy
    from sklearn.linear_model import LogisticRegression

    kept = list(range(len(words)))
    while kept:
        fitted = LogisticRegression().fit(numpy.array([words[each] for each in kept]).T, harmful)
        found = dict(zip(kept, map(float, fitted.coef_[0]), strict=True))
        if min(found.values()) >= 0:
            return [found.get(each, 0.0) for each in range(len(words))], float(fitted.intercept_[0])
        # Whose word is the wrong way round is not listened to, and the others' then weigh otherwise.
        kept = [each for each in kept if found[each] >= 0]
    share = sum(harmful) / len(harmful)
    return [0.0] * len(words), logit(share)


def _rounded(numbers: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(each), 4) for each in numbers)
