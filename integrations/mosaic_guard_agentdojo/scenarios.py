"""One user task in its suite, with or without injected text, and everything that makes a run of it repeatable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from agentdojo.base_tasks import BaseInjectionTask, BaseUserTask
from agentdojo.functions_runtime import FunctionCall, TaskEnvironment
from agentdojo.task_suite.task_suite import TaskSuite

from mosaic_guard_agentdojo.attacks import DEFAULT_ATTACK, load_attack
from mosaic_guard_agentdojo.suites import load_suite


@dataclass(frozen=True)
class Scenario:
    """A user task, attacked or not.

    Attributes:
        suite: Where both tasks live.
        user_task: What the user asks for.
        injection_task: What the attacker asks for; None for a clean run.
        injections: Injected text by placeholder of the environment.
        attack: Name or template of the attack; None for a clean run.
        seed: Decides when the gullible agent gives in.
    """

    suite: TaskSuite[Any]
    user_task: BaseUserTask[Any]
    injection_task: BaseInjectionTask[Any] | None = None
    injections: Mapping[str, str] = field(default_factory=dict)
    attack: str | None = None
    seed: int = 0

    @property
    def task(self) -> str:
        """Names the task in traces: trajectories with equal names can be compared."""
        parts = ["agentdojo", self.suite.name, self.user_task.ID]
        if self.injection_task is not None:
            parts += [self.injection_task.ID, _label(self.attack or ""), str(self.seed)]
        return "/".join(parts)

    def environment(self) -> TaskEnvironment:
        """A fresh copy of the environment as the task finds it."""
        return self._environment.model_copy(deep=True)

    @cached_property
    def _environment(self) -> TaskEnvironment:
        loaded = _load(self.suite, tuple(self.injections.items()))
        return self.user_task.init_environment(loaded.model_copy(deep=True))

    @cached_property
    def user_calls(self) -> tuple[FunctionCall, ...]:
        """The ground truth of the user task, computed on a fresh environment as AgentDojo does."""
        return tuple(self.user_task.ground_truth(self.environment()))

    def injection_calls(self, environment: TaskEnvironment | None = None) -> tuple[FunctionCall, ...]:
        """The ground truth of the injection task in `environment` (by default a fresh one)."""
        if self.injection_task is None:
            return ()
        return tuple(self.injection_task.ground_truth(environment or self.environment()))


@lru_cache(maxsize=32)
def _load(suite: TaskSuite[Any], injections: tuple[tuple[str, str], ...]) -> TaskEnvironment:
    """Reading an environment's YAML takes a tenth of a second; nobody changes what this returns."""
    return suite.load_and_inject_default_environment(dict(injections))


def _label(attack: str) -> str:
    """A template of one's own is named by its digest: task names are one word."""
    return attack if attack.isidentifier() else f"template-{hashlib.sha256(attack.encode()).hexdigest()[:8]}"


def scenario(
    suite: str,
    user_task: str,
    injection_task: str | None = None,
    *,
    attack: str = DEFAULT_ATTACK,
    seed: int = 0,
    model_name: str | None = None,
) -> Scenario:
    """The scenario of these ids.

    Args:
        suite: `workspace`, `banking`, `travel` or `slack`.
        user_task: Such as `user_task_3`.
        injection_task: Such as `injection_task_1`; None for a clean run.
        attack: See `load_attack`.
        seed: Decides when the gullible agent gives in.
        model_name: See `load_attack`.

    Raises:
        ValueError: For an unknown suite, task or attack, or a user task that no injected text can reach.
    """
    loaded = load_suite(suite)
    for kind, wanted, tasks in (
        ("user task", user_task, loaded.user_tasks),
        ("injection task", injection_task, loaded.injection_tasks),
    ):
        if wanted is not None and wanted not in tasks:
            raise ValueError(f"suite {suite!r} has no {kind} {wanted!r}")
    user = loaded.user_tasks[user_task]
    if injection_task is None:
        return Scenario(loaded, user, seed=seed)
    injection = loaded.injection_tasks[injection_task]
    injections = load_attack(attack, loaded, model_name).attack(user, injection)
    return Scenario(loaded, user, injection, injections, attack, seed)


def pairs(suite: str, *, attack: str = DEFAULT_ATTACK, model_name: str | None = None) -> Iterator[tuple[str, str]]:
    """(user task id, injection task id) of each pair of a suite in which injected text can reach the agent.

    Raises:
        ValueError: For an unknown suite or attack.
    """
    loaded = load_suite(suite)
    attacking = load_attack(attack, loaded, model_name)
    for user_id, user in loaded.user_tasks.items():
        try:
            attacking.get_injection_candidates(user)
        except ValueError:
            continue  # the user task's ground truth reads no placeholder
        for injection_id in loaded.injection_tasks:
            yield user_id, injection_id
