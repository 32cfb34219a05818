"""A plan that needs no model: the calls, the words of the user that are nearest to them, and where their values come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mosaic_guard._blocks import one_line, quoted

if TYPE_CHECKING:
    from mosaic_guard._decision import Call, Step
    from mosaic_guard._evidence import CallEvidence

_SIZES = ((110, 6), (80, 4), (50, 3), (30, 2), (0, 1), (0, 0))
"""(characters of the user's words, arguments per origin) that a plan tries, until it fits its limit."""


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
    while count(text) > limit:
        text = text[: len(text) * 3 // 4].rstrip()
    return text


def _plan_of(call: Call, known: CallEvidence, words: int, arguments: int) -> str:
    said = known.user_words.text if known.user_words and known.user_words.overlap > 0 else ""
    asked = f"the user said {quoted(said[:words])}" if said and words else "the user asks" if said else "nobody asked"
    parts = [f"{call.name[:60]}: {asked}"]
    for kind, where in (("user", "the user"), ("result", "results"), ("agent", "the agent"), ("nowhere", "nowhere")):
        named = [origin.argument[:30] for origin in known.origins if origin.kind == kind]
        if named and arguments:
            parts.append(f"{', '.join(named[:arguments])} from {where}")
    return ", ".join(parts)
