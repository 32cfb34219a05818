"""Graphs inside graphs: where a runnable, a function or a tool holds a compiled graph that runs tools, guard that too.

Supervisors close over their agents, deepagents' `task` tool over a dict of subagents, tools over the agent that they ask.
What is reachable through nodes, closures, defaults, partials and containers is replaced in a copy. What is only named
(a global, an attribute of an object) cannot be replaced without changing the user's own objects: that fails loudly.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, cast

from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from mosaic_guard._channel import GUARD_CHANNEL
from mosaic_guard._errors import UnguardableGraphError

PARTS = (
    *("bound", "runnable", "default", "fallbacks", "steps", "first", "middle", "last", "branches", "steps__"),
    *("func", "afunc", "coroutine"),
)
"""Where runnables keep what they are made of: bindings, retries, fallbacks, sequences, branches, parallels, functions."""

GuardGraph = Callable[[Any], Any]
"""Guards one compiled graph; what it returns takes the graph's place."""


class Nested:
    """One walk through a graph's parts.

    Args:
        guard: Guards a graph that holds tools.
    """

    def __init__(self, guard: GuardGraph) -> None:
        self._guard = guard
        # Objects are kept alive with their replacement: an id alone could be reused.
        self._done: dict[int, tuple[Any, Any]] = {}
        self._open: set[int] = set()

    def inside(self, value: Any, where: str) -> Any:
        """The value itself if it holds no graph with tools, else a copy in which each is guarded.

        Args:
            value: A runnable, function, tool, container of these, or anything else.
            where: How a person would name it, for errors.

        Raises:
            UnguardableGraphError: Where a graph or tool node is found that cannot be replaced.
        """
        key = id(value)
        if key in self._done:
            return self._done[key][1]
        if key in self._open:  # it holds itself: what is inside is being replaced further up
            return value
        self._open.add(key)
        try:
            found = self._walk(value, where)
        finally:
            self._open.discard(key)
        self._done[key] = (value, found)
        return found

    def _walk(self, value: Any, where: str) -> Any:
        if isinstance(value, Pregel):
            return self._graph(value, where)
        if isinstance(value, ToolNode):
            return self.tools_of(value, where)
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if isinstance(value, types.MethodType):
            return self._method(value, where)
        if isinstance(value, functools.partial):
            return self._partial(value, where)
        if isinstance(value, Mapping):
            new = {k: self.inside(v, f"{where}[{k!r}]") for k, v in value.items()}
            return new if _changed(new.values(), value.values()) else value
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            items = [self.inside(v, where) for v in value]
            return type(value)(items) if _changed(items, value) else value
        if isinstance(value, BaseTool):
            return self._fields(value, where, vars(value))
        if isinstance(value, Runnable):
            return self._fields(value, where, {part: vars(value)[part] for part in PARTS if part in vars(value)})
        return value

    def _graph(self, graph: Any, where: str) -> Any:
        builder = getattr(graph, "builder", None)
        if not isinstance(graph, CompiledStateGraph) or builder is None:
            return graph
        return self._guard(graph) if GUARD_CHANNEL not in builder.channels and holds_tools(graph) else graph

    def tools_of(self, node: ToolNode, where: str) -> ToolNode:
        """A tool node whose tools hold guarded graphs only."""
        tools = {name: self.inside(tool, f"tool {name!r}") for name, tool in node.tools_by_name.items()}
        if not _changed(tools.values(), node.tools_by_name.values()):
            return node
        new: Any = copy.copy(node)
        new._tools_by_name = tools
        return cast(ToolNode, new)

    def _function(self, function: types.FunctionType, where: str) -> Any:
        self._refuse_globals(function, where)
        cells = [self.inside(_content(cell), where) for cell in function.__closure__ or ()]
        known = [_content(cell) for cell in function.__closure__ or ()]
        defaults = self.inside(function.__defaults__ or (), where)
        keywords = self.inside(function.__kwdefaults__ or {}, where)
        attributes = {k: self.inside(v, where) for k, v in vars(function).items()}
        if not (
            _changed(cells, known)
            or defaults is not (function.__defaults__ or defaults)
            or _changed(keywords.values(), (function.__kwdefaults__ or {}).values())
            or _changed(attributes.values(), vars(function).values())
        ):
            return function
        closure = tuple(
            cell if new is old else types.CellType(new)
            for cell, new, old in zip(function.__closure__ or (), cells, known, strict=True)
        )
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults or None, closure)
        made.__kwdefaults__ = dict(keywords) or None
        made.__dict__.update(attributes)
        made.__annotations__, made.__doc__ = function.__annotations__, function.__doc__
        made.__qualname__, made.__module__ = function.__qualname__, function.__module__
        return made

    def _method(self, method: types.MethodType, where: str) -> Any:
        owner = method.__self__
        if isinstance(owner, (Runnable, type, types.ModuleType)):
            return method
        held = [name for name, value in getattr(owner, "__dict__", {}).items() if _unguarded(value)]
        if held:
            raise _only_named(where, f"self.{held[0]}")
        function = self.inside(method.__func__, where)
        return method if function is method.__func__ else types.MethodType(function, owner)

    def _partial(self, value: functools.partial[Any], where: str) -> Any:
        func, args = self.inside(value.func, where), self.inside(value.args, where)
        keywords = self.inside(value.keywords, where)
        same = func is value.func and args is value.args and keywords is value.keywords
        return value if same else functools.partial(func, *args, **keywords)

    def _fields(self, value: Any, where: str, fields: Mapping[str, Any]) -> Any:
        for name, part in fields.items():
            if isinstance(part, ToolNode):
                raise UnguardableGraphError(
                    f"{where} wraps a ToolNode in a {type(value).__name__}, where the guard cannot stand: "
                    f"add the ToolNode itself as the node ({name!r} of the wrapper)"
                )
        new = {name: self.inside(part, where) for name, part in fields.items()}
        if not _changed(new.values(), fields.values()):
            return value
        made = copy.copy(value)
        for name, part in new.items():
            object.__setattr__(made, name, part)
        return made

    def _refuse_globals(self, function: types.FunctionType, where: str) -> None:
        for name in _names(function.__code__):
            if _unguarded(function.__globals__.get(name)):
                raise _only_named(where, name)


_looking: ContextVar[frozenset[int]] = ContextVar("mosaic_guard_looking", default=frozenset())
"""Graphs that are being looked into: a node may name the graph that it is part of."""


def holds_tools(graph: Any) -> bool:
    """Whether a compiled graph runs tools, in a tool node of its own or in something that its nodes hold."""
    if id(graph) in _looking.get():
        return False
    token = _looking.set(_looking.get() | {id(graph)})
    try:
        found = _Found()
        for name, spec in graph.builder.nodes.items():
            if isinstance(spec.runnable, ToolNode):
                return True
            Nested(found).inside(spec.runnable, f"node {name!r}")
        return found.any
    finally:
        _looking.reset(token)


class _Found:
    """Takes the place of the guard while looking only."""

    any = False

    def __call__(self, graph: Any) -> Any:
        self.any = True
        return graph


def _unguarded(value: Any) -> bool:
    """Whether a value is a graph with tools that is not guarded."""
    builder = getattr(value, "builder", None) if isinstance(value, CompiledStateGraph) else None
    return builder is not None and GUARD_CHANNEL not in builder.channels and holds_tools(value)


def _only_named(where: str, name: str) -> UnguardableGraphError:
    return UnguardableGraphError(
        f"{where} calls the graph {name!r}, which runs tools and is not guarded: "
        f"guard it where it is made, {name} = guarded_graph({name}, ...)"
    )


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names that a function and the functions inside it use."""
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _names(const)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _changed(new: Any, old: Any) -> bool:
    return any(a is not b for a, b in zip(new, old, strict=True))
