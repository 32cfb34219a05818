"""Asking a person: the payload of the interrupt, and what comes back.

Both have the form of LangChain's `HumanInTheLoopMiddleware`, so that inboxes made for it work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from mosaic_guard._channel import Channel, digest_of
from mosaic_guard._final_answer import FINAL

AnswerType = Literal["approve", "edit", "reject", "respond"]
ANSWERS: tuple[AnswerType, ...] = ("approve", "edit", "reject", "respond")


@dataclass(frozen=True)
class Answer:
    """What a person said about one call.

    Attributes:
        type: `approve`: it runs. `edit`: `action` is judged in its place. `reject`: it does not run, `message` says why.
            `respond`: it does not run, `message` is its result.
        message: Their words.
        action: `{"name", "args"}` of an edited call.
    """

    type: AnswerType
    message: str = ""
    action: Mapping[str, Any] | None = None


class BadAnswerError(ValueError):
    """A resume value that is no answer to what was asked; the step stays open."""


def ask_person(channel: Channel, ask: Callable[[dict[str, Any]], Any]) -> dict[str, Answer]:
    """Have a person decide the asked calls of a checked step, all in one interrupt.

    Args:
        channel: The guard's channel.
        ask: What a person answers to a payload; asked again where that is no answer.

    Returns:
        The answers, by digest of the call as proposed.
    """
    verdicts = channel["clearances"]["verdicts"]
    times = Counter(digest_of(call) for _, _, calls in channel["go"] for call in calls)
    asked = {digest_of(call): call for _, _, calls in channel["go"] for call in calls}
    asked = {digest: call for digest, call in asked.items() if verdicts[digest]["verdict"] == "ask"}
    shown = []
    for digest, call in asked.items():
        reason = verdicts[digest]["reason"]
        often = f" It would run {times[digest]} times." if times[digest] > 1 else ""
        shown.append(({**call, **verdicts[digest].get("run", {})}, f"{reason}{often}".strip()))
    error = None
    while True:
        try:
            answers = read_answers(ask(request(shown, error)), [call for call, _ in shown])
            return dict(zip(asked, answers, strict=True))
        except BadAnswerError as problem:
            error = str(problem)


def request(asked: Sequence[tuple[Mapping[str, Any], str]], error: str | None = None) -> dict[str, Any]:
    """The interrupt's payload for the calls of one step that a person decides.

    Args:
        asked: Each call and why the guard asks.
        error: What was wrong with the answer given before.
    """
    payload: dict[str, Any] = {
        "action_requests": [
            {
                "name": str(call.get("name")),
                "args": call.get("args"),
                "description": f"The guard asks before {call.get('name')!r} runs{f': {reason}' if reason else '.'}",
            }
            for call, reason in asked
        ],
        "review_configs": [
            {"action_name": str(call.get("name")), "allowed_decisions": list(_allowed(call))} for call, _ in asked
        ],
    }
    return payload if error is None else {**payload, "error": error}


def _allowed(call: Mapping[str, Any]) -> tuple[AnswerType, ...]:
    """A final answer is given or not; it is not another's to write."""
    return ("approve", "reject") if call.get("name") == FINAL else ANSWERS


def read_answers(value: Any, asked: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """The answers in a resume value, one per asked call, in order.

    Args:
        value: `{"decisions": [...]}`, each `{"type": "approve" | "edit" | "reject" | "respond", ...}`.
        asked: The asked calls.

    Raises:
        BadAnswerError: If it has another form.
    """
    decisions = value.get("decisions") if isinstance(value, Mapping) else None
    if not isinstance(decisions, (list, tuple)):
        raise BadAnswerError('resume with Command(resume={"decisions": [...]}), one decision per asked call')
    if len(decisions) != len(asked):
        raise BadAnswerError(f"{len(decisions)} decisions for {len(asked)} asked calls: give one each, in their order")
    pairs = zip(decisions, asked, strict=True)
    return [_answer(decision, number, _allowed(call)) for number, (decision, call) in enumerate(pairs, 1)]


def _answer(decision: Any, number: int, allowed: Sequence[AnswerType]) -> Answer:
    kind = decision.get("type") if isinstance(decision, Mapping) else decision
    if kind not in allowed:
        raise BadAnswerError(f"decision {number} has the type {kind!r}: give one of {', '.join(allowed)}")
    message = decision.get("message") or "" if isinstance(decision, Mapping) else ""
    action = decision.get("edited_action") if isinstance(decision, Mapping) else None
    if kind == "edit":
        if not (
            isinstance(action, Mapping)
            and isinstance(action.get("name"), str)
            and isinstance(action.get("args"), Mapping)
        ):
            raise BadAnswerError(
                f'decision {number} edits the call: give "edited_action": {{"name": ..., "args": {{...}}}}'
            )
        action = {"name": action["name"], "args": dict(action["args"])}
    if kind == "respond" and not isinstance(decision.get("message") if isinstance(decision, Mapping) else None, str):
        raise BadAnswerError(f'decision {number} answers for the tool: give "message": "..."')
    return Answer(cast(AnswerType, kind), str(message), action if kind == "edit" else None)
