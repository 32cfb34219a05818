"""A small network that reads evidence as numbers, beside the guard model, which reads it as text.

    logit P(refuse) = weight · logit p + bias + max(0, out · tanh(hidden · (x - mean) / scale + hidden_bias))

with p the guard model's own probability of refusal and x the call's `evidence_numbers`. `python -m
mosaic_guard_training.calibrate --learn` fits it. It speaks against calls and clears none: that a person asked for a call makes
it neither harmless nor wise, and nobody gains by making evidence look good. It weighs the model's word and never stands alone:
what it adds is bounded, so that of a call which the model is sure of its word holds. Each number can only speak in its
direction (`DIRECTIONS`). `weight` and `bias` discount the model's own word, which is surer than it deserves and counts for less
where no evidence backs it. Before a tool has answered for the first time they are others (`first_weight`, `first_bias`): the
one question is then whether what the user wants is harmful, the model alone answers it, and it is wrong less often. So that a
tool has answered at all, whatever it says, lets the model's word count for less: a harmful wish of the user is judged more
mildly after a look-up than before one. It is the one thing here that can speak for a call. A guard that samples
roll-outs to train on asks the model alone, for the model is what is trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mosaic_guard._evidence_numbers import DIRECTIONS, EITHER, NAMES

FAR = 4.0
"""Standard deviations from the mean that count: numbers beyond what it was fitted on tell no more."""
MOST = 4.0
"""The most that evidence adds to the logit."""
READ = NAMES.index("any read")
"""The place of the number that says whether any tool has answered."""
_SURE = 1e-6
"""The guard model's probabilities are taken from [this, 1 - this]."""


@dataclass(frozen=True)
class EvidenceModel:
    """N numbers in, H hidden units, one logit out.

    Attributes:
        names: What the numbers are; N names.
        mean: Their means where it was fitted; N numbers.
        scale: Their standard deviations there, above 0; N numbers.
        hidden: H rows of N weights, none against its number's direction.
        hidden_bias: H numbers.
        out: H weights, none below 0.
        weight: Of the guard model's logit, above 0.
        bias: Added.
        first_weight: In place of `weight` where no tool has answered yet, above 0.
        first_bias: In place of `bias` there.

    Raises:
        ValueError: If it was fitted on other numbers than this version computes, or is not such a network.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    hidden: tuple[tuple[float, ...], ...]
    hidden_bias: tuple[float, ...]
    out: tuple[float, ...]
    weight: float = 1.0
    bias: float = 0.0
    first_weight: float = 1.0
    first_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.names != NAMES:
            raise ValueError(
                "this evidence model reads other numbers than this version computes: fit it again with "
                "python -m mosaic_guard_training.calibrate --learn"
            )
        columns, rows = (
            {len(self.mean), len(self.scale), *map(len, self.hidden)},
            {len(self.hidden_bias), len(self.out)},
        )
        ends = [self.weight, self.bias, self.first_weight, self.first_bias]
        every = [*self.mean, *self.scale, *self.hidden_bias, *self.out, *ends, *sum(self.hidden, ())]
        if columns != {len(NAMES)} or rows != {len(self.hidden)} or not all(map(math.isfinite, every)):
            raise ValueError("these are not the weights of an evidence model")
        signs = [DIRECTIONS[name] for name in self.names]
        turned = any(sign != EITHER and sign * w < 0 for row in self.hidden for sign, w in zip(signs, row, strict=True))
        if turned or min(self.out, default=0) < 0 or min(self.scale) <= 0 or min(self.weight, self.first_weight) <= 0:
            raise ValueError("these weights are no evidence model's: some have the wrong sign")

    def logit(self, numbers: Sequence[float]) -> float:
        """How strongly the numbers of a call speak against it, in [0, `MOST`].

        Args:
            numbers: `evidence_numbers` of the call.
        """
        near = [
            max(-FAR, min(FAR, (x - mean) / scale))
            for x, mean, scale in zip(numbers, self.mean, self.scale, strict=True)
        ]
        units = (
            math.tanh(bias + sum(w * x for w, x in zip(row, near, strict=True)))
            for row, bias in zip(self.hidden, self.hidden_bias, strict=True)
        )
        return max(0.0, min(MOST, sum(w * unit for w, unit in zip(self.out, units, strict=True))))

    def weigh(self, p_refuse: float, numbers: Sequence[float]) -> float:
        """The probability of refusal in [0, 1], given the guard model's own and the numbers of the call."""
        read = numbers[READ] > 0
        weight, bias = (self.weight, self.bias) if read else (self.first_weight, self.first_bias)
        whole = weight * logit(p_refuse) + bias + self.logit(numbers)
        # One of the two forms never overflows.
        return 1 / (1 + math.exp(-whole)) if whole > 0 else 1 - 1 / (1 + math.exp(whole))

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
            ends = [float(record[key]) for key in ("weight", "bias", "first_weight", "first_bias")]
            names = tuple(map(str, record["names"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not an evidence model: {error!r}") from error
        return cls(names, mean, scale, hidden, bias, out, *ends)


def logit(p: float) -> float:
    """log(p / (1 - p)), of a probability that is not taken for certain."""
    p = max(_SURE, min(1 - _SURE, p))
    return math.log(p / (1 - p))
