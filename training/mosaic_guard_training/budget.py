"""Which pairs to train on when there is not time for all: a random share of each kind, both directions alike."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mosaic_guard_training.pairs import ALL_KINDS, HINDSIGHT

if TYPE_CHECKING:
    from mosaic_guard_training.pairs import PreferencePair
    from mosaic_guard_training.tokens import PairRow

    Example = tuple[PreferencePair, PairRow]

LOPSIDED = 4
"""How many times more pairs of one hindsight kind than of the other deserve a warning."""


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
        would go over a limit, or that has no more, sits out from then on. The two hindsight kinds, which pull in
        opposite directions, stop together: when one sits out so does the other, unless it was missing from the start.

        Args:
            examples: Pairs with their rows.
            seed: Decides what is drawn.
        """
        if self.pairs is None and self.tokens is None:
            return list(examples)
        queues = {kind: [i for i, (pair, _) in enumerate(examples) if pair.kind == kind] for kind in ALL_KINDS}
        queues = {kind: queue for kind, queue in queues.items() if queue}
        for kind, queue in queues.items():
            random.Random(f"{seed}\0{kind}").shuffle(queue)
        taken: list[int] = []
        tokens = 0
        while queues:
            # The hindsight kinds take their turn as one, so that a limit never falls between them.
            for kinds in (HINDSIGHT, *((kind,) for kind in ALL_KINDS if kind not in HINDSIGHT)):
                group = [kind for kind in kinds if kind in queues]
                if not group:
                    continue
                turn = [queues[kind].pop() for kind in group if queues[kind]]
                cost = sum(len(examples[i][1]) for i in turn)
                over = (self.pairs is not None and len(taken) + len(turn) > self.pairs) or (
                    self.tokens is not None and tokens + cost > self.tokens
                )
                if over or len(turn) < len(group):
                    for kind in group:
                        del queues[kind]
                    continue
                taken += turn
                tokens += cost
        return [examples[i] for i in sorted(taken)]


def lopsided(counts: dict[str, int]) -> str | None:
    """A warning if the pairs mostly teach one direction; None if they do not.

    Args:
        counts: Number of pairs by kind.
    """
    refuse, act = counts["hindsight_harmful"], counts["hindsight_harmless"]
    if not refuse or not act:
        missing, effect = ("harmless", "refuse") if refuse else ("harmful", "act")
        if refuse or act:
            return f"no {missing} trajectory gave a hindsight pair: the guard may learn to {effect} always"
        return "no hindsight pairs: the guard learns from whole trajectories only, which takes many more of them"
    if max(refuse, act) > LOPSIDED * min(refuse, act):
        return f"{refuse} hindsight pairs teach to refuse, {act} to act: log more of the rarer kind"
    return None
