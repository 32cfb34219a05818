"""The guard's own channel: what it remembers of a thread, hidden from the graph's input, output, state and streams.

It is checkpointed with the thread, so any process can resume it. `Plain` values only: dicts, lists, strings, numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels.base import BaseChannel
from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.checkpoint.serde.types import TASKS
from langgraph.errors import EmptyChannelError

from mosaic_guard._decision import call_digest
from mosaic_guard._digest import digest_of_digests, message_digest, messages_digest

GUARD_CHANNEL = "__mosaic_guard__"
ROUTES_CHANNEL = "__mosaic_guard_routes__"
"""Routes into tool nodes, for the superstep after they were taken: as short-lived as langgraph's own triggers. What drops
those (new input, an edited state) drops the routes with them. And the routes beside them, which wait for the same decision."""
HIDDEN_CHANNELS = frozenset({GUARD_CHANNEL, ROUTES_CHANNEL})
READ = "__pregel_read"
"""Where langgraph puts a task's state reader into its config; its own ToolNode reads the state by it."""
CHECKPOINTER = "__pregel_checkpointer"
"""Where langgraph puts the checkpointer of the run into a task's config."""
RUNTIME = "__pregel_runtime"
"""Where langgraph puts a task's runtime, its stream writer included; an edit of the state has none."""
TASK_ID = "__pregel_task_id"
"""In the config of a graph that runs inside another one."""
RESUMING = "__pregel_resuming"
"""In the config of a graph that runs inside another one: whether it goes on where it stopped."""
OUTER_WRITTEN = "__pregel_mosaic_written"
"""In the config of a graph that runs inside another one: ids of the human messages that the outer graph's tools wrote."""
SEND = "__pregel_send"
"""Where langgraph puts a task's writer into its config; its own branches write by it."""
TO = "branch:to:"
"""What langgraph calls the channels that start a node."""


Channel = Mapping[str, Any]
"""What the guard's channel holds."""


def channel_of(config: RunnableConfig) -> Channel:
    """The guard's channel as the running task has left it so far; empty before the first step."""
    return read(config, GUARD_CHANNEL, fresh=True) or {}


WRITTEN = "written"
"""In the guard's channel: ids of the human messages that tools wrote."""


def merge(current: dict[str, Any] | None, update: dict[str, Any] | None) -> dict[str, Any]:
    """Reducer of the guard's channel: keys overwrite, except for what parallel tools add to one list."""
    current, update = current or {}, update or {}
    merged = {**current, **update}
    if WRITTEN in current and WRITTEN in update:
        merged[WRITTEN] = list(dict.fromkeys([*current[WRITTEN], *update[WRITTEN]]))
    return merged


class HiddenChannel(BinaryOperatorAggregate[dict[str, Any]]):
    """The guard's channel in a graph that others compile: checkpointed with the thread, but no part of its state.

    It says that it is empty, so `values`, `get_state()`, the input of nodes and the state of tools leave it out; `read`
    knows better.

    Attributes:
        beside: What this process keeps beside the value while the run lasts; it is not checkpointed.
    """

    def __init__(self, typ: Any = dict, operator: Callable[..., dict[str, Any]] = merge) -> None:
        super().__init__(typ, operator)
        self.beside: dict[str, Any] = {}

    def get(self) -> dict[str, Any]:
        """Nothing.

        Raises:
            EmptyChannelError: Always.
        """
        raise EmptyChannelError

    def is_available(self) -> bool:
        """Never."""
        return False

    def checkpoint(self) -> dict[str, Any]:
        """The value."""
        return self.value


def _task_view(config: RunnableConfig) -> tuple[Mapping[str, BaseChannel[Any, Any, Any]], Sequence[tuple[str, Any]]]:
    """The channels as the running task sees them, and what it has written itself.

    langgraph's own ToolNode finds the channels in the same place.
    """
    arguments: Sequence[Any] = getattr(config.get("configurable", {}).get(READ), "args", ())
    return (arguments[1], arguments[3].writes) if len(arguments) > 3 else ({}, ())


def hidden_channel(config: RunnableConfig, key: str) -> HiddenChannel | None:
    """The channel of a key as the running task sees it, if it is a hidden one."""
    channel = _task_view(config)[0].get(key)
    return channel if isinstance(channel, HiddenChannel) else None


def read(config: RunnableConfig, key: str, *, fresh: bool = False) -> Any:
    """The value of a state key as the running task sees it; None outside a graph, for no such key, or before its first write.

    Args:
        config: The task's config.
        key: A state key.
        fresh: Whether the task's own writes so far count.
    """
    channels, writes = _task_view(config)
    channel = channels.get(key)
    if channel is None:
        return None
    # Not by langgraph's reader: it copies every channel of the graph to read one.
    own = [value for name, value in writes if name == key] if fresh else []
    if isinstance(channel, HiddenChannel):
        return functools.reduce(merge, own, channel.value)
    if own:
        channel = channel.copy()
        channel.update(own)
    try:
        return channel.get()
    except EmptyChannelError:
        return None


def written_in(config: RunnableConfig) -> tuple[str, ...]:
    """Ids of the human messages that tools wrote, of the running task's graph and of those around it."""
    outer = config.get("configurable", {}).get(OUTER_WRITTEN, ())
    return (*outer, *channel_of(config).get(WRITTEN, ()))


def write(config: RunnableConfig, channel: str, update: Any) -> None:
    """Write to a channel from inside a task, without a return value that its callbacks would see."""
    config["configurable"][SEND]([(channel, update)])


def start(config: RunnableConfig, node: str) -> None:
    """Start a node in the next superstep, as an edge would."""
    write(config, f"{TO}{node}", None)


def wrote(config: RunnableConfig, channel: str) -> bool:
    """Whether the running task itself has written to a channel."""
    return any(name == channel for name, _ in _task_view(config)[1])


def leads_on(config: RunnableConfig) -> bool:
    """Whether the running task itself has written where the run goes on: it has returned a `Command` that says so."""
    return any(name == TASKS or name.startswith(TO) for name, _ in _task_view(config)[1])


def proposing(messages: Sequence[BaseMessage]) -> int:
    """Index of the last AI message that proposes tool calls; -1 if there is none."""
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if isinstance(message, AIMessage) and message.tool_calls:
            return index
    return -1


def position(messages: Sequence[BaseMessage], digests: Sequence[str] | None = None) -> str:
    """Names a step by its place in the history.

    That is: all that was said up to the message that proposes its calls, and how many tool results came after it. Call ids
    and even message ids repeat in the wild. Other messages that come later (a parallel branch's) do not matter.

    Args:
        messages: The history.
        digests: Of its messages, where they are known.
    """
    index = proposing(messages)
    answered = sum(isinstance(message, ToolMessage) for message in messages[index + 1 :])
    last = messages[index].id if index >= 0 else None
    known = list(map(message_digest, messages[: index + 1])) if digests is None else digests[: index + 1]
    return f"{digest_of_digests(known)}:{last}:{answered}"


def place(messages: Sequence[BaseMessage], index: int) -> str:
    """Names a step by all that was said before the message that proposes its calls, and by that message's id.

    What holds for the calls of a message that others may rewrite before its tools: its text may be redacted, and some of its
    calls be answered. Those that are left have digests of their own. `position` is what holds where nobody does that.
    """
    return f"{messages_digest(messages[:index])}:{messages[index].id}"


@dataclass(frozen=True)
class Clearances:
    """The verdicts of one step, by digest of id, name and arguments.

    Attributes:
        step: The place in the history.
        verdicts: `{"verdict", "reason"}` of each judged call.
        holds: Whether the step was judged here; without verdicts: no calls were found in it.
    """

    step: str
    verdicts: Mapping[str, Mapping[str, str]]
    holds: bool = False

    @classmethod
    def of_task(cls, config: RunnableConfig, messages_key: str, node: str) -> Clearances:
        """Those that hold for the running task.

        None hold if the history is not where it was when they were issued, or if they were issued for other tool nodes.

        Args:
            config: The task's config.
            messages_key: State key of the messages.
            node: Name of the tool node.
        """
        here = position(read(config, messages_key) or ())
        issued = (read(config, GUARD_CHANNEL) or {}).get("clearances") or {}
        holds = issued.get("step") == here and node in issued.get("nodes", ())
        return cls(here, issued["verdicts"] if holds else {}, holds)

    def verdict(self, call: Mapping[str, Any]) -> Mapping[str, str] | None:
        """`{"verdict", "reason"}` of a tool call; None where it was not judged."""
        return self.verdicts.get(digest_of(call))


def digest_of(call: Mapping[str, Any]) -> str:
    """The digest of a tool call as LangChain writes it."""
    return call_digest(call.get("id"), str(call.get("name")), call.get("args"))
