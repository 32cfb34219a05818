"""mosaic-guard: plan, check and refuse nodes for any tool-using LangGraph graph, in the style of MOSAIC (arXiv 2603.03205)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic_guard._builder import GuardedStateGraph
    from mosaic_guard._decision import Call, Decision, Step
    from mosaic_guard._decision_model import decision_model
    from mosaic_guard._errors import GuardWarning, MissingExtraError, ModelLoadError, PolicyError, UnguardableGraphError
    from mosaic_guard._evidence_model import EvidenceModel
    from mosaic_guard._graph import guarded_builder, guarded_graph
    from mosaic_guard._guard import Guard
    from mosaic_guard._guarded_tools import RefusedCallError, conversation, guard_tools
    from mosaic_guard._middleware import MosaicMiddleware
    from mosaic_guard._nodes import GuardNodes
    from mosaic_guard._policy import Policy
    from mosaic_guard._policy_rule import Rule
    from mosaic_guard._trace import Outcome, TraceError, TraceWarning, TraceWriter, Trajectory, read_traces
    from mosaic_guard._transcript import Limits
    from mosaic_guard.models.chat import ChatGuardModel
    from mosaic_guard.models.guard_model import GuardModel
    from mosaic_guard.models.local import LocalGuardModel
    from mosaic_guard.models.scripted import ScriptedGuardModel

__version__ = "0.1.0"

# Looked up on first use, so that `import mosaic_guard` costs nothing: langgraph alone takes most of a second.
_WHERE = {
    "_decision": ("Call", "Decision", "Step"),
    "_errors": ("GuardWarning", "MissingExtraError", "ModelLoadError", "PolicyError", "UnguardableGraphError"),
    "_builder": ("GuardedStateGraph",),
    "_graph": ("guarded_builder", "guarded_graph"),
    "_guarded_tools": ("RefusedCallError", "conversation", "guard_tools"),
    "_nodes": ("GuardNodes",),
    "_decision_model": ("decision_model",),
    "_evidence_model": ("EvidenceModel",),
    "_guard": ("Guard",),
    "_middleware": ("MosaicMiddleware",),
    "_policy": ("Policy",),
    "_policy_rule": ("Rule",),
    "_trace": ("Outcome", "TraceError", "TraceWarning", "TraceWriter", "Trajectory", "read_traces"),
    "_transcript": ("Limits",),
    "models.chat": ("ChatGuardModel",),
    "models.guard_model": ("GuardModel",),
    "models.local": ("LocalGuardModel",),
    "models.scripted": ("ScriptedGuardModel",),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _WHERE.items() for name in names}

__all__ = [
    "Call",
    "ChatGuardModel",
    "Decision",
    "EvidenceModel",
    "Guard",
    "GuardModel",
    "GuardNodes",
    "GuardWarning",
    "GuardedStateGraph",
    "Limits",
    "LocalGuardModel",
    "MissingExtraError",
    "ModelLoadError",
    "MosaicMiddleware",
    "Outcome",
    "Policy",
    "PolicyError",
    "RefusedCallError",
    "Rule",
    "ScriptedGuardModel",
    "Step",
    "TraceError",
    "TraceWarning",
    "TraceWriter",
    "Trajectory",
    "UnguardableGraphError",
    "conversation",
    "guard_tools",
    "guarded_builder",
    "decision_model",
    "guarded_graph",
    "read_traces",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        from importlib import import_module

        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
