"""`check_final`: the answer that ends a run as a call that is judged, and what stands in its place where it is refused.

The answer is what leaves: the words since the last step, and the structured answer that LangChain's and LangGraph's agents give
under `structured_response`, beside those words or in place of them (as a call that no tool node runs).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from pydantic import BaseModel

from mosaic_guard._evidence import message_text

FINAL = "final_answer"
"""The tool name under which the answer that ends a run is judged."""

STRUCTURED = "structured_response"
"""State key of structured answers."""

WITHHELD = "I cannot give this answer: the guard refused it."


def final_answer(messages: Sequence[BaseMessage], structured: Any = None) -> list[dict[str, Any]]:
    """The answer that ends a run, in the form of a call.

    Args:
        messages: The history.
        structured: The structured answer; None where there is none.

    Returns:
        A call of `final_answer` whose `text` is all that is said: the words since the last step, those beside a structured
        answer's call too, and the structured answer as JSON unless the words are that JSON. Nothing where nothing is said.
    """
    said = [message for message, _ in _said_last(messages) if structured is not None or not message.tool_calls]
    words = "\n".join(text for message in said if (text := message_text(message)).strip())
    if structured is not None:
        words = _with_structured(words, structured)
    if not words:
        return []
    return [{"name": FINAL, "args": {"text": words}, "id": said[-1].id if said else None, "type": "tool_call"}]


def withheld(messages: Sequence[BaseMessage], known: Collection[str], structured: bool) -> list[BaseMessage]:
    """What replaces a refused answer in a history, message by message, and says so at its end.

    Args:
        messages: The history.
        known: Names of the tools.
        structured: Whether a structured answer is part of it: a call of no known tool may be its form, and loses its arguments
            and its result.
    """
    new: list[BaseMessage] = []
    for answer, after in _said_last(messages):
        if not answer.tool_calls:
            new.append(AIMessage(WITHHELD, id=answer.id, name=answer.name))
        elif structured:
            calls = [call if call["name"] in known else {**call, "args": {}} for call in answer.tool_calls]
            emptied = {call["id"] for call in calls if call["name"] not in known}
            new.append(AIMessage("", id=answer.id, name=answer.name, tool_calls=calls))
            new += [
                ToolMessage(WITHHELD, id=m.id, name=m.name, tool_call_id=m.tool_call_id, status="error")
                for m in after
                if isinstance(m, ToolMessage) and m.tool_call_id in emptied
            ]
    ends = bool(messages) and isinstance(messages[-1], AIMessage) and not messages[-1].tool_calls
    return new if ends else [*new, AIMessage(WITHHELD)]


def _said_last(messages: Sequence[BaseMessage]) -> list[tuple[AIMessage, Sequence[BaseMessage]]]:
    """What agents said since the last step, and what comes after each; first the message that proposed the step's calls."""
    said: list[tuple[AIMessage, Sequence[BaseMessage]]] = []
    for index in reversed(range(len(messages))):
        message = messages[index]
        if isinstance(message, HumanMessage):
            break
        if isinstance(message, AIMessage):
            said.insert(0, (message, messages[index + 1 :]))
            if message.tool_calls:
                break
    return said


def _with_structured(words: str, structured: Any) -> str:
    plain = json.dumps(_plain(structured), ensure_ascii=False, default=str)
    try:
        if json.loads(words) == json.loads(plain):
            return words
    except ValueError:
        pass
    return f"{words}\n{plain}" if words else plain


def _plain(value: Any) -> Any:
    """What a structured answer holds, in all its fields: also those that a model leaves out when it is written as JSON."""
    if isinstance(value, BaseModel):
        return {key: _plain(part) for key, part in value}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(part) for part in value]
    return value
