"""A step that waits for its judgement: which calls came by which route, and where in the history they stand."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage, messages_to_dict

from mosaic_guard._channel import Channel, position, proposing
from mosaic_guard._decision import Call, Step
from mosaic_guard._digest import digest_of_digests, message_digest, messages_digest
from mosaic_guard._evidence import is_human, message_text
from mosaic_guard._guard import Judgement
from mosaic_guard._transcript import JudgedStep, step_end

authority: ContextVar[tuple[str, ...] | None] = ContextVar("mosaic_guard_authority", default=None)
"""What people said in the thread whose tool is running: inside it, only these words are a human's."""


@dataclass(frozen=True)
class Waiting:
    """A step that waits for its judgement.

    Attributes:
        messages: The history as the graph's state holds it.
        step: The step as the guard sees it.
        routes: [tool node, `Send` payload or None, the calls that the tool node reads there] of each route.
        history: The steps of the trajectory that the model judged before.
        trajectory: Its id.
        number: The step's number in it.
        edits: Calls that a person changed, by digest of the call as proposed: only these are judged.
        beside: [node, `Send` payload or None] of the routes to other nodes, which are taken with those into tool nodes.
    """

    messages: Sequence[BaseMessage]
    step: Step
    routes: list[list[Any]]
    history: list[JudgedStep]
    trajectory: str
    number: int
    edits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    beside: Sequence[Sequence[Any]] = ()

    @property
    def key(self) -> str:
        """Names the step where sampling is repeatable."""
        return f"{self.trajectory}/{self.number}"

    @property
    def calls(self) -> list[Mapping[str, Any]]:
        """The proposed calls of all routes."""
        return [call for _, _, calls in self.routes for call in calls]

    @cached_property
    def digests(self) -> list[str]:
        """Of each message."""
        return list(map(message_digest, self.messages))

    @property
    def position(self) -> str:
        """Names the step by its place in the history."""
        return position(self.messages, self.digests)

    @cached_property
    def seen(self) -> list[Any]:
        """The history that it is judged with: number of messages and their digest."""
        return [len(self.messages), digest_of_digests(self.digests)]

    @cached_property
    def at(self) -> str:
        """Names the step in its trace: a digest of all that was said up to it, and of what a person changed."""
        said = digest_of_digests(self.digests[: step_end(self.messages)])
        return f"{said}:{','.join(sorted(self.edits))}" if self.edits else said


def as_calls(calls: Sequence[Mapping[str, Any]]) -> tuple[Call, ...]:
    """Tool calls as LangChain writes them, as a guard sees them."""
    return tuple(Call(i, c.get("id"), str(c.get("name")), c.get("args")) for i, c in enumerate(calls))


def open_calls(messages: Sequence[BaseMessage]) -> list[Any]:
    """The calls of the last AI message that proposes any, without those that were answered since."""
    index = proposing(messages)
    answered = [m.tool_call_id for m in messages[index + 1 :] if isinstance(m, ToolMessage)]
    return unanswered(cast(AIMessage, messages[index]).tool_calls if index >= 0 else [], answered)


def unanswered(calls: Sequence[Any], answered: Sequence[str]) -> list[Any]:
    """The calls without one for each answer, in order: ids repeat.

    Args:
        calls: The calls of one message.
        answered: Ids that answers to them name.
    """
    left = list(answered)
    open_ones = []
    for call in calls:
        if call["id"] in left:
            left.remove(call["id"])
        else:
            open_ones.append(call)
    return open_ones


CANCELLED_MARK = "mosaic_guard_cancelled"
"""Marks, in `additional_kwargs`, the answer to a call that new input has cut off."""


def not_cancelled(calls: Sequence[Any], messages: Sequence[BaseMessage]) -> list[Any]:
    """The calls of the last AI message that proposes any, without those that were cancelled since."""
    after = messages[proposing(messages) + 1 :]
    gone = [m.tool_call_id for m in after if isinstance(m, ToolMessage) and CANCELLED_MARK in m.additional_kwargs]
    return unanswered(calls, gone) if gone else list(calls)


def still_begins_with(messages: Sequence[Any], seen: Sequence[Any]) -> bool:
    """Whether a history has only grown since a step was seen."""
    return bool(messages_digest(messages[: seen[0]]) == seen[1])


def as_authorised(
    messages: Sequence[BaseMessage], written: Collection[str] = (), agents: Collection[str] = ()
) -> Sequence[BaseMessage]:
    """The history as a guard may read it: only what people said is a human message.

    Inside a tool (a subagent's run), what looks like a human message was written by the agent that called the tool: what
    people said in the outer thread comes first, and only their words stay theirs. A history that holds all these words
    (the outer thread's own, as a wrapper of its tools rewrites a call) gets none of them twice.

    Args:
        messages: The history.
        written: Ids of human messages that tools wrote: results, like anything that a tool returns.
        agents: Names that human messages of other agents bear: the names of the graph's nodes. They are results too.
    """
    messages = [_as_written(m, written, agents) if isinstance(m, HumanMessage) else m for m in messages]
    said = authority.get()
    if said is None:
        return messages
    theirs = tuple(text for m in messages if is_human(m) and (text := message_text(m)) in said)
    outer: list[BaseMessage] = [HumanMessage(text) for text in said] if theirs != said else []
    return outer + [
        AIMessage(message_text(m), id=m.id) if is_human(m) and message_text(m) not in said else m for m in messages
    ]


def _as_written(message: HumanMessage, written: Collection[str], agents: Collection[str]) -> BaseMessage:
    """The message; as a result, which nobody is to trust, if a tool or another agent wrote it."""
    if message.id not in written and message.name not in agents:
        return message
    return ToolMessage(message_text(message), name=message.name, tool_call_id="", id=message.id)


def people_said(messages: Sequence[BaseMessage]) -> tuple[str, ...]:
    """The words of people in a history, as `as_authorised` reads it."""
    said = authority.get()
    own = tuple(message_text(m) for m in messages if is_human(m))
    return own if said is None else said


@contextmanager
def speaking_for(messages: Sequence[BaseMessage]) -> Iterator[None]:
    """While a tool runs: inside it only the words that people said in these messages are a human's."""
    token = authority.set(people_said(messages))
    try:
        yield
    finally:
        authority.reset(token)


def humans(messages: Sequence[Any]) -> int:
    """Number of human messages."""
    return sum(map(is_human, messages))


def refusals_so_far(channel: Channel, messages: Sequence[Any]) -> int:
    """Steps in a row with a refusal; new words of a human start the count again."""
    return int(channel.get("refusals", 0)) if channel.get("humans") == humans(messages) else 0


def remember(history: list[JudgedStep], judged: JudgedStep | None) -> list[dict[str, Any]]:
    """The history with the new step; of earlier segments only the summaries are needed."""
    if judged is not None:
        history = [*history, judged]
    current = history[-1].segment if history else 0
    return [{**past.to_dict(), **({} if past.segment == current else {"turns": []})} for past in history]


def step_record(
    waiting: Waiting, judgement: Judgement, *, task: Any, after: str | None, thread: Any, logged: Iterable[str]
) -> dict[str, Any]:
    """The `step` record of a trace, without its guard.

    Args:
        waiting: The step.
        judgement: What was decided.
        task: The task's name; None: a digest of the first human message.
        after: The step before it, as its `at`.
        thread: The thread's id.
        logged: Digests of the messages that earlier records hold, as often as they hold them: people repeat themselves.
    """
    held = Counter(logged)
    held.subtract(waiting.digests)
    new: list[BaseMessage] = []
    # Of messages that are alike, the last ones are the new ones.
    for message, digest in zip(reversed(waiting.messages), reversed(waiting.digests), strict=True):
        if held[digest] < 0:
            held[digest] += 1
            new.insert(0, message)
    judged = judgement.judged
    last = waiting.history[-1].segment if waiting.history else 0
    return {
        "trajectory": waiting.trajectory,
        "task": str(task or task_of(waiting.messages)),
        "step": waiting.number,
        "at": waiting.at,
        "after": after,
        "segment": judged.segment if judged else last,
        "thread": thread,
        "messages": messages_to_dict(new),
        "calls": [call.to_dict() for call in waiting.step.calls],
        "decisions": [decision.to_dict() for decision in judgement.decisions],
        "think": judgement.think,
        "safety_thoughts": judgement.safety_thoughts,
        "pieces": [piece.to_dict() for turn in judged.turns for piece in turn.pieces] if judged else [],
        "seconds": judgement.seconds,
    }


def task_of(messages: Sequence[Any]) -> str:
    """Names a thread's task where the run does not: a digest of the first human message."""
    first = next((message_text(m) for m in messages if is_human(m)), "")
    return hashlib.sha256(first.encode("utf-8", "surrogatepass")).hexdigest()[:16]
