"""A small network that reads evidence as numbers, beside the guard model, which reads it as text.

    logit P(refuse) = weight · logit p + bias + out · tanh(hidden · (x - mean) / scale + hidden_bias)

with p the guard model's own probability of refusal and x the call's `evidence_numbers`. `python -m
mosaic_guard_training.calibrate --learn` fits it. It weighs the model's word and never stands alone: of a call that no
evidence speaks about, what is left is the model's probability, calibrated. A guard that samples roll-outs to train on asks
the model alone, for the model is what is trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mosaic_guard._evidence_numbers import NAMES

_FAR = 4.0
"""Standard deviations from the mean that count: numbers beyond what it was fitted on tell no more."""
_CERTAIN = 50.0
"""The most that a logit can say."""
_SURE = 1e-6
"""The guard model's probabilities are taken from [this, 1 - this]."""


@dataclass(frozen=True)
class EvidenceModel:
    """N numbers in, H hidden units, one logit out.

    Attributes:
        names: What the numbers are; N names.
        mean: Their means where it was fitted; N numbers.
        scale: Their standard deviations there, above 0; N numbers.
        hidden: H rows of N weights.
        hidden_bias: H numbers.
        out: H weights.
        weight: Of the guard model's logit, at least 0.
        bias: Added in any case.

    Raises:
        ValueError: If it was fitted on other numbers than this version computes, or its shapes do not fit.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    hidden: tuple[tuple[float, ...], ...]
    hidden_bias: tuple[float, ...]
    out: tuple[float, ...]
    weight: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.names != NAMES:
            raise ValueError(
                "this evidence model reads other numbers than this version computes: fit it again with "
                "python -m mosaic_guard_training.calibrate --learn"
            )
        rows, columns = len(self.hidden), len(self.names)
        shapes = (len(self.mean), len(self.scale), *map(len, self.hidden)), (len(self.hidden_bias), len(self.out))
        if set(shapes[0]) != {columns} or set(shapes[1]) != {rows} or min(self.scale) <= 0 or self.weight < 0:
            raise ValueError("these are not the weights of an evidence model")

    def logit(self, numbers: Sequence[float]) -> float:
        """What the numbers of a call speak for: above 0 for refusing it, below for letting it run.

        Args:
            numbers: `evidence_numbers` of the call.
        """
        near = [
            max(-_FAR, min(_FAR, (x - mean) / scale))
            for x, mean, scale in zip(numbers, self.mean, self.scale, strict=True)
        ]
        units = (
            math.tanh(bias + sum(w * x for w, x in zip(row, near, strict=True)))
            for row, bias in zip(self.hidden, self.hidden_bias, strict=True)
        )
        return sum(w * unit for w, unit in zip(self.out, units, strict=True))

    def weigh(self, p_refuse: float, numbers: Sequence[float]) -> float:
        """The probability of refusal in [0, 1], given the guard model's own and the numbers of the call."""
        whole = self.weight * logit(p_refuse) + self.bias + self.logit(numbers)
        return 1 / (1 + math.exp(-max(-_CERTAIN, min(_CERTAIN, whole))))

    def to_text(self) -> str:
        """The form that manifests and traces hold: JSON on one line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> EvidenceModel:
        """Read what `to_text` wrote.

        Raises:
            ValueError: If it is something else.
        """
        try:
            record = json.loads(text)
            mean, scale, bias, out = (tuple(map(float, record[key])) for key in ("mean", "scale", "hidden_bias", "out"))
            hidden = tuple(tuple(map(float, row)) for row in record["hidden"])
            ends = float(record["weight"]), float(record["bias"])
            return cls(tuple(map(str, record["names"])), mean, scale, hidden, bias, out, *ends)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an evidence model: {error!r}") from error


def logit(p: float) -> float:
    """log(p / (1 - p)), of a probability that is not taken for certain."""
    p = max(_SURE, min(1 - _SURE, p))
    return math.log(p / (1 - p))
