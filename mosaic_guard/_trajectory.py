"""What a run's trajectory is called: a graph inside a guarded one has a trajectory of its own.

A run may name its trajectory in its metadata, and langgraph hands that on to all that runs inside. The name is that of the
outermost graph that judges steps; what lies deeper adds to it where it runs (`run/tools:5f2c…`, the task that it runs in), so
that an outcome of `run` is the outer graph's. The same task has the same name when another process resumes it.
"""

from __future__ import annotations

from langchain_core.runnables import RunnableConfig

OUTERMOST = "__pregel_mosaic_outermost"
"""In the config of a run that has a name: how deep the outermost graph lies that judges steps (0 in no other), and the name."""

NAMESPACE = "checkpoint_ns"
"""In a task's config: the tasks that it runs in and the task itself, outermost first. A graph that a task runs more than once
has its number there too."""


def named(config: RunnableConfig) -> str | None:
    """The trajectory of a task's graph, as far as the run has named it.

    Args:
        config: The task's config.
    """
    name = _name(config)
    depth, outer = config.get("configurable", {}).get(OUTERMOST, (0, None))
    path = _path(config)[:-1]
    # Who runs a graph inside under another name has named it.
    return "/".join([outer, *path]) if name is not None and name == outer and _depth(path) > depth else name


def inside_of(config: RunnableConfig, *, graph: bool = False) -> dict[str, tuple[int, str]]:
    """What a graph that judges steps adds to the configs of all that runs inside it.

    Args:
        config: The config of a task of the graph.
        graph: Whether it is the one that the graph itself is run with.
    """
    name = _name(config)
    if name is None or config.get("configurable", {}).get(OUTERMOST, (0, None))[1] == name:
        return {}
    path = _path(config)
    return {OUTERMOST: (_depth(path if graph else path[:-1]), name)}


def _name(config: RunnableConfig) -> str | None:
    name = (config.get("metadata") or {}).get("mosaic_trajectory")
    return None if not name else str(name)


def _path(config: RunnableConfig) -> list[str]:
    namespace = config.get("configurable", {}).get(NAMESPACE)
    return str(namespace).split("|") if namespace else []


def _depth(path: list[str]) -> int:
    """Number of graphs around a graph."""
    return sum(not part.isdigit() for part in path)
