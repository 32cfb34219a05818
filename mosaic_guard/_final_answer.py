"""`check_final`: the answer that ends a run as a call that is judged, and what stands in its place where it is refused.

The answer is what leaves: the words of the last message, and the structured answer that LangChain's and LangGraph's agents give
under `structured_response`, beside those words or in place of them (as a call that no tool node runs).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
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
        messages: The history. Its calls are answered: a run with open ones does not end here.
        structured: The structured answer; None where there is none.

    Returns:
        A call of `final_answer` whose `text` is all that is said: the words of the message, and the structured answer as JSON
        unless the words are that JSON. Nothing if the last message is no answer and there is no structured one.
    """
    last = messages[-1] if messages else None
    said = last if isinstance(last, AIMessage) and not last.tool_calls else None
    if structured is not None and said is None:
        said = next((message for message in reversed(messages) if isinstance(message, AIMessage)), None)
    words = message_text(said) if said is not None else ""
    if structured is not None:
        words = _with_structured(words, structured)
    if not words.strip():
        return []
    return [{"name": FINAL, "args": {"text": words}, "id": said.id if said else None, "type": "tool_call"}]


def withheld(messages: Sequence[BaseMessage], known: Collection[str]) -> list[BaseMessage]:
    """What replaces a refused answer in a history, message by message, and says so at its end.

    Args:
        messages: The history.
        known: Names of the tools. Other calls of the last AI message are the answer; they and their results lose their words.
    """
    index = next((n for n in reversed(range(len(messages))) if isinstance(messages[n], AIMessage)), -1)
    answer = messages[index] if index >= 0 else None
    if not isinstance(answer, AIMessage):
        return [AIMessage(WITHHELD)]
    if not answer.tool_calls:
        ends = index == len(messages) - 1
        return [AIMessage(WITHHELD, id=answer.id), *([] if ends else [AIMessage(WITHHELD)])]
    calls = [call if call["name"] in known else {**call, "args": {}} for call in answer.tool_calls]
    emptied = {call["id"] for call in calls if call["name"] not in known}
    new: list[BaseMessage] = [AIMessage("", id=answer.id, name=answer.name, tool_calls=calls)]
    new += [
        ToolMessage(WITHHELD, id=m.id, name=m.name, tool_call_id=m.tool_call_id, status="error")
        for m in messages[index + 1 :]
        if isinstance(m, ToolMessage) and m.tool_call_id in emptied
    ]
    return [*new, AIMessage(WITHHELD)]


def _with_structured(words: str, structured: Any) -> str:
    plain = json.dumps(_plain(structured), ensure_ascii=False, default=str)
    try:
        if json.loads(words) == json.loads(plain):
            return words
    except ValueError:
        pass
    return f"{words}\n{plain}" if words.strip() else plain


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
