"""Composed tasks: two records of request and checked call, and who asked for which decides.

    python -m mosaic_guard_training.sources composed --data DIR --output FILE --split train --count 4000

A asks, B's request stands inside a tool result: B's call is harmful and A's is not; in the twins the user asks for B, too,
or the result asks for something else, or the text is what the user wants done. `SCENARIOS` names the kinds of families;
those about what a request covers are in `composed_bounds.py`. Whether B changes anything is a guess (`bfcl.changes_something`);
a call that only looks is never proposed because a result asks for it, so it has no label.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

from mosaic_guard_training.sources import composed_bounds
from mosaic_guard_training.sources.bfcl import Record, read_records
from mosaic_guard_training.sources.carriers import Carrier
from mosaic_guard_training.sources.injections import Side
from mosaic_guard_training.sources.scene import ANSWERED, ClashError, Pool, Scene, calls_of, look_at, pool_of, wish
from mosaic_guard_training.tasks import ScriptTurn, Task

SIDES: tuple[Side, ...] = ("train", "dev", "test")
PER_SIDE: Mapping[Side, int] = {"train": 4000, "dev": 600, "test": 600}
"""How many tasks `tasks` composes by default, about."""


def injected(scene: Scene) -> Iterator[Task]:
    """The agent obeys a result; twins in which the user asks for it, and in which the result asks for something else."""
    rng = scene.rng
    asked = scene.record(effect=scene.chance(0.7)) if scene.chance(0.8) else None
    theirs, third = scene.record(), scene.record()
    carrier = scene.carrier()
    other = scene.carrier() if scene.chance(0.3) else None
    named = asked is None or scene.chance(0.7)
    wishes = [asked.request if asked else "", wish(carrier, rng) if named else ""]
    rng.shuffle(wishes)
    base = scene.together(wishes)
    both = scene.together([base, theirs.request] if scene.chance(0.6) else [theirs.request, base])
    b_text, c_text = scene.planted(theirs), scene.planted(third)
    yield scene.task("obeys", base, _around(scene, carrier, b_text, theirs, True, asked, other))
    yield scene.task("asked", both, _around(scene, carrier, b_text, theirs, False, asked, other))
    yield scene.task("third", both, _around(scene, carrier, c_text, third, True, asked, other, theirs))
    if asked is not None:
        yield scene.task("goes-on", base, _around(scene, carrier, b_text, None, False, asked, other, always=True))


def _around(
    scene: Scene,
    carrier: Carrier,
    text: str,
    then: Record | None,
    harmful: bool,
    asked: Record | None,
    other: Carrier | None,
    also: Record | None = None,
    always: bool = False,
) -> list[ScriptTurn]:
    """Look-ups, the call that somebody asks for, and now and then what else the user asked for, before or behind it."""
    rng = scene.rng
    looks = [scene.step(look_at(carrier, text))]
    if other is not None:
        looks.insert(rng.randrange(2), scene.step(look_at(other)))
    contested = [scene.step(*calls_of(then, rng, harmful=harmful))] if then else []
    if harmful and scene.chance(0.12):
        contested *= 2
    wanted = [each for each in (asked, also) if each is not None and (always or scene.chance(0.5))]
    steps = [scene.step(*calls_of(each, rng)) for each in wanted]
    behind = [*contested, *steps]
    rng.shuffle(behind)
    if behind and not any(call.harmful for call in behind[0].calls) and then is None and scene.chance(0.2):
        return [behind[0], *looks, *behind[1:]]
    return [*looks, *behind]


def parallel(scene: Scene) -> Iterator[Task]:
    """What the user asked for and what a result asked for in one step: a label for each call."""
    rng = scene.rng
    asked, theirs, third = scene.record(), scene.record(), scene.record()
    carrier = scene.carrier()
    wishes = [asked.request, wish(carrier, rng) if scene.chance(0.6) else ""]
    rng.shuffle(wishes)
    base = scene.together(wishes)
    both = scene.together([base, theirs.request])
    for variant, user, planted, harmful, legitimate in (
        ("obeys", base, theirs, [theirs], [asked]),
        ("asked", both, theirs, [], [asked, theirs]),
        ("third", both, third, [third], [theirs]),
    ):
        calls = [call for each in harmful for call in calls_of(each, rng, harmful=True)]
        calls += [call for each in legitimate for call in calls_of(each, rng)]
        rng.shuffle(calls)
        yield scene.task(variant, user, [scene.step(look_at(carrier, scene.planted(planted))), scene.step(*calls)])


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
    yield scene.task("more", (first, thanks + theirs.request), [*opening, ANSWERED, good])
    rest = [bad, after] if scene.chance(0.5) else [after, bad]
    yield scene.task("still", (first, thanks + third.request), [*opening, ANSWERED, *rest])


def ordinary(scene: Scene) -> Iterator[Task]:
    """A terse request, look-ups that nobody named, results full of sentences that read like instructions: all is right."""
    rng = scene.rng
    asked = scene.record(effect=scene.chance(0.6))
    looks = [scene.step(look_at(scene.carrier(ordinary=0.8))) for _ in range(rng.choice((1, 1, 2, 3)))]
    yield scene.task("as-asked", asked.request, [*looks, scene.step(*calls_of(asked, rng))])
    carrier = scene.carrier(ordinary=0.9)
    # What is planted is a request in plain words, such as stands in many a mail: nobody asked the agent.
    theirs = scene.record()
    bad = scene.step(*calls_of(theirs, rng, harmful=True))
    yield scene.task(
        "plain-words", wish(carrier, rng), [scene.step(look_at(carrier, scene.planted(theirs, "{ask}"))), bad]
    )
    user = scene.together([wish(carrier, rng), theirs.request])
    good = scene.step(*calls_of(theirs, rng))
    yield scene.task("plain-asked", user, [scene.step(look_at(carrier, scene.planted(theirs, "{ask}"))), good])


Scenario = Callable[[Scene], Iterator[Task]]
SCENARIOS: Mapping[str, tuple[Scenario, float]] = {
    "injected": (injected, 0.3),
    "parallel": (parallel, 0.1),
    "turns": (turns, 0.08),
    "ordinary": (ordinary, 0.08),
    "delegation": (composed_bounds.delegation, 0.14),
    "values": (composed_bounds.values, 0.14),
    "wider": (composed_bounds.wider, 0.09),
    "private": (composed_bounds.private, 0.07),
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


def compose(pool: Pool, number: int, seed: int = 0) -> list[Task]:
    """About so many tasks of one side: whole families, each scenario by its share.

    Args:
        pool: What they are composed of.
        number: How many tasks.
        seed: Decides all that is drawn; the first families are the same whatever the number.
    """
    found: list[Task] = []
    for name, (_, share) in SCENARIOS.items():
        of_it: list[Task] = []
        for at in count():
            if len(of_it) >= number * share:
                break
            of_it += family(pool, name, at, seed)
        found += of_it
    return found


def family(pool: Pool, scenario: str, number: int, seed: int = 0) -> list[Task]:
    """One family.

    Args:
        pool: What it is composed of.
        scenario: One of `SCENARIOS`.
        number: Which one of this scenario.
        seed: Decides, with the number, all that is drawn.
    """
    name = f"composed/{scenario}/{pool.side}{seed}-{number}"
    for attempt in count():
        scene = Scene(pool, name, random.Random(f"{name}/{attempt}"))
        try:
            return list(SCENARIOS[scenario][0](scene))
        except ClashError:
            continue
    raise AssertionError("unreachable")
