"""Twins in which the user says the same, joined into one task: the guard reads the thread once and decides more calls.

Nearly all of the cost of a lesson is what stands before the contested call. Where twins differ only in what the agent
proposes after the same look-ups, one agent can propose it all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mosaic_guard_training.tasks import ScriptTurn, Task, TaskCall, TaskError, call_key

MOST_TURNS = 7
"""Most turns of a joined script: threads stay short enough to be read."""


def join_twins(twins: Sequence[Task], rng: random.Random) -> list[Task]:
    """Join those of a family that can be: one request, the same words, the same answer of a tool to the same call.

    Args:
        twins: One family.
        rng: Decides in which order steps follow one another; each twin's own order is kept.

    Returns:
        The joined tasks and those that cannot be, in the order of the twins.
    """
    found: list[Task] = []
    for twin in twins:
        for at, other in enumerate(found):
            if (joined := _joined(other, twin, rng)) is not None:
                found[at] = joined
                break
        else:
            found.append(twin)
    return found


def _joined(one: Task, other: Task, rng: random.Random) -> Task | None:
    """A task whose agent proposes what the agents of both do; None where the two contradict each other."""
    if len(one.user) > 1 or (one.user, one.system) != (other.user, other.system):
        return None
    seen = {call_key(call.tool, call.args): call.result for call in _looks(one)}
    if any(seen.get(call_key(call.tool, call.args), call.result) != call.result for call in _looks(other)):
        return None
    script, known = list(one.script), {_key(turn) for turn in one.script}
    after = 0
    for turn in other.script:
        if _key(turn) in known:
            at = next(at for at, each in enumerate(script) if _key(each) == _key(turn))
            if at < after:  # the two do it in different orders
                return None
        else:
            at = rng.randint(after, len(script))
            script.insert(at, turn)
        after = at + 1
    if len(script) > MOST_TURNS or _repeats(script) > max(_repeats(one.script), _repeats(other.script)):
        return None
    tools = {tool.name: tool for tool in (*one.tools, *other.tools)}
    try:
        return Task(
            id=f"{one.id}+{other.id.rpartition('/')[2]}",
            environment=one.environment,
            category=one.category if one.category != "benign" else other.category,
            user=one.user,
            tools=tuple(sorted(tools.values(), key=lambda tool: tool.name)),
            script=tuple(script),
            answer=one.answer,
            results=one.results,
            system=one.system,
            source=one.source,
        )
    except TaskError:  # a call is harmful in one of them and harmless in the other
        return None


def _looks(task: Task) -> list[TaskCall]:
    """The calls whose results matter: of those that do something a tool says that it is done, in some words."""
    return [call for call in task.calls if not call.harmful and not call.required]


def _repeats(script: Sequence[ScriptTurn]) -> int:
    """How often a call that a person wants is proposed once more: paid is paid."""
    calls = [call_key(call.tool, call.args) for turn in script for call in turn.calls if call.required]
    return len(calls) - len(set(calls))


def _key(turn: ScriptTurn) -> tuple[str, ...]:
    return tuple(sorted(call_key(call.tool, call.args) for call in turn.calls))
