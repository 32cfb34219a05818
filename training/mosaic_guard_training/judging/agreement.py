"""How far judges agree, which of them favour a place, and whose preferences go in circles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from mosaic_guard_training.evaluation.metrics import Rate
from mosaic_guard_training.judging.judgement import WINNERS, Judgement, latest

CATEGORIES = WINNERS[:3]
"""What a judge can say; an abstention is not compared."""


@dataclass(frozen=True)
class JudgeReport:
    """One judge by itself.

    Attributes:
        judge: Its name.
        judged: Number of judgements, abstentions included.
        winners: How often each of `one`, `other`, `tie`, `abstain`.
        coverage: Judgements that are no abstention.
        contradictions: Pairs judged in both orders in which each place won once.
        unsteady: Pairs judged in both orders that one of them calls a tie.
        favours_first: Votes with a winner that went to the trajectory shown first; a judge without a bias is at one half.
        triples: Triples of one task of which all three pairs have a winner.
        intransitive: Those in which A beats B, B beats C and C beats A, as (task, three ids).
    """

    judge: str
    judged: int
    winners: Mapping[str, int]
    coverage: Rate
    contradictions: Rate
    unsteady: Rate
    favours_first: Rate
    triples: int
    intransitive: Sequence[tuple[str, tuple[str, str, str]]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-like."""
        rates = {k: v.to_dict() for k, v in vars(self).items() if isinstance(v, Rate)}
        circles = [{"task": task, "trajectories": list(ids)} for task, ids in self.intransitive]
        return {
            "judge": self.judge,
            "judged": self.judged,
            "winners": dict(self.winners),
            **rates,
            "triples": self.triples,
            "intransitive": circles,
        }


@dataclass(frozen=True)
class PairReport:
    """Two judges on what both judged.

    Attributes:
        judges: Their names.
        tasks: Number of tasks that the common subjects are of.
        raw: Same answer, of the subjects on which neither abstained.
        kappa: Cohen's kappa; None where chance alone explains all (both always say the same).
        interval: 95 %, by resampling tasks; None with fewer than two tasks, or where kappa is mostly undefined.
    """

    judges: tuple[str, str]
    tasks: int
    raw: Rate
    kappa: float | None
    interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-like."""
        return {**asdict(self), "judges": list(self.judges), "raw": self.raw.to_dict()}


@dataclass(frozen=True)
class Agreement:
    """All judges, and each two of them.

    Attributes:
        judges: One report per judge, by name.
        pairs: One report per two judges that have a subject in common.
        seed: Seed of the resampling.
        resamples: How often it was done.
    """

    judges: Sequence[JudgeReport] = field(default_factory=list)
    pairs: Sequence[PairReport] = field(default_factory=list)
    seed: int = 0
    resamples: int = 2000

    def to_dict(self) -> dict[str, Any]:
        """JSON-like."""
        return {
            "judges": [report.to_dict() for report in self.judges],
            "pairs": [report.to_dict() for report in self.pairs],
            "seed": self.seed,
            "resamples": self.resamples,
        }


def agreement(judgements: Iterable[Judgement], *, seed: int = 0, resamples: int = 2000) -> Agreement:
    """Compare the judges of some judgements; of each judge and subject the last one counts."""
    found: dict[str, list[Judgement]] = {}
    for judgement in latest(judgements):
        found.setdefault(judgement.judge, []).append(judgement)
    names = sorted(found)
    both = [
        report
        for one, other in combinations(names, 2)
        if (report := _compare((one, other), found[one], found[other], seed, resamples))
    ]
    return Agreement([_alone(name, found[name]) for name in names], both, seed, resamples)


def cohens_kappa(table: Sequence[Sequence[float]]) -> float | None:
    """Cohen's kappa of a square table of counts (rows: one judge's answers, columns: the other's); None if undefined."""
    total = sum(map(sum, table))
    if not total:
        return None
    observed = sum(table[i][i] for i in range(len(table))) / total
    chance = sum(sum(table[i]) * sum(row[i] for row in table) for i in range(len(table))) / total**2
    return None if chance >= 1 else (observed - chance) / (1 - chance)


def intransitive_triples(judgements: Iterable[Judgement]) -> tuple[int, list[tuple[str, tuple[str, str, str]]]]:
    """(number of triples with three winners, those that go in a circle) among the judgements of one judge."""
    tasks: dict[str, dict[tuple[str, str], bool]] = {}
    for judgement in judgements:
        if judgement.step is None and judgement.winner in ("one", "other") and judgement.one != judgement.other:
            beats = tasks.setdefault(judgement.task, {})
            beats[judgement.one, judgement.other] = judgement.winner == "one"
            beats[judgement.other, judgement.one] = judgement.winner == "other"
    triples = 0
    circles = []
    for task, beats in sorted(tasks.items()):
        for a, b, c in combinations(sorted({name for pair in beats for name in pair}), 3):
            if (a, b) in beats and (b, c) in beats and (c, a) in beats:
                triples += 1
                if beats[a, b] == beats[b, c] == beats[c, a]:
                    circles.append((task, (a, b, c)))
    return triples, circles


def _alone(name: str, judgements: Sequence[Judgement]) -> JudgeReport:
    winners = Counter(judgement.winner for judgement in judgements)
    twice = [
        {vote.winner for vote in judgement.votes}
        for judgement in judgements
        if {vote.first for vote in judgement.votes} == {"one", "other"}
        and all(vote.winner != "abstain" for vote in judgement.votes)
    ]
    votes = [vote for judgement in judgements for vote in judgement.votes if vote.winner in ("one", "other")]
    triples, circles = intransitive_triples(judgements)
    return JudgeReport(
        judge=name,
        judged=len(judgements),
        winners={winner: winners[winner] for winner in WINNERS},
        coverage=Rate(len(judgements) - winners["abstain"], len(judgements)),
        contradictions=Rate(sum(said == {"one", "other"} for said in twice), len(twice)),
        unsteady=Rate(sum(len(said) == 2 and "tie" in said for said in twice), len(twice)),
        favours_first=Rate(sum(vote.winner == vote.first for vote in votes), len(votes)),
        triples=triples,
        intransitive=circles,
    )


def _compare(
    names: tuple[str, str], one: Sequence[Judgement], other: Sequence[Judgement], seed: int, resamples: int
) -> PairReport | None:
    theirs = {judgement.subject: judgement.winner for judgement in other}
    tables: dict[str, list[list[float]]] = {}
    for judgement in one:
        answer = theirs.get(judgement.subject, "abstain")
        if judgement.winner != "abstain" and answer != "abstain":
            table = tables.setdefault(judgement.task, [[0.0] * 3 for _ in CATEGORIES])
            table[CATEGORIES.index(judgement.winner)][CATEGORIES.index(answer)] += 1
    if not tables:
        return None
    ordered = [tables[task] for task in sorted(tables)]
    whole = [[sum(table[i][j] for table in ordered) for j in range(3)] for i in range(3)]
    raw = Rate(int(sum(whole[i][i] for i in range(3))), int(sum(map(sum, whole))))
    return PairReport(names, len(tables), raw, cohens_kappa(whole), _interval(ordered, seed, resamples))


def _interval(tables: Sequence[Sequence[Sequence[float]]], seed: int, resamples: int) -> tuple[float, float] | None:
    """2.5 and 97.5 percent of kappa over samples of tasks with replacement."""
    import numpy

    if len(tables) < 2:
        return None
    drawn = numpy.random.default_rng(seed).multinomial(len(tables), [1 / len(tables)] * len(tables), size=resamples)
    sums = numpy.einsum("rt,tij->rij", drawn, numpy.asarray(tables))
    total = sums.sum(axis=(1, 2))
    observed = sums.trace(axis1=1, axis2=2) / total
    chance = (sums.sum(axis=2) * sums.sum(axis=1)).sum(axis=1) / total**2
    known = chance < 1
    if known.mean() < 0.5:
        return None
    low, high = numpy.quantile((observed[known] - chance[known]) / (1 - chance[known]), [0.025, 0.975])
    return float(low), float(high)
