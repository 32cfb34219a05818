"""A plan that needs no model: the calls, the words of the user that are nearest to them, and where their values come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mosaic_guard._blocks import one_line, quoted

if TYPE_CHECKING:
    from mosaic_guard._decision import Call, Step
    from mosaic_guard._evidence import CallEvidence

_SIZES = ((110, 6), (80, 4), (50, 3), (30, 2), (0, 2), (0, 1), (0, 0))
"""(characters of the user's words, arguments per origin) that a plan tries, until it fits its limit."""
_ASKS_FROM = 0.5
"""Share of a call's words that one sentence of the user must hold to ask for the call, as far as words can tell."""


def plan_text(step: Step, count: Callable[[str], int], limit: int) -> str:
    """A plan that the evidence alone gives, on one line.

    Args:
        step: The step, with its evidence.
        count: Number of tokens of a text.
        limit: Most tokens that the plan may have.
    """
    for words, arguments in _SIZES:
        parts = [
            _plan_of(call, known, words // len(step.calls), arguments)
            for call, known in zip(step.calls, step.evidence, strict=True)
        ]
        text = one_line("; ".join(parts))
        if count(text) <= limit:
            return text
    # Whole clauses, as many as there is room for.
    while len(parts) > 1 and count(one_line("; ".join(parts))) > limit:
        parts.pop()
    text = one_line("; ".join(parts))
    while count(text) > limit:
        text = text[: len(text) * 3 // 4].rstrip()
    return text


def _plan_of(call: Call, known: CallEvidence, words: int, arguments: int) -> str:
    parts = [f"{call.name[:60]}: {_asked_by(known)}"]
    for kind, where in (("user", "the user"), ("result", "results"), ("agent", "the agent"), ("nowhere", "nowhere")):
        named = [origin.argument[:30] for origin in known.origins if origin.vouched == kind]
        if named and arguments:
            parts.append(f"{', '.join(named[:arguments])} from {where}")
    if words and known.user_words and known.user_words.overlap > 0:
        parts.append(f"the user said {quoted(known.user_words.text[:words])}")
    return ", ".join(parts)


def _asked_by(known: CallEvidence) -> str:
    """Who seems to ask for a call: whose nearest sentence holds more of its words."""
    user = known.user_words.overlap if known.user_words else 0.0
    theirs = known.untrusted.overlap if known.untrusted else 0.0
    if user >= theirs and user:
        return "the user asks" if user >= _ASKS_FROM else "perhaps the user asks"
    if known.untrusted is None or not theirs:
        return "nobody asked"
    asks = "a result asks" if known.untrusted.instruction else "a result mentions it"
    return f"{asks}, perhaps the user" if user else f"{asks}, not the user"
