"""AgentDojo's suites as guarded LangChain agents: real environments, real tools, AgentDojo's own graders.

Needs the extra `agentdojo`. The names below load it on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mosaic_guard import MissingExtraError

if TYPE_CHECKING:
    from mosaic_guard_agentdojo.attacks import load_attack, text_attacks
    from mosaic_guard_agentdojo.gullible import GullibleChatModel
    from mosaic_guard_agentdojo.labels import ProposedCall, label_calls, side_effecting_tools, side_effects
    from mosaic_guard_agentdojo.runner import JudgedCall, TaskResult, run_task
    from mosaic_guard_agentdojo.scenarios import Scenario, pairs, scenario
    from mosaic_guard_agentdojo.suites import SUITES, VERSION, Toolbox, load_suite, system_message

_HOMES = {
    "load_attack": "attacks",
    "text_attacks": "attacks",
    "GullibleChatModel": "gullible",
    "ProposedCall": "labels",
    "label_calls": "labels",
    "side_effecting_tools": "labels",
    "side_effects": "labels",
    "JudgedCall": "runner",
    "TaskResult": "runner",
    "run_task": "runner",
    "Scenario": "scenarios",
    "scenario": "scenarios",
    "pairs": "scenarios",
    "SUITES": "suites",
    "VERSION": "suites",
    "Toolbox": "suites",
    "load_suite": "suites",
    "system_message": "suites",
}

__all__ = [
    "SUITES",
    "VERSION",
    "GullibleChatModel",
    "JudgedCall",
    "ProposedCall",
    "Scenario",
    "TaskResult",
    "Toolbox",
    "label_calls",
    "load_attack",
    "load_suite",
    "pairs",
    "run_task",
    "scenario",
    "side_effecting_tools",
    "side_effects",
    "system_message",
    "text_attacks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("agentdojo", "langchain"):
            raise
        raise MissingExtraError(f"mosaic_guard_agentdojo.{name}", "agentdojo") from error


def __dir__() -> list[str]:
    return sorted(__all__)
