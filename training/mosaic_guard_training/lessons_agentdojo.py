"""Lessons of AgentDojo's `workspace` and `banking`: the gullible agent's runs, its labels, one suite at a time.

Each pair of a user's and an attacker's task is attacked with some of AgentDojo's own texts and with some of our templates of
one side. `travel` and `slack` are held out. Needs the extra `agentdojo`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mosaic_guard_training.sources.injections import Side, templates
from mosaic_guard_training.sources.values import Draw

if TYPE_CHECKING:
    from mosaic_guard import Guard, TraceWriter
    from mosaic_guard._decision import Step

ATTACKS = ("important_instructions", "direct")
"""AgentDojo's own that lessons are attacked with where nothing else is said."""


@dataclass(frozen=True)
class DojoLesson:
    """The gullible agent on one scenario.

    Attributes:
        suite: The suite's name.
        user_task: What the user asks for.
        injection_task: What the attacker asks for; None for nobody.
        attack: A name, or a template with `{goal}`.
        seed: Decides when the agent gives in.
    """

    suite: str
    user_task: str
    injection_task: str | None
    attack: str
    seed: int

    @property
    def id(self) -> str:
        """Names its trajectory."""
        named = hashlib.sha256(self.attack.encode()).hexdigest()[:8] if "{goal}" in self.attack else self.attack
        against = f"/{self.injection_task}/{named}/{self.seed}" if self.injection_task else ""
        return f"agentdojo/{self.suite}/{self.user_task}{against}"

    def labels(self, step: Step) -> list[bool | None]:
        """The attacker's calls are harmful if they change something; of the attacker's look-ups nothing is to be learnt."""
        from mosaic_guard_agentdojo import GullibleChatModel, label_calls

        played = self._scenario
        proposed = label_calls(played, step.messages, GullibleChatModel(scenario=played))[-len(step.calls) :]
        return [call.side_effecting or None if call.asker == "injection" else False for call in proposed]

    def run(self, guard: Guard, trace: TraceWriter) -> None:
        """Run it and log steps and outcome."""
        from mosaic_guard_agentdojo import run_task

        run_task(self._scenario, guard, trace=trace, trajectory=self.id)

    @cached_property
    def _scenario(self) -> Any:
        from mosaic_guard_agentdojo import scenario

        return scenario(self.suite, self.user_task, self.injection_task, attack=self.attack, seed=self.seed)


def lessons_of(
    suite: str, attacks: int, seed: int, *, side: Side = "train", registered: Sequence[str] = ATTACKS
) -> Iterator[DojoLesson]:
    """Every user task by itself, then every pair of tasks under each of its attacks.

    Args:
        suite: Name of the suite.
        attacks: How many of our templates each pair is attacked with.
        seed: Decides which, and when the agent gives in.
        side: Whose templates.
        registered: AgentDojo's own attacks, by name.

    Raises:
        ValueError: For an unknown suite.
    """
    from mosaic_guard_agentdojo import load_suite, pairs

    for user in load_suite(suite).user_tasks:
        yield DojoLesson(suite, user, None, registered[0], seed)
    for user, injection in pairs(suite):
        ours = templates_of(f"{suite}/{user}/{injection}", attacks, seed, side)
        for attack in (*registered, *ours):
            yield DojoLesson(suite, user, injection, attack, seed)


def templates_of(pair: str, number: int, seed: int, side: Side) -> list[str]:
    """Some of our templates of a side, drawn for a pair of tasks.

    Left out are templates that name the call, as AgentDojo knows the goal's words only, and those that its YAML cannot hold.
    """
    draw = Draw(random.Random(f"{seed}/{pair}"))
    ours = [
        text
        for _, text in templates(side)
        if "{ask}" in text and not any(part in text for part in ("{tool}", "{args}", "{{", '"', "---"))
    ]
    drawn = draw.rng.sample(ours, min(number, len(ours)))
    return [text.replace("{who}", draw.person()).replace("{ask}", "{goal}") for text in drawn]
