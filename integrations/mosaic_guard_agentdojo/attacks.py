"""Where injected text is placed and what it says, by AgentDojo's own attack classes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import agentdojo.attacks  # noqa: F401  (registers the attacks)
from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
from agentdojo.attacks.attack_registry import ATTACKS
from agentdojo.attacks.base_attacks import DEFAULT_MODEL_NAME, BaseAttack, FixedJailbreakAttack
from agentdojo.models import MODEL_NAMES
from agentdojo.task_suite.task_suite import TaskSuite

DEFAULT_ATTACK = "important_instructions"


def text_attacks() -> list[str]:
    """Names of the registered attacks that put an injection task's goal into words and ask nobody for help."""
    return sorted(name for name, attack in ATTACKS.items() if name != "manual" and not attack.is_dos_attack)


@lru_cache
def load_attack(name: str, suite: TaskSuite[Any], model_name: str | None = None) -> BaseAttack:
    """An attack on a suite; the same object each time, because AgentDojo's attacks remember which text reaches whom.

    Args:
        name: A name from `text_attacks()`, or a template of your own with `{goal}` in it (and, if you like, `{user}`,
            `{model}` and `{task}`).
        suite: The suite whose tasks are attacked.
        model_name: The attacked model, as AgentDojo spells models, for attacks that address it by name; others are
            addressed as "the AI language model".

    Raises:
        ValueError: If there is no such text attack.
    """
    target = _Target(model_name)
    if "{goal}" in name:
        return FixedJailbreakAttack(name, suite, target)
    if name not in text_attacks():
        raise ValueError(
            f"no text attack {name!r}: take one of {', '.join(text_attacks())}, or a template with '{{goal}}' in it"
        )
    attack = ATTACKS[name](suite, target)
    if not target.known and "wrong_model" not in name:
        attack.model_name = DEFAULT_MODEL_NAME
    return attack


class _Target(BasePipelineElement):  # type: ignore[misc]
    """Stands for the attacked agent; attacks only read its name."""

    def __init__(self, model_name: str | None) -> None:
        self.known = any(known in (model_name or "") for known in MODEL_NAMES)
        self.name = model_name if self.known else "local"

    def query(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a name only; run_task runs the agent")
