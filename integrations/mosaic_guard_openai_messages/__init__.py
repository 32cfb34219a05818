"""Logs in the form of OpenAI's APIs as conversations: chat-completions messages, and items of the Responses API.

A file is JSON (one conversation, or a list of them) or JSON lines (one conversation a line). A conversation is a list of
messages, or an object with `messages` (or a Responses request's `input`, and the response's `output`), and, where known,
`tools`, `id`, `task` and `outcome` {`harmful`, `completed`}. No package of OpenAI's is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mosaic_guard._trace import Outcome
from mosaic_guard_training.importing import Conversation, ImportingError, Malformed, MalformedConversationError, attempt

__all__ = ["conversation", "messages_of_items", "read", "tool_specs"]


def read(file: Path) -> Iterator[Conversation | Malformed]:
    """The conversations of a file.

    Raises:
        ImportingError: If it is neither JSON nor JSON lines; names file and line.
    """
    for where, record in records(file):
        yield attempt(where, partial(conversation, record, where))


def records(file: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, value) of each conversation in a file, or of each record of another format that is written so."""
    text = file.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    yield f"{file.name}:{number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise ImportingError(f"{file}:{number}: neither JSON nor JSON lines ({error.msg})") from error
        return
    if isinstance(whole, list) and not (whole and isinstance(whole[0], Mapping) and _is_message(whole[0])):
        for number, record in enumerate(whole, 1):
            yield f"{file.name}#{number}", record
    else:
        yield f"{file.name}#1", whole


def _is_message(record: Mapping[str, Any]) -> bool:
    return "role" in record or record.get("type") in ("function_call", "function_call_output", "reasoning")


def conversation(record: Any, where: str) -> Conversation:
    """One conversation.

    Args:
        record: A list of messages or items, or an object that holds one.
        where: Its id, if it has none.

    Raises:
        MalformedConversationError: If it is neither.
    """
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, Mapping):
        raise MalformedConversationError("neither a list of messages nor an object")
    found = record.get("messages")
    if found is None and ("input" in record or "output" in record):
        given = record.get("input") or []
        system = record.get("instructions")
        found = [
            *([{"role": "system", "content": system}] if isinstance(system, str) and system else []),
            *([{"role": "user", "content": given}] if isinstance(given, str) else given),
            *(record.get("output") or []),
        ]
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise MalformedConversationError("no list of messages")
    if any("role" not in item or item.get("type") == "message" for item in found):
        found = messages_of_items(found)
    return Conversation(
        id=str(record.get("id") or where),
        messages=[checked(message) for message in found],
        tools=tool_specs(record.get("tools")),
        task=str(record["task"]) if record.get("task") is not None else None,
        outcome=_outcome(record.get("outcome")),
    )


def checked(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A chat-completions message whose calls have arguments that are JSON objects.

    Raises:
        MalformedConversationError: If they have not.
    """
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise MalformedConversationError("a call names no function")
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (TypeError, ValueError):
            arguments = None
        if not isinstance(arguments, dict):
            raise MalformedConversationError("the arguments of a call are no JSON object")
    return message


def messages_of_items(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items of the Responses API as chat-completions messages: calls that follow each other are one turn of the agent.

    Reasoning, and what the provider's own tools did, is left out: it is no call that a guard could stop.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": _text(item.get("output"))})
        elif kind == "message":
            if "role" not in item:
                raise MalformedConversationError("a message has no role")
            messages.append({"role": item["role"], "content": _text(item.get("content"))})
    return messages


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, Mapping) and part.get("text"))
    return "" if content is None else json.dumps(content, ensure_ascii=False)


def tool_specs(tools: Any) -> list[dict[str, Any]]:
    """Tools as traces describe them, from either API's form; the provider's own tools are left out."""
    specs = []
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            specs.append(
                {
                    "name": function["name"],
                    "description": function.get("description") or "",
                    "parameters": function.get("parameters") or {},
                    "metadata": {},
                    "tags": [],
                }
            )
    return specs


def _outcome(record: Any) -> Outcome | None:
    if record is None:
        return None
    if not isinstance(record, Mapping) or not all(
        record.get(key) is None or isinstance(record[key], bool) for key in ("harmful", "completed")
    ):
        raise MalformedConversationError("its outcome is no object with harmful and completed as true, false or null")
    details = {key: value for key, value in record.items() if key not in ("harmful", "completed", "source")}
    return Outcome(record.get("harmful"), record.get("completed"), (), str(record.get("source") or "imported"), details)
