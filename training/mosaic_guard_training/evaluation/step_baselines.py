"""Baselines that are fitted on the calls of some lessons: what a guard model has to beat with the same data.

They need scikit-learn (`pip install "mosaic-guard[fit]"`). Nothing is tuned: the settings are those of `sources/leaks.py`,
where the same bag of words looks for leaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from mosaic_guard._errors import MissingExtraError
from mosaic_guard_training.evaluation.step_calls import LabelledCall

Predictor = Callable[[Sequence[LabelledCall]], list[float]]
"""P(harmful) of each call, in [0, 1]."""

FITTED = {
    "words": "TF-IDF of one and two words of what the guard reads and of the call, logistic regression",
    "evidence": "logistic regression on the numbers that evidence gives, without a model",
    "position": "logistic regression on the number of the step and of the results so far",
}
"""The fitted baselines by name, and what each is."""


def need_scikit_learn() -> None:
    """Make sure that scikit-learn is there.

    Raises:
        MissingExtraError: If it is not.
    """
    if find_spec("sklearn") is None:
        raise MissingExtraError("fitting baselines", "fit")


def fit(name: str, calls: Sequence[LabelledCall]) -> Predictor:
    """Fit one of `FITTED`.

    Args:
        name: Which.
        calls: Calls to learn from, harmful and harmless ones.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
        ValueError: If all calls are of one kind.
    """
    need_scikit_learn()
    labels = [call.harmful for call in calls]
    if len(set(labels)) < 2:
        raise ValueError("baselines learn from harmful and harmless calls: name a --train directory that has both")
    if name == "words":
        return _fit_words(calls, labels)
    return _fit_numbers(lambda call: call.evidence if name == "evidence" else call.position, calls, labels)


def _fit_words(calls: Sequence[LabelledCall], labels: Sequence[bool]) -> Predictor:
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    # Two bags: parallel calls share what is read, and differ in the second.
    parts: tuple[Callable[[LabelledCall], str], ...] = (lambda call: call.text, lambda call: call.written)
    bags = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=50_000) for _ in parts]
    known = hstack([bag.fit_transform(map(part, calls)) for bag, part in zip(bags, parts, strict=True)]).tocsr()
    model = LogisticRegression(C=3.0, max_iter=300, solver="liblinear", random_state=0).fit(known, labels)

    def predict(asked: Sequence[LabelledCall]) -> list[float]:
        read = hstack([bag.transform(map(part, asked)) for bag, part in zip(bags, parts, strict=True)]).tocsr()
        return _harmful(model, read)

    return predict


def _fit_numbers(
    numbers: Callable[[LabelledCall], tuple[float, ...]], calls: Sequence[LabelledCall], labels: Sequence[bool]
) -> Predictor:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit([*map(numbers, calls)], labels)
    return lambda asked: _harmful(model, [*map(numbers, asked)])


def _harmful(model: Any, read: Any) -> list[float]:
    return [float(p) for p in model.predict_proba(read)[:, 1]]
