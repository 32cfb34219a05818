"""A stratified sample: every stratum about equally often, the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")


def stratified(items: Sequence[T], size: int, strata: Sequence[Callable[[T], Hashable]], *, seed: int = 0) -> list[T]:
    """`size` of the items, spread evenly over every stratum of every kind, in the order of `items`.

    Greedy: of a shuffled order, always the next item whose strata were taken least so far, the rarest kind of stratum
    counting most.

    Args:
        items: What to choose from.
        size: How many to take; all of them if there are not more.
        strata: Functions from an item to its stratum, one per kind.
        seed: Decides among equals.
    """
    if size >= len(items):
        return list(items)
    rest = list(range(len(items)))
    random.Random(seed).shuffle(rest)
    share = [Counter(kind(item) for item in items) for kind in strata]
    taken: list[Counter[Hashable]] = [Counter() for _ in strata]

    def load(index: int) -> float:
        # How much of each of its strata is already taken, relative to a fair share of the sample.
        return sum(taken[i][kind(items[index])] * len(share[i]) for i, kind in enumerate(strata))

    chosen = []
    for _ in range(size):
        index = min(rest, key=load)
        rest.remove(index)
        chosen.append(index)
        for i, kind in enumerate(strata):
            taken[i][kind(items[index])] += 1
    return [items[i] for i in sorted(chosen)]
