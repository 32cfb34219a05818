"""What a function tool node may see: its input, wherever that holds calls, with the cleared ones only.

Calls stand in more places than the AI message: in the payload of a `Send`, in other keys of the state, in a second copy of the
message, in the content blocks that a vendor's API made of them. A refused call that stays in one of these would be run from
there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel

from mosaic_guard._channel import digest_of

Fates = Mapping[str, Any]
"""What runs in the place of a call, by its digest: a call, or None for nothing."""


def is_call(value: Any) -> bool:
    """Whether a value is a tool call as LangChain writes it."""
    return isinstance(value, Mapping) and {"name", "args", "id"} <= set(value)


def calls_in(value: Any, passed: frozenset[int] = frozenset()) -> Iterator[Any]:
    """The calls that stand in a value as themselves, however deep; not those that messages propose."""
    if is_call(value):
        yield value
    elif id(value) not in passed:
        for part in _parts(value):
            yield from calls_in(part, passed | {id(value)})


def as_cleared(value: Any, fates: Fates, passed: frozenset[int] = frozenset()) -> Any:
    """The value with each call as what runs in its place; the value itself where that changes nothing.

    Args:
        value: Anything; what is neither a container, a dataclass, a pydantic model nor a message is left as it is.
        fates: What becomes of the judged calls. Others stay.
        passed: Ids of what the value stands in: a value may hold itself.
    """
    if is_call(value):
        return fates.get(digest_of(value), value)
    if id(value) in passed:
        return value
    passed = passed | {id(value)}
    if isinstance(value, AIMessage):
        return _message_as_cleared(value, fates)
    if isinstance(value, (list, tuple)):
        kept = [(part, as_cleared(part, fates, passed)) for part in value]
        if all(part is new for part, new in kept):
            return value
        items = [new for part, new in kept if new is not None or part is None]
        return value._make(new for _, new in kept) if hasattr(value, "_make") else type(value)(items)
    parts = dict(_fields(value))
    changed = {key: new for key, part in parts.items() if (new := as_cleared(part, fates, passed)) is not part}
    return _with(value, changed) if changed else value


def with_calls(message: AIMessage, calls: list[Any], fates: Fates) -> AIMessage:
    """A message that proposes these calls only, also in its content.

    Args:
        message: The message.
        calls: What it proposes then.
        fates: What became of those that it proposed.
    """
    lost = [call for call in message.tool_calls if fates.get(digest_of(call), call) is not call]
    blocks: dict[Any, Any] = {call["id"]: fates[digest_of(call)] for call in lost}
    content: Any = message.content
    if isinstance(content, list):
        content = [new for block in content if (new := _block_as_cleared(block, blocks)) is not None]
    return message.model_copy(update={"tool_calls": calls, "content": content, "additional_kwargs": {}})


def _message_as_cleared(message: AIMessage, fates: Fates) -> AIMessage:
    runs = [(call, fates.get(digest_of(call), call)) for call in message.tool_calls]
    if all(call is run for call, run in runs):
        return message
    return with_calls(message, [run for _, run in runs if run is not None], fates)


_ARGUMENTS = {"tool_use": "input", "tool_call": "args", "function_call": "arguments"}
"""Kinds of content blocks that are calls, and where their arguments stand."""


def _block_as_cleared(block: Any, runs: Mapping[Any, Any]) -> Any:
    """A content block as what runs in its place; None for nothing."""
    if not isinstance(block, dict) or block.get("type") not in _ARGUMENTS:
        return block
    call_id = block.get("call_id", block.get("id"))
    if call_id not in runs:
        return block
    run, key = runs[call_id], _ARGUMENTS[block["type"]]
    if run is None:
        return None
    return {**block, "name": run["name"], key: json.dumps(run["args"]) if key == "arguments" else run["args"]}


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        yield from value
    else:
        yield from (part for _, part in _fields(value))


def _fields(value: Any) -> Iterator[tuple[Any, Any]]:
    """(key, value) of a mapping, a dataclass or a pydantic model that is no message."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, BaseModel) and not isinstance(value, BaseMessage):
        yield from value


def _with(value: Any, changed: Mapping[Any, Any]) -> Any:
    """A mapping, dataclass or pydantic model with other values."""
    if isinstance(value, Mapping):
        return {**value, **changed}
    if isinstance(value, BaseModel):
        return value.model_copy(update=dict(changed))
    return dataclasses.replace(value, **changed)
