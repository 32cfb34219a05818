"""With a guard that allows everything, a guarded graph is the unguarded one to whoever runs it.

Each agent of the corpus runs with and without the guard, sync and async, without and with checkpointers, and what comes out
is compared: every stream mode, the end state, the tool bodies that ran, errors. Taken out before: generated ids, times, step
numbers, and `values` that repeat the ones before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import asynccontextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from corpus import CORPUS, Entry, load
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import GraphRecursionError
from langgraph.types import Command, Interrupt
from pydantic import BaseModel
from scripted_agents import visible

from mosaic_guard import Guard, ScriptedGuardModel, guarded_graph

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:create_react_agent has been moved:DeprecationWarning"),
]

MODES: Any = ["values", "updates", "messages", "custom", "tasks", "debug"]
DROPPED = {
    *(
        "id",
        "ts",
        "timestamp",
        "step",
        "langgraph_step",
        "checkpoint",
        "config",
        "parent_config",
        "thread_id",
        "run_id",
    ),
    *("checkpoint_ns", "langgraph_checkpoint_ns", "langgraph_triggers", "triggers", "langgraph_path", "checkpoint_id"),
    *("parents", "created_at"),
}
GENERATED = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")


def allows() -> Guard:
    return Guard(ScriptedGuardModel("act"))


def plain(value: Any) -> Any:
    """A value without what differs between any two runs."""
    if isinstance(value, BaseMessage):
        calls = [(c["name"], plain(c["args"]), plain(c["id"])) for c in getattr(value, "tool_calls", [])]
        more = [getattr(value, name, None) for name in ("tool_call_id", "status", "artifact")]
        return (value.type, value.name, plain(value.content), calls, plain(more), plain(value.additional_kwargs))
    if isinstance(value, Interrupt):
        return ("interrupt", plain(value.value))
    if isinstance(value, BaseModel):
        return plain(dict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in DROPPED}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return GENERATED.sub("<id>", value if isinstance(value, str) else repr(value))


class Observed:
    """What one run showed."""

    def __init__(self) -> None:
        self.chunks: list[tuple[tuple[str, ...], str, Any]] = []
        self.log: list[Any] = []
        self.error = ""
        self.state: Any = None
        self.printed = ""

    def add(self, chunk: Any) -> None:
        self.chunks.append(chunk)

    def streamed(self, mode: str) -> list[Any]:
        """The chunks of a mode. Parallel tasks end in any order, so that of the chunks of other modes than `values` is free."""
        found: dict[tuple[str, ...], list[Any]] = {}
        for namespace, own_mode, data in self.chunks:
            if own_mode != mode or (mode == "debug" and data["type"] == "checkpoint"):
                continue
            kept = found.setdefault(namespace, [])
            if mode != "values" or not kept or kept[-1] != plain(data):
                kept.append(plain(data))
        named = [[tuple(part.partition(":")[0] for part in where), seen] for where, seen in found.items()]
        for one in named:
            one[1] = one[1] if mode == "values" else sorted(one[1], key=repr)
        return sorted(named, key=repr)

    def compared(self) -> dict[str, Any]:
        shown = {mode: self.streamed(mode) for mode in MODES}
        return {
            "log": sorted(map(repr, self.log)),
            "printed": sorted(self.printed.splitlines()),
            "error": self.error,
            "state": plain(self.state),
            **shown,
        }


THREAD: Any = {"configurable": {"thread_id": "1"}}


def inputs(entry: Entry) -> Iterator[Any]:
    """The input, then the answers to the interrupts that it runs into."""
    yield entry.input
    if entry.resume is not None:
        yield Command(resume=entry.resume)


async def observe(entry: Entry, saver: Any, *, guarded: bool, run_async: bool) -> Observed:
    seen = Observed()
    graph = entry.build(saver, seen.log)
    if guarded:
        graph = guarded_graph(graph, guard=allows(), **entry.options)
    options: Any = {"stream_mode": MODES, "subgraphs": True, "context": entry.context}
    printed = StringIO()
    with redirect_stdout(printed):
        try:
            for given in inputs(entry):
                if run_async:
                    async for chunk in graph.astream(given, THREAD, **options):
                        seen.add(chunk)
                else:
                    for chunk in graph.stream(given, THREAD, **options):
                        seen.add(chunk)
        except Exception as error:
            seen.error = f"{type(error).__name__}: {error}"
    seen.printed = printed.getvalue()
    if saver is not None:
        snapshot = await graph.aget_state(THREAD) if run_async else graph.get_state(THREAD)
        seen.state = [snapshot.values, snapshot.next, [task.name for task in snapshot.tasks]]
    return seen


@asynccontextmanager
async def saver_of(kind: str, folder: Path, run_async: bool) -> Any:
    if kind == "none":
        yield None
    elif kind == "memory":
        yield InMemorySaver()
    elif run_async:
        async with AsyncSqliteSaver.from_conn_string(str(folder / "threads.sqlite")) as saver:
            yield saver
    else:
        with SqliteSaver.from_conn_string(str(folder / "threads.sqlite")) as saver:
            yield saver


@pytest.mark.parametrize("name", CORPUS)
async def test_a_guard_that_allows_everything_changes_nothing(name: str, tmp_path: Path) -> None:
    entry = CORPUS[name]
    for kind in ("none", "memory", "sqlite"):
        if kind == "none" and entry.resume is not None:
            continue
        for run_async in (False, True):
            results = []
            for guarded in (False, True):
                folder = tmp_path / f"{kind}-{run_async}-{guarded}"
                folder.mkdir()
                async with saver_of(kind, folder, run_async) as saver:
                    seen = await observe(entry, saver, guarded=guarded, run_async=run_async)
                results.append(seen.compared())
            want, got = results
            if entry.beside:
                want["values"], got["values"] = want["values"][-1][1][-1], got["values"][-1][1][-1]
                for key in ("tasks", "debug"):  # they show what a task read
                    del want[key], got[key]
            for key in want:
                assert got[key] == want[key], (key, kind, "async" if run_async else "sync")


def outcome(entry: Entry, limit: int, guarded: bool) -> Any:
    log: list[Any] = []
    graph = entry.build(InMemorySaver(), log)
    if guarded:
        graph = guarded_graph(graph, guard=allows(), **entry.options)
    said = "finished"
    with redirect_stdout(StringIO()):
        try:
            graph.invoke(entry.input, {**THREAD, "recursion_limit": limit}, context=entry.context)
        except GraphRecursionError as error:
            said = str(error)
        except Exception as error:
            said = repr(error)
    if entry.beside:
        return (said,)
    return said, plain(graph.get_state(THREAD).values), sorted(map(repr, log))


@pytest.mark.parametrize("name", [name for name, entry in CORPUS.items() if entry.resume is None])
def test_recursion_limit_is_reached_at_the_same_step(name: str) -> None:
    entry = CORPUS[name]
    for limit in range(1, entry.steps + 1):
        want, got = outcome(entry, limit, False), outcome(entry, limit, True)
        assert got == want, limit
        if want[0] == "finished":
            return
    assert "error" in want[0].lower(), "give it more steps"


def stops(entry: Entry, where: dict[str, Any], guarded: bool) -> list[Any]:
    """Where a run stops, each time that it is taken up again."""
    graph = entry.build(InMemorySaver(), [])
    graph.interrupt_before_nodes, graph.interrupt_after_nodes = where.get("before", []), where.get("after", [])
    if guarded:
        graph = guarded_graph(graph, guard=allows(), **entry.options)
    seen: list[Any] = []
    given = entry.input
    with redirect_stdout(StringIO()):
        for _ in range(20):
            graph.invoke(given, THREAD, context=entry.context)
            snapshot = graph.get_state(THREAD)
            # Stopped behind the agent, what comes next is called `plan`.
            waits = bool(snapshot.next) if "after" in where else sorted(snapshot.next)
            seen.append([waits, plain(snapshot.values)])
            given = None
            if not snapshot.next:
                return seen
    raise AssertionError(f"it does not end: {seen}")


STOPS = [
    "create_agent",
    "condition",
    "send",
    "edge",
    "a function as tool node",
    "a subgraph",
    "two tool nodes in a row",
]


@pytest.mark.parametrize("name", [*STOPS, "examples/command_goto.py", "examples/several_tool_nodes.py"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_interrupts_before_and_after_nodes_stop_at_the_same_places(name: str, where: str) -> None:
    entry = CORPUS[name]
    nodes = [node for node in entry.build(None, []).nodes if node != "__start__"]
    for chosen in ([node] for node in nodes):
        assert stops(entry, {where: chosen}, True) == stops(entry, {where: chosen}, False), chosen


def test_a_cached_tool_node_runs_as_often_as_unguarded() -> None:
    runs = []
    for guarded in (False, True):
        log: list[Any] = []
        entry = CORPUS["a cache policy"]
        graph = entry.build(None, log)
        if guarded:
            graph = guarded_graph(graph, guard=allows())
        for _ in range(2):
            graph.invoke(entry.input)
        runs.append(sorted(log))
    assert runs[0] == runs[1]


def test_bound_config_is_seen_by_nodes_and_tools() -> None:
    entry = CORPUS["InjectedState"]
    shown = []
    for guarded in (False, True):
        graph: Any = entry.build(None, []).with_config({"tags": ["mine"], "metadata": {"user": "anna"}})
        if guarded:
            graph = guarded_graph(graph, guard=allows())
        tagged = []
        for _, about in graph.stream(entry.input, stream_mode="messages"):
            tagged.append((about["langgraph_node"], about.get("user"), "mine" in about.get("tags", [])))
        shown.append(tagged)
    assert shown[0] == shown[1]
    assert all(user == "anna" for _, user, _ in shown[0])


async def test_tools_of_an_mcp_server() -> None:
    """One server process for both runs."""
    mcp_tools = load("mcp_tools")
    shown = []
    from langchain_mcp_adapters.client import MultiServerMCPClient
    from langchain_mcp_adapters.tools import load_mcp_tools

    async with MultiServerMCPClient({"files": mcp_tools.SERVER}).session("files") as session:
        tools = await load_mcp_tools(session)
        for guarded in (False, True):
            graph = mcp_tools.build(tools)
            if guarded:
                graph = guarded_graph(graph, guard=allows())
            shown.append(visible((await graph.ainvoke(mcp_tools.INPUT))["messages"]))
    assert plain(shown[0]) == plain(shown[1])
