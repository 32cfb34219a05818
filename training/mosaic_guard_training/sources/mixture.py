"""The tasks that a guard is taught with: so much of each source, of one side of `splits.json`, drawn with a seed.

    python -m mosaic_guard_training.sources mixture --data DIR --split train --count 20000 --output FILE

How many tools a task has is drawn for all sources alike, or it would tell them apart, and so what the user is up to. Twins stay
together. A source that has fewer tasks on the side than its share gives all that it has, and composed tasks, of
which there is no end, take the place of the rest. A side never holds records, templates, deeds or kinds of results of
another, nor its ways to put a change or a delegation; plain wishes, values and sentences that hold data are put alike on all.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mosaic_guard_training.sources import agentalign, asb, bfcl, composed, injecagent, intents
from mosaic_guard_training.sources.injections import Side
from mosaic_guard_training.sources.joined import join_twins
from mosaic_guard_training.sources.leaks import family_of
from mosaic_guard_training.sources.scene import pool_of
from mosaic_guard_training.sources.splits import held_out, split_of_task
from mosaic_guard_training.tasks import Task, TaskTool

_SOURCES: Mapping[str, Any] = {
    "injecagent": injecagent,
    "asb": asb,
    "agentalign": agentalign,
    "intents": intents,
    "bfcl": bfcl,
}


@dataclass(frozen=True)
class Shares:
    """How much of the tasks each source gives; what they leave of 1 is composed, each scenario as `composed.SCENARIOS` says.

    Attributes:
        injecagent: Injected calls, and twins in which the user asks for them.
        asb: Likewise, without arguments.
        agentalign: Harmful requests, and ordinary ones for the same tools.
        intents: Harmful requests and harmless look-alikes.
        bfcl: Ordinary requests by themselves.
        scenarios: Share of each scenario among the composed tasks; None for those of `composed.SCENARIOS`.
    """

    injecagent: float = 0.08
    asb: float = 0.03
    agentalign: float = 0.03
    intents: float = 0.12
    bfcl: float = 0.05
    scenarios: Mapping[str, float] | None = None

    def of_sources(self) -> dict[str, float]:
        """The share of each source."""
        return {name: getattr(self, name) for name in _SOURCES}

    def __post_init__(self) -> None:
        given = self.of_sources()
        if min(given.values()) < 0 or sum(given.values()) > 1:
            raise ValueError(f"shares are at least 0 and together at most 1, not {given}")


def mixture(
    data: Path, side: Side, number: int, shares: Shares | None = None, seed: int = 0, *, join: bool = False
) -> list[Task]:
    """About so many tasks of one side, in an order that the seed decides.

    Args:
        data: The directory that holds the sources' directories.
        side: `train`, `dev` or `test`.
        number: How many tasks.
        shares: How much of each source.
        seed: Decides what is drawn.
        join: Whether twins in which the user says the same become one task (`joined.py`), which makes them fewer.

    Raises:
        TrainingError: If a file is missing or is another one.
    """
    rng = random.Random(f"{seed}/{side}/mixture")
    shares, found = shares or Shares(), list[Task]()
    for source, share in shares.of_sources().items():
        if share:
            found += _drawn(_SOURCES[source].tasks(data), side, int(number * share), rng)
    pool = pool_of(side, bfcl.read_records(data)[0])
    found += composed.compose(pool, number - len(found), seed, shares.scenarios)
    families = among_other_tools(_families(found), rng)
    rng.shuffle(families)
    if join:
        families = [join_twins(family, rng) for family in families]
    return [task for family in families for task in family]


TOOLS = (1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 12)
"""How many tools the tasks of a family have, drawn alike; what they call is never left out."""


def among_other_tools(families: Iterable[list[Task]], rng: random.Random) -> list[list[Task]]:
    """The families with other tools beside those that are called: some of their own, and of other families'.

    Args:
        families: Of one side.
        rng: Decides all that is drawn.
    """
    families = list(families)
    pool = {tool.name: tool for family in families for task in family for tool in task.tools}
    names = sorted(pool)
    return [_with_tools(family, pool, names, rng) for family in families]


def _with_tools(
    family: list[Task], pool: Mapping[str, TaskTool], names: Sequence[str], rng: random.Random
) -> list[Task]:
    own = {tool.name: tool for task in family for tool in task.tools}
    number, beside = rng.choice(TOOLS), rng.sample(sorted(own), len(own))
    beside += [name for name in rng.sample(names, min(len(names), max(TOOLS))) if name not in own]
    found = []
    for task in family:
        called = {call.tool for call in task.calls}
        theirs = {tool.name: tool for tool in task.tools}
        kept = [*called, *[name for name in beside if name not in called][: max(number - len(called), 0)]]
        tools = [theirs.get(name) or own.get(name) or pool[name] for name in sorted(kept)]
        found.append(replace(task, tools=tuple(tools)))
    return found


def _drawn(tasks: Iterable[Task], side: Side, number: int, rng: random.Random) -> list[Task]:
    """Some tasks of a side, whole families."""
    there = [task for task in tasks if task.script and not held_out(task.id) and split_of_task(task) == side]
    families = _families(there)
    rng.shuffle(families)
    drawn: list[Task] = []
    for family in families:
        if len(drawn) >= number:
            break
        drawn += family
    return drawn


def _families(tasks: Iterable[Task]) -> list[list[Task]]:
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault(family_of(task.id), []).append(task)
    return list(found.values())
