"""The two gates of a tool node: before it, and innermost at each tool body.

The first sends unjudged calls back to `plan` and answers refused ones. The second stands behind every `wrap_tool_call`:
whatever was rewritten on the way no longer matches its clearance and does not run. Both compare the arguments as the model
wrote them, before state, store or runtime are injected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, ToolException
from langgraph.cache.base import BaseCache
from langgraph.prebuilt import ToolNode
from langgraph.types import CachePolicy, Command

from mosaic_guard._channel import GUARD_CHANNEL, Clearances, write
from mosaic_guard._evidence import REFUSAL_MARK
from mosaic_guard._recursion import grant_superstep

_active: ContextVar[Clearances | None] = ContextVar("mosaic_guard_clearances", default=None)

CHANGED = "it is not the call that the guard cleared, its name or arguments were changed after the check"
NOT_JUDGED = "it was not judged with the other calls of its step"


@dataclass(frozen=True)
class ResultCache:
    """A tool node's cache policy and the graph's cache, for use inside the gate.

    Attributes:
        cache: The graph's cache.
        policy: The tool node's cache policy.
        name: The tool node's name.
    """

    cache: BaseCache[Any]
    policy: CachePolicy[Any]
    name: str

    def key(self, input: Any) -> tuple[tuple[str, ...], str]:
        """Where the results for an input are kept."""
        own = self.policy.key_func(input)
        return ("mosaic_guard", self.name), own if isinstance(own, str) else bytes(own).hex()


class UnclearedCallError(ToolException):
    """A tool was about to run without a clearance for exactly this call."""


def refusal_message(call: Mapping[str, Any], reason: str) -> ToolMessage:
    """The answer to a call that does not run."""
    return ToolMessage(
        content=f"Refused by the guard: {reason}. The call did not run. Do not repeat it: go on without it or tell the user.",
        name=str(call.get("name")),
        tool_call_id=cast(str, call.get("id")),
        status="error",
        additional_kwargs={REFUSAL_MARK: "refusal"},
    )


class _GatedTool:
    """Mixed into a copy of a tool: its body runs only for a cleared call."""

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        _verify(cast(BaseTool, self), tool_input, kwargs.get("tool_call_id"))
        return super().run(tool_input, *args, **kwargs)  # type: ignore[misc]

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        _verify(cast(BaseTool, self), tool_input, kwargs.get("tool_call_id"))
        return await super().arun(tool_input, *args, **kwargs)  # type: ignore[misc]


def _verify(tool: BaseTool, tool_input: Any, call_id: str | None) -> None:
    active = _active.get()
    if active is not None and isinstance(tool_input, Mapping):
        hidden = tool.__dict__["_mosaic_injected"]
        written = {key: value for key, value in tool_input.items() if key not in hidden}
        found = active.verdict({"id": call_id, "name": tool.name, "args": written})
        if found is not None and found["verdict"] == "act":
            return
    raise UnclearedCallError(f"{tool.name} was refused by the guard: {CHANGED}")


@cache
def _gated_class(cls: type[BaseTool]) -> type[BaseTool]:
    body = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    made: Any = type(cls)
    return cast("type[BaseTool]", made(cls.__name__, (_GatedTool, cls), body))


def gated_tool(tool: BaseTool, injected: frozenset[str]) -> BaseTool:
    """A copy of a tool, still an instance of its class, whose body runs only for a cleared call.

    Args:
        tool: Any tool.
        injected: Arguments that the tool node injects and the model does not write.
    """
    shallow = tool.model_copy()
    cls = _gated_class(type(tool))
    gated = cls.__new__(cls)
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
        object.__setattr__(gated, slot, getattr(shallow, slot))
    gated.__dict__["_mosaic_injected"] = injected
    return gated


class _GatedToolNode:
    """Mixed into a copy of a tool node."""

    _mosaic_name: str
    _mosaic_plan: str
    _mosaic_results: ResultCache | None
    _messages_key: str

    def _func(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        bounced = self._mosaic_unjudged(input, config)
        if bounced is not None:
            return bounced
        with self._mosaic_active(config):
            results = self._mosaic_cache_for(input)
            if results is not None and (known := results.cache.get([results.key(input)])):
                return next(iter(known.values()))
            output = super()._func(input, config, runtime)  # type: ignore[misc]
            if results is not None:
                results.cache.set({results.key(input): (output, results.policy.ttl)})
            return output

    async def _afunc(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        bounced = self._mosaic_unjudged(input, config)
        if bounced is not None:
            return bounced
        with self._mosaic_active(config):
            results = self._mosaic_cache_for(input)
            if results is not None and (known := await results.cache.aget([results.key(input)])):
                return next(iter(known.values()))
            output = await super()._afunc(input, config, runtime)  # type: ignore[misc]
            if results is not None:
                await results.cache.aset({results.key(input): (output, results.policy.ttl)})
            return output

    def _run_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        if (refused := _refused(call)) is not None:
            return refused
        try:
            return super()._run_one(call, input_type, tool_runtime)  # type: ignore[misc]
        except UnclearedCallError:
            return refusal_message(call, CHANGED)

    async def _arun_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        if (refused := _refused(call)) is not None:
            return refused
        try:
            return await super()._arun_one(call, input_type, tool_runtime)  # type: ignore[misc]
        except UnclearedCallError:
            return refusal_message(call, CHANGED)

    # Innermost: behind every wrapper, whichever tool a wrapper has put into the request.
    def _execute_tool_sync(self, request: Any, input_type: Any, config: RunnableConfig) -> Any:
        if not _cleared(request.tool_call):
            return refusal_message(request.tool_call, CHANGED)
        return super()._execute_tool_sync(request, input_type, config)  # type: ignore[misc]

    async def _execute_tool_async(self, request: Any, input_type: Any, config: RunnableConfig) -> Any:
        if not _cleared(request.tool_call):
            return refusal_message(request.tool_call, CHANGED)
        return await super()._execute_tool_async(request, input_type, config)  # type: ignore[misc]

    def _extract_state(self, input: Any, config: RunnableConfig) -> Any:
        state = super()._extract_state(input, config)  # type: ignore[misc]
        if isinstance(state, dict) and GUARD_CHANNEL in state:
            return {key: value for key, value in state.items() if key != GUARD_CHANNEL}
        return state

    @contextmanager
    def _mosaic_active(self, config: RunnableConfig) -> Iterator[None]:
        token = _active.set(Clearances.of_task(config, self._messages_key))
        try:
            yield
        finally:
            _active.reset(token)

    def _mosaic_cache_for(self, input: Any) -> ResultCache | None:
        """The cache, if every call is cleared: a refusal is neither kept nor answered from it."""
        if self._mosaic_results is None:
            return None
        calls, _ = self._parse_input(input)  # type: ignore[attr-defined]
        return self._mosaic_results if all(map(_cleared, calls)) else None

    def _mosaic_unjudged(self, input: Any, config: RunnableConfig) -> Command[Any] | None:
        """The way back to `plan`, if calls of a step that was not judged at all have come here."""
        clearances = Clearances.of_task(config, self._messages_key)
        if clearances.verdicts:
            return None
        calls, _ = self._parse_input(input)  # type: ignore[attr-defined]
        if not calls:
            return None
        grant_superstep(config)
        sent = (config.get("metadata") or {}).get("langgraph_path", ("",))[0] == "__pregel_push"
        route = [self._mosaic_name, input if sent else None]
        write(config, GUARD_CHANNEL, {"routes+": [route], "bounced": self._mosaic_name})
        return Command(goto=self._mosaic_plan)


def _cleared(call: Mapping[str, Any]) -> bool:
    active = _active.get()
    found = active.verdict(call) if active is not None else None
    return found is not None and found["verdict"] == "act"


def _refused(call: Mapping[str, Any]) -> ToolMessage | None:
    active = _active.get()
    found = active.verdict(call) if active is not None else None
    if found is None:
        return refusal_message(call, NOT_JUDGED)
    return None if found["verdict"] == "act" else refusal_message(call, found["reason"])


@cache
def _gated_node_class(cls: type[ToolNode]) -> type[ToolNode]:
    return cast("type[ToolNode]", type(cls.__name__, (_GatedToolNode, cls), {"__module__": cls.__module__}))


def gated_tool_node(node: ToolNode, *, name: str, plan: str, results: ResultCache | None = None) -> ToolNode:
    """A copy of a tool node, still an instance of its class, with both gates.

    Args:
        node: The tool node.
        name: Its name in the graph.
        plan: Name of the plan node, which calls that were not judged are sent back to.
        results: The node's own cache, which then sits inside the gate.
    """
    cls = _gated_node_class(type(node))
    gated: Any = cls.__new__(cls)
    gated.__dict__.update(node.__dict__)
    gated._tools_by_name = {
        key: gated_tool(tool, frozenset(node._injected_args[key].all_injected_keys))
        for key, tool in node.tools_by_name.items()
    }
    # RunnableCallable holds the bound methods of the node that it was made as.
    gated.func, gated.afunc = gated._func, gated._afunc
    gated._mosaic_name, gated._mosaic_plan, gated._mosaic_results = name, plan, results
    return cast(ToolNode, gated)
