"""`Command(goto=...)` and `Send` that a node returns: what leads into a tool node leads to `plan`, as an edge would.

The gate would send such calls back as well, but only after the tool node has shown in `updates` and stopped `interrupt_before`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

from langgraph.pregel._write import ChannelWrite, ChannelWriteTupleEntry
from langgraph.types import Send

from mosaic_guard._channel import ROUTES_CHANNEL, TO

Writes = Sequence[tuple[str, Any]]


def lead_to_plan(compiled: Any, tool_nodes: AbstractSet[str], plan: str) -> None:
    """Change what the nodes of a compiled graph write when they return a command.

    Args:
        compiled: The compiled graph; changed in place.
        tool_nodes: Names of the guarded tool nodes.
        plan: Name of the node that their calls go to.
    """
    for node in compiled.nodes.values():
        for writer in node.writers:
            if isinstance(writer, ChannelWrite):
                writer.writes = [
                    entry._replace(mapper=partial(_redirected, entry.mapper, tool_nodes, plan))
                    if isinstance(entry, ChannelWriteTupleEntry)
                    else entry
                    for entry in writer.writes
                ]


def _redirected(
    mapper: Callable[[Any], Writes | None], tool_nodes: AbstractSet[str], plan: str, value: Any
) -> Writes | None:
    writes = mapper(value)
    routes: list[list[Any]] = []
    kept: list[tuple[str, Any]] = []
    for channel, update in writes or ():
        if isinstance(update, Send):
            routes.append([update.node, update.arg])
        elif channel.startswith(TO):
            routes.append([channel.removeprefix(TO), None])
        else:
            kept.append((channel, update))
    if tool_nodes.isdisjoint(name for name, _ in routes):
        return writes
    return [*kept, (ROUTES_CHANNEL, routes), (f"{TO}{plan}", None)]
