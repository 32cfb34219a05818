"""The middleware's gate at the tool's body: what is about to run is the call that was allowed, or it is judged again.

It stands behind whatever wrappers come after ours. A tool that the tool node knows is replaced by a gated one. A tool that a
wrapper puts in its place is not ours to replace: a callback of its run sees what it is called with, before its body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager, CallbackManager
from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.prebuilt.tool_node import _get_all_injected_args

from mosaic_guard._channel import digest_of
from mosaic_guard._gate import CHANGED, UnclearedCallError, gated_tool, refusal_message, written_call
from mosaic_guard._late import Found


class RefusedAtToolError(UnclearedCallError):
    """A tool was about to run for a call that the guard refuses."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} was refused by the guard: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Handling:
    """An allowed call on its way to its tool.

    Attributes:
        digest: The call's digest.
        judge: Judges another call that arrives in its place.
        ajudge: `judge` for event loops.
    """

    digest: str
    judge: Callable[[Mapping[str, Any]], Found]
    ajudge: Callable[[Mapping[str, Any]], Awaitable[Found]]

    def refusal(self, call: Mapping[str, Any]) -> str | None:
        """Why a call may not run in this place; None if it may."""
        return None if digest_of(call) == self.digest else _reason(self.judge(call))

    async def arefusal(self, call: Mapping[str, Any]) -> str | None:
        """`refusal` for event loops."""
        return None if digest_of(call) == self.digest else _reason(await self.ajudge(call))


def _reason(found: Found) -> str | None:
    return None if found["verdict"] == "act" else found["reason"]


_handling: ContextVar[Handling | Literal["inside"] | None] = ContextVar("mosaic_guard_handling_at_tool", default=None)
"""The call on its way; `inside` while a gated tool's body runs, which may call no other tool of the node."""


@contextmanager
def _now(value: Handling | Literal["inside"]) -> Iterator[None]:
    token = _handling.set(value)
    try:
        yield
    finally:
        _handling.reset(token)


class _JudgedTool:
    """Mixed into a tool: its body runs only for the allowed call that is being handled."""

    mosaic_injected: ClassVar[frozenset[str]]

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        call, handling = written_call(self, tool_input, kwargs.get("tool_call_id")), _handling.get()
        reason = handling.refusal(call) if isinstance(handling, Handling) else CHANGED
        if reason is not None:
            return _refuse(call, reason)
        with _now("inside"):
            return super().run(tool_input, *args, **kwargs)  # type: ignore[misc]

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        call, handling = written_call(self, tool_input, kwargs.get("tool_call_id")), _handling.get()
        reason = await handling.arefusal(call) if isinstance(handling, Handling) else CHANGED
        if reason is not None:
            return _refuse(call, reason)
        with _now("inside"):
            return await super().arun(tool_input, *args, **kwargs)  # type: ignore[misc]


def _refuse(call: Mapping[str, Any], reason: str) -> ToolMessage:
    # A tool that is called with a tool call may answer with a message; any other caller would take it for a result.
    if call["id"] is not None:
        return refusal_message(call, reason)
    raise RefusedAtToolError(call["name"], reason)


class _Veto(BaseCallbackHandler):
    """Stops a tool run that is not the allowed call's; its callers see the error before the tool's body."""

    raise_error = True

    def __init__(self, handling: Handling) -> None:
        self.handling = handling

    def on_tool_start(self, serialized: dict[str, Any], input_str: str, **kwargs: Any) -> None:
        """Compare what the tool is called with."""
        if _handling.get() == "inside":
            return
        inputs = kwargs.get("inputs")
        call = {
            "name": serialized.get("name"),
            "args": input_str if inputs is None else inputs,
            "id": kwargs.get("tool_call_id"),
        }
        reason = self.handling.refusal(call)
        if reason is not None:
            raise RefusedAtToolError(str(call["name"]), reason)


class GatedTools:
    """The gated twin of each tool, made once."""

    _MOST = 1024

    def __init__(self) -> None:
        # By identity; the tool is kept beside its twin so that its id stays its own.
        self._twins: dict[int, tuple[BaseTool, BaseTool]] = {}

    def of(self, tool: BaseTool) -> BaseTool:
        """The tool that runs only for the call that is being handled."""
        if isinstance(tool, _JudgedTool):
            return tool
        known = self._twins.get(id(tool))
        if known is None:
            if len(self._twins) >= self._MOST:
                self._twins.clear()
            injected = frozenset(_get_all_injected_args(tool).all_injected_keys)
            known = self._twins[id(tool)] = (tool, gated_tool(tool, injected, _JudgedTool))
        return known[1]

    @contextmanager
    def handle(self, request: Any, handling: Handling) -> Iterator[Any]:
        """The request to pass on, while the call is being handled."""
        runtime = request.runtime
        runtime.tools = [self.of(tool) for tool in runtime.tools]
        with _now(handling), _watched(runtime.config, _Veto(handling)):
            yield request if request.tool is None else request.override(tool=self.of(request.tool))


@contextmanager
def _watched(config: RunnableConfig, veto: _Veto) -> Iterator[None]:
    """Add a handler to the config that the tool node runs the tool with, for that run only and not for what it calls."""
    given = config.get("callbacks")
    if isinstance(given, BaseCallbackManager):
        manager = given.copy()
    else:
        manager = CallbackManager(handlers=list(given or ()), inheritable_handlers=list(given or ()))
    manager.add_handler(veto, inherit=False)
    # In place: the tool node has this very dictionary in hand already.
    config["callbacks"] = manager
    try:
        yield
    finally:
        if given is None:
            config.pop("callbacks")
        else:
            config["callbacks"] = given
