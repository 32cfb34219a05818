"""A trajectory as text, for a language model or a person that judges it: one line per thing said or done.

Nothing in it can be mistaken for the frame: all that the agent, its tools and its user wrote stands in quotation marks,
on one line, with the marks taken out that could open a block or a chat turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mosaic_guard._blocks import clip, one_line, quoted
from mosaic_guard._decision import canonical_json

if TYPE_CHECKING:
    from mosaic_guard._trace import StepRecord, Trajectory

SPEAKERS: Mapping[str, str] = {"system": "operator", "human": "user", "ai": "agent", "tool": "result"}
SHORTEST = 60
"""Characters of a text below which it is not clipped further; then the middle of the whole is left out."""


def render(trajectory: Trajectory, limit: int = 12_000) -> str:
    """The trajectory as text of at most `limit` characters.

    Long texts are clipped first, all to one length, people's words last; each says how much was left out.
    """
    parts = [part for step in trajectory.steps for part in _parts(step)]
    length = limit
    while len(text := _written(parts, length, limit)) > limit and length > SHORTEST:
        length = max(length // 2, SHORTEST)
    return clip(text, limit)


def _written(parts: Sequence[tuple[str, str | None]], length: int, limit: int) -> str:
    lines = []
    for frame, text in parts:
        most = limit // 2 if frame.startswith("user") else length
        lines.append(frame if text is None else f"{frame} {quoted(text, most)}")
    return "\n".join(lines)


def _parts(step: StepRecord) -> Iterator[tuple[str, str | None]]:
    """(frame, free text or None) of each line of a step."""
    for message in step.messages:
        speaker = SPEAKERS.get(str(message.get("type")), "other")
        data = message.get("data")
        data = data if isinstance(data, Mapping) else {}
        text = _text(data.get("content"))
        if speaker == "result":
            yield f"result of {one_line(str(data.get('name') or 'a tool'))}:", text
        elif text.strip():
            yield f"{speaker}:", text
    yield f"step {step.step + 1}", None
    verdicts = {decision.call: decision for decision in step.decisions}
    for call in step.calls:
        index = int(call.get("index", 0))
        yield (
            f"  call {call_name(step, index)}: {clip(one_line(str(call.get('name'))), 200)}",
            canonical_json(call.get("args")),
        )
        decision = verdicts.get(index)
        if decision is None:
            continue
        if decision.verdict == "act":
            yield "    the guard let it run", None
        elif decision.verdict == "ask":
            yield f"    the guard asked a person{_answer(step, call)}", None
        else:
            reason = decision.reason
            yield f"    the guard refused it, it did not run{':' if reason else ''}", reason or None


def call_name(step: StepRecord, index: int) -> str:
    """How a call is named to people: its step's number from 1, and its own where the step has several."""
    return f"{step.step + 1}" if len(step.calls) == 1 else f"{step.step + 1}.{index + 1}"


def _answer(step: StepRecord, call: Mapping[str, Any]) -> str:
    for answer in reversed(list(getattr(step, "feedback", ()) or ())):
        if answer.get("digest") == call.get("digest"):
            return f", who answered: {one_line(str(answer.get('type')))}"
    return ""


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    found = [b if isinstance(b, str) else str(b.get("text") or "") if isinstance(b, Mapping) else "" for b in blocks]
    return "\n".join(text for text in found if text)
