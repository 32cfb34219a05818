"""What tests see of a thread from outside the graph: which calls were cleared, which ran, what was stored, when it died.

Every execution of a tool body has a number, and its result says it: a stored result tells which execution it came from.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool
from langgraph._internal._constants import CONF, CONFIG_KEY_READ, CONFIG_KEY_RUNTIME
from langgraph.checkpoint.memory import InMemorySaver

from mosaic_guard import Policy

Checkpoint = tuple[str, str]
"""Namespace and id."""
Place = tuple[Any, ...]
"""Names a step: all that was said before the message that proposes its calls, that message's id, and maybe its calls."""

ASKS, FAILS, REFUSED = 4, 5, 3
"""Arguments about which a person decides, on which the guard fails, and which it refuses; it clears all others."""


class Killed(BaseException):
    """The process is gone, outside a tool."""


class Crashed(Exception):
    """The process is gone, while a tool runs or the store is written to: raised in threads of langgraph's."""


class Flaky(Exception):
    """A tool has failed, and may be tried again."""


def proposed(messages: Sequence[BaseMessage]) -> tuple[int, list[Any]]:
    """Index of the last AI message that proposes calls, and these; -1 if there is none."""
    for index in reversed(range(len(messages))):
        message = messages[index]
        if isinstance(message, AIMessage) and message.tool_calls:
            return index, list(message.tool_calls)
    return -1, []


def place(messages: Sequence[BaseMessage], *, with_calls: bool) -> Place:
    """Names the step that a history stands at."""
    index, calls = proposed(messages)
    said = tuple((m.type, str(m.content), getattr(m, "tool_call_id", None)) for m in messages[:index])
    shown = tuple((c["id"], c["name"], repr(c["args"])) for c in calls) if with_calls else ()
    return (said, messages[index].id, shown)


def results(value: Any) -> Iterator[int]:
    """The numbers of the executions whose results are among messages."""
    for message in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(message, ToolMessage) and (found := re.search(r"#(\d+)$", str(message.content))):
            yield int(found[1])


@dataclass
class Execution:
    """One run of a tool body.

    Attributes:
        number: Its number, from 0.
        step: The step that it belongs to.
        id: The id of the call.
        name: The tool.
        x: Its argument.
        task: Namespace of the task that it ran in.
        failed: Whether it failed, to be tried again.
    """

    number: int
    step: Place = field(repr=False)
    id: str
    name: str
    x: Any
    task: str
    failed: bool = False

    @property
    def what(self) -> tuple[str, str]:
        """What ran; `repr` tells 0 from False."""
        return self.name, repr(self.x)

    def same_call(self, other: Execution) -> bool:
        """Whether both are of one call (calls of a step may share an id), however it was rewritten."""
        return self.step == other.step and self.id == other.id


class Witness:
    """Sees all that happens, and stops the process where it is armed to.

    Attributes:
        violations: What must not have happened, in words.
        counts: What may happen, counted.
        owed: Stored results that new input has left out of a checkpoint; a step that is closed late still has to show them.

    Args:
        rewritten: What a wrapper makes of arguments.
        middleware: Whether `MosaicMiddleware` guards: it names a step by its message, whatever becomes of that one's other
            calls, and closes a step that new input cuts off as the model speaks again.
    """

    def __init__(self, rewritten: dict[int, Any] | None = None, middleware: bool = False) -> None:
        self.rewritten = rewritten or {}
        self.executions: list[Execution] = []
        self.cleared: set[tuple[Place, str, str, str]] = set()
        self.edited: set[tuple[Place, str]] = set()
        self.violations: list[str] = []
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.kill: tuple[str, int, bool] | None = None
        self.flaky = self.forking = False
        self.dead: str | None = None
        self.landed: dict[Checkpoint, frozenset[int]] = {}
        self.pending: defaultdict[Checkpoint, set[int]] = defaultdict(set)
        self.stored: set[int] = set()
        self.owed: dict[Checkpoint, set[int]] = {}
        self._middleware = middleware
        self._first = 0
        self._replayed: dict[Checkpoint, int] = {}
        self._retried: set[str] = set()
        self._lock = threading.RLock()

    # The life of a process.

    def begin(self, replays: Checkpoint | None = None) -> None:
        """A run begins; `replays`: the tasks of this checkpoint run again, whatever they have stored."""
        self._first, self.dead = len(self.executions), None
        self._retried.clear()
        if replays is not None:
            self._replayed[replays] = self._first

    def end(self) -> None:
        """The run has ended. What it did is stored, unless the process died."""
        self.kill, self.flaky = None, False
        if self.dead is not None:
            self.counts[f"died: {self.dead}"] += 1
            return
        for one in self.executions[self._first :]:
            if one.number not in self.stored and not one.failed and one.task not in self._retried:
                self.violations.append(f"the result of {one} was not stored")

    def dies(self, where: str) -> None:
        """Die, if this is where; `silent`: nothing reaches the store from here on."""
        with self._lock:
            if self.kill is None or self.kill[0] != where:
                return
            _, after, silent = self.kill
            if after:
                self.kill = (where, after - 1, silent)
                return
            self.kill, self.dead = None, f"{where}, silently" if silent else where
        raise Killed if where == "guard" else Crashed

    @property
    def mute(self) -> bool:
        """Whether the process can no longer write."""
        return self.dead is not None and self.dead.endswith("silently")

    # What the guard decides.

    def decide(self, step: Any) -> list[float]:
        """The guard model's answers."""
        self.dies("guard")
        answers = [{REFUSED: 0.9, ASKS: 0.3}.get(call.args["x"], 0.0) for call in step.calls]
        if any(call.args["x"] == FAILS for call in step.calls):
            raise RuntimeError("no decision")
        for call, p_refuse in zip(step.calls, answers, strict=True):
            if p_refuse == 0.0:
                self.clear(step.messages, call.id, call.name, call.args["x"])
        return answers

    def clear(self, messages: Sequence[BaseMessage], call_id: str, name: str, x: Any) -> None:
        """A call is cleared, in the step that the history stands at."""
        self.cleared.add((self.place(messages), call_id, name, repr(x)))

    def edited_call(self, messages: Sequence[BaseMessage], call_id: str) -> None:
        """A person has made another call of this one."""
        self.edited.add((self.place(messages), call_id))

    def place(self, messages: Sequence[BaseMessage]) -> Place:
        """Names the step that a history stands at, as what guards it does."""
        return place(messages, with_calls=not self._middleware)

    # What tools do.

    def tools(self, names: Sequence[str]) -> list[BaseTool]:
        """Tools whose bodies are watched."""

        def make(name: str) -> BaseTool:
            def body(x: Any, call_id: Annotated[str, InjectedToolCallId], config: RunnableConfig) -> str:
                return self.run(name, x, call_id, config)

            return StructuredTool.from_function(body, name=name, description=name)

        return [make(name) for name in names]

    def run(self, name: str, x: Any, call_id: str, config: RunnableConfig) -> str:
        """The body of a tool."""
        with self._lock:
            if self.dead is not None:
                raise Crashed
            self.dies("before")
            one = self._ran(name, x, call_id, config)
            if self.flaky:
                self.flaky, one.failed = False, True
                self._retried.add(one.task)
                raise Flaky
        self.dies("after")
        return f"{name} {x!r} #{one.number}"

    def _ran(self, name: str, x: Any, call_id: str, config: RunnableConfig) -> Execution:
        messages = config[CONF][CONFIG_KEY_READ](["messages"], False)["messages"]
        info = config[CONF][CONFIG_KEY_RUNTIME].execution_info
        one = Execution(len(self.executions), self.place(messages), call_id, name, x, info.checkpoint_ns)
        if (one.step, one.id, *one.what) not in self.cleared:
            self.violations.append(f"{one} ran without a clearance for exactly that call")
        self._must_not_be_stored(one, messages, (info.checkpoint_ns.rpartition("|")[0], info.checkpoint_id))
        self.executions.append(one)
        return one

    def _must_not_be_stored(self, one: Execution, messages: Sequence[BaseMessage], checkpoint: Checkpoint) -> None:
        known = {n for n in self.pending[checkpoint] if n >= self._replayed.get(checkpoint, 0)} | set(results(messages))
        before = [other for other in self.executions if other.same_call(one)]
        there = [other for other in before if other.number in known]
        calls = [call for call in proposed(messages)[1] if call["id"] == one.id]
        alike = [call for call in calls if (one.step, one.id) in self.edited or one.what in self._may_run_as(call)]
        if not alike:
            self.violations.append(f"{one} ran, though the agent's message has no such call")
        elif len(there) >= len(calls) or sum(other.what == one.what for other in there) >= len(alike):
            self.violations.append(f"{one} ran again, though its result was stored: {there}")
        elif any(other.what == one.what for other in before):
            self.counts["ran again: no result was stored, or on another branch"] += 1

    def _may_run_as(self, call: Any) -> list[tuple[str, str]]:
        x = call["args"]["x"]
        return [(call["name"], repr(ran)) for ran in (x, self.rewritten.get(x, x))]

    # What is stored.

    def checkpointed(self, at: Checkpoint, parent: Checkpoint | None, source: str, messages: Any) -> None:
        """A checkpoint was stored."""
        with self._lock:
            found = self.landed[at] = frozenset(results(messages))
            self.stored |= found
            if parent is None or parent not in self.landed:
                return
            expected = set(self.landed[parent])
            if source != "fork" and not self.forking:
                expected |= {n for n in self.pending[parent] if n >= self._replayed.get(parent, 0)}
            lost = expected - found
            self.owed[at] = self.owed.get(parent, set()) - found
            if lost and source == "input" and self._middleware:
                self.owed[at] |= lost
            elif lost:
                self.violations.append(f"stored results were lost: {[self.executions[n] for n in sorted(lost)]}")

    def written(self, at: Checkpoint, value: Any) -> None:
        """What a task wrote to the messages was stored."""
        with self._lock:
            found = set(results(value))
            self.pending[at] |= found
            self.stored |= found


class WatchedPolicy(Policy):
    """A policy whose clearances are seen."""

    def watched_by(self, witness: Witness) -> WatchedPolicy:
        """The policy itself."""
        object.__setattr__(self, "_witness", witness)
        return self

    def decide(self, call: Any, step: Any) -> Any:
        found = super().decide(call, step)
        if found is not None and found.verdict == "act":
            self._witness.clear(step.messages, call.id, call.name, call.args["x"])  # type: ignore[attr-defined]
        return found


class WatchedSaver(InMemorySaver):
    """A saver that is seen, and that a dead process cannot reach."""

    def __init__(self, witness: Witness) -> None:
        super().__init__()
        self._witness = witness

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        given = config["configurable"]
        at = (given["checkpoint_ns"], checkpoint["id"])
        if not self._witness.mute:
            self._witness.dies("put")
            super().put(config, checkpoint, metadata, new_versions)
            parent = (at[0], given["checkpoint_id"]) if given.get("checkpoint_id") else None
            messages = checkpoint["channel_values"].get("messages", ())
            self._witness.checkpointed(at, parent, metadata.get("source", ""), messages)
        own = {"thread_id": given["thread_id"], "checkpoint_ns": at[0], "checkpoint_id": at[1]}
        return {"configurable": own}

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        if self._witness.mute:
            return
        self._witness.dies("put_writes")
        super().put_writes(config, writes, task_id, task_path)
        given = config["configurable"]
        for channel, value in writes:
            if channel == "messages":
                self._witness.written((given.get("checkpoint_ns", ""), given["checkpoint_id"]), value)
