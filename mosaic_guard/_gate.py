"""The two gates of a tool node: before it, and innermost at each tool body.

The first sends unjudged calls back to `plan` and answers refused ones. The second stands behind every `wrap_tool_call`:
whatever was rewritten on the way no longer matches its clearance and is judged again, or does not run. Both compare the
arguments as the model wrote them, before state, store or runtime are injected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, cast

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, ToolException
from langgraph.cache.base import BaseCache
from langgraph.prebuilt import ToolNode
from langgraph.types import CachePolicy, Command

from mosaic_guard._channel import GUARD_CHANNEL, HIDDEN_CHANNELS, ROUTES_CHANNEL, Clearances, digest_of, read, write
from mosaic_guard._decision import canonical_json
from mosaic_guard._evidence import REFUSAL_MARK, REFUSED
from mosaic_guard._recursion import grant_superstep
from mosaic_guard._waiting import not_cancelled, speaking_for

if TYPE_CHECKING:
    from mosaic_guard._nodes import GuardNodes

_handling: ContextVar[str | None] = ContextVar("mosaic_guard_handling", default=None)
"""Digest of the cleared call that is being handled."""

CHANGED = "it is not the call that the guard cleared, its name or arguments were changed after the check"
EDITED = "A person changed this call before it ran, to"
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


def refusal_message(call: Mapping[str, Any], reason: str, mark: str = REFUSED) -> ToolMessage:
    """The answer to a call that does not run.

    Args:
        call: The call.
        reason: Why.
        mark: Who says so: `REFUSED` the guard, `JUDGED` the guard for what the call is, `REJECTED` a person.
    """
    return ToolMessage(
        content=f"Refused by the guard: {reason}. The call did not run. Do not repeat it: go on without it, or ask the user.",
        name=str(call.get("name")),
        tool_call_id=cast(str, call.get("id")),
        status="error",
        additional_kwargs={REFUSAL_MARK: mark},
    )


def answer_message(call: Mapping[str, Any], found: Mapping[str, Any]) -> ToolMessage:
    """The answer to a call that does not run: refused, or answered by a person."""
    if found["verdict"] != "respond":
        return refusal_message(call, found["reason"], found.get("mark", REFUSED))
    return ToolMessage(
        content=found["reason"],
        name=str(call.get("name")),
        tool_call_id=cast(str, call.get("id")),
    )


def with_notice(output: Any, call: Mapping[str, Any]) -> Any:
    """The result of a call that a person edited says so: the agent's message still shows what it wrote itself."""
    if not (isinstance(output, ToolMessage) and isinstance(output.content, str)):
        return output
    notice = f"{EDITED} {call['name']} {canonical_json(call['args'])}. "
    return output.model_copy(update={"content": notice + output.content})


class _GatedTool:
    """Mixed into a tool: its body runs only for the cleared call that is being handled."""

    mosaic_injected: ClassVar[frozenset[str]]

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        _verify(self, tool_input, kwargs.get("tool_call_id"))
        return super().run(tool_input, *args, **kwargs)  # type: ignore[misc]

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        _verify(self, tool_input, kwargs.get("tool_call_id"))
        return await super().arun(tool_input, *args, **kwargs)  # type: ignore[misc]


def _verify(tool: Any, tool_input: Any, call_id: str | None) -> None:
    if _handling.get() != digest_of(written_call(tool, tool_input, call_id)):
        raise UnclearedCallError(f"{tool.name} was refused by the guard: {CHANGED}")


def written_call(tool: Any, tool_input: Any, call_id: str | None) -> dict[str, Any]:
    """The call that a gated tool is run for, as a model would have written it.

    Args:
        tool: A tool that `gated_tool` or `subclass_of` made; it says which arguments are injected.
        tool_input: What it is run with.
        call_id: The call's id.
    """
    written = tool_input  # a bare value is nothing that a model can have written, so it matches no clearance
    if isinstance(tool_input, Mapping):
        written = {key: value for key, value in tool_input.items() if key not in tool.mosaic_injected}
    return {"name": tool.name, "args": written, "id": call_id}


def gated_tool(tool: BaseTool, injected: frozenset[str], gate: type = _GatedTool) -> BaseTool:
    """A tool of a subclass of the given tool's class, with the same fields (shared, so its state stays one).

    Args:
        tool: Any tool.
        injected: Arguments that the tool node injects and the model does not write.
        gate: Mixed into the tool's class.
    """
    return subclass_of(tool, gate, mosaic_injected=injected)


def subclass_of(tool: BaseTool, mixin: type[Any], **attributes: Any) -> BaseTool:
    """A tool of a subclass of its class and a mixin, with the same fields (shared, so its state stays one).

    Args:
        tool: Any tool.
        mixin: Its methods come first.
        **attributes: Class attributes of the subclass.
    """
    cls: Any = type(tool)
    body = {"__module__": cls.__module__, "__doc__": cls.__doc__, **attributes}
    body["__annotations__"] = dict.fromkeys(attributes, ClassVar)
    made_cls = type(cls)(cls.__name__, (mixin, cls), body)
    made: BaseTool = made_cls.__new__(made_cls)
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
        object.__setattr__(made, slot, getattr(tool, slot))
    return made


class _GatedToolNode:
    """Mixed into a copy of a tool node."""

    _mosaic_name: str
    _mosaic_nodes: GuardNodes
    _mosaic_results: ResultCache | None
    _messages_key: str

    def _func(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        bounced = self._mosaic_unjudged(input, config)
        if bounced is not None:
            return bounced
        results = self._mosaic_cache_for(input, config)
        if results is not None and (known := results.cache.get([results.key(input)])):
            return self._mosaic_nodes.note_written(next(iter(known.values())), config)
        output = super()._func(input, config, runtime)  # type: ignore[misc]
        if results is not None and not _refuses(output):
            results.cache.set({results.key(input): (output, results.policy.ttl)})
        return self._mosaic_nodes.note_written(output, config)

    async def _afunc(self, input: Any, config: RunnableConfig, runtime: Any) -> Any:
        bounced = self._mosaic_unjudged(input, config)
        if bounced is not None:
            return bounced
        results = self._mosaic_cache_for(input, config)
        if results is not None and (known := await results.cache.aget([results.key(input)])):
            return self._mosaic_nodes.note_written(next(iter(known.values())), config)
        output = await super()._afunc(input, config, runtime)  # type: ignore[misc]
        if results is not None and not _refuses(output):
            await results.cache.aset({results.key(input): (output, results.policy.ttl)})
        return self._mosaic_nodes.note_written(output, config)

    def _run_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        found = self._mosaic_verdict(call, tool_runtime.config)
        if found["verdict"] != "act":
            return answer_message(call, found)
        run = {**call, **found.get("run", {})}
        tool_runtime.mosaic_call = digest_of(run)
        try:
            with _handle(tool_runtime.mosaic_call), self._mosaic_authority(tool_runtime.config):
                output = super()._run_one(run, input_type, tool_runtime)  # type: ignore[misc]
        except UnclearedCallError:
            return refusal_message(call, CHANGED)
        return with_notice(output, run) if "run" in found else output

    async def _arun_one(self, call: Any, input_type: Any, tool_runtime: Any) -> Any:
        found = self._mosaic_verdict(call, tool_runtime.config)
        if found["verdict"] != "act":
            return answer_message(call, found)
        run = {**call, **found.get("run", {})}
        tool_runtime.mosaic_call = digest_of(run)
        try:
            with _handle(tool_runtime.mosaic_call), self._mosaic_authority(tool_runtime.config):
                output = await super()._arun_one(run, input_type, tool_runtime)  # type: ignore[misc]
        except UnclearedCallError:
            return refusal_message(call, CHANGED)
        return with_notice(output, run) if "run" in found else output

    # Innermost: behind every wrapper, in whichever thread, whichever tool a wrapper has put into the request.
    def _execute_tool_sync(self, request: Any, input_type: Any, config: RunnableConfig) -> Any:
        if not _unchanged(request):
            if not _can_be_judged(request):
                return refusal_message(request.tool_call, CHANGED)
            found = self._mosaic_nodes.judge_again(request.tool_call, config)
            if found["verdict"] != "act":
                return answer_message(request.tool_call, found)
        with _handle(self._mosaic_as_run(request.tool_call)):
            return super()._execute_tool_sync(self._mosaic_request(request), input_type, config)  # type: ignore[misc]

    async def _execute_tool_async(self, request: Any, input_type: Any, config: RunnableConfig) -> Any:
        if not _unchanged(request):
            if not _can_be_judged(request):
                return refusal_message(request.tool_call, CHANGED)
            found = await self._mosaic_nodes.ajudge_again(request.tool_call, config)
            if found["verdict"] != "act":
                return answer_message(request.tool_call, found)
        with _handle(self._mosaic_as_run(request.tool_call)):
            return await super()._execute_tool_async(self._mosaic_request(request), input_type, config)  # type: ignore[misc]

    def _mosaic_as_run(self, call: Any) -> str:
        """The digest of a call as its tool gets it: the tool node drops what the model wrote for injected arguments."""
        injected = self._injected_args.get(call["name"])  # type: ignore[attr-defined]
        hidden = injected.all_injected_keys if injected else ()
        if not hidden or not isinstance(call["args"], Mapping):
            return digest_of(call)
        return digest_of({**call, "args": {key: value for key, value in call["args"].items() if key not in hidden}})

    def _mosaic_request(self, request: Any) -> Any:
        """The request; graphs inside a tool that a wrapper has put into it are guarded too."""
        tool = request.tool
        if tool is None or isinstance(tool, _GatedTool) or self._mosaic_nodes.nested is None:
            return request
        inside = self._mosaic_nodes.nested.inside(tool, f"tool {tool.name!r}")
        return request if inside is tool else request.override(tool=inside)

    def _mosaic_authority(self, config: RunnableConfig) -> AbstractContextManager[None]:
        messages = read(config, self._messages_key) or ()
        return speaking_for(self._mosaic_nodes.authorised(messages, config))

    def _extract_state(self, input: Any, config: RunnableConfig) -> Any:
        state = super()._extract_state(input, config)  # type: ignore[misc]
        if isinstance(state, dict) and not HIDDEN_CHANNELS.isdisjoint(state):
            return {key: value for key, value in state.items() if key not in HIDDEN_CHANNELS}
        return state

    def _mosaic_clearances(self, config: RunnableConfig) -> Clearances:
        return Clearances.of_task(config, self._messages_key, self._mosaic_name)

    def _mosaic_verdict(self, call: Any, config: RunnableConfig) -> Mapping[str, Any]:
        """What was decided about a call; a refusal for one that was not judged."""
        found = self._mosaic_clearances(config).verdict(call)
        return {"verdict": "refuse", "reason": NOT_JUDGED} if found is None else found

    def _mosaic_cache_for(self, input: Any, config: RunnableConfig) -> ResultCache | None:
        """The cache, if every call is cleared: a refusal is neither kept nor answered from it."""
        if self._mosaic_results is None:
            return None
        calls, _ = self._parse_input(input)
        clearances = self._mosaic_clearances(config)
        found = [clearances.verdict(call) or {} for call in calls]
        # What a person edited is not what the input says, which names the result.
        plain = all(known.get("verdict") == "act" and "run" not in known for known in found)
        return self._mosaic_results if found and plain else None

    def _parse_input(self, input: Any) -> tuple[list[Any], str]:
        """The calls of an input, and its form; none that were cancelled, though a join may still lead here from their step."""
        calls, form = super()._parse_input(input)  # type: ignore[misc]
        if form == "tool_calls":
            return calls, form
        return not_cancelled(calls, input if form == "list" else self._mosaic_nodes.messages_in(input)), form

    def _mosaic_unjudged(self, input: Any, config: RunnableConfig) -> Command[Any] | None:
        """The way back to `plan`, if calls of a step that was not judged at all have come here."""
        # Where `plan` has found no calls that this node does, it would find none again: they are refused here.
        if self._mosaic_clearances(config).holds or self._mosaic_name in self._mosaic_nodes.joined:
            return None
        calls, _ = self._parse_input(input)
        return send_back(self._mosaic_nodes, self._mosaic_name, input, config) if calls else None


def was_sent(config: RunnableConfig) -> bool:
    """Whether a task was started by a `Send`, with a payload of its own."""
    return bool((config.get("metadata") or {}).get("langgraph_path", ("",))[0] == "__pregel_push")


def send_back(
    nodes: GuardNodes, name: str, input: Any, config: RunnableConfig, *, payload: bool | None = None
) -> Command[Any]:
    """From a tool node to `plan`, with the route that led there.

    Args:
        nodes: The guard's nodes.
        name: The tool node's name.
        input: Its input.
        config: The task's config.
        payload: Whether the input goes along, as a `Send` would have it. Default: whether it was sent.
    """
    grant_superstep(config)
    goes_along = was_sent(config) if payload is None else payload
    write(config, ROUTES_CHANNEL, [[name, input if goes_along else None]])
    write(config, GUARD_CHANNEL, {"bounced": name})
    return Command(goto=nodes.plan_name)


def _can_be_judged(request: Any) -> bool:
    """Whether a changed request can be judged as it is: for a tool of its own name, with arguments."""
    named = request.tool is None or request.tool.name == request.tool_call.get("name")
    return named and isinstance(request.tool_call.get("args"), Mapping)


def _refuses(output: Any) -> bool:
    """Whether a tool node's output holds a refusal: of a call that was changed behind the first gate."""
    if isinstance(output, Mapping):
        return any(map(_refuses, output.values()))
    if isinstance(output, (list, tuple)):
        return any(map(_refuses, output))
    return isinstance(output, ToolMessage) and REFUSAL_MARK in output.additional_kwargs


def _unchanged(request: Any) -> bool:
    """Whether a request is for the very call that is being handled, and for a tool of that name."""
    handled = getattr(request.runtime, "mosaic_call", None)
    named = request.tool is None or request.tool.name == request.tool_call["name"]
    return handled is not None and named and handled == digest_of(request.tool_call)


@contextmanager
def _handle(digest: str) -> Iterator[None]:
    token = _handling.set(digest)
    try:
        yield
    finally:
        _handling.reset(token)


@cache
def _gated_node_class(cls: type[ToolNode]) -> type[ToolNode]:
    return cast("type[ToolNode]", type(cls.__name__, (_GatedToolNode, cls), {"__module__": cls.__module__}))


def gated_tool_node(node: ToolNode, *, name: str, nodes: GuardNodes, results: ResultCache | None = None) -> ToolNode:
    """A copy of a tool node, still an instance of its class, with both gates.

    Args:
        node: The tool node.
        name: Its name in the graph.
        nodes: The guard's nodes: calls that were not judged are sent back to `plan`, changed ones judged again.
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
    gated._mosaic_name, gated._mosaic_nodes, gated._mosaic_results = name, nodes, results
    return cast(ToolNode, gated)
