"""The guard's own channel: what it remembers of a thread, hidden from the graph's input, output, state and streams.

It is checkpointed with the thread, so any process can resume it. `Plain` values only: dicts, lists, strings, numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig

from mosaic_guard._decision import call_digest

GUARD_CHANNEL = "__mosaic_guard__"
READ = "__pregel_read"
"""Where langgraph puts a task's state reader into its config; its own ToolNode reads the state by it."""
SEND = "__pregel_send"
"""Where langgraph puts a task's writer into its config; its own branches write by it."""


def merge(current: dict[str, Any] | None, update: dict[str, Any] | None) -> dict[str, Any]:
    """Reducer of the channel: keys overwrite, `routes+` appends to `routes`, `routes-` drops that many from its front.

    Two branches of one superstep may both add routes while `plan` takes the earlier ones, so these are increments.
    """
    value = {**(current or {})}
    for key, item in (update or {}).items():
        if key == "routes+":
            value["routes"] = [*value.get("routes", ()), *item]
        elif key == "routes-":
            value["routes"] = list(value.get("routes", ()))[item:]
        else:
            value[key] = item
    return value


def read(config: RunnableConfig, key: str, *, fresh: bool = False) -> Any:
    """The value of a state key as the running task sees it; None outside a graph or before its first write.

    Args:
        config: The task's config.
        key: A state key.
        fresh: Whether the task's own writes so far count.
    """
    reader = config.get("configurable", {}).get(READ)
    if reader is None:
        return None
    return reader([key], fresh).get(key)


def write(config: RunnableConfig, channel: str, update: Any) -> None:
    """Write to a channel from inside a task, without a return value that its callbacks would see."""
    config["configurable"][SEND]([(channel, update)])


def position(messages: Sequence[BaseMessage]) -> str:
    """Names a step by where it stands in the history: number of messages, index and id of the proposing AI message.

    Call ids and even message ids repeat in the wild; a place in the history does not, within a thread.
    """
    index = next((i for i in range(len(messages) - 1, -1, -1) if isinstance(messages[i], AIMessage)), -1)
    return f"{len(messages)}:{index}:{messages[index].id if index >= 0 else None}"


@dataclass(frozen=True)
class Clearances:
    """The verdicts of one step, by digest of id, name and arguments."""

    step: str
    verdicts: Mapping[str, Mapping[str, str]]

    @classmethod
    def of_task(cls, config: RunnableConfig, messages_key: str) -> Clearances:
        """Those that hold for the running task: none, if the history is not where it was when they were issued."""
        here = position(read(config, messages_key) or ())
        issued = (read(config, GUARD_CHANNEL) or {}).get("clearances") or {}
        return cls(here, issued.get("verdicts", {}) if issued.get("step") == here else {})

    def verdict(self, call: Mapping[str, Any]) -> Mapping[str, str] | None:
        """`{"verdict", "reason"}` of a tool call; None where it was not judged."""
        return self.verdicts.get(call_digest(call.get("id"), str(call.get("name")), call.get("args")))
