"""`hold=True`: what an agent says while it proposes calls is streamed after the guard's decision about them.

The graph's stream is filtered where it leaves the graph. Chunks of mode `messages` wait for the task that they come from:
when it ends without having proposed calls they go on, else when `check` has decided those calls. `check` says so in a
marker on the `custom` stream, so that it arrives in order; the `tasks` stream says which task ended with what. Both modes
are asked for behind the user's back and taken out again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, convert_to_messages
from langchain_core.runnables import RunnableConfig
from langgraph._internal._config import ensure_config, patch_configurable
from langgraph.config import get_stream_writer
from langgraph.pregel import Pregel
from langgraph.types import Overwrite

from mosaic_guard._channel import TASK_ID
from mosaic_guard._decision import Call, Decision
from mosaic_guard._final_answer import FINAL, STRUCTURED

HOLDING = "__pregel_mosaic_hold"
"""Set in a run's config while its stream is held. langgraph drops keys with this prefix from what it shows of a config."""


@dataclass(frozen=True)
class Decided:
    """The marker: calls of a graph that the guard has decided.

    Attributes:
        graph: The graph's namespace.
        ids: The ids of the calls; `final_answer` for an answer.
        withheld: Whether the answer is not given, at least not now: its chunks never leave.
    """

    graph: tuple[str, ...]
    ids: tuple[str | None, ...]
    withheld: bool = False


def announce(config: RunnableConfig, calls: Sequence[Call], decisions: Sequence[Decision]) -> None:
    """Called by `check`, when all else of the decision has been sent: what waits for it may go on.

    Args:
        config: The config of `check`'s task.
        calls: The calls that were decided.
        decisions: The decision of each.
    """
    if config.get("configurable", {}).get(HOLDING):
        graph = _path(config.get("metadata") or {})[:-1]
        ids = tuple(FINAL if call.name == FINAL else call.id for call in calls)
        withheld = any(i == FINAL and d.verdict != "act" for i, d in zip(ids, decisions, strict=True))
        get_stream_writer()(Decided(graph, ids, withheld))


class HeldStream:
    """Filters the chunks of one run.

    Args:
        modes: The stream mode that the user asked for, or a list of them.
        subgraphs: Whether the user asked for subgraphs.
        version: The form of the chunks, `v1` or `v2`.
        final: Whether answers are judged too.
    """

    def __init__(self, modes: str | Sequence[str], subgraphs: bool, version: str, final: bool = False) -> None:
        self._final = final
        self._modes, self._subgraphs, self._version = modes, subgraphs, version
        self._wanted = {modes} if isinstance(modes, str) else set(modes)
        self._waiting: list[tuple[tuple[str, ...], Any]] = []
        self._open: dict[tuple[str, ...], Counter[str | None]] = {}
        """Calls without a decision, by the task that proposed them."""

    @property
    def modes(self) -> list[str]:
        """What to ask the graph for."""
        return [*self._wanted, *{"custom", "tasks"}.difference(self._wanted)]

    def feed(self, chunk: Any) -> Iterator[Any]:
        """What may leave now that a chunk has come.

        Args:
            chunk: A chunk of the graph's stream over the list `modes`.
        """
        namespace, mode, payload = self._parts(chunk)
        if mode == "messages":
            self._waiting.append((_path(payload[1]), self._shaped(chunk, namespace, payload)))
            return
        released: list[Any] = []
        if isinstance(payload, Decided):
            released = self._decided(payload.graph, Counter(payload.ids))
            released = [] if payload.withheld else released
        elif mode == "tasks" and "result" in payload:
            released = self._ended(namespace, f"{payload['name']}:{payload['id']}", payload)
        if mode in self._wanted and not isinstance(payload, Decided):
            yield self._shaped(chunk, namespace, payload)
        yield from released

    def rest(self) -> list[Any]:
        """What still waits when the run has ended without an error."""
        return self._release(())

    def _parts(self, chunk: Any) -> tuple[tuple[str, ...] | None, str, Any]:
        """Namespace (None where it is not told), mode and payload of a chunk."""
        if self._version == "v2":
            return chunk["ns"], chunk["type"], chunk["data"]
        return tuple(chunk) if self._subgraphs else (None, *chunk)

    def _shaped(self, chunk: Any, namespace: Any, payload: Any) -> Any:
        """The chunk as the user's own modes would have made it: langgraph leaves the mode out unless it got a list."""
        if self._version == "v2" or isinstance(self._modes, list):
            return chunk
        return (namespace, payload) if self._subgraphs else payload

    def _ended(self, namespace: tuple[str, ...] | None, name: str, payload: Any) -> list[Any]:
        """A task has ended: its chunks go on unless it has proposed calls."""
        if payload["error"] or payload["interrupts"]:
            return []  # what it would have proposed is not known
        said = list(_messages(payload["result"]))
        answered: Counter[str | None] = Counter(m.tool_call_id for m in said if isinstance(m, ToolMessage))
        proposed: Counter[str | None] = Counter(c["id"] for m in said if isinstance(m, AIMessage) for c in m.tool_calls)
        proposed -= answered
        # A call that another node has answered is never judged.
        released = self._decided(namespace, answered) if answered else []
        task = next((path[: path.index(name) + 1] for path, _ in self._waiting if name in path), None)
        if task is None:
            return released
        answers = any(isinstance(m, AIMessage) and not m.tool_calls for m in said)
        if self._final and not namespace and (answers or _structured(payload["result"])):
            proposed[FINAL] = 1  # released at the end of the run if it turns out to be no answer
        if proposed:
            self._open[task] = proposed
            return released
        return released + self._release(task)

    def _decided(self, graph: tuple[str, ...] | None, ids: Counter[Any]) -> list[Any]:
        """Calls of a graph are decided; the chunks of a task go on with the last of its calls."""
        released = []
        for task, left in list(self._open.items()):
            if graph is None or task[:-1] == graph:
                left.subtract(ids)
                if not +left:
                    released += self._release(task)
        return released

    def _release(self, task: tuple[str, ...]) -> list[Any]:
        """Take out the chunks of a task and of all that ran inside it."""
        self._open = {other: left for other, left in self._open.items() if other[: len(task)] != task}
        released = [chunk for path, chunk in self._waiting if path[: len(task)] == task]
        self._waiting = [(path, chunk) for path, chunk in self._waiting if path[: len(task)] != task]
        return released


class HoldsMessages(Pregel):  # type: ignore[type-arg]
    """Mixed into a guarded graph: its `messages` stream waits for the guard."""

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """As the unguarded graph, but that chunks of mode `messages` come after the decision."""
        held = self._held(config, kwargs)
        if held is None:
            yield from super().stream(input, config, **kwargs)
            return
        for chunk in super().stream(input, *self._holding(config), **{**kwargs, "stream_mode": held.modes}):
            yield from held.feed(chunk)
        yield from held.rest()

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """As the unguarded graph, but that chunks of mode `messages` come after the decision."""
        held = self._held(config, kwargs)
        if held is None:
            async for chunk in super().astream(input, config, **kwargs):
                yield chunk
            return
        run: Any = super().astream(input, *self._holding(config), **{**kwargs, "stream_mode": held.modes})
        async with aclosing(run):
            async for chunk in run:
                for released in held.feed(chunk):
                    yield released
        for released in held.rest():
            yield released

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As the unguarded graph, in version `v3`.

        Raises:
            ValueError: In another version, whose events carry tokens past the stream that is held.
        """
        if kwargs.get("version", "v2") != "v3":
            raise ValueError(
                "with hold=True, astream_events shows tokens before the guard's decision: use "
                "astream(stream_mode=['messages', 'updates', 'custom']) or astream_events(version='v3')"
            )
        return super().astream_events(input, config, **kwargs)

    def astream_log(self, *args: Any, **kwargs: Any) -> Any:
        """Not with `hold=True`.

        Raises:
            ValueError: Always: the log carries tokens past the stream that is held.
        """
        raise ValueError("with hold=True, astream_log shows tokens before the guard's decision: use astream(...)")

    def _held(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> HeldStream | None:
        """The filter for a run; None where the user's modes show no tokens."""
        modes = kwargs.get("stream_mode")
        if modes is None:
            modes = "values" if TASK_ID in (config or {}).get("configurable", {}) else self.stream_mode
        if modes != "messages" and (isinstance(modes, str) or "messages" not in modes):
            return None
        return HeldStream(modes, bool(kwargs.get("subgraphs")), kwargs.get("version", "v1"), self._checks_answers())

    def _checks_answers(self) -> bool:
        nodes = getattr(self, "guard_nodes", None)
        return nodes is not None and bool(nodes.check_final)

    def _holding(self, config: RunnableConfig | None) -> tuple[RunnableConfig | None]:
        # langgraph tells a user who forgot the thread id by an empty config; let it.
        if self.checkpointer and not ensure_config(self.config, config)["configurable"]:
            return (config,)
        return (patch_configurable(config, {HOLDING: True}),)


def _path(metadata: Any) -> tuple[str, ...]:
    """The tasks, outermost first, that a task runs in, itself included."""
    return tuple(str(metadata.get("langgraph_checkpoint_ns", "")).split("|"))


def _structured(result: Any) -> bool:
    """Whether a task has written a structured answer."""
    return isinstance(result, dict) and result.get(STRUCTURED) is not None


def _messages(result: Any, depth: int = 5) -> Iterator[BaseMessage]:
    """The messages in what a task has written, in whichever key of the state; not in what lies deeper than lists of them."""
    if depth < 0:
        return
    if isinstance(result, BaseMessage):
        yield result
    elif isinstance(result, dict):
        if result.get("tool_calls") or result.get("tool_call_id"):
            yield from _converted(result)
        for part in result.values():
            yield from _messages(part, depth - 1)
    elif isinstance(result, (list, tuple)):
        for part in result:
            yield from _messages(part, depth - 1)
    elif isinstance(result, Overwrite):
        yield from _messages(result.value, depth - 1)


def _converted(message: dict[str, Any]) -> list[BaseMessage]:
    """A message that a node wrote as a dict, as the state's reducer would read it."""
    try:
        return convert_to_messages([message])
    except (ValueError, NotImplementedError):
        return []
