"""`guarded_graph`: find the tool nodes of a compiled graph, insert the guard's nodes, gate the tools."""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph._internal._config import ensure_config
from langgraph._internal._runnable import RunnableCallable
from langgraph.cache.base import BaseCache
from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.channels.topic import Topic
from langgraph.constants import END, TAG_HIDDEN
from langgraph.graph import StateGraph
from langgraph.graph._branch import BranchSpec
from langgraph.graph._node import StateNodeSpec
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Send

from mosaic_guard._channel import GUARD_CHANNEL, HIDDEN_CHANNELS, ROUTES_CHANNEL, merge, read, write
from mosaic_guard._errors import UnguardableGraphError
from mosaic_guard._gate import ResultCache, gated_tool_node
from mosaic_guard._guard import Guard
from mosaic_guard._hold import HoldsMessages
from mosaic_guard._nodes import GuardNodes
from mosaic_guard._recursion import UserSteps
from mosaic_guard._trace import TraceWriter


class _GuardInput:
    """Input schema of the guard's nodes: the messages."""


class GuardedGraph(CompiledStateGraph):  # type: ignore[type-arg]
    """A compiled graph whose `recursion_limit` is counted in the user's own steps."""

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """As the unguarded graph."""
        yield from super().stream(input, self._user_steps(config), **kwargs)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """As the unguarded graph."""
        async for chunk in super().astream(input, self._user_steps(config), **kwargs):
            yield chunk

    def _user_steps(self, config: RunnableConfig | None) -> RunnableConfig:
        limit = ensure_config(self.config, config)["recursion_limit"]
        return {**(config or {}), "recursion_limit": UserSteps(limit)}


class HoldingGraph(HoldsMessages, GuardedGraph):
    """A guarded graph whose `messages` stream waits for the guard's decisions."""


def guarded_graph(
    graph: CompiledStateGraph[Any, Any, Any, Any],
    *,
    guard: Guard | None = None,
    tool_nodes: Sequence[str] | None = None,
    on_refuse: Literal["replan", "end"] = "replan",
    max_refusals: int = 3,
    prefix: str = "",
    trace: TraceWriter | str | os.PathLike[str] | None = None,
    events: bool = False,
    hold: bool = False,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """The same graph with `plan`, `check` and `refuse` before its tools; the given graph is left as it is.

    No tool body runs without a clearance for exactly its call. Input, output and state schema, node names, checkpointer,
    store, interrupts, streaming modes, bound config and `recursion_limit` stay what they were.

    Args:
        graph: A compiled graph: what `create_agent` returns, or a `StateGraph` with a `ToolNode`, compiled.
        guard: Judges the steps. Default: `Guard.load("default")`, the local model.
        tool_nodes: Names of the tool nodes to guard. Default: every `ToolNode` of the graph.
        on_refuse: `replan`: refused calls are answered with the reason and the agent goes on. `end`: a step with a refused
            call runs none of its calls, and the run ends with a message that says why.
        max_refusals: The run ends at this many steps in a row with a refusal. At least 1.
        prefix: Put before the names of the three nodes, for graphs that have a `plan` of their own.
        trace: A directory, or a `TraceWriter`, for what was judged.
        events: Send plans and decisions, with the seconds that they took, to the `custom` stream.
        hold: Release chunks of stream mode `messages` only after the guard has decided the calls that their message proposes;
            what proposes none is released when its node ends. Refused calls are shown too, after the decision. Not for
            `astream_events` before version `v3`, which then raises `ValueError`.

    Raises:
        UnguardableGraphError: If it is not a compiled LangGraph graph, has no tool node, has no node of a given name, or
            has tools where the guard cannot stand; the message says what was looked for.
        ValueError: For an unknown option.
    """
    if on_refuse not in ("replan", "end"):
        raise ValueError(f"on_refuse is 'replan' or 'end', not {on_refuse!r}")
    if max_refusals < 1:
        raise ValueError(f"max_refusals is at least 1, not {max_refusals!r}")
    builder = _builder(graph)
    found = _find_tool_nodes(builder, tool_nodes)
    guarding = _Guarding(builder, found, prefix, graph.cache)
    guarding.insert(
        guard=guard if guard is not None else Guard.load("default"),
        on_refuse=on_refuse,
        max_refusals=max_refusals,
        trace=trace if trace is None or isinstance(trace, TraceWriter) else TraceWriter(trace),
        events=events,
    )
    return guarding.compile_like(graph, HoldingGraph if hold else GuardedGraph)


def _builder(graph: Any) -> StateGraph[Any, Any, Any, Any]:
    """A copy of the graph's builder that can be changed without changing the graph."""
    if isinstance(graph, StateGraph):
        raise UnguardableGraphError("this graph is not compiled yet: guard what graph.compile() returns")
    builder = getattr(graph, "builder", None)
    if not isinstance(graph, CompiledStateGraph) or not isinstance(builder, StateGraph):
        raise UnguardableGraphError(
            f"a compiled LangGraph StateGraph is needed (create_agent(...) or StateGraph(...).compile()), "
            f"not {type(graph).__module__}.{type(graph).__qualname__}"
        )
    if GUARD_CHANNEL in builder.channels:
        raise UnguardableGraphError("this graph is guarded already")
    new = copy.copy(builder)
    new.nodes = {name: replace(spec) for name, spec in builder.nodes.items()}
    new.edges = set(builder.edges)
    new.waiting_edges = set(builder.waiting_edges)
    new.branches = defaultdict(dict, {source: dict(named) for source, named in builder.branches.items()})
    new.channels, new.managed, new.schemas = dict(builder.channels), dict(builder.managed), dict(builder.schemas)
    new.compiled = False
    # compile() has written its defaults into every node already; they are not meant for the guard's nodes.
    new._node_defaults = type(builder._node_defaults)()
    return new


def _find_tool_nodes(builder: StateGraph[Any, Any, Any, Any], names: Sequence[str] | None) -> dict[str, ToolNode]:
    known = ", ".join(map(repr, builder.nodes)) or "none"
    if isinstance(names, str):
        names = [names]
    for name in names or ():
        if name not in builder.nodes:
            raise UnguardableGraphError(f"there is no node {name!r}: the graph's nodes are {known}")
        if not isinstance(builder.nodes[name].runnable, ToolNode):
            raise UnguardableGraphError(
                f"node {name!r} is a {type(builder.nodes[name].runnable).__name__}, not a ToolNode: let one run its tools"
            )
    found = {
        name: spec.runnable
        for name, spec in builder.nodes.items()
        if isinstance(spec.runnable, ToolNode) and (names is None or name in names)
    }
    hidden = [name for name, spec in builder.nodes.items() if name not in found and _holds_tools(spec.runnable)]
    if hidden and names is None:
        raise UnguardableGraphError(
            f"nodes {', '.join(map(repr, hidden))} hold tools where the guard cannot stand (a graph with tools, or a "
            "ToolNode wrapped in another runnable): guard such a graph with guarded_graph before adding it, add the ToolNode "
            "itself as the node, or name with tool_nodes=[...] the nodes of this graph that are to be guarded"
        )
    if not found:
        raise UnguardableGraphError(
            f"no ToolNode found among the graph's nodes ({known}): build the tool node with langgraph.prebuilt.ToolNode"
        )
    if "__root__" in builder.channels:
        raise UnguardableGraphError("the graph's state is a bare value: give it a state with a 'messages' key")
    keys = {node._messages_key for node in found.values()}
    if len(keys) > 1 or not keys <= set(builder.channels):
        raise UnguardableGraphError(
            f"the tool nodes read messages from {sorted(keys)}: one key of the state ({sorted(builder.channels)}) is needed"
        )
    return found


_PARTS = ("bound", "runnable", "default", "fallbacks", "steps", "first", "middle", "last", "branches", "steps__")
"""Where runnables keep the runnables that they are made of: bindings, retries, fallbacks, sequences, branches, parallels."""


def _holds_tools(runnable: Any) -> bool:
    """Whether a runnable is, or is made of, a tool node or a graph that runs tools unguarded."""
    if isinstance(runnable, ToolNode):
        return True
    if isinstance(runnable, Mapping):
        return any(_holds_tools(part) for part in runnable.values())
    if isinstance(runnable, (list, tuple)):
        return any(_holds_tools(part) for part in runnable)
    builder = getattr(runnable, "builder", None)
    if isinstance(builder, StateGraph):
        return GUARD_CHANNEL not in builder.channels and _holds_tools([s.runnable for s in builder.nodes.values()])
    return isinstance(runnable, Runnable) and _holds_tools([runnable.__dict__.get(part) for part in _PARTS])


class _Guarding:
    """Rewrites a builder: every route into a tool node leads to `plan`, and `check` takes it up again."""

    def __init__(
        self,
        builder: StateGraph[Any, Any, Any, Any],
        tool_nodes: Mapping[str, ToolNode],
        prefix: str,
        cache: BaseCache[Any] | None,
    ) -> None:
        self.builder = builder
        self.tool_nodes = tool_nodes
        self.cache = cache
        self.plan, self.check, self.refuse = (f"{prefix}{name}" for name in ("plan", "check", "refuse"))
        taken = [name for name in (self.plan, self.check, self.refuse) if name in builder.nodes]
        if taken:
            raise UnguardableGraphError(
                f"the graph has a node {taken[0]!r} of its own: pass prefix='guard_' to name the guard's nodes otherwise"
            )

    def insert(self, *, guard: Guard, trace: TraceWriter | None, **options: Any) -> None:
        """Put the guard's channel, nodes and edges into the builder."""
        builder = self.builder
        self._refuse_joins()
        gated = {
            name: gated_tool_node(node, name=name, plan=self.plan, results=self._results(name))
            for name, node in self.tool_nodes.items()
        }
        key = next(iter(gated.values()))._messages_key
        nodes = GuardNodes(guard, gated, key, refuse_name=self.refuse, trace=trace, **options)
        builder.channels[GUARD_CHANNEL] = BinaryOperatorAggregate(dict, merge)
        builder.channels[ROUTES_CHANNEL] = Topic(list)
        builder.schemas[_GuardInput] = {key: builder.channels[key]}
        exits = {name: self._take_exits(name) for name in gated}
        self._redirect_routes()
        for name, node in gated.items():
            # Outside the gate, a cache would replay refusals and results without a clearance.
            builder.nodes[name] = replace(builder.nodes[name], runnable=node, cache_policy=None)
        self._add_node(self.plan, nodes.plan, nodes.aplan)
        self._add_node(self.check, nodes.check, nodes.acheck)
        self._add_node(self.refuse, nodes.refuse, None)
        builder.edges.add((self.plan, self.check))
        builder.branches[self.check]["route"] = BranchSpec(
            RunnableCallable(nodes.after_check, name="route", trace=False),
            {name: name for name in (*gated, self.refuse)},
            _GuardInput,
        )
        self._put_exits(exits)

    def _results(self, name: str) -> ResultCache | None:
        policy = self.builder.nodes[name].cache_policy
        return ResultCache(self.cache, policy, name) if policy is not None and self.cache is not None else None

    def _refuse_joins(self) -> None:
        for starts, end in self.builder.waiting_edges:
            for start in starts:
                if start in self.tool_nodes:
                    raise UnguardableGraphError(
                        f"tool node {start!r} is one of several sources of a join edge to {end!r}, which cannot be followed "
                        "when its step is refused: put a node of your own between the two"
                    )

    def _add_node(self, name: str, func: Any, afunc: Any) -> None:
        runnable = RunnableCallable(func, afunc, name=name, trace=False)
        self.builder.nodes[name] = StateNodeSpec(
            runnable, None, input_schema=_GuardInput, retry_policy=None, cache_policy=None
        )

    def _redirect_routes(self) -> None:
        """Every edge and branch into a tool node leads to `plan`; joins stay, for the gate sends their calls back."""
        builder = self.builder
        for named in builder.branches.values():
            for name, branch in named.items():
                named[name] = self._to_plan(branch)
        for source, target in sorted(builder.edges):
            if target in self.tool_nodes:
                builder.edges.discard((source, target))
                builder.branches[source][f"to {target}"] = self._to_plan(_always(target))

    def _to_plan(self, branch: BranchSpec) -> BranchSpec:
        """The branch, with its tool nodes recorded as routes and replaced by `plan`."""
        path, ends = branch.path, branch.ends
        new_ends: dict[Hashable, str] | None = None
        if ends is not None:
            new_ends = {end: end for end in ends.values() if end not in self.tool_nodes}
            if len(new_ends) < len(set(ends.values())):
                new_ends[self.plan] = self.plan

        def redirect(result: Any, config: RunnableConfig) -> list[Any]:
            routes: list[list[Any]] = []
            kept: list[Any] = []
            for target in result if isinstance(result, (list, tuple)) else [result]:
                sent = isinstance(target, Send)
                node = target.node if sent else ends[target] if ends else target
                if node in self.tool_nodes:
                    routes.append([node, target.arg if sent else None])
                else:
                    kept.append(target if sent else node)
            if routes:
                write(config, ROUTES_CHANNEL, routes)
                # Not returned as a target: the branch's own path map need not name it (a Send needs no entry there).
                write(config, f"branch:to:{self.plan}", None)
            return kept

        def func(value: Any, config: RunnableConfig) -> list[Any]:
            return redirect(path.invoke(value, config), config)

        async def afunc(value: Any, config: RunnableConfig) -> list[Any]:
            return redirect(await path.ainvoke(value, config), config)

        name = getattr(path, "name", None) or "condition"
        return BranchSpec(RunnableCallable(func, afunc, name=name, trace=False), new_ends, branch.input_schema)

    def _take_exits(self, name: str) -> list[BranchSpec]:
        """Remove the edges and branches that leave a tool node; return them as branches."""
        builder = self.builder
        exits = [_always(target) for source, target in sorted(builder.edges) if source == name]
        builder.edges = {edge for edge in builder.edges if edge[0] != name}
        return [*exits, *builder.branches.pop(name, {}).values()]

    def _put_exits(self, exits: Mapping[str, list[BranchSpec]]) -> None:
        """A tool node leaves as it did, unless it has sent its calls back to `plan`; `refuse` leaves the same way."""
        builder = self.builder
        for name, branches in exits.items():
            schema = builder.nodes[name].input_schema
            for number, original in enumerate(branches):
                branch = self._to_plan(original)  # a tool node may lead to a tool node
                builder.branches[name][f"leave {number}"] = _only_if(branch, partial(_stayed, name))
                same_state = branch._replace(input_schema=branch.input_schema or schema)
                builder.branches[self.refuse][f"leave {name} {number}"] = _only_if(same_state, partial(_refused, name))
        # A run of refusals ends here: for the drawing, since nothing has to be written to end.
        builder.branches[self.refuse]["end"] = _only_if(_always(END), lambda channel: False)

    def compile_like(self, graph: CompiledStateGraph[Any, Any, Any, Any], cls: type[GuardedGraph]) -> GuardedGraph:
        """Compile into `cls`, with the arguments and the bound config that the given graph has."""
        compiled: Any = self.builder.compile(
            checkpointer=graph.checkpointer,
            cache=graph.cache,
            store=graph.store,
            interrupt_before=graph.interrupt_before_nodes,  # type: ignore[arg-type]
            interrupt_after=graph.interrupt_after_nodes,  # type: ignore[arg-type]
            debug=graph.debug,
            name=graph.name,
        )
        for name in (self.plan, self.check):
            # Hidden tasks stay out of `updates`, `tasks` and `debug` streams, and out of interrupt_before="*".
            compiled.nodes[name].tags = [TAG_HIDDEN]
        for key in ("config", "step_timeout", "stream_mode", "stream_eager", "retry_policy", "stream_transformers"):
            if key in graph.__dict__:
                setattr(compiled, key, graph.__dict__[key])
        compiled.stream_channels = [key for key in compiled.stream_channels if key not in HIDDEN_CHANNELS]
        compiled.__class__ = cls
        return cast(GuardedGraph, compiled)


def _always(target: str) -> BranchSpec:
    """An edge as a branch."""
    return BranchSpec(RunnableCallable(lambda _: target, name=f"to {target}", trace=False), {target: target}, None)


def _only_if(branch: BranchSpec, condition: Callable[[Mapping[str, Any]], bool]) -> BranchSpec:
    """The branch, taken only if the guard's channel says so."""
    path = branch.path

    def func(value: Any, config: RunnableConfig) -> Any:
        return path.invoke(value, config) if condition(read(config, GUARD_CHANNEL, fresh=True) or {}) else []

    async def afunc(value: Any, config: RunnableConfig) -> Any:
        return await path.ainvoke(value, config) if condition(read(config, GUARD_CHANNEL, fresh=True) or {}) else []

    return branch._replace(path=RunnableCallable(func, afunc, name=path.name, trace=False))


def _stayed(name: str, channel: Mapping[str, Any]) -> bool:
    """Whether tool node `name` ran, rather than sending its calls back to `plan`."""
    return channel.get("bounced") != name


def _refused(name: str, channel: Mapping[str, Any]) -> bool:
    """Whether the refused step would have gone to tool node `name`, and the run goes on."""
    return not channel["ending"] and any(route[0] == name for route in channel["go"])
