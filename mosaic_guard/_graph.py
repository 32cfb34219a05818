"""`guarded_graph`: the guard's nodes in a compiled graph, and in the graphs inside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph

from mosaic_guard._builder import GuardedStateGraph, guard_builder
from mosaic_guard._errors import UnguardableGraphError
from mosaic_guard._guard import Guard, as_guard
from mosaic_guard._guarded import GuardedGraph
from mosaic_guard._hold import HoldsMessages
from mosaic_guard._nested import Nested
from mosaic_guard._trace import TraceWriter


class HoldingGraph(HoldsMessages, GuardedGraph):
    """A guarded graph whose `messages` stream waits for the guard's decisions."""


def guarded_graph(
    graph: CompiledStateGraph[Any, Any, Any, Any],
    *,
    guard: Guard | None = None,
    tool_nodes: Sequence[str] = (),
    on_refuse: Literal["replan", "end"] = "replan",
    max_refusals: int = 3,
    after_refusals: Literal["end", "ask"] = "end",
    prefix: str = "",
    trace: TraceWriter | str | os.PathLike[str] | None = None,
    events: bool = False,
    check_final: bool = False,
    hold: bool = False,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """The same graph with `plan`, `check`, `ask` and `refuse` before its tools; the given graph is left as it is.

    No tool body runs without a clearance for exactly its call. Input, output and state schema, node names, checkpointer,
    store, interrupts, streaming modes, bound config and `recursion_limit` stay what they were. Graphs inside it (subgraphs,
    the agents of a supervisor or swarm, subagents that a tool runs) are guarded the same way, by the same guard.

    Args:
        graph: A compiled graph: what `create_agent` returns, or a `StateGraph` with a `ToolNode`, compiled.
        guard: Judges the steps. Default: `Guard.load("default")`, the local model.
        tool_nodes: Names of nodes that run tools though they are no `ToolNode` (those are found): functions that run the calls
            of the last AI message. They are given the cleared calls only.
        on_refuse: `replan`: refused calls are answered with the reason and the agent goes on. `end`: a step with a refused
            call runs none of its calls, and the run ends with a message that says why.
        max_refusals: At this many steps in a row with a refusal, `after_refusals` happens. At least 1.
        after_refusals: `end`: the run ends. `ask`: a person decides what the guard would refuse.
        prefix: Put before the names of the guard's nodes, for graphs that have a `plan` of their own.
        trace: A directory, or a `TraceWriter`, for what was judged.
        events: Send plans and decisions, with the seconds that they took, to the `custom` stream.
        check_final: Judge the answer that ends the run too, as a call of `final_answer` with the argument `text`: private data
            can leave in words. A structured answer (`structured_response`) is part of it. A refused answer is replaced in the
            state; use `hold=True` to keep it out of the stream of tokens.
        hold: Release chunks of stream mode `messages` only after the guard has decided the calls that their message proposes;
            what proposes none is released when its node ends (with `check_final`: once it is judged, or the run ends). Refused
            calls are shown too, after the decision. Not for `astream_events` before version `v3`, which then raises
            `ValueError`.

    Raises:
        UnguardableGraphError: If it is not a compiled LangGraph graph, has no tool node, has no node of a given name, or
            has tools where the guard cannot stand; the message says what was looked for.
        ValueError: For an unknown option.
    """
    given: Any = graph
    if isinstance(given, StateGraph):
        raise UnguardableGraphError("this graph is not compiled yet: guard what graph.compile() returns")
    if not isinstance(given, CompiledStateGraph) or not isinstance(getattr(given, "builder", None), StateGraph):
        raise UnguardableGraphError(
            f"a compiled LangGraph StateGraph is needed (create_agent(...) or StateGraph(...).compile()), "
            f"not {type(given).__module__}.{type(given).__qualname__}"
        )
    options: dict[str, Any] = {
        "guard": guard,
        "on_refuse": on_refuse,
        "max_refusals": max_refusals,
        "after_refusals": after_refusals,
        "prefix": prefix,
        "trace": _writer(trace),
        "events": events,
        "check_final": check_final,
    }
    nested = nested_guard(options)
    compiled: GuardedGraph = nested.guarding(graph, lambda: _guard_compiled(graph, tool_nodes, options, nested))
    if hold:
        compiled.__class__ = HoldingGraph
    return compiled


def guarded_builder(
    builder: StateGraph[Any, Any, Any, Any],
    *,
    guard: Guard | None = None,
    tool_nodes: Sequence[str] = (),
    trace: TraceWriter | str | os.PathLike[str] | None = None,
    **options: Any,
) -> GuardedStateGraph:
    """The same graph, not compiled yet, with the guard's nodes: for those who compile themselves.

    Args:
        builder: A `StateGraph`; it is left as it is.
        guard: As for `guarded_graph`.
        tool_nodes: As for `guarded_graph`.
        trace: As for `guarded_graph`.
        **options: As for `guarded_graph`.

    Raises:
        UnguardableGraphError: As for `guarded_graph`.
    """
    if not isinstance(builder, StateGraph):
        raise UnguardableGraphError(f"a StateGraph is needed, not {type(builder).__qualname__}: see guarded_graph")
    options = {"guard": guard, "trace": _writer(trace), **options}
    return guard_builder(builder, named=tool_nodes, nested=nested_guard(options), **options)


def _writer(trace: TraceWriter | str | os.PathLike[str] | None) -> TraceWriter | None:
    return trace if trace is None or isinstance(trace, TraceWriter) else TraceWriter(trace)


def nested_guard(options: dict[str, Any]) -> Nested:
    """Guards the graphs inside with the same options, and loads the default guard once for all."""

    def guard_one(graph: Any) -> Any:
        options["guard"] = as_guard(options["guard"])
        # The answer of a graph inside goes to the graph around it.
        return _guard_compiled(graph, (), {**options, "check_final": False}, nested)

    nested = Nested(guard_one)
    return nested


def _guard_compiled(
    graph: CompiledStateGraph[Any, Any, Any, Any], named: Sequence[str], options: dict[str, Any], nested: Nested
) -> GuardedGraph:
    """Guard, then compile with the arguments and the bound config that the given graph has."""
    builder = guard_builder(graph.builder, named=named, cache=graph.cache, nested=nested, **options)
    compiled = builder.compile(
        checkpointer=graph.checkpointer,
        cache=graph.cache,
        store=graph.store,
        interrupt_before=graph.interrupt_before_nodes,
        interrupt_after=graph.interrupt_after_nodes,
        debug=graph.debug,
        name=graph.name,
    )
    for key in ("config", "step_timeout", "stream_mode", "stream_eager", "retry_policy", "stream_transformers"):
        if key in graph.__dict__:
            setattr(compiled, key, graph.__dict__[key])
    return compiled
