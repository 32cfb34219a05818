"""Rewriting a builder: every route into a tool node leads to `plan`, and `check` takes it up again."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast, get_args

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
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

from mosaic_guard._channel import (
    GUARD_CHANNEL,
    HIDDEN_CHANNELS,
    ROUTES_CHANNEL,
    merge,
    start,
    write,
    wrote,
)
from mosaic_guard._commands import lead_to_plan
from mosaic_guard._errors import UnguardableGraphError
from mosaic_guard._final_answer import STRUCTURED
from mosaic_guard._gate import ResultCache
from mosaic_guard._guarded import GuardedGraph
from mosaic_guard._nested import Nested
from mosaic_guard._nodes import GuardNodes
from mosaic_guard._ways import always, end, goes_on, only_if, refused, stayed


class _GuardInput:
    """Input schema of the guard's nodes: the messages."""


class GuardedStateGraph(StateGraph):  # type: ignore[type-arg]
    """A `StateGraph` that can hold the guard's nodes; what it compiles to keeps their channel out of state and streams."""

    _guard_nodes: GuardNodes | None = None
    _wired = False

    def add_guard(self, nodes: GuardNodes) -> None:
        """Add `plan`, `check`, `ask`, `refuse` and the gated tool nodes, and the edges between them.

        Yours are the edges into `plan` (where the calls of the agent are to be judged) and those that leave the tool nodes
        and `refuse`. A tool node that is reached without passing `plan` sends its calls there.

        Args:
            nodes: The nodes, with their tool nodes.

        Raises:
            UnguardableGraphError: If a name is taken, or the state has no messages under the nodes' key.
        """
        key = nodes.messages_key
        taken = [name for name in nodes.names if name in self.nodes]
        if taken:
            raise UnguardableGraphError(
                f"the graph has a node {taken[0]!r} of its own: pass prefix='guard_' to name the guard's nodes otherwise"
            )
        if key not in self.channels:
            raise UnguardableGraphError(
                f"the graph's state has no {key!r} ({sorted(self.channels)}): name its messages with messages_key=..."
            )
        if nodes.check_final and not _replaces_by_id(self.channels[key]):
            raise UnguardableGraphError(
                f"check_final has to replace an answer that is refused: give {key!r} the reducer add_messages"
            )
        if nodes.check_final and not self._takes_back(STRUCTURED):
            raise UnguardableGraphError(
                f"check_final has to take back a structured answer that is refused: let {STRUCTURED!r} of the state be None "
                "too, and have no reducer"
            )
        self._guard_nodes = nodes
        self.add_channels(key)
        for name, gate in nodes.gates.items():
            if name in self.nodes:
                # Outside the gate, a cache would replay refusals and results without a clearance.
                self.nodes[name] = replace(self.nodes[name], runnable=gate, cache_policy=None)
            else:
                self.add_node(name, gate)
        self._add(nodes.plan_name, nodes.plan, nodes.aplan)
        self._add(nodes.check_name, nodes.check, nodes.acheck)
        self._add(nodes.ask_name, nodes.ask, None)
        self._add(nodes.refuse_name, nodes.refuse, None)
        self.edges.add((nodes.plan_name, nodes.check_name))
        final = (END,) if nodes.check_final else ()
        ways: dict[Hashable, str] = {name: name for name in (*nodes.gates, nodes.refuse_name, *final)}
        for source, more in ((nodes.check_name, nodes.ask_name), (nodes.ask_name, nodes.plan_name)):
            self.branches[source]["route"] = BranchSpec(
                RunnableCallable(nodes.after_check, name="route", trace=False), {**ways, more: more}, _GuardInput
            )

    def _takes_back(self, key: str) -> bool:
        """Whether None can be written in the place of a state key's value."""
        fields = [getattr(schema, "model_fields", {}).get(key) for schema in self.schemas]
        types = [field.annotation for field in fields if field is not None]
        plain = all(kind is Any or type(None) in get_args(kind) for kind in types)
        return plain and not isinstance(self.channels.get(key), BinaryOperatorAggregate)

    def add_channels(self, key: str) -> None:
        """Add the guard's channels, without the nodes.

        Args:
            key: State key of the messages.
        """
        self.channels[GUARD_CHANNEL] = BinaryOperatorAggregate(dict, merge)
        self.channels[ROUTES_CHANNEL] = Topic(list)
        if key in self.channels:
            self.schemas[_GuardInput] = {key: self.channels[key]}

    def _add(self, name: str, func: Any, afunc: Any) -> None:
        runnable = RunnableCallable(func, afunc, name=name, trace=False)
        self.nodes[name] = StateNodeSpec(runnable, None, input_schema=_GuardInput, retry_policy=None, cache_policy=None)

    def compile(self, *args: Any, **kwargs: Any) -> GuardedGraph:
        """As `StateGraph.compile`."""
        nodes = self._guard_nodes
        if nodes is not None and not self._wired:
            self._wire(nodes)
        self._wired = True
        compiled: Any = super().compile(*args, **kwargs)
        if nodes is not None:
            _without_defaults(compiled, nodes)
            lead_to_plan(compiled, nodes.gates.keys(), nodes.plan_name)
        for name in (nodes.plan_name, nodes.check_name) if nodes is not None else ():
            # Hidden tasks stay out of `updates`, `tasks` and `debug` streams, and out of interrupt_before="*".
            compiled.nodes[name].tags = [TAG_HIDDEN]
        compiled.stream_channels = [key for key in compiled.stream_channels if key not in HIDDEN_CHANNELS]
        compiled.__class__ = GuardedGraph
        compiled.guard_nodes = nodes
        return cast(GuardedGraph, compiled)

    def _wire(self, nodes: GuardNodes) -> None:
        """Edges that a user drew: a tool node that sent its calls back is not left, nor `refuse` where the run ends."""
        nodes.joined = {start for starts, _ in self.waiting_edges for start in starts if start in nodes.gates}
        for name in (*nodes.gates, nodes.refuse_name):
            condition = goes_on if name == nodes.refuse_name else partial(stayed, name)
            drawn = [target for source, target in sorted(self.edges) if source == name]
            self.edges = {edge for edge in self.edges if edge[0] != name}
            named = {f"to {target}": always(target) for target in drawn} | self.branches.pop(name, {})
            self.branches[name] = {key: only_if(branch, condition) for key, branch in named.items()}


@cache
def _guarded_class(cls: type[Any]) -> type[Any]:
    return GuardedStateGraph if cls is StateGraph else type(cls.__name__, (GuardedStateGraph, cls), {})


def copy_builder(builder: StateGraph[Any, Any, Any, Any]) -> GuardedStateGraph:
    """A copy that can be changed without changing the graph."""
    new: Any = copy.copy(builder)
    new.__class__ = _guarded_class(cast(Any, type(builder)))
    new.nodes = {name: replace(spec) for name, spec in builder.nodes.items()}
    new.edges = set(builder.edges)
    new.waiting_edges = set(builder.waiting_edges)
    new.branches = defaultdict(dict, {source: dict(named) for source, named in builder.branches.items()})
    new.channels, new.managed, new.schemas = dict(builder.channels), dict(builder.managed), dict(builder.schemas)
    if builder.compiled:
        new.compiled = False
        # compile() has written its defaults into every node already; they are not meant for the guard's nodes.
        new._node_defaults = type(builder._node_defaults)()
    return cast(GuardedStateGraph, new)


def guard_builder(
    builder: StateGraph[Any, Any, Any, Any],
    *,
    named: Sequence[str] = (),
    cache: BaseCache[Any] | None = None,
    nested: Nested,
    **options: Any,
) -> GuardedStateGraph:
    """The builder of the same graph with the guard's nodes; the given one is left as it is.

    Args:
        builder: The graph's builder.
        named: Nodes that run tools though they are no `ToolNode`.
        cache: The graph's cache.
        nested: Guards the graphs inside its nodes.
        **options: As for `GuardNodes`.

    Raises:
        UnguardableGraphError: If there is nothing to guard, or something where the guard cannot stand.
    """
    if GUARD_CHANNEL in builder.channels:
        raise UnguardableGraphError("this graph is guarded already")
    named = [named] if isinstance(named, str) else named
    new = copy_builder(builder)
    nested.know(builder.nodes)
    replaced = _guard_inside(new, named, nested)
    found = _find_tool_nodes(new, named)
    if not found:
        if not replaced:
            raise UnguardableGraphError(
                f"no tool node found among the graph's nodes ({_known(new)}): build it with langgraph.prebuilt.ToolNode, "
                "or name the node that runs tools with tool_nodes=[...]"
            )
        new.add_channels("messages")
        return new
    caches = {
        name: ResultCache(cache, policy, name)
        for name in found
        if cache is not None and (policy := new.nodes[name].cache_policy) is not None
    }
    nodes = GuardNodes(tool_nodes=found, messages_key=_messages_key(new, found), caches=caches, **options)
    nodes.nested = nested
    _Rewriting(new, nodes).insert()
    return new


def _known(builder: StateGraph[Any, Any, Any, Any]) -> str:
    return ", ".join(map(repr, builder.nodes)) or "none"


def _guard_inside(builder: GuardedStateGraph, named: Sequence[str], nested: Nested) -> bool:
    """Guard the graphs inside a builder's nodes and branches; whether there were any."""
    replaced = False
    own = [spec.runnable for spec in builder.nodes.values() if isinstance(spec.runnable, ToolNode)]
    for name, spec in builder.nodes.items():
        inside = nested.inside(spec.runnable, f"node {name!r}", None if name in named else own)
        if inside is not spec.runnable:
            builder.nodes[name] = replace(spec, runnable=inside)
            replaced = True
    handler = builder._node_defaults.error_handler
    inside = nested.inside(handler, "the default error handler", own)
    if inside is not handler:
        builder._node_defaults = replace(builder._node_defaults, error_handler=inside)
        replaced = True
    for source, branches in builder.branches.items():
        for name, branch in branches.items():
            path = nested.inside(branch.path, f"branch {name!r} of {source!r}", own)
            if path is not branch.path:
                branches[name] = branch._replace(path=path)
                replaced = True
    return replaced


def _find_tool_nodes(builder: GuardedStateGraph, named: Sequence[str]) -> dict[str, Any]:
    for name in named:
        if name not in builder.nodes:
            raise UnguardableGraphError(f"there is no node {name!r}: the graph's nodes are {_known(builder)}")
        if isinstance(builder.nodes[name].runnable, CompiledStateGraph):
            raise UnguardableGraphError(
                f"node {name!r} is a graph: it is guarded without being named in tool_nodes=[...]"
            )
    return {
        name: spec.runnable
        for name, spec in builder.nodes.items()
        if isinstance(spec.runnable, ToolNode) or name in named
    }


def _messages_key(builder: GuardedStateGraph, found: Mapping[str, Any]) -> str:
    if "__root__" in builder.channels:
        raise UnguardableGraphError("the graph's state is a bare value: give it a state with a 'messages' key")
    keys = {node._messages_key for node in found.values() if isinstance(node, ToolNode)} or {"messages"}
    if len(keys) > 1 or not keys <= set(builder.channels):
        raise UnguardableGraphError(
            f"the tool nodes read messages from {sorted(keys)}: one key of the state ({sorted(builder.channels)}) is needed"
        )
    return str(next(iter(keys)))


class _Rewriting:
    """Puts the guard's nodes into every route of a builder."""

    def __init__(self, builder: GuardedStateGraph, nodes: GuardNodes) -> None:
        self.builder, self.nodes = builder, nodes
        self.guarded = {*nodes.gates, *((END,) if nodes.check_final else ())}

    def insert(self) -> None:
        """Put the guard's channel, nodes and edges into the builder."""
        builder, nodes = self.builder, self.nodes
        nodes.joined = {start for starts, _ in builder.waiting_edges for start in starts if start in nodes.gates}
        exits = {name: self._take_exits(name) for name in nodes.gates}
        self._redirect_routes()
        builder.add_guard(nodes)
        self._put_exits(exits)
        builder._wired = True

    def _redirect_routes(self) -> None:
        """Every edge and branch into a tool node leads to `plan`; joins stay, for the gate sends their calls back."""
        builder = self.builder
        leaving = {source for source, _ in builder.edges} | set(builder.branches)
        led = {start for starts, _ in builder.waiting_edges for start in starts} | {*self.nodes.gates}
        ends = builder.nodes.keys() - leaving - led if self.nodes.check_final else set()
        for source in sorted(leaving | ends):
            targets = sorted(target for start, target in builder.edges if start == source)
            ways = (
                {f"to {target}": always(target) for target in targets} if source in leaving else {"to the end": end()}
            )
            drawn = dict(builder.branches.get(source, {}))
            leading = {name: way for name, way in {**drawn, **ways}.items() if self._leads_in(way)}
            spec = builder.nodes.get(source)
            commands = not self.guarded.isdisjoint(spec.ends or ()) if spec is not None else False
            if not leading and not commands:
                continue
            builder.edges -= {(source, target) for target in targets}
            # A node's writes may hold a clearance if they are never replayed from a cache.
            cached = spec is None or spec.cache_policy is not None or builder._node_defaults.cache_policy is not None
            at_once = len(leading) == 1 and not commands and not cached
            # Those that lead in come first: what the others do depends on whether a tool node is taken.
            others = {name: way for name, way in {**drawn, **ways}.items() if name not in leading}
            builder.branches[source] = {
                name: self._to_plan(way, at_once) for name, way in {**leading, **others}.items()
            }

    def _leads_in(self, way: BranchSpec) -> bool:
        return way.ends is None or not self.guarded.isdisjoint(way.ends.values())

    def _to_plan(self, branch: BranchSpec, at_once: bool = False) -> BranchSpec:
        """The branch, with its tool nodes recorded as routes and replaced by `plan`.

        Its other targets are recorded with them and taken after the check, so that they run beside the tools, as drawn: a
        message that they write does not come between a call and its result.

        Args:
            branch: The branch.
            at_once: Whether a step that the policy lets act may be cleared in the task that proposes it: only where that
                task has one way into tool nodes, and its writes are never replayed from a cache.
        """
        path, ends = branch.path, branch.ends
        new_ends: dict[Hashable, str] | None = None
        if ends is not None:
            new_ends = {end: end for end in ends.values() if end not in self.guarded}
            if len(new_ends) < len(set(ends.values())):
                new_ends[self.nodes.plan_name] = self.nodes.plan_name
                # Taken at once where the policy lets the whole step act.
                new_ends |= {end: end for end in ends.values() if end in self.nodes.gates}

        def redirect(result: Any, config: RunnableConfig) -> list[Any]:
            targets: list[Any] = []
            routes: list[list[Any]] = []
            for target in result if isinstance(result, (list, tuple)) else [result]:
                sent = isinstance(target, Send)
                node = target.node if sent else ends[target] if ends else target
                targets.append(target if sent else node)
                routes.append([node, target.arg if sent else None])
            into = [route for route in routes if route[0] in self.guarded]
            if not into and not wrote(config, ROUTES_CHANNEL):
                return targets
            if into and at_once and self.nodes.clear_at_once(into, config):
                return targets
            write(config, ROUTES_CHANNEL, [route for route in routes if route in into or route[0] != END])
            # Not returned as a target: the branch's own path map need not name it (a Send needs no entry there).
            start(config, self.nodes.plan_name)
            return []

        def func(value: Any, config: RunnableConfig) -> list[Any]:
            return redirect(path.invoke(value, config), config)

        async def afunc(value: Any, config: RunnableConfig) -> list[Any]:
            return redirect(await path.ainvoke(value, config), config)

        name = getattr(path, "name", None) or "condition"
        return BranchSpec(RunnableCallable(func, afunc, name=name, trace=False), new_ends, branch.input_schema)

    def _take_exits(self, name: str) -> list[BranchSpec]:
        """Remove the edges and branches that leave a tool node; return them as branches."""
        builder = self.builder
        exits = [always(target) for source, target in sorted(builder.edges) if source == name]
        builder.edges = {edge for edge in builder.edges if edge[0] != name}
        return [*exits, *builder.branches.pop(name, {}).values()]

    def _put_exits(self, exits: Mapping[str, list[BranchSpec]]) -> None:
        """A tool node leaves as it did, unless it has sent its calls back to `plan`; `refuse` leaves the same way."""
        builder, refuse = self.builder, self.nodes.refuse_name
        for name, branches in exits.items():
            schema = builder.nodes[name].input_schema
            for number, original in enumerate(branches):
                branch = self._to_plan(original)  # a tool node may lead to a tool node
                builder.branches[name][f"leave {number}"] = only_if(branch, partial(stayed, name))
                same_state = branch._replace(input_schema=branch.input_schema or schema)
                builder.branches[refuse][f"leave {name} {number}"] = only_if(same_state, partial(refused, name))
        # A run of refusals ends here: for the drawing, since nothing has to be written to end.
        builder.branches[refuse]["end"] = only_if(always(END), lambda channel: False)


def _without_defaults(compiled: Any, nodes: GuardNodes) -> None:
    """Take back what the builder's node defaults gave to the guard's nodes and gates.

    A cache would replay judgements and results without a clearance; an error handler would lead on from a guard that failed.
    """
    for name in (*nodes.names, *nodes.gates):
        compiled.nodes[name].cache_policy = None
    for name in nodes.names:
        compiled.nodes[name].error_handler_node = None
        compiled.node_error_handler_map.pop(name, None)


def _replaces_by_id(channel: Any) -> bool:
    """Whether a messages channel replaces a message by one with the same id, as `add_messages` does."""
    reducer = getattr(channel, "operator", None)
    try:
        return reducer is not None and len(reducer([AIMessage("a", id="1")], [AIMessage("b", id="1")])) == 1
    except (TypeError, ValueError):
        return False
