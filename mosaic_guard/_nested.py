"""Graphs inside graphs: where a runnable, a function or a tool holds a compiled graph that runs tools, guard that too.

Supervisors close over their agents, deepagents' `task` tool over a dict of subagents, tools over the agent that they ask.
What is held in nodes, closures, defaults, partials and containers is replaced in a copy. What is only named (a global, an
attribute of an object) cannot be replaced without changing the user's own objects: that fails loudly.
"""

from __future__ import annotations

import copy
import functools
import re
import sys
import threading
import types
import warnings
from collections.abc import Callable, Collection, Iterable
from contextvars import ContextVar
from typing import Any

from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode

from mosaic_guard._channel import GUARD_CHANNEL
from mosaic_guard._errors import GuardWarning, UnguardableGraphError
from mosaic_guard._reach import Reach, content, fields

GuardGraph = Callable[[Any], Any]
"""Guards one compiled graph; what it returns takes the graph's place."""


class Nested:
    """The graphs inside a graph, and what takes their place.

    Args:
        guard: Guards a graph that holds tools.
    """

    def __init__(self, guard: GuardGraph) -> None:
        self._guard = guard
        self.agents: set[str] = set()
        """Names of nodes and graphs: a human message that bears one was written by an agent."""
        # Objects are kept alive with their replacement: an id alone could be reused.
        self._done: dict[int, tuple[Any, Any]] = {}
        self._told: dict[int, Any] = {}
        self._under_way: dict[int, _Later] = {}
        # Tools that a wrapper puts into a request are looked into while running, in whichever thread.
        self._lock = threading.RLock()

    def guarding(self, graph: Any, guard: Callable[[], Any]) -> Any:
        """Guard a graph; where something inside it holds the graph itself, that gets the guarded one.

        Args:
            graph: A compiled graph.
            guard: Guards it.
        """
        later = self._under_way[id(graph)] = _Later()
        try:
            later.graph = guard()
        finally:
            del self._under_way[id(graph)]
        return later.graph

    def know(self, names: Iterable[str]) -> None:
        """Remember the names of a graph's nodes, but for those that speak for a person."""
        self.agents |= {name for name in names if not re.search("human|user", name, re.IGNORECASE)}

    def inside(self, value: Any, where: str, own: Collection[Any] | None = ()) -> Any:
        """The value itself if it holds no graph with tools, else a copy in which each is guarded.

        Args:
            value: A runnable, function, tool, container of these, or anything else.
            where: How a person would name it, for errors.
            own: The tool nodes of the graph that it stands in; None: it may hold any, for its calls are judged.

        Raises:
            UnguardableGraphError: Where a graph or tool node is found that cannot be replaced.
        """
        with self._lock:
            known = {id(value), *map(id, own or ())}
            elsewhere: list[Any] = []

            def sought(v: Any) -> bool:
                if _runs_elsewhere(v):
                    elsewhere.append(v)
                return _unguarded(v) or (own is not None and _is_tool_node(v) and id(v) not in known)

            reach = Reach(value, sought)
            for graph in elsewhere:
                self._tell(graph, where)
            if not reach.found:
                return value
            if any(map(_is_tool_node, reach.found)):
                raise _tool_node_inside(where)
            name = reach.only_named()
            if name is not None:
                raise _only_named(where, name, itself=any(id(graph) in self._under_way for graph in reach.found))
            return self._replaced(value, reach.holding)

    def _tell(self, graph: Any, where: str) -> None:
        """Warn of a graph whose tools run where this guard does not, once."""
        if id(graph) not in self._told:
            self._told[id(graph)] = graph
            text = f"{where} runs a graph elsewhere ({graph.assistant_id!r}), which is not guarded here: guard it where it runs"
            warnings.warn(text, GuardWarning, stacklevel=2)

    def _replaced(self, value: Any, holding: Collection[int]) -> Any:
        if id(value) not in holding:
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        if isinstance(value, CompiledStateGraph):
            if id(value) in self._under_way:
                return self._under_way[id(value)]
            new = self.guarding(value, lambda: self._guard(value))
            self._done[id(value)] = (value, new)
            return new
        return self._copy(value, lambda part: self._replaced(part, holding), holding)

    def _copy(self, value: Any, replaced: Callable[[Any], Any], holding: Collection[int]) -> Any:
        """A copy with other parts. What can hold itself is known before its parts are replaced."""
        made: Any
        if isinstance(value, types.FunctionType):
            return self._function(value, replaced, holding)
        if isinstance(value, types.MethodType):
            owner, function = replaced(value.__self__), replaced(value.__func__)
            made = getattr(owner, value.__name__) if owner is not value.__self__ else types.MethodType(function, owner)
        elif isinstance(value, functools.partial):
            made = functools.partial(replaced(value.func), *map(replaced, value.args))
            made.keywords.update({key: replaced(part) for key, part in value.keywords.items()})
        elif isinstance(value, tuple):
            items = map(replaced, value)
            made = value._make(items) if hasattr(value, "_make") else tuple(items)
        elif isinstance(value, dict):
            made = self._keep(value, copy.copy(value))
            made.update({key: replaced(part) for key, part in value.items()})
        elif isinstance(value, list):
            made = self._keep(value, copy.copy(value))
            made[:] = map(replaced, value)
        else:
            made = self._keep(value, copy.copy(value))
            private = getattr(made, "__pydantic_private__", None) or {}
            for name, part in fields(value).items():
                if name in private:
                    private[name] = replaced(part)
                else:
                    object.__setattr__(made, name, replaced(part))
        return self._keep(value, made)

    def _function(self, function: types.FunctionType, replaced: Callable[[Any], Any], holding: Collection[int]) -> Any:
        # Variables that hold nothing to replace stay shared with whoever else sets them.
        given = function.__closure__ or ()
        cells = tuple(types.CellType() if id(content(cell)) in holding else cell for cell in given)
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
        self._keep(function, made)
        for new, old in zip(cells, given, strict=True):
            if new is not old:
                new.cell_contents = replaced(content(old))
        made.__defaults__ = function.__defaults__ and tuple(map(replaced, function.__defaults__))
        known = function.__kwdefaults__
        made.__kwdefaults__ = known and {key: replaced(part) for key, part in known.items()}
        made.__dict__.update({key: replaced(part) for key, part in vars(function).items()})
        made.__annotations__, made.__doc__ = function.__annotations__, function.__doc__
        made.__qualname__, made.__module__ = function.__qualname__, function.__module__
        return made

    def _keep(self, value: Any, made: Any) -> Any:
        self._done[id(value)] = (value, made)
        return made


class _Later:
    """Stands in a closure for the graph that it is part of, which is not guarded yet when the closure is copied."""

    graph: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)


_looking: ContextVar[frozenset[int]] = ContextVar("mosaic_guard_looking", default=frozenset())
"""Graphs that are being looked into: a node may hold the graph that it is part of."""


def holds_tools(graph: Any) -> bool:
    """Whether a compiled graph runs tools, in a tool node of its own or in something that its nodes hold."""
    if id(graph) in _looking.get():
        return False
    token = _looking.set(_looking.get() | {id(graph)})
    try:
        parts = [spec.runnable for spec in graph.builder.nodes.values()]
        if any(_is_tool_node(part) for part in parts):
            return True
        paths = [branch.path for named in graph.builder.branches.values() for branch in named.values()]
        return bool(Reach([*parts, *paths], lambda value: _unguarded(value) or _is_tool_node(value)).found)
    finally:
        _looking.reset(token)


def _runs_elsewhere(value: Any) -> bool:
    """Whether a value is a graph on a server. Who has one has imported its module, which takes a while."""
    module = sys.modules.get("langgraph.pregel.remote")
    return module is not None and isinstance(value, module.RemoteGraph)


def _is_tool_node(value: Any) -> bool:
    return isinstance(value, ToolNode)


def _unguarded(value: Any) -> bool:
    """Whether a value is a graph with tools that is not guarded."""
    builder = getattr(value, "builder", None) if isinstance(value, CompiledStateGraph) else None
    return builder is not None and GUARD_CHANNEL not in builder.channels and holds_tools(value)


def _only_named(where: str, name: str, itself: bool) -> UnguardableGraphError:
    what = f"{where} calls the graph {name!r}, which runs tools and is not guarded: "
    if itself:
        return UnguardableGraphError(
            f"{what}it is the graph that is being guarded, make it in a function, so that {name!r} is a local variable there"
        )
    return UnguardableGraphError(f"{what}guard it where it is made, {name} = guarded_graph({name}, ...)")


def _tool_node_inside(where: str) -> UnguardableGraphError:
    return UnguardableGraphError(
        f"{where} holds a ToolNode, where the guard cannot stand: make the ToolNode itself a node of the graph, or name the "
        "node that runs it with tool_nodes=[...] (in a graph inside a graph: guard that one where it is made)"
    )
