"""Remembered digests of messages equal computed ones, also of messages that were changed in place."""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage

from mosaic_guard import _digest
from mosaic_guard._decision import canonical_json
from mosaic_guard._digest import message_digest, messages_digest, plain_message_digest

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=6)
    | st.sampled_from([0, 0.0, -0.0, 1, 1.0, True, "1", "\ud800"])
)
ODD = SCALARS | st.binary(max_size=3) | st.binary(max_size=3).map(bytearray) | st.just(...) | st.frozensets(SCALARS)
VALUES = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=3)
BLOCKS = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=4), "n": SCALARS}), max_size=2
)
IDS = st.none() | st.text(max_size=2)


@st.composite
def messages(draw: Any) -> Any:
    content = draw(st.text(max_size=6) | BLOCKS)
    kind = draw(st.sampled_from([HumanMessage, SystemMessage, ToolMessage, AIMessage, AIMessageChunk]))
    if kind is ToolMessage:
        return ToolMessage(content, tool_call_id=draw(st.text(max_size=3)))
    message = kind(content)
    if kind is AIMessage:
        # Past the constructor, as a node could put them there.
        message.tool_calls = [
            {"name": draw(st.text(max_size=3)), "args": draw(ARGUMENTS), "id": draw(IDS), "type": "tool_call"}
            for _ in range(draw(st.integers(0, 2)))
        ]
    return message


@st.composite
def changes(draw: Any) -> Any:
    """Something that may be done to a message in place."""
    what = draw(st.sampled_from(["content", "block", "tool_call_id", "args", "arg", "name", "id", "drop"]))
    value = draw(VALUES if what in ("args", "arg", "id") else SCALARS)
    return what, draw(st.text(max_size=3)), value


def change(message: Any, what: str, key: str, value: Any) -> None:
    calls = getattr(message, "tool_calls", None)
    if what == "content":
        message.content = str(value)
    elif what == "block" and isinstance(message.content, list):
        message.content.append({"type": "text", "text": key, "n": value})
    elif what == "tool_call_id" and hasattr(message, "tool_call_id"):
        message.tool_call_id = str(value)
    elif what == "drop" and calls:
        calls.pop()
    elif calls and what == "args":
        calls[0]["args"] = value
    elif calls and what == "arg":
        if isinstance(calls[0]["args"], dict):
            calls[0]["args"][key] = value
    elif calls and what in ("name", "id"):
        calls[0][what] = value


@given(messages(), st.lists(changes(), max_size=5))
def test_a_remembered_digest_is_the_computed_one(message: Any, done: Any) -> None:
    for what in [None, *done]:
        if what is not None:
            change(message, *what)
        for _ in range(2):
            assert message_digest(message) == plain_message_digest(message)


def spelt_out(value: Any) -> str:
    """Canonical JSON as it is defined, without short cuts."""

    def other(item: Any) -> Any:
        return {"__type__": f"{type(item).__module__}.{type(item).__qualname__}", "__repr__": repr(item)}

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {k if isinstance(k, str) else f"\0{type(k).__name__}:{k!r}": plain(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(v) for v in item]
        return other(item) if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=other)


@given(VALUES)
def test_canonical_json_is_what_it_is_defined_as(value: Any) -> None:
    assert canonical_json(value) == spelt_out(value)


def test_digests_are_those_of_earlier_releases() -> None:
    """Checkpoints and traces hold them."""
    call = {"name": "pay", "args": {"b": 1.0, "a": "é"}, "id": "1", "type": "tool_call"}
    said = '["ai","hi",null,[["1","pay",{"a":"é","b":1.0}]]]'
    assert message_digest(AIMessage("hi", tool_calls=[call])) == hashlib.sha256(said.encode()).hexdigest()


@pytest.mark.parametrize(("before", "after"), [(1, True), (1, 1.0), (0.0, -0.0), (b"a", bytearray(b"a")), ("a", b"a")])
def test_equal_values_of_other_types_are_other_arguments(before: Any, after: Any) -> None:
    message = AIMessage("")
    message.tool_calls = [{"name": "pay", "args": {"x": before}, "id": "1", "type": "tool_call"}]
    first = message_digest(message)
    message.tool_calls[0]["args"]["x"] = after
    assert message_digest(message) != first


@pytest.mark.slow
def test_a_digest_is_forgotten_with_its_message() -> None:
    history = [HumanMessage(str(n)) for n in range(50)]
    messages_digest(history)
    ours = {id(message) for message in history}
    assert ours <= set(_digest._known)
    del history
    gc.collect()
    assert not ours & set(_digest._known)
