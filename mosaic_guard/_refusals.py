"""What earlier refusals in a thread mean for the next step: how many there were in a row, and which calls stay refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from mosaic_guard._channel import proposing
from mosaic_guard._decision import Decision, call_digest
from mosaic_guard._evidence import JUDGED, REFUSAL_MARK, REFUSED, REJECTED, is_human


def refused_in_a_row(messages: Sequence[BaseMessage]) -> int:
    """Finished steps in a row with a refused call, back from the last one; a human's words and the agent's end the row.

    What a person rejected is no refusal of the guard's: such a step neither counts nor ends the row.
    """
    count, marks = 0, set[Any]()
    for message in reversed(messages[: proposing(messages)]):
        if is_human(message) or (isinstance(message, AIMessage) and not message.tool_calls):
            break
        if isinstance(message, ToolMessage):
            marks.add(message.additional_kwargs.get(REFUSAL_MARK))
        if isinstance(message, AIMessage):
            if not marks.isdisjoint((REFUSED, JUDGED)):
                count += 1
            elif REJECTED not in marks:
                break
            marks.clear()
    return count


def judged_mark(decision: Decision) -> dict[str, str]:
    """What a verdict holds besides where the guard has refused a call for what it is: the mark of the answer."""
    return {"mark": JUDGED} if decision.verdict == "refuse" and decision.source in ("model", "threshold") else {}


def standing_refusals(messages: Sequence[BaseMessage]) -> frozenset[str]:
    """The calls that the guard has judged and refused since a human last spoke: `call_subject` of each.

    What has come since are results and the agent's own words, which authorise nothing: asked again, the guard would only be
    asked until it errs. A failure, a limit and a person's no are no judgement of the call, and policies speak for themselves.

    Args:
        messages: The history, up to and including the AI message that proposes the step.
    """
    found: set[str] = set()
    proposed: dict[str | None, Mapping[str, Any]] = {}
    for message in messages[: proposing(messages)]:
        if is_human(message):
            found.clear()
        elif isinstance(message, AIMessage):
            # Ids repeat in the wild: the last message that has one is answered.
            proposed.update((call.get("id"), call) for call in message.tool_calls)
        elif isinstance(message, ToolMessage) and message.additional_kwargs.get(REFUSAL_MARK) == JUDGED:
            call = proposed.get(message.tool_call_id)
            if call is not None:
                found.add(call_subject(call["name"], call["args"]))
    return frozenset(found)


def call_subject(name: str, args: Any) -> str:
    """Digest of what a call does, whatever its id."""
    return call_digest(None, name, args)
