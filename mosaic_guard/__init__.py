"""mosaic-guard: plan, check and refuse nodes for any tool-using LangGraph graph, in the style of MOSAIC (arXiv 2603.03205)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic_guard._decision import Call, Decision, Step
    from mosaic_guard._decision_model import decision_model
    from mosaic_guard._errors import GuardWarning, MissingExtraError, ModelLoadError, UnguardableGraphError
    from mosaic_guard._graph import guarded_graph
    from mosaic_guard._guard import Guard
    from mosaic_guard._middleware import MosaicMiddleware
    from mosaic_guard._policy import Policy
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
    "_decision_model": ("decision_model",),
    "_errors": ("GuardWarning", "MissingExtraError", "ModelLoadError", "UnguardableGraphError"),
    "_graph": ("guarded_graph",),
    "_guard": ("Guard",),
    "_middleware": ("MosaicMiddleware",),
    "_policy": ("Policy",),
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
    "Guard",
    "GuardModel",
    "GuardWarning",
    "Limits",
    "LocalGuardModel",
    "MissingExtraError",
    "ModelLoadError",
    "MosaicMiddleware",
    "Outcome",
    "Policy",
    "ScriptedGuardModel",
    "Step",
    "TraceError",
    "TraceWarning",
    "TraceWriter",
    "Trajectory",
    "UnguardableGraphError",
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
