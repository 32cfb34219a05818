"""Which pairs are trained on and which are held out, and how many of each kind of task.

*Split*: by environment. Environments that share a task are one family; a family is on one side whole. In an order drawn
by the seed, families are held out as long as they fit into the wanted share of the pairs; if none fits, the smallest
one is, unless it is the only one.

*Balance*: on each side of the split, pairs of harmful and of benign tasks. Of the more numerous, pairs are dropped until
there are at most `ratio` for each of the fewer; every task keeps a pair before any task keeps a second one, and chance
decides beyond that. Where a side has only one of the two, or it is not known, nothing is dropped.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from mosaic_guard._trace import Trajectory
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.preference_file import SPLITS, Preference, Split


def environments_of(task: str, trajectories: Sequence[Trajectory]) -> frozenset[str]:
    """The environments of a task: what its outcomes say, else what stands before the first `/` or `:` of its name.

    A task whose name has neither is an environment of its own.
    """
    named = {
        str(value)
        for trajectory in trajectories
        if trajectory.outcome is not None
        for key in ("environment", "suite")
        if (value := trajectory.outcome.details.get(key))
    }
    return frozenset(named or {re.split(r"[/:]", task, maxsplit=1)[0] or task})


def families(tasks: Mapping[str, Collection[str]]) -> dict[str, str]:
    """The family of each environment, named by its first member in alphabetical order.

    Args:
        tasks: The environments of each task.
    """
    family: dict[str, str] = {}

    def find(name: str) -> str:
        while family.setdefault(name, name) != name:
            name = family[name]
        return name

    for environments in tasks.values():
        first, *others = sorted(find(name) for name in environments)
        for other in others:
            family[other] = first
    return {name: find(name) for name in list(family)}


def split_families(sizes: Mapping[str, int], share: float, named: Collection[str], seed: int) -> dict[str, Split]:
    """Which side each family is on.

    Args:
        sizes: Number of pairs of each family.
        share: Share of the pairs to hold out, in [0, 1); not used where families are named.
        named: Families to hold out.
        seed: Decides the order in which they are tried.
    """
    if named:
        return {name: "test" if name in named else "train" for name in sizes}
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest())
    room = share * sum(sizes.values())
    held: list[str] = []
    for name in order:
        if sizes[name] <= room and len(held) + 1 < len(sizes):
            held.append(name)
            room -= sizes[name]
    if not held and share > 0 and len(sizes) > 1:
        held = [min(order, key=lambda name: sizes[name])]
    return {name: "test" if name in held else "train" for name in sizes}


def split_preferences(
    preferences: Sequence[Preference],
    environments: Mapping[str, Collection[str]],
    *,
    share: float,
    held_out: Collection[str],
    seed: int,
) -> list[Preference]:
    """The preferences with their splits.

    Args:
        preferences: In any order, which is kept.
        environments: The environments of each task.
        share: Share of the pairs to hold out.
        held_out: Environments to hold out instead.
        seed: Decides which families are held out.

    Raises:
        TrainingError: If an environment to hold out is not there.
    """
    family = families(environments)
    if unknown := sorted(set(held_out) - set(family)):
        raise TrainingError(
            f"no environment {unknown[0]!r} to hold out: there are {', '.join(sorted(family)) or 'none'}"
        )
    sizes = Counter(family[preference.environment] for preference in preferences)
    sides = split_families(sizes, share, {family[name] for name in held_out}, seed)
    return [replace(preference, split=sides[family[preference.environment]]) for preference in preferences]


def balance(preferences: Sequence[Preference], ratio: float, seed: int) -> list[Preference]:
    """The preferences that stay, in their order.

    Args:
        preferences: With their splits.
        ratio: Most pairs of harmful tasks per pair of benign ones, and the other way round, at least 1; 0 keeps all.
        seed: Decides what is dropped.
    """
    dropped: set[int] = set()
    for split in SPLITS if ratio else ():
        of = {
            category: [i for i, p in enumerate(preferences) if p.split == split and p.category == category]
            for category in ("harmful", "benign")
        }
        few, many = sorted(of.values(), key=len)
        if few:
            dropped |= set(_spread(preferences, many, seed)[int(ratio * len(few)) :])
    return [preference for i, preference in enumerate(preferences) if i not in dropped]


def _spread(preferences: Sequence[Preference], indices: Sequence[int], seed: int) -> list[int]:
    """The indices in an order in which every task comes once before any comes twice."""

    def chance(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()

    tasks: dict[str, list[int]] = {}
    for i in sorted(indices, key=lambda i: (chance(preferences[i].id), i)):
        tasks.setdefault(preferences[i].pair.task, []).append(i)
    ranked = [(rank, chance(task), i) for task, members in tasks.items() for rank, i in enumerate(members)]
    return [i for _, _, i in sorted(ranked)]
