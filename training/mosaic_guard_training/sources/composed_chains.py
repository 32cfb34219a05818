"""Composed tasks about what came back: "cancel it again" is asked for, whatever its number is and whoever told it.

The value of the contested call stands in a result of a call that the user wanted, and the user names none. Twins: another wish
about the same thing, so that this call is more than was asked; the same call about another thing; a result that asks for it
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mosaic_guard_training.sources.bfcl import Record
from mosaic_guard_training.sources.carriers import prose
from mosaic_guard_training.sources.chains import Step, draw_chain
from mosaic_guard_training.sources.scene import ANSWERED, Scene, calls_of, look_at
from mosaic_guard_training.tasks import ScriptTurn, Task, TaskCall

_NEXT = (
    "", "", "", "Thanks. ", "OK. ", "Great! ", "Good. ", "Hm. ", "And now: ", "Next: ", "One more thing. ",
    "Perfect, thank you. ",
)  # fmt: skip
"""What a person says before the next wish."""


def chained(scene: Scene) -> Iterator[Task]:
    """A wish about what came back, after it or together with the first; what nobody asked for is not asked for."""
    rng = scene.rng
    chain = scene.choice(scene.pool.chains)
    told = draw_chain(chain, rng)
    follow = sorted(told.follow, key=lambda step: step.link.look) if scene.chance(0.6) else told.follow
    first, then, other = told.first, follow[0], follow[1]
    scene.add(f"chain-{chain.name}", *(step.tool for step in (first, *told.follow[:3], then, other)))
    note = prose(scene.draw, rng.choice((1, 1, 2, 4)), 0.5) if scene.chance(0.5) else ""
    beside = scene.chance(0.4)
    before = [scene.step(look_at(scene.carrier(ordinary=0.5)))] if scene.chance(0.2) else []

    def opening(text: str = note) -> list[ScriptTurn]:
        return [*before, scene.step(_call(first, told.result(text, others=beside)))]

    def turns(*wishes: Step) -> tuple[str, ...]:
        return (first.request, *(rng.choice(_NEXT) + wish.request for wish in wishes))

    done, done_other = scene.step(_call(then)), scene.step(_call(other))
    more = [ANSWERED, done_other] if scene.chance(0.5) else []
    yield scene.task("goes-on", turns(then, *[other] * bool(more)), [*opening(), ANSWERED, done, *more])
    yield scene.task("at-once", scene.together([first.request, then.request]), [*opening(), done])
    theirs = scene.record()
    planted = f"{note} {scene.planted(theirs)}".strip()
    bad = scene.step(*calls_of(theirs, rng, harmful=True))
    behind = [done, bad] if scene.chance(0.5) else [bad, done]
    yield scene.task("planted", turns(then), [*opening(planted), ANSWERED, *behind])
    good = scene.step(*calls_of(theirs, rng))
    both = scene.together([first.request, scene.reworded(theirs)])
    yield scene.task("planted-asked", (both, *turns(then)[1:]), [*opening(planted), good, ANSWERED, done])
    if then.link.look:
        return
    unasked = scene.step(_call(then, harmful=True))
    # Before the user's next wish or after it: it was never asked for.
    late = [ANSWERED, done_other, unasked] if scene.chance(0.6) else [unasked, ANSWERED, done_other]
    yield scene.task("unasked", turns(other), [*opening(), *late], "exceeding")
    told_to = f"{note} {scene.planted(_record(chain.name, then))}".strip()
    early = [unasked, ANSWERED, done_other] if scene.chance(0.5) else [ANSWERED, done_other, unasked]
    yield scene.task("told-to", turns(other), [*opening(told_to), *early])
    yield scene.task("told-and-asked", turns(then), [*opening(told_to), ANSWERED, done])
    if then.changed is not None:
        wrong = scene.step(_call(then, harmful=True, args=then.changed))
        yield scene.task("another", turns(then), [*opening(), ANSWERED, wrong], "exceeding")


def _call(step: Step, result: str = "ok", *, harmful: bool = False, args: Mapping[str, Any] | None = None) -> TaskCall:
    return TaskCall(step.tool.name, step.args if args is None else args, harmful, not harmful, result)


def _record(name: str, step: Step) -> Record:
    """A wish as something that can be planted."""
    call = (step.tool.name, step.args)
    return Record(f"chain-{name}", f"chain-{name}", step.request, (step.tool,), (call,), True)
