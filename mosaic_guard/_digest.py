"""Digests of messages: what names a place in the history.

A step digests its whole history several times. The digest of a message is remembered for as long as the message lives, with
all that went into it; it counts only while the message still says exactly that, since messages can be changed in place.
"""

from __future__ import annotations

import hashlib
import marshal
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from mosaic_guard._decision import canonical_json

_Said = tuple[str, str | None, str | None, bytes | None]
_known: dict[int, tuple[weakref.ref[BaseMessage], _Said, str]] = {}
"""By `id` of a message: the message, what it said, and the digest of that."""

_PLAIN = frozenset({AIMessage, HumanMessage, SystemMessage, ToolMessage})
"""Subclasses may compute their fields; these classes hold them in `__dict__`, which is several times as fast to read."""


def message_digest(message: BaseMessage) -> str:
    """SHA-256 over what a message says (not over its id), hexadecimal."""
    said = _said(message)
    if said is None:
        return plain_message_digest(message)
    key = id(message)
    known = _known.get(key)
    if known is not None and known[0]() is message and known[1] == said:
        return known[2]
    digest = plain_message_digest(message)
    if said[3] is None or _is_json([message.content, _calls(message)]):
        _known[key] = (weakref.ref(message, partial(_forget, _known, key)), said, digest)
    return digest


def _forget(known: dict[int, Any], key: int, _: weakref.ref[BaseMessage]) -> None:
    """Called as a message dies; holds the table itself, for the module's names may be gone when the interpreter ends."""
    known.pop(key, None)


def messages_digest(messages: Iterable[BaseMessage]) -> str:
    """SHA-256 over the digests of the messages, hexadecimal."""
    return digest_of_digests(map(message_digest, messages))


def digest_of_digests(digests: Iterable[str]) -> str:
    """`messages_digest`, of messages whose digests are known."""
    # In small parts: for a large one hashlib gives up the interpreter's lock, and waits to get it back.
    whole = hashlib.sha256()
    for digest in digests:
        whole.update(digest.encode())
    return whole.hexdigest()


def plain_message_digest(message: BaseMessage) -> str:
    """`message_digest`, computed."""
    text = canonical_json([message.type, message.content, getattr(message, "tool_call_id", None), _calls(message)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _calls(message: BaseMessage) -> list[list[Any]]:
    return [[call.get("id"), call["name"], call["args"]] for call in getattr(message, "tool_calls", None) or ()]


def _said(message: BaseMessage) -> _Said | None:
    """All that a message's digest depends on, as values that nobody can change; None where that is not quick to tell.

    Text is held as it is (comparing a string with itself is free). Calls and lists of content blocks are held as `marshal`
    writes them: unlike `==` it tells 1 from True and from 1.0, and 0.0 from -0.0. It writes anything with a buffer as
    bytes, so only values of pure JSON types are remembered; nothing else is written as these are.
    """
    if type(message) not in _PLAIN:
        return None
    fields = message.__dict__
    kind, content, answered = fields.get("type"), fields.get("content"), fields.get("tool_call_id")
    if type(kind) is not str or not (answered is None or type(answered) is str):
        return None
    text = content if type(content) is str else None
    if text is not None and not fields.get("tool_calls"):
        return kind, text, answered, None
    try:
        # Version 2 writes no references to objects that occur twice, which would depend on who else holds them.
        return kind, text, answered, marshal.dumps([None if text is not None else content, _calls(message)], 2)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_json(value: Any) -> bool:
    """Whether a value is made of nothing but the types that JSON has, exactly."""
    kind = type(value)
    if kind is dict:
        return all(type(k) is str and _is_json(v) for k, v in cast(dict[Any, Any], value).items())
    if kind is list:
        return all(map(_is_json, value))
    return value is None or kind in (str, int, float, bool)
