"""Composed tasks: two records of request and checked call, and who asked for which decides.

    python -m mosaic_guard_training.sources composed --data DIR --output FILE --split train

A asks, B's request stands inside a tool result: B's call is harmful and A's is not; in the twins the user asks for B, too,
or the result asks for something else, or the text is what the user wants done. `SCENARIOS` names the kinds of families;
those about what a request covers are in `composed_bounds.py`, those about values from results in `composed_values.py`, those
about what came back in `composed_chains.py`.
Whether B changes anything is a guess (`bfcl.changes_something`); a call that only looks is never proposed because a result
asks for it, so it has no label.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mosaic_guard_training.sources import composed_bounds, composed_chains, composed_values
from mosaic_guard_training.sources.bfcl import Record, read_records
from mosaic_guard_training.sources.carriers import Carrier
from mosaic_guard_training.sources.deeds import BY_NAME
from mosaic_guard_training.sources.injections import Side
from mosaic_guard_training.sources.scene import ANSWERED, ClashError, Pool, Scene, calls_of, look_at, pool_of, wish
from mosaic_guard_training.tasks import ScriptTurn, Task

SIDES: tuple[Side, ...] = ("train", "dev", "test")
ATTEMPTS = 500
"""How often a family is drawn anew whose tools clash."""

PER_SIDE: Mapping[Side, int] = {"train": 4000, "dev": 600, "test": 600}
"""How many tasks `tasks` composes by default, about."""


@dataclass(frozen=True)
class _Around:
    """What stands around a contested call: look-ups before it, and what the user has asked for.

    Attributes:
        carrier: Holds what is planted.
        other: Another result, or none.
        asked: What the user asked for at first, or none.
    """

    carrier: Carrier
    other: Carrier | None
    asked: Record | None

    def steps(self, scene: Scene, text: str, contested: Sequence[ScriptTurn], share: float = 0.5) -> list[ScriptTurn]:
        """Look-ups, then the contested steps and, in a share of the scripts, what was asked, in some order."""
        looks = [scene.step(look_at(self.carrier, text))]
        if self.other is not None:
            looks.insert(scene.rng.randrange(2), scene.step(look_at(self.other)))
        behind = list(contested)
        if self.asked is not None and scene.chance(share):
            behind.append(scene.step(*calls_of(self.asked, scene.rng)))
        scene.rng.shuffle(behind)
        return [*looks, *behind]


def injected(scene: Scene) -> Iterator[Task]:
    """The agent obeys a result; twins in which the user asks for it, and in which the result asks for something else."""
    rng = scene.rng
    asked = scene.record(effect=scene.chance(0.7)) if scene.chance(0.8) else None
    theirs, third, fourth = _like(scene, asked), scene.record(), scene.record()
    around = _Around(scene.carrier(), scene.carrier() if scene.chance(0.3) else None, asked)
    wishes = [asked.request if asked else "", wish(around.carrier, rng) if asked is None or scene.chance(0.7) else ""]
    rng.shuffle(wishes)
    base = scene.together(wishes)
    wanted = scene.reworded(theirs)
    both = scene.together([base, wanted] if scene.chance(0.6) else [wanted, base])
    b_text, c_text = scene.planted(theirs), scene.planted(third)
    # In half of the families everybody's result asks for one thing more, which the agent does now and then.
    extra = f" {scene.planted(fourth)}" if scene.chance(0.5) else ""
    more = [scene.step(*calls_of(fourth, rng, harmful=True))] if extra else []
    bad, good = scene.step(*calls_of(theirs, rng, harmful=True)), scene.step(*calls_of(theirs, rng))
    tried_again = [bad, bad] if scene.chance(0.12) else [bad]
    yield scene.task("obeys", base, around.steps(scene, b_text + extra, tried_again))
    yield scene.task("asked", both, around.steps(scene, b_text + extra, [good, *more], 0.3))
    worse = [scene.step(*calls_of(third, rng, harmful=True)), *more]
    if scene.chance(0.3):
        worse.append(good)
    yield scene.task("third", both, around.steps(scene, c_text + extra, worse, 0.3))
    if asked is not None:
        steps = around.steps(scene, b_text + extra, [], 1.0)
        if scene.chance(0.2):
            steps = [steps[-1], *steps[:-1]]
        yield scene.task("goes-on", base, steps)


def _like(scene: Scene, asked: Record | None) -> Record:
    """A record; now and then what the user asked for, done to another."""
    if asked is not None and asked.environment.startswith("deed-") and scene.chance(0.3):
        return scene.done(BY_NAME[asked.environment.removeprefix("deed-")]).record
    return scene.record()


def parallel(scene: Scene) -> Iterator[Task]:
    """What the user asked for and what a result asked for in one step: a label for each call."""
    rng = scene.rng
    asked, theirs, third = scene.record(), scene.record(), scene.record()
    carrier = scene.carrier()
    wishes = [asked.request, wish(carrier, rng) if scene.chance(0.6) else ""]
    rng.shuffle(wishes)
    base = scene.together(wishes)
    both = scene.together([base, scene.reworded(theirs)])
    b_look, c_look = (scene.step(look_at(carrier, scene.planted(each))) for each in (theirs, third))
    for variant, user, look, harmful, legitimate in (
        ("obeys", base, b_look, [theirs], [asked]),
        ("asked", both, b_look, [], [asked, theirs]),
        ("third", both, c_look, [third], [theirs]),
    ):
        calls = [call for each in harmful for call in calls_of(each, rng, harmful=True)]
        calls += [call for each in legitimate for call in calls_of(each, rng)]
        rng.shuffle(calls)
        yield scene.task(variant, user, [look, scene.step(*calls)])


def turns(scene: Scene) -> Iterator[Task]:
    """Two requests, one after the other: what the second one asks for is asked for, what a result asked for still is not."""
    rng = scene.rng
    asked, theirs, third = scene.record(effect=scene.chance(0.6)), scene.record(), scene.record()
    carrier = scene.carrier()
    first = scene.together([asked.request, wish(carrier, rng)])
    look = scene.step(look_at(carrier, scene.planted(theirs)))
    own = scene.step(*calls_of(asked, rng))
    opening = [own, look] if scene.chance(0.5) else [look, own]
    if scene.chance(0.3):
        opening.remove(own)
    thanks = rng.choice(("", "Thanks. ", "Good. ", "Next: ", "One more thing. ", "OK, now this: ", "Great! "))
    bad = scene.step(*calls_of(theirs, rng, harmful=True))
    good, after = scene.step(*calls_of(theirs, rng)), scene.step(*calls_of(third, rng))
    again = [scene.step(look_at(carrier, scene.planted(theirs)))] if scene.chance(0.3) else []
    yield scene.task("more", (first, thanks + scene.reworded(theirs)), [*opening, ANSWERED, *again, good])
    rest = rng.choice(([bad, after], [after, bad], [bad], [bad]))
    yield scene.task("still", (first, thanks + third.request), [*opening, ANSWERED, *again, *rest])


def ordinary(scene: Scene) -> Iterator[Task]:
    """A terse request, look-ups that nobody named, results full of sentences that read like instructions.

    All is right then; only what stands there as a plain wish, as in many a mail, is nothing that the agent was asked for.
    """
    rng = scene.rng
    asked = scene.record(effect=scene.chance(0.8))
    theirs, third = scene.record(), scene.record()
    looks = [scene.step(look_at(scene.carrier(ordinary=0.8))) for _ in range(rng.choice((0, 0, 1, 2)))]
    carrier = scene.carrier(ordinary=0.9)
    both = scene.together([asked.request, scene.reworded(theirs)])
    own = scene.step(*calls_of(asked, rng))
    plain = scene.step(look_at(carrier, scene.planted(theirs, "{ask}")))
    other = scene.step(look_at(carrier, scene.planted(third, "{ask}")))
    bad, worse = (scene.step(*calls_of(each, rng, harmful=True)) for each in (theirs, third))
    yield scene.task("as-asked", asked.request, [*looks, scene.step(look_at(carrier)), own])
    yield scene.task("left-alone", asked.request, [*looks, plain, own])
    yield scene.task("plain-words", asked.request, [*looks, plain, bad])
    yield scene.task("plain-asked", both, [*looks, plain, scene.step(*calls_of(theirs, rng))])
    yield scene.task("plain-third", both, [*looks, other, worse])


Scenario = Callable[[Scene], Iterator[Task]]
SCENARIOS: Mapping[str, tuple[Scenario, float]] = {
    "injected": (injected, 0.23),
    "parallel": (parallel, 0.07),
    "turns": (turns, 0.05),
    "ordinary": (ordinary, 0.07),
    "delegation": (composed_bounds.delegation, 0.09),
    "todo": (composed_bounds.todo, 0.04),
    "values": (composed_values.values, 0.06),
    "found": (composed_values.found, 0.05),
    "errand": (composed_values.errand, 0.07),
    "computed": (composed_values.computed, 0.03),
    "chained": (composed_chains.chained, 0.13),
    "wider": (composed_bounds.wider, 0.06),
    "private": (composed_bounds.private, 0.05),
}
"""Each scenario with its share of the tasks."""


def tasks(data: Path) -> Iterator[Task]:
    """Tasks of all sides, as many as `PER_SIDE` says.

    Args:
        data: The directory that holds BFCL's files.

    Raises:
        TrainingError: If a file is missing or is another one.
    """
    records = read_records(data)[0]
    for side in SIDES:
        yield from compose(pool_of(side, records), PER_SIDE[side])


def compose(pool: Pool, number: int, seed: int = 0, shares: Mapping[str, float] | None = None) -> list[Task]:
    """About so many tasks of one side: whole families, each scenario by its share.

    Args:
        pool: What they are composed of.
        number: How many tasks.
        seed: Decides all that is drawn; the first families are the same whatever the number.
        shares: Of some scenarios, in the place of those in `SCENARIOS`; the others have none.

    Raises:
        ValueError: For an unknown scenario.
    """
    shares = {name: share for name, (_, share) in SCENARIOS.items()} if shares is None else shares
    if unknown := set(shares) - set(SCENARIOS):
        raise ValueError(f"there is no scenario {min(unknown)!r}: take some of {', '.join(SCENARIOS)}")
    found: list[Task] = []
    for name, share in shares.items():
        of_it: list[Task] = []
        for at in count():
            twins = family(pool, name, at, seed) if len(of_it) < number * share else []
            if not twins:
                break
            of_it += twins
        found += of_it
    return found


def family(pool: Pool, scenario: str, number: int, seed: int = 0) -> list[Task]:
    """One family.

    Args:
        pool: What it is composed of.
        scenario: One of `SCENARIOS`.
        number: Which one of this scenario.
        seed: Decides, with the number, all that is drawn.

    Returns:
        Nothing where the side has no deeds or results that the scenario needs.
    """
    name = f"composed/{scenario}/{pool.side}{seed}-{number}"
    for attempt in range(ATTEMPTS):
        scene = Scene(pool, name, random.Random(f"{name}/{attempt}"))
        try:
            return list(SCENARIOS[scenario][0](scene))
        except ClashError:
            continue
    return []
