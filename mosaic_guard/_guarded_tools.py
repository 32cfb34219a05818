"""Single tools behind the guard: for whatever has no graph (the functional API, a loop of your own).

There is no tool node to stand before, so the tool itself asks: its body runs only if the guard lets this call act.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.tools import BaseTool, ToolException
from langgraph.config import get_config
from langgraph.prebuilt.tool_node import _get_all_injected_args

from mosaic_guard._channel import digest_of, proposing, read
from mosaic_guard._decision import Step
from mosaic_guard._gate import answer_message, subclass_of, written_call
from mosaic_guard._graph import nested_guard
from mosaic_guard._guard import Guard, Judgement, as_guard
from mosaic_guard._refusals import judged_mark
from mosaic_guard._trace import TraceWriter
from mosaic_guard._waiting import Waiting, as_authorised, as_calls, speaking_for, step_record


class RefusedCallError(ToolException):
    """The guard refused a call that was made without a tool call id, so no `ToolMessage` could say so."""


@dataclass
class _Conversation:
    """What was said before the calls, and what was decided about them.

    Attributes:
        messages: The history, up to the AI message that proposes the calls.
        verdicts: `{"verdict", "reason"}` by digest of the call.
        left: How many calls of a digest may still run by its verdict; one that is made again is judged again.
        lock: One step is judged once, whichever of its calls comes first.
    """

    messages: Sequence[BaseMessage]
    verdicts: dict[str, Mapping[str, str]] = field(default_factory=dict)
    left: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


_current: ContextVar[_Conversation | None] = ContextVar("mosaic_guard_conversation", default=None)


@contextmanager
def conversation(messages: Any) -> Iterator[None]:
    """Tell guarded tools what was said: who asked for the calls that are made inside.

    Args:
        messages: What the user said, or the history in any form that LangChain reads, up to the AI message that proposes the
            calls. The calls of that message are judged together, before the first of them runs.

    Raises:
        NotImplementedError: If LangChain reads no messages from it.
    """
    said = [HumanMessage(messages)] if isinstance(messages, str) else convert_to_messages(messages)
    token = _current.set(_Conversation(said))
    try:
        yield
    finally:
        _current.reset(token)


def guard_tools(
    tools: Sequence[BaseTool],
    *,
    guard: Guard | None = None,
    trace: TraceWriter | str | os.PathLike[str] | None = None,
) -> list[BaseTool]:
    """The same tools, each of a subclass of its class; a body runs only for a call that the guard lets act.

    A refused call is answered with a `ToolMessage` of status `error`, or raises `RefusedCallError` where it was made with bare
    arguments. A decision to ask counts as a refusal: there is no graph that could wait. Calls are judged against the
    `conversation` that they are made in, or the messages of the LangGraph state that they run in; without either the guard
    sees that nobody asked for anything.

    Agents that a tool runs in its body are guarded too, as by `guarded_graph`.

    Args:
        tools: The tools; they are left as they are.
        guard: Judges. Default: `Guard.load("default")`, the local model.
        trace: A directory, or a `TraceWriter`, for what was judged.

    Raises:
        TypeError: For what is no tool, and for a tool whose class has an `invoke` of its own, which the guard does not see.
        UnguardableGraphError: For a tool that runs an agent which cannot be guarded from here.
    """
    for tool in tools:
        if not isinstance(tool, BaseTool):
            raise TypeError(
                f"guard_tools takes LangChain tools, not {type(tool).__name__}: wrap the function with @tool"
            )
        for name in ("invoke", "ainvoke"):
            if not getattr(type(tool), name).__module__.startswith("langchain_core."):
                raise TypeError(
                    f"{type(tool).__name__} has its own {name}(), which may run its body past the guard: override _run() or "
                    "_arun() instead"
                )
    writer = trace if trace is None or isinstance(trace, TraceWriter) else TraceWriter(trace)
    guard = as_guard(guard)
    nested = nested_guard({"guard": guard, "trace": writer})
    tools = [nested.inside(tool, f"tool {tool.name!r}") for tool in tools]
    judging = _Judging(guard, {t.name: t for t in tools}, writer)
    return [
        subclass_of(
            tool,
            _GuardedTool,
            mosaic_judging=judging,
            mosaic_injected=frozenset(_get_all_injected_args(tool).all_injected_keys),
        )
        for tool in tools
    ]


@dataclass(frozen=True)
class _Judging:
    """What the tools of one `guard_tools` share."""

    guard: Guard
    tools: Mapping[str, BaseTool]
    trace: TraceWriter | None

    def verdict(self, call: Mapping[str, Any]) -> Mapping[str, str]:
        """`{"verdict", "reason"}` of a call."""
        talk = _talk()
        with talk.lock:
            if not talk.left[digest_of(call)]:
                waiting = self._step(talk, call)
                plan = self.guard.plan(waiting.step, key=waiting.key)
                self._keep(talk, waiting, self.guard.check(waiting.step, plan, key=waiting.key))
            return _spend(talk, call)

    async def averdict(self, call: Mapping[str, Any]) -> Mapping[str, str]:
        """`verdict` for event loops."""
        talk = _talk()
        # No lock across an await: calls that come at once may all have the step judged, but spend one clearance each.
        while not talk.left[digest_of(call)]:
            waiting = self._step(talk, call)
            plan = await self.guard.aplan(waiting.step, key=waiting.key)
            self._keep(talk, waiting, await self.guard.acheck(waiting.step, plan, key=waiting.key))
        return _spend(talk, call)

    def _step(self, talk: _Conversation, call: Mapping[str, Any]) -> Waiting:
        calls = _proposed(talk)
        messages = list(talk.messages)
        if digest_of(call) in talk.verdicts or all(digest_of(known) != digest_of(call) for known in calls):
            calls = [dict(call)]
            messages.append(AIMessage("", tool_calls=[{**call, "type": "tool_call"}]))
        step = Step(messages, as_calls(calls), self.tools)
        return Waiting(messages, step, [["", None, calls]], [], f"tools-{digest_of(call)[:16]}", 0)

    def _keep(self, talk: _Conversation, waiting: Waiting, judgement: Judgement) -> None:
        known = frozenset(talk.verdicts) if len(waiting.step.calls) > 1 else frozenset()
        for call, decision in zip(waiting.step.calls, judgement.decisions, strict=True):
            if call.digest in known:  # judged by another task at the same time: the first judgement stands
                continue
            acts = decision.verdict == "act"
            reason = decision.reason or ("" if acts else "a person would have to decide")
            found = {"verdict": "act" if acts else "refuse", "reason": reason, **judged_mark(decision)}
            if talk.verdicts.get(call.digest, {}).get("verdict") != "refuse" or len(waiting.step.calls) == 1:
                talk.verdicts[call.digest] = found
            talk.left[call.digest] += 1
        if self.trace is not None:
            record = step_record(waiting, judgement, task=None, after=None, thread=None, logged=())
            named = {"guard": self.trace.header(self.guard.describe()), "tools": self.trace.tools(waiting.step.tools)}
            self.trace.step({**named, **record})


class _GuardedTool:
    """Mixed into a tool: the guard is asked before its body."""

    mosaic_judging: ClassVar[_Judging]
    mosaic_injected: ClassVar[frozenset[str]]

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        call = self._mosaic_call(tool_input, kwargs.get("tool_call_id"))
        found = self.mosaic_judging.verdict(call)
        if found["verdict"] != "act":
            return _refused(call, found)
        with speaking_for(_talk().messages):
            return super().run(tool_input, *args, **kwargs)  # type: ignore[misc]

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        call = self._mosaic_call(tool_input, kwargs.get("tool_call_id"))
        found = await self.mosaic_judging.averdict(call)
        if found["verdict"] != "act":
            return _refused(call, found)
        with speaking_for(_talk().messages):
            return await super().arun(tool_input, *args, **kwargs)  # type: ignore[misc]

    def _mosaic_call(self, tool_input: Any, call_id: str | None) -> dict[str, Any]:
        given = tool_input if isinstance(tool_input, Mapping) else {"input": tool_input}
        whole = {"id": call_id, "name": self.name, "args": dict(given)}  # type: ignore[attr-defined]
        if any(digest_of(call) == digest_of(whole) for call in _proposed(_talk())):
            return whole  # what the model wrote for hidden arguments: no tool node drops it here
        return written_call(self, given, call_id)


def _proposed(talk: _Conversation) -> list[Any]:
    """The calls of the last AI message that proposes any."""
    index = proposing(talk.messages)
    return list(cast(AIMessage, talk.messages[index]).tool_calls) if index >= 0 else []


def _spend(talk: _Conversation, call: Mapping[str, Any]) -> Mapping[str, str]:
    """The verdict that one call runs by, once."""
    digest = digest_of(call)
    talk.left[digest] = max(talk.left[digest] - 1, 0)
    return talk.verdicts[digest]


def _refused(call: Mapping[str, Any], found: Mapping[str, str]) -> Any:
    if call["id"] is None:
        raise RefusedCallError(f"{call['name']} was refused by the guard: {found['reason']}")
    return answer_message(call, found)


def _talk() -> _Conversation:
    """The conversation that the running call belongs to."""
    known = _current.get()
    if known is not None:
        return known
    try:
        config = get_config()
    except RuntimeError:  # outside a graph
        return _Conversation(())
    messages = read(config, "messages")
    return _Conversation(as_authorised(list(messages)) if isinstance(messages, (list, tuple)) else ())
