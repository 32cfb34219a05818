"""Which pairs to train on when there is not time for all: a random share of each kind, both directions alike."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mosaic_guard_training.pairs import ALL_KINDS, HINDSIGHT, taught

if TYPE_CHECKING:
    from mosaic_guard_training.pairs import PreferencePair
    from mosaic_guard_training.tokens import PairRow

    Example = tuple[PreferencePair, PairRow]

LOPSIDED = 4
"""How many times more pairs of one direction than of the other deserve a warning."""

Way = tuple[str, str | None]
"""(kind, both of hindsight being one; what a pair of single calls teaches)."""

_GROUPS = dict.fromkeys(HINDSIGHT, "hindsight")
_TURNS = ("hindsight", *(kind for kind in ALL_KINDS if kind not in HINDSIGHT))


@dataclass(frozen=True)
class Budget:
    """Limits on what is trained on; None for none.

    Attributes:
        pairs: Number of pairs.
        tokens: Tokens that the model reads in one epoch.
    """

    pairs: int | None = None
    tokens: int | None = None

    def select(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """The examples to train on, in their given order.

        Without limits, all of them. With limits, the kinds take turns, each in random order; a kind whose next pair
        would go over a limit, or that has no more, sits out from then on. Pairs of single calls that teach to act and such
        that teach to refuse, by hindsight or by one kind of judge, pull in opposite directions and stop together: when one
        sits out so does the other, unless it was missing from the start.

        Args:
            examples: Pairs with their rows.
            seed: Decides what is drawn.
        """
        if self.pairs is None and self.tokens is None:
            return list(examples)
        queues: dict[Way, list[int]] = {}
        for i, (pair, _) in enumerate(examples):
            queues.setdefault((_GROUPS.get(pair.kind, pair.kind), taught(pair)), []).append(i)
        for (group, way), queue in queues.items():
            random.Random(f"{seed}\0{group} {way}").shuffle(queue)
        turns = sorted({group for group, _ in queues}, key=_TURNS.index)
        taken: list[int] = []
        tokens = 0
        while queues:
            for group in turns:
                # Whole trajectories, and the two directions of single calls: these take their turn as one, so that a limit
                # never falls between them.
                for ways in ((None,), ("act", "refuse")):
                    some = [(group, way) for way in ways if (group, way) in queues]
                    turn = [queues[each].pop() for each in some if queues[each]]
                    cost = sum(len(examples[i][1]) for i in turn)
                    over = (self.pairs is not None and len(taken) + len(turn) > self.pairs) or (
                        self.tokens is not None and tokens + cost > self.tokens
                    )
                    if over or len(turn) < len(some):
                        for each in some:
                            del queues[each]
                        continue
                    taken += turn
                    tokens += cost
        return [examples[i] for i in sorted(taken)]


def dealt(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples in an order in which each kind and direction is spread evenly, each in random order.

    A batch of pairs that all teach to act moves every verdict towards act, and the next one back; together they cancel in
    all but what tells the calls apart.

    Args:
        examples: Pairs with their rows.
        seed: Decides the order of each kind and direction.
    """
    ways: dict[Way, list[Example]] = {}
    for example in examples:
        pair = example[0]
        ways.setdefault((_GROUPS.get(pair.kind, pair.kind), taught(pair)), []).append(example)
    places: list[tuple[float, int, Example]] = []
    for number, ((group, way), members) in enumerate(sorted(ways.items(), key=lambda each: str(each[0]))):
        random.Random(f"{seed}\0dealt\0{group} {way}").shuffle(members)
        places += [((at + 0.5) / len(members), number, example) for at, example in enumerate(members)]
    return [example for *_, example in sorted(places, key=lambda each: each[:2])]


def lopsided(pairs: Iterable[PreferencePair]) -> str | None:
    """A warning if the pairs mostly teach one direction; None if they do not.

    Args:
        pairs: What is trained on; those of whole trajectories say nothing about this.
    """
    ways = Counter(map(taught, pairs))
    refuse, act = ways["refuse"], ways["act"]
    if not refuse or not act:
        missing, effect = ("act", "refuse") if refuse else ("refuse", "act")
        if refuse or act:
            return f"no pair of single calls teaches to {missing}: the guard may learn to {effect} always"
        return "no pairs of single calls: the guard learns from whole trajectories only, which takes many more of them"
    if max(refuse, act) > LOPSIDED * min(refuse, act):
        return f"{refuse} pairs of single calls teach to refuse, {act} to act: log more of the rarer kind"
    return None
