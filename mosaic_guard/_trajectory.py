"""What a run's trajectory is called: a graph inside a guarded one has a trajectory of its own.

A run may name its trajectory in its metadata, and langgraph hands that on to all that runs inside. The name is that of the
outermost graph that judges steps; what lies deeper adds to it where it runs (`run/tools:5f2c…`, the task that it runs in), so
that an outcome of `run` is the outer graph's. The same task has the same name when another process resumes it.
"""

from __future__ import annotations

from langchain_core.runnables import RunnableConfig

OUTERMOST = "__pregel_mosaic_outermost"
"""In the config of a run: how deep the outermost graph lies that judges steps; 0 in no other graph."""

NAMESPACE = "checkpoint_ns"
"""In a task's config: the tasks that it runs in and the task itself, outermost first. A graph that a task runs more than once
has its number there too."""


def named(config: RunnableConfig) -> str | None:
    """The trajectory of a task's graph, as far as the run has named it.

    Args:
        config: The task's config.
    """
    name = (config.get("metadata") or {}).get("mosaic_trajectory")
    given = config.get("configurable", {})
    path = _path(config)[:-1]
    if name is None or _depth(path) <= given.get(OUTERMOST, _depth(path)):
        return None if name is None else str(name)
    return "/".join([str(name), *path])


def inside_of(config: RunnableConfig, *, graph: bool = False) -> dict[str, int]:
    """What a graph that judges steps adds to the configs of all that runs inside it.

    Args:
        config: The config of a task of the graph.
        graph: Whether it is the one that the graph itself is run with.
    """
    given = config.get("configurable", {})
    path = _path(config)
    return {} if OUTERMOST in given else {OUTERMOST: _depth(path if graph else path[:-1])}


def _path(config: RunnableConfig) -> list[str]:
    namespace = config.get("configurable", {}).get(NAMESPACE)
    return str(namespace).split("|") if namespace else []


def _depth(path: list[str]) -> int:
    """Number of graphs around a graph."""
    return sum(not part.isdigit() for part in path)
