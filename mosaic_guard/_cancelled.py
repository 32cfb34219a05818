"""Steps that new input cuts off: each of their open calls gets an answer in its place, so that the thread stays valid."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.types import TASKS
from langgraph.config import get_config

from mosaic_guard._channel import CHECKPOINTER, proposing
from mosaic_guard._waiting import CANCELLED_MARK, unanswered

CANCELLED = "This call was cancelled: the user went on before it ran."
CUT_OFF = (
    "This call was cancelled: the user went on while it ran, and its result is not known. It may have had its effect."
)

Answers = Mapping[str | None, Sequence[ToolMessage]]
"""Answers to open calls, by id of the message that proposes them."""


def cancelled(calls: Sequence[Any], results: Sequence[ToolMessage], started: bool) -> list[ToolMessage]:
    """An answer to each open call: what a finished task returned, or that it was cancelled.

    Args:
        calls: The calls without an answer.
        results: Results that new input drops.
        started: Whether any of the calls may have run.
    """
    left = list(results)
    answers = []
    for call in calls:
        known = next((m for m in left if m.tool_call_id == call["id"]), None)
        if known is None:
            text = CUT_OFF if started else CANCELLED
            known = ToolMessage(
                text,
                name=call["name"],
                tool_call_id=call["id"],
                status="error",
                additional_kwargs={CANCELLED_MARK: True},
            )
        else:
            left.remove(known)
        answers.append(known)
    return answers


def open_steps(messages: Sequence[BaseMessage]) -> list[tuple[int, list[Any]]]:
    """Index and open calls of each message whose calls were not all answered before the next ones, last first."""
    steps = []
    end = len(messages)
    for index in reversed(range(len(messages))):
        message = messages[index]
        if isinstance(message, AIMessage) and message.tool_calls:
            answered = [m.tool_call_id for m in messages[index + 1 : end] if isinstance(m, ToolMessage)]
            # A call without an id cannot be answered.
            calls = [call for call in unanswered(message.tool_calls, answered) if call["id"] is not None]
            if calls:
                steps.append((index, calls))
            end = index
    return steps


def closed(messages: Sequence[Any], answers: Answers) -> list[Any]:
    """A history with answers to its open calls, each behind the message that proposes it and the answers that stand there."""
    made = list(messages)
    for index, calls in open_steps(messages):  # the last first: the places before it stay
        left = list(answers.get(messages[index].id, ()))
        end = index + 1
        while end < len(messages) and isinstance(messages[end], ToolMessage):
            end += 1
        for call in calls:
            answer = next((m for m in left if m.tool_call_id == call["id"]), None)
            if answer is not None:
                left.remove(answer)
                made.insert(end, answer)
                end += 1
    return made


def cut_off_answers(messages: Sequence[BaseMessage]) -> Answers:
    """Answers to the calls that are open where an agent's model is about to speak; none inside another graph's run."""
    searches = _searches(messages)
    saver = _saver() if searches else None
    found = [(message, calls, _find(saver, search)) for message, calls, search in searches]
    return _by_message(found)


async def acut_off_answers(messages: Sequence[BaseMessage]) -> Answers:
    """`cut_off_answers` for event loops."""
    searches = _searches(messages)
    saver = _saver() if searches else None
    found = [(message, calls, await _afind(saver, search)) for message, calls, search in searches]
    return _by_message(found)


@dataclass(frozen=True)
class _Left:
    """What the checkpoints know of a step that was cut off."""

    results: list[ToolMessage] = field(default_factory=list)
    started: bool = True


_Search = Generator[RunnableConfig, CheckpointTuple | None, _Left]
"""Yields where to look, is sent what is there."""

_MOST = 32
"""Checkpoints to look at; the step's own is a few back, one for each node between the input and the model."""


def _searches(messages: Sequence[BaseMessage]) -> list[tuple[BaseMessage, list[Any], _Search]]:
    steps = open_steps(messages)
    if not steps:
        return []
    given = get_config().get("configurable", {})
    if "|" in given.get("checkpoint_ns", ""):
        return []  # what is open here is open in the thread that this run is a part of
    thread: RunnableConfig = {"configurable": {"thread_id": given.get("thread_id"), "checkpoint_ns": ""}}
    return [(messages[index], calls, _search(messages[index], thread)) for index, calls in steps]


def _saver() -> BaseCheckpointSaver[Any] | None:
    given = get_config().get("configurable", {})
    saver = given.get(CHECKPOINTER)
    return saver if isinstance(saver, BaseCheckpointSaver) and "thread_id" in given else None


def _find(saver: BaseCheckpointSaver[Any] | None, search: _Search) -> _Left:
    if saver is None:
        return _Left()
    try:
        where = next(search)
        while True:
            where = search.send(saver.get_tuple(where))
    except StopIteration as end:
        left: _Left = end.value
        return left


async def _afind(saver: BaseCheckpointSaver[Any] | None, search: _Search) -> _Left:
    if saver is None:
        return _Left()
    try:
        where = next(search)
        while True:
            where = search.send(await saver.aget_tuple(where))
    except StopIteration as end:
        left: _Left = end.value
        return left


def _search(message: BaseMessage, thread: RunnableConfig) -> _Search:
    """Back through the checkpoints to the one before the message; they hold the results that new input has dropped."""
    results: list[ToolMessage] = []
    seen = started = False
    where = thread
    for _ in range(_MOST):
        saved = yield where
        if saved is None:
            return _Left(results)
        values = saved.checkpoint["channel_values"]
        messages = values.get("messages") or ()
        if all(known.id != message.id for known in messages):
            break
        index = proposing(messages)
        if messages[index].id == message.id:
            seen = seen or all(isinstance(after, ToolMessage) for after in messages[index + 1 :])
            if _tools_were_due(values):
                started = True
                written = [value for _, channel, value in saved.pending_writes or () if channel == "messages"]
                results += [m for value in written for m in _tool_messages(value)]
        if saved.parent_config is None:
            break
        where = saved.parent_config
    else:
        return _Left(results)
    # A message that came with the input was never open in this thread: its calls may have run anywhere.
    return _Left(results, started or not seen)


def _tools_were_due(values: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's next step was to run tools."""
    return "branch:to:tools" in values or any(send.node == "tools" for send in values.get(TASKS) or ())


def _tool_messages(value: Any) -> list[ToolMessage]:
    return [m for m in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(m, ToolMessage)]


def _by_message(found: Sequence[tuple[BaseMessage, list[Any], _Left]]) -> Answers:
    answers: dict[str | None, list[ToolMessage]] = {}
    for message, calls, left in found:
        answers.setdefault(message.id, []).extend(cancelled(calls, left.results, left.started))
    return answers
