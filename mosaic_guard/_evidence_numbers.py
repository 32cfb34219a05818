"""What evidence says about a call, as numbers: `EvidenceModel` reads them.

Each is a share in [0, 1], 0 or 1, or a logarithm of a count. They say who wrote what, and nothing of what it means: telling
numbers are few, and a model of 135 million parameters reads them from text less well than a small network does as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from langchain_core.messages import BaseMessage, ToolMessage

from mosaic_guard._evidence import (
    before_calls,
    fold,
    holds,
    is_human,
    is_refusal,
    leaves,
    message_text,
    name_words,
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

NAMES = (
    # Where its values come from: the share of each origin; 1 if there are any; 1 if all are the user's; how many.
    "user", "operator", "result", "agent", "nowhere", "any", "all of the user",
    "values", "values of results", "values of nowhere",
    # The nearest sentence of the user; the share of the words of the name, of the values, that the user ever said; the verb.
    "user overlap", "name by the user", "values by the user", "verb by the user",
    # The nearest untrusted passage, whether it is an instruction, both; whether the user mentions the text it stands in.
    "untrusted overlap", "instruction", "instruction overlap", "mentioned",
    # Among the sentences of results that read as instructions: the most words that one holds of the values, the name, both;
    # what all hold together; how many there are, and of how many sentences.
    "values in one", "name in one", "call in one", "call in all", "instructions", "sentences",
    # The share of the values of results that stand in such a sentence, 1 if any does, and their share of all values.
    "told of results", "told", "told of all",
    "look-up",
)  # fmt: skip
"""The numbers, in their order."""


def evidence_numbers(messages: Sequence[BaseMessage], call: Call, evidence: CallEvidence) -> tuple[float, ...]:
    """The numbers of one call.

    Args:
        messages: The history, as `gather_evidence` gets it.
        call: The proposed call.
        evidence: What `gather_evidence` found about it.

    Returns:
        One number for each of `NAMES`.
    """
    before = before_calls(messages)
    parts = name_words(call.name)
    name, verbs = words_of(" ".join(parts)), frozenset(parts[:-1] or parts)
    values = words_of(" ".join(value for _, value in leaves(call.args)))
    asked = _all(held for m in before if is_human(m) for _, held in sentences(message_text(m)))
    results = [message_text(m) for m in before if isinstance(m, ToolMessage) and not is_refusal(m)]
    told = [each for text in results for each in _instructions(text, verbs)]

    kinds = [origin.vouched for origin in evidence.origins]
    share = {
        kind: kinds.count(kind) / max(len(kinds), 1) for kind in ("user", "operator", "result", "agent", "nowhere")
    }
    foreign = [origin.value for origin in evidence.origins if origin.vouched == "result"]
    spoken = sum(any(holds(text, value) for text, _ in told) for value in map(fold, foreign))

    user = evidence.user_words.overlap if evidence.user_words else 0.0
    theirs, instruction, mentioned = 0.0, 0.0, 0.0
    if evidence.untrusted is not None:
        theirs, instruction = evidence.untrusted.overlap, float(evidence.untrusted.instruction)
        mentioned = float(bool(evidence.untrusted.mentioned))
    both = name | values
    return (
        *share.values(), float(bool(kinds)), float(bool(kinds) and share["user"] == 1), math.log1p(len(kinds)),
        math.log1p(len(foreign)), math.log1p(kinds.count("nowhere")),
        user, _share(name, asked), _share(values, asked), float(bool(parts) and parts[0] in asked),
        theirs, instruction, instruction * theirs, mentioned,
        *(max((_share(words, held) for _, held in told), default=0.0) for words in (values, name, both)),
        _share(both, _all(held for _, held in told)), math.log1p(len(told)),
        math.log1p(sum(len(sentences(text)) for text in results)),
        spoken / max(len(foreign), 1), float(spoken > 0), spoken / max(len(kinds), 1),
        float(bool(parts) and parts[0] in LOOK_UPS),
    )  # fmt: skip


@lru_cache(maxsize=256)
def _instructions(text: str, verbs: frozenset[str]) -> tuple[tuple[str, frozenset[str]], ...]:
    """(folded, words) of the sentences of a result that read as instructions; found once, however often it is asked for."""
    return tuple((fold(each), held) for each, held in sentences(text) if reads_as_instruction(each, verbs))


def _share(words: frozenset[str], among: frozenset[str]) -> float:
    return len(words & among) / len(words) if words else 0.0


def _all(held: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*held)
