"""OpenTelemetry spans as conversations: OTLP in JSON, with OpenInference's attributes or the `gen_ai.*` conventions.

A file is one OTLP export or JSON lines of them, as the collector's file exporter writes. Each trace is one conversation: that
of the model span which saw most messages, and the results that tool spans hold for its last calls. Spans must have been
recorded with their messages' contents; `gen_ai` messages are read from span attributes, not from events. No package of
OpenTelemetry's is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mosaic_guard_openai_messages import checked, records, tool_specs
from mosaic_guard_training.importing import Conversation, ImportingError, Malformed, MalformedConversationError, attempt

__all__ = ["attributes_of", "messages_of", "read"]


def read(file: Path) -> Iterator[Conversation | Malformed]:
    """The conversation of each trace in a file, in the order of their first spans.

    Raises:
        ImportingError: If the file is no OTLP in JSON; names file and line.
    """
    traces: dict[str, list[Mapping[str, Any]]] = {}
    for where, record in records(file):
        if not isinstance(record, Mapping) or not isinstance(record.get("resourceSpans"), list):
            raise ImportingError(f"{file}:{where.partition(':')[2] or 1}: no OTLP export: `resourceSpans` is missing")
        for span in _spans(record):
            traces.setdefault(str(span.get("traceId") or ""), []).append(span)
    for trace, spans in traces.items():
        yield attempt(f"{file.name}:{trace}", partial(_conversation, trace, spans))


def _spans(export: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for resource in export["resourceSpans"]:
        for scope in resource.get("scopeSpans") or ():
            yield from (span for span in scope.get("spans") or () if isinstance(span, Mapping))


def _conversation(trace: str, spans: Sequence[Mapping[str, Any]]) -> Conversation:
    ordered = sorted(spans, key=lambda span: int(span.get("startTimeUnixNano") or 0))
    known = [attributes_of(span) for span in ordered]
    seen = [(messages_of(attributes), attributes) for attributes in known]
    messages, attributes = max(reversed(seen), key=lambda one: len(one[0]), default=([], {}))
    if not messages:
        raise MalformedConversationError("none of its spans holds messages")
    called = [call["id"] for message in messages for call in message.get("tool_calls") or ()]
    answered = {message.get("tool_call_id") for message in messages}
    results = {str(name): result for name, result in map(_result, known) if name is not None}
    messages += [
        {"role": "tool", "tool_call_id": call, "content": results[call]}
        for call in called
        if call not in answered and call in results
    ]
    return Conversation(id=trace, messages=[checked(message) for message in messages], tools=_tools(attributes))


def attributes_of(span: Mapping[str, Any]) -> dict[str, Any]:
    """A span's attributes by name, out of OTLP's typed values."""
    given = span.get("attributes") or []
    if isinstance(given, Mapping):  # the SDK's own JSON
        return dict(given)
    return {item["key"]: _value(item.get("value")) for item in given if isinstance(item, Mapping) and "key" in item}


def _value(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "arrayValue" in value:
        return [_value(item) for item in value["arrayValue"].get("values") or ()]
    if "kvlistValue" in value:
        return {item["key"]: _value(item.get("value")) for item in value["kvlistValue"].get("values") or ()}
    if "intValue" in value:  # 64-bit integers are strings in OTLP's JSON
        return int(value["intValue"])
    return next(iter(value.values()), None)


def messages_of(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages that a model span read and wrote, in the form of chat completions; empty for other spans."""
    found = [_inferred(m) for side in ("input", "output") for m in _listed(attributes, f"llm.{side}_messages")]
    if found:
        return found
    messages: list[dict[str, Any]] = []
    system = _json(attributes.get("gen_ai.system_instructions"))
    if isinstance(system, list) and (text := _texts(system)):
        messages.append({"role": "system", "content": text})
    for side in ("input", "output"):
        given = _json(attributes.get(f"gen_ai.{side}.messages"))
        for message in given if isinstance(given, list) else ():
            messages += _generated(message)
    return messages


def _listed(attributes: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Attributes such as `PREFIX.0.a.b` as a list of {`a.b`: value}, in the order of their numbers."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.(.+)")
    found: dict[int, dict[str, Any]] = {}
    for key, value in attributes.items():
        if match := pattern.fullmatch(key):
            found.setdefault(int(match[1]), {})[match[2]] = value
    return [found[number] for number in sorted(found)]


def _inferred(given: Mapping[str, Any]) -> dict[str, Any]:
    """OpenInference's message."""
    texts = [p.get("message_content.text") for p in _listed(given, "message.contents")]
    message: dict[str, Any] = {
        "role": given.get("message.role") or "assistant",
        "content": given.get("message.content") or "\n".join(str(text) for text in texts if text),
    }
    if calls := _listed(given, "message.tool_calls"):
        message["tool_calls"] = [
            _call(
                call.get("tool_call.id"),
                call.get("tool_call.function.name"),
                call.get("tool_call.function.arguments"),
                number,
            )
            for number, call in enumerate(calls)
        ]
    for key in ("tool_call_id", "name"):
        if given.get(f"message.{key}"):
            message[key] = given[f"message.{key}"]
    return message


def _generated(given: Any) -> list[dict[str, Any]]:
    """A message of the `gen_ai` conventions: its parts may be several tool results."""
    if not isinstance(given, Mapping) or "role" not in given:
        raise MalformedConversationError("a message has no role")
    parts = [part for part in given.get("parts") or () if isinstance(part, Mapping)]
    results = [
        {"role": "tool", "tool_call_id": part.get("id"), "content": _said(part.get("response", part.get("result")))}
        for part in parts
        if part.get("type") == "tool_call_response"
    ]
    if results:
        return results
    message: dict[str, Any] = {"role": given["role"], "content": _texts(parts)}
    calls = [part for part in parts if part.get("type") == "tool_call"]
    if calls:
        message["tool_calls"] = [
            _call(call.get("id"), call.get("name"), call.get("arguments"), number) for number, call in enumerate(calls)
        ]
    return [message]


def _call(identity: Any, name: Any, arguments: Any, number: int) -> dict[str, Any]:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments if arguments is not None else {})
    return {
        "id": str(identity) if identity else f"call_{number}",
        "type": "function",
        "function": {"name": name, "arguments": written},
    }


def _texts(parts: Sequence[Any]) -> str:
    return "\n".join(str(p["content"]) for p in parts if isinstance(p, Mapping) and p.get("type") == "text")


def _said(result: Any) -> str:
    return result if isinstance(result, str) else "" if result is None else json.dumps(result, ensure_ascii=False)


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise MalformedConversationError("the messages of a span are no JSON") from error


def _result(attributes: Mapping[str, Any]) -> tuple[Any, str]:
    """(id of the call, result) of a tool span; (None, "") for other spans."""
    if "gen_ai.tool.call.id" in attributes:
        return attributes["gen_ai.tool.call.id"], _said(attributes.get("gen_ai.tool.call.result"))
    if attributes.get("openinference.span.kind") == "TOOL" and "tool_call.id" in attributes:
        return attributes["tool_call.id"], _said(attributes.get("output.value"))
    return None, ""


def _tools(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = []
    for tool in _listed(attributes, "llm.tools"):
        schema = _json(tool.get("tool.json_schema"))
        function = schema.get("function", schema) if isinstance(schema, Mapping) else {}
        named = {key: tool[f"tool.{key}"] for key in ("name", "description") if tool.get(f"tool.{key}")}
        listed.append({**function, **named})
    return tool_specs(listed or _json(attributes.get("gen_ai.tool.definitions")))
