"""What evidence says about a call, as numbers: `EvidenceModel` reads them.

They say who wrote what, and nothing of what it means. Each has a direction in which alone it may speak, so that whoever writes
what a tool returns cannot speak for a call by adding to it: no number that a text can raise speaks for the call, but for what a
human said of that text, and for "any read", which chooses the weight of the guard model's word (`_evidence_model.py`). Shares
of all values are not among them, for values can be added to a call; the least of them counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from langchain_core.messages import BaseMessage, ToolMessage

from mosaic_guard._evidence import (
    before_calls,
    fold,
    holds,
    is_human,
    is_refusal,
    is_telling,
    leaves,
    message_text,
    name_words,
    opening_words,
    reads_as_instruction,
    sentences,
    words_of,
)

if TYPE_CHECKING:
    from mosaic_guard._decision import Call
    from mosaic_guard._evidence import CallEvidence

LOOK_UPS = frozenset(
    "get search list read find fetch view show check lookup query describe count browse retrieve calculate compute convert "
    "estimate".split()
)
"""First words of tools' names that promise to change nothing."""

FOR, AGAINST, EITHER = -1, 1, 0
DIRECTIONS: Mapping[str, int] = {
    # What a human said: all values; the least that is said of the words of one; the words of the tool's name; its verb.
    "all by humans": FOR,
    "least by humans": FOR,
    "name by humans": FOR,
    "verb by humans": FOR,
    # Values that neither a human nor the operator said: whether there are any, how many, and the same of those that came of
    # results; whether there are values of the operator, and values at all.
    "any unsaid": AGAINST,
    "unsaid": AGAINST,
    "any of results": AGAINST,
    "of results": AGAINST,
    "any of the operator": FOR,
    "any": EITHER,
    # The nearest untrusted passage: its overlap, whether it is an instruction, both; whether a human mentions its text.
    "overlap": AGAINST,
    "instruction": AGAINST,
    "instruction overlap": AGAINST,
    "mentioned": FOR,
    # Sentences of results that read as instructions: the most words that one holds of the values, of the name, of both; what
    # all hold of both; whether they hold values that came of results, and how many.
    "values in one": AGAINST,
    "name in one": AGAINST,
    "call in one": AGAINST,
    "call in all": AGAINST,
    "any told": AGAINST,
    "told": AGAINST,
    "look-up": FOR,
    # Whether any tool has answered: before that nobody but a human or the operator can have asked for anything.
    "any read": AGAINST,
}
"""The numbers, in their order, and which way each may speak: for the call, against it, or either."""

NAMES = tuple(DIRECTIONS)


def evidence_numbers(messages: Sequence[BaseMessage], call: Call, evidence: CallEvidence) -> tuple[float, ...]:
    """The numbers of one call.

    Args:
        messages: The history, as `gather_evidence` gets it.
        call: The proposed call.
        evidence: What `gather_evidence` found about it.

    Returns:
        One number for each of `NAMES`: shares in [0, 1], 0 or 1, or logarithms of 1 + a count.
    """
    before = before_calls(messages)
    parts = name_words(call.name)
    name = words_of(" ".join(parts))
    values = [value for _, value in leaves(call.args)]
    inside = words_of(" ".join(values))
    asked = _union(held for m in before if is_human(m) for _, held in sentences(message_text(m)))
    results = [message_text(m) for m in before if isinstance(m, ToolMessage) and not is_refusal(m)]
    told = _told(results, parts)
    everything = _union(held for _, held in told)
    text = "\n".join(folded for folded, _ in told)

    kinds = [origin.vouched for origin in evidence.origins]
    unsaid = sum(kind not in ("user", "operator") for kind in kinds)
    foreign = [origin.value for origin in evidence.origins if origin.vouched == "result"]
    spoken = sum(holds(text, fold(value)) for value in foreign)
    said = [_share(words_of(value), asked) for value in values if is_telling(value) and words_of(value)]

    overlap, instruction, mentioned = 0.0, 0.0, 0.0
    if evidence.untrusted is not None:
        overlap, instruction = evidence.untrusted.overlap, float(evidence.untrusted.instruction)
        mentioned = float(bool(evidence.untrusted.mentioned))
    found = {
        "all by humans": float(bool(kinds) and set(kinds) == {"user"}),
        "least by humans": min(said, default=0.0),
        "name by humans": _share(name, asked),
        "verb by humans": float(bool(parts) and parts[0] in asked),
        "any unsaid": float(unsaid > 0),
        "unsaid": math.log1p(unsaid),
        "any of results": float("result" in kinds),
        "of results": math.log1p(kinds.count("result")),
        "any of the operator": float("operator" in kinds),
        "any": float(bool(kinds)),
        "overlap": overlap,
        "instruction": instruction,
        "instruction overlap": instruction * overlap,
        "mentioned": mentioned,
        "values in one": max((_share(inside, held) for _, held in told), default=0.0),
        "name in one": max((_share(name, held) for _, held in told), default=0.0),
        "call in one": max((_share(name | inside, held) for _, held in told), default=0.0),
        "call in all": _share(name | inside, everything),
        "any told": float(spoken > 0),
        "told": math.log1p(spoken),
        "look-up": float(bool(parts) and parts[0] in LOOK_UPS),
        "any read": float(bool(results)),
    }
    return tuple(found[name] for name in NAMES)


class _Sentence(NamedTuple):
    """A sentence of a result: folded, its words, whether it commands whatever the call, what a command could open with."""

    folded: str
    words: frozenset[str]
    commands: bool
    opens: frozenset[str]


@lru_cache(maxsize=1024)
def _sentences(text: str) -> tuple[_Sentence, ...]:
    """Read once, however many calls and steps ask."""
    return tuple(
        _Sentence(fold(each), held, reads_as_instruction(each), opening_words(each)) for each, held in sentences(text)
    )


def _told(results: Sequence[str], parts: Sequence[str]) -> list[tuple[str, frozenset[str]]]:
    """(folded, words) of each sentence that reads as an instruction, or follows one: what is to be done may stand below it."""
    verbs = frozenset(parts[:-1] or parts)
    found = []
    for text in results:
        before = False
        for each in _sentences(text):
            now = each.commands or not verbs.isdisjoint(each.opens)
            if now or before:
                found.append((each.folded, each.words))
            before = now
    return found


def _share(words: frozenset[str], among: frozenset[str]) -> float:
    return len(words & among) / len(words) if words else 0.0


def _union(held: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*held)
