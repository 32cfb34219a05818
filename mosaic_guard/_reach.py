"""What a value holds: the graphs and tool nodes that can be reached from a node, and by which way.

There are two kinds of way. What stands in a closure, a default, a partial, a container, a field of a tool or runnable can be
replaced in a copy. What is only *named* cannot, without changing the user's own objects: a global, an attribute of an
object or class.
"""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel

LIBRARIES = frozenset(
    "langchain langchain_core langgraph langgraph_sdk langgraph_supervisor langgraph_swarm langsmith deepagents "
    "langchain_mcp_adapters mosaic_guard pydantic pydantic_core typing_extensions".split()
)
"""Their globals name no agents; a function of theirs is still looked into for what it closes over."""

HOLDERS = frozenset(
    "collections concurrent.futures._base contextvars _contextvars functools itertools queue _queue".split()
)
"""Modules whose objects hold others for their users: caches, queues, futures, context variables."""

OBJECT_DEPTH = 4
"""How many objects in a row are looked into: an app that holds a team that holds an agent, not a whole database driver."""

CODE = (types.FunctionType, types.MethodType, functools.partial, type)
PLAIN = (str, bytes, bytearray, int, float, complex, type(None), BaseMessage)


class Way(NamedTuple):
    """From a value to one that it holds.

    Attributes:
        value: What is held.
        label: How a person would write the way.
        named: Whether it is only named, and so cannot be replaced in a copy.
    """

    value: Any
    label: str
    named: bool = False


def ways(value: Any) -> Iterator[Way]:
    """The values that a value holds."""
    if isinstance(value, (*PLAIN, CompiledStateGraph)):
        return  # a compiled graph is guarded as a whole, or not at all
    if isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield Way(value.__self__, "self", named=not isinstance(value.__self__, Runnable))
        yield Way(value.__func__, "")
    elif isinstance(value, functools.partial):
        for part in (value.func, value.args, value.keywords):
            yield Way(part, "")
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            yield Way(item, f"[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield Way(item, f"[{number}]")
    elif isinstance(value, type):
        yield from _of_class(value)
    elif isinstance(value, Pregel):  # of the functional API
        for name, node in value.nodes.items():
            yield Way(node.bound, f".nodes[{name!r}]", named=True)
    elif isinstance(value, Runnable):  # tools and tool nodes too
        for name, item in fields(value).items():
            yield Way(item, f".{name}")
        yield Way(type(value), "", named=True)
    elif type(value).__module__ in HOLDERS or isinstance(value, (Iterator, types.CoroutineType)):
        yield from (Way(part, "[…]", named=True) for part in gc.get_referents(value) if not isinstance(part, type))
    elif not isinstance(value, types.ModuleType) and _worth_a_look(type(value)):
        yield from _of_object(value)


def fields(value: Any) -> dict[str, Any]:
    """The instance attributes of a runnable or tool, private ones included."""
    return {**getattr(value, "__dict__", {}), **(getattr(value, "__pydantic_private__", None) or {})}


def content(cell: types.CellType) -> Any:
    """What a closure's cell holds; None for one that is not filled yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _of_function(function: types.FunctionType) -> Iterator[Way]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield Way(content(cell), name)
    for part in (function.__defaults__, function.__kwdefaults__, vars(function)):
        yield Way(part, function.__name__)
    if _root(function) in LIBRARIES:
        return
    names = list(_names(function.__code__))
    for name in names:
        found = function.__globals__.get(name)
        if isinstance(found, types.ModuleType):
            if _of_the_user(found.__name__, _root(function)):
                yield from (Way(vars(found)[n], f"{name}.{n}", named=True) for n in names if n in vars(found))
        elif not isinstance(found, (types.FunctionType, type)) or _of_the_user(found.__module__, _root(function)):
            yield Way(found, name, named=True)


def _of_class(cls: type[Any]) -> Iterator[Way]:
    for base in cls.__mro__:
        if not _of_the_user(base.__module__, None):
            continue
        for name, item in list(vars(base).items()):
            if name.startswith("__pydantic") or name in ("__dict__", "__weakref__"):
                continue
            function = getattr(item, "__func__", None) or getattr(item, "fget", None) or item
            if name == "tools" and _is_middleware(cls):
                continue
            yield Way(function, "" if isinstance(function, types.FunctionType) else f".{name}", named=True)


def _of_object(value: Any) -> Iterator[Way]:
    slots = [slot for cls in type(value).__mro__ for slot in _slots(cls)]
    held = {**{slot: getattr(value, slot, None) for slot in slots}, **getattr(value, "__dict__", {})}
    if isinstance(value, (set, frozenset)) or (isinstance(value, Mapping) and not held):
        held = {
            str(number): item for number, item in enumerate(value.values() if isinstance(value, Mapping) else value)
        }
    for name, item in held.items():
        if name != "tools" or not _is_middleware(type(value)):
            yield Way(item, f".{name}", named=True)
    yield Way(type(value), "", named=True)


def _is_middleware(cls: type[Any]) -> bool:
    """Whether `tools` of it are those that it brings: the agent's tool node runs them, which is walked on its own."""
    return any(base.__module__.startswith("langchain.agents.middleware") for base in cls.__mro__)


def _slots(cls: type[Any]) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ()) if _of_the_user(cls.__module__, None) else ()
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _worth_a_look(cls: type[Any]) -> bool:
    """Whether instances are looked into: the user's, those of packages that may hold anything, and bags of attributes."""
    root = cls.__module__.partition(".")[0]
    return root not in sys.stdlib_module_names | LIBRARIES or cls in (
        types.SimpleNamespace,
        types.MappingProxyType,
        set,
        frozenset,
    )


def _root(function: types.FunctionType) -> str:
    return (function.__module__ or "").partition(".")[0]


@functools.cache
def _of_the_user(module: str | None, root: str | None) -> bool:
    """Whether a module may name agents: it is of the package `root`, or not installed at all."""
    first = (module or "").partition(".")[0]
    if first in LIBRARIES or first in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return first == root or not ("site-packages" in file or "dist-packages" in file)


def _names(code: types.CodeType) -> Iterator[str]:
    """Global and attribute names that a function and the functions inside it use."""
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _names(const)


class Reach:
    """Everything that can be reached from a value, and what of it holds a wanted value.

    Args:
        start: The value.
        wanted: Whether a value is looked for; its own parts are not looked into.
    """

    def __init__(self, start: Any, wanted: Callable[[Any], bool]) -> None:
        self.start = start
        self._ways: dict[int, list[Way]] = {}
        self._alive: list[Any] = []  # an id alone could be reused
        self.found: list[Any] = []
        holders: dict[int, list[int]] = {}
        waiting: deque[tuple[Any, int]] = deque([(start, 0)])
        while waiting:
            value, depth = waiting.popleft()
            if id(value) in self._ways:
                continue
            self._alive.append(value)
            if wanted(value):
                self._ways[id(value)] = []
                self.found.append(value)
                continue
            known = list(ways(value)) if depth < OBJECT_DEPTH else []
            self._ways[id(value)] = known
            deeper = depth + (not isinstance(value, (*CODE, Runnable, dict, list, tuple)))
            for way in known:
                if not isinstance(way.value, PLAIN):
                    self._alive.append(way.value)
                    holders.setdefault(id(way.value), []).append(id(value))
                    # The shallowest first: what is reached by two ways is looked into from the shorter one.
                    (waiting.append if deeper > depth else waiting.appendleft)((way.value, deeper))
        self.holding = {id(value) for value in self.found}
        """Ids of the found values and of all that hold one."""
        spreading = list(self.holding)
        while spreading:
            new = [holder for holder in holders.get(spreading.pop(), ()) if holder not in self.holding]
            self.holding.update(new)
            spreading += new

    def only_named(self) -> str | None:
        """How a wanted value is named that cannot be replaced in a copy; None if there is none."""
        for known in self._ways.values():
            for way in known:
                if way.named and id(way.value) in self.holding:
                    return self._on_from(way).removeprefix(".")
        return None

    def _on_from(self, start: Way) -> str:
        """The shortest way to a wanted value, with this one first."""
        wanted, seen = {id(found) for found in self.found}, {id(start.value)}
        waiting = [(start.value, start.label)]
        while waiting:
            value, said = waiting.pop(0)
            if id(value) in wanted:
                return said
            for way in self._ways[id(value)]:
                if id(way.value) in self.holding and id(way.value) not in seen:
                    seen.add(id(way.value))
                    # A function's own names start anew: what leads to it says nothing about them.
                    label = way.label if way.label.startswith((".", "[")) or not way.label else f" {way.label}"
                    waiting.append((way.value, (said + label).rpartition(" ")[2]))
        return ""
