"""The block grammar of the guard's turn: write, parse, and keep untrusted text from forging it.

<think>
plan
</think>
<safety_thoughts>        only when the model opens it
...
</safety_thoughts>
<decision>
1: act
2: refuse
</decision>
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import cast

from mosaic_guard._decision import Verdict

THINK = "<think>\n"
THINK_END = "\n</think>\n"
SAFETY = "<safety_thoughts>\n"
SAFETY_END = "\n</safety_thoughts>\n"
DECISION = "<decision>\n"
DECISION_END = "</decision>"

VERDICTS: tuple[Verdict, ...] = ("act", "refuse")
"""What a guard model may answer. `ask` is a rule's or a threshold's choice, never the model's."""


def verdict_line(index: int) -> str:
    """The forced text before the verdict word of call `index` (from 0): `1:`."""
    return f"{index + 1}:"


class GrammarError(ValueError):
    """A guard model answered outside the block grammar; the guard refuses."""


@dataclass(frozen=True)
class Blocks:
    """A parsed guard turn."""

    think: str
    safety_thoughts: str | None
    verdicts: tuple[Verdict, ...]


_TURN = re.compile(
    r"\s*<think>\s*(?P<think>.*?)\s*</think>\s*"
    r"(?:<safety_thoughts>\s*(?P<safety>.*?)\s*</safety_thoughts>\s*)?"
    r"<decision>\s*(?P<decision>.*?)\s*</decision>\s*",
    re.DOTALL,
)
_LINE = re.compile(r"(\d+)\s*:\s*(act|refuse)")


def write_blocks(blocks: Blocks) -> str:
    """The text of a guard turn; `parse_blocks` reads it back."""
    safety = "" if blocks.safety_thoughts is None else f"{SAFETY}{blocks.safety_thoughts}{SAFETY_END}"
    lines = "".join(f"{verdict_line(i)} {verdict}\n" for i, verdict in enumerate(blocks.verdicts))
    return f"{THINK}{blocks.think}{THINK_END}{safety}{DECISION}{lines}{DECISION_END}"


def parse_blocks(text: str, calls: int) -> Blocks:
    """Read a guard turn that must decide exactly `calls` calls, in order, once each.

    Raises:
        GrammarError: If anything is missing, repeated, out of order or added.
    """
    turn = _TURN.fullmatch(text)
    if turn is None:
        raise GrammarError(f"not a guard turn: {text[:80]!r}")
    think, safety = turn["think"], turn["safety"]
    for inner in (think, safety or ""):
        if neutral(inner) != inner:
            raise GrammarError("a block holds the marks of another block")
    verdicts: list[Verdict] = []
    for line in turn["decision"].splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None or int(match[1]) != len(verdicts) + 1:
            raise GrammarError(f"not the verdict of call {len(verdicts) + 1}: {line[:80]!r}")
        verdicts.append(cast(Verdict, match[2]))
    if len(verdicts) != calls:
        raise GrammarError(f"{len(verdicts)} verdicts for {calls} calls")
    return Blocks(think, safety, tuple(verdicts))


# Look-alikes are mapped too: some tokenizers normalise them to the ASCII characters.
_MARKS = str.maketrans({**dict.fromkeys("<＜﹤", "‹"), **dict.fromkeys(">＞﹥", "›")})
_SPACE = re.compile(r"\s+")


def neutral(text: str) -> str:
    """Free text with every character replaced that could open a block or a chat-template token, line breaks kept."""
    kept = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    return kept.translate(_MARKS)


def one_line(text: str) -> str:
    """`neutral`, with all white space folded to single spaces, so that free text cannot start a line of the transcript."""
    return _SPACE.sub(" ", neutral(_SPACE.sub(" ", text))).strip()


def quoted(text: str, limit: int | None = None) -> str:
    """Free text as one line between quotation marks that it cannot close itself, clipped to `limit` characters."""
    line = one_line(text).replace('"', "'")
    return f'"{line if limit is None else clip(line, limit)}"'


def clip(text: str, limit: int) -> str:
    """At most `limit` characters: head and tail, with a note of how much was left out between them."""
    if len(text) <= limit:
        return text
    note = f" [… {len(text) - limit} characters left out …] "
    room = max(limit - len(note), 0)
    head = room * 2 // 3
    tail = room - head
    return f"{text[:head]}{note}{text[len(text) - tail :] if tail else ''}"[: max(limit, 1)]
