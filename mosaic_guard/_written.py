"""Human messages that a tool writes (by a `Command`): what they say is the tool's result, not a person's word."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langgraph.types import Command

from mosaic_guard._channel import GUARD_CHANNEL, WRITTEN
from mosaic_guard._digest import message_digest

BY_TOOL = {"lc_source": "tool"}
"""Under `additional_kwargs`: a tool wrote this human message. Where nothing remembers ids, the message itself says it."""


def with_ids(output: Any, key: str, history: Sequence[BaseMessage], *, marked: bool = False) -> tuple[Any, list[str]]:
    """What a tool node returns, its new human messages with ids, as the reducer would have given them; and these ids.

    Args:
        output: What the tool node returns.
        key: State key of the messages.
        history: The messages that the tools were called with: a handoff writes them once more.
        marked: Whether the messages themselves are to say that a tool wrote them.
    """
    ids: list[str] = []

    def said(item: Any) -> Any:
        message = _human(item)
        if message is None or any(old.id == message.id and _alike(old, message) for old in history):
            return item
        made = message if message.id is not None else message.model_copy(update={"id": str(uuid.uuid4())})
        ids.append(str(made.id))
        if marked:
            made = made.model_copy(update={"additional_kwargs": {**made.additional_kwargs, **BY_TOOL}})
        return made

    def updated(update: Any) -> Any:
        if not isinstance(update, Mapping) or key not in update:
            return update
        value = update[key]
        return {**update, key: list(map(said, value)) if isinstance(value, (list, tuple)) else said(value)}

    def one(part: Any) -> Any:
        if isinstance(part, (list, tuple)):
            return type(part)(map(one, part)) if type(part) in (list, tuple) else part
        if not isinstance(part, Command):
            return updated(part)
        before = len(ids)
        update = updated(part.update)
        if len(ids) == before:
            return part
        if (
            part.graph == Command.PARENT and not marked
        ):  # the guard of the graph around this one reads it; an unguarded graph drops it
            update = {**update, GUARD_CHANNEL: {WRITTEN: ids[before:]}}
        return replace(part, update=update)

    made = one(output)
    return (made, ids) if ids else (output, ids)


def _alike(old: BaseMessage, message: HumanMessage) -> bool:
    return old.id is not None and message_digest(old) == message_digest(message)


def _human(item: Any) -> HumanMessage | None:
    """A human message, in any form that LangChain reads."""
    if isinstance(item, BaseMessage):
        return item if isinstance(item, HumanMessage) else None
    if not isinstance(item, (str, dict, list, tuple)):
        return None
    try:
        (message,) = convert_to_messages([item])
    except (ValueError, TypeError, NotImplementedError, KeyError):
        return None
    return message if isinstance(message, HumanMessage) else None
