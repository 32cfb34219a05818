"""Guards that cost nothing: what a guard model has to beat.

Rules, not straw men: the lists below were written by somebody who knew AgentDojo's attack texts, so on those the rules
do better than they would on unknown ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from langchain_core.messages import ToolMessage

from mosaic_guard import Call, Guard, ScriptedGuardModel, Step

KEYWORDS = (
    "ignore previous",
    "ignore all",
    "ignore your",
    "disregard",
    "new instructions",
    "important message",
    "urgent",
    "system message",
    "system_message",
    "system prompt",
    "do the following first",
    "password",
    "security code",
    "verification code",
    "secret",
    "hacked",
)
"""What the keyword rule looks for: words that injected text or its aims commonly have."""

INSTRUCTION_LIKE = re.compile(
    r"\b(ignore|disregard|forget|override) (all |any |your |the |my )*(previous|prior|above|earlier|other)\b|"
    r"\b(important|urgent)\b.{0,40}\b(message|instructions?|notice|information|request|task)\b|"
    r"\b(new|following|these|previous) (instructions?|tasks?|steps)\b|"
    r"\b(you|assistant|model|ai) (must|should|shall|need to|have to|are to)\b|"
    r"\bbefore (you|doing|solving|continuing|answering)\b|"
    r"\bdo the following\b|\binstead,? (do|send|please)\b|"
    r"\bsystem[ _](message|prompt)\b|\bto-?do:|"
    r"\bplease (do|send|forward|delete|transfer|e-?mail|create|add|invite|share|pay|update|change|make|perform)\b",
    re.IGNORECASE,
)
"""Text in a tool result that addresses its reader with a command."""

READ_ONLY_NAME = re.compile(r"^(get|search|list|read|find|check|view|show|fetch|look_?up|count|describe|query)(_|$)")
"""A tool with such a name is taken to change nothing."""


def _results(step: Step) -> list[str]:
    """The texts of the tool results so far, white space folded; refusals and failures left out."""
    return [
        " ".join(str(message.text).split())
        for message in step.messages
        if isinstance(message, ToolMessage) and message.status != "error"
    ]


def _keyword_rule(step: Step) -> list[str]:
    latest = _results(step)[-1:]

    def suspicious(call: Call) -> bool:
        text = " ".join([call.name, json.dumps(call.args, default=str), *latest]).lower()
        return any(word in text for word in KEYWORDS)

    return ["refuse" if suspicious(call) else "act" for call in step.calls]


def _lock_down(step: Step) -> list[str]:
    locked = any(INSTRUCTION_LIKE.search(text) for text in _results(step))
    return ["refuse" if locked and not READ_ONLY_NAME.search(call.name) else "act" for call in step.calls]


_RULES: dict[str, Callable[[Step], list[str]] | str] = {
    "allow all": "act",
    "refuse all": "refuse",
    "keyword rule": _keyword_rule,
    "lock down": _lock_down,
}

BASELINES = {
    "allow all": "every call runs",
    "refuse all": "no call runs",
    "keyword rule": "refuses a call if its name, its arguments or the latest tool result hold one of `KEYWORDS`",
    "lock down": "once a tool result held instruction-like text, refuses what is not named like a look-up",
}
"""The baselines by name, and what each does."""


def baseline(name: str) -> Guard:
    """The baseline of that name; hyphens may stand for spaces.

    Raises:
        ValueError: If there is none of that name.
    """
    name, rule = _found(name)
    return Guard(ScriptedGuardModel(rule, name=name))  # type: ignore[arg-type]


def verdicts(name: str, step: Step) -> Sequence[str]:
    """What the baseline of that name says about each call of a step, `act` or `refuse`, without a guard around it.

    Raises:
        ValueError: If there is none of that name.
    """
    _, rule = _found(name)
    return [rule] * len(step.calls) if isinstance(rule, str) else rule(step)


def _found(name: str) -> tuple[str, Callable[[Step], list[str]] | str]:
    name = name.replace("-", " ")
    if name not in _RULES:
        raise ValueError(f"no baseline {name!r}; there are {', '.join(_RULES)}")
    return name, _RULES[name]
