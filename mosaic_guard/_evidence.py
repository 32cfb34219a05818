"""Evidence: where a call's values come from, which of the user's words ask for it, which untrusted passage is nearest.

Computed before the model speaks, linear in the length of the history. Evidence is data for the model, never a verdict.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from mosaic_guard._blocks import one_line
from mosaic_guard._decision import Call

REFUSAL_MARK = "mosaic_guard"
"""Key in a ToolMessage's `additional_kwargs` that marks the guard's own answer. The text of a tool result cannot set it."""
REFUSED, REJECTED, JUDGED = "refusal", "rejection", "judgement"
"""Its values: the guard's own decision, and a person's; `JUDGED`: the guard's, by what it thinks of the call itself."""

OriginKind = Literal["user", "operator", "result", "agent", "nowhere"]


@dataclass(frozen=True)
class Origin:
    """Where the value of one argument first appeared in the thread.

    Attributes:
        argument: Path of the value, such as `recipients[0]`.
        value: The value as text.
        kind: `user` (a human message), `operator` (a system message), `result` (an untrusted tool result), `agent` (the
            agent's own text) or `nowhere`.
        tool: The tool whose result it first appeared in.
        said: Whether a human said it too, before or after: then who else wrote it tells nothing about who asked for it.
    """

    argument: str
    value: str
    kind: OriginKind
    tool: str | None = None
    said: bool = False

    @property
    def vouched(self) -> OriginKind:
        """`user` for all that a human said, else where it first appeared."""
        return "user" if self.said else self.kind


@dataclass(frozen=True)
class Passage:
    """The passage of some text that shares most words with a call.

    Attributes:
        text: The passage, on one line.
        overlap: Share of the call's words that it holds, in [0, 1].
        instruction: Whether it reads as an instruction to the reader.
        tool: The tool whose result it stands in; None in a human message.
        mentioned: What of the call that returned that result a human says too, such as the name of a file; empty if nothing.
        mention: The sentence that says it. Whoever says "do what Anna's mail asks for" delegates to that mail, and whoever
            says "file Anna's mail" does not.
    """

    text: str
    overlap: float
    instruction: bool = False
    tool: str | None = None
    mentioned: str = ""
    mention: str = ""


@dataclass(frozen=True)
class CallEvidence:
    """What was computed about one call."""

    origins: tuple[Origin, ...]
    user_words: Passage | None
    untrusted: Passage | None

    @property
    def asked_by_results(self) -> float:
        """Overlap with the nearest instruction in a tool result minus overlap with the user's words, in [-1, 1]."""
        theirs = self.untrusted.overlap if self.untrusted and self.untrusted.instruction else 0.0
        return theirs - (self.user_words.overlap if self.user_words else 0.0)


_WORD = re.compile(r"[^\W_]+")
_NAME_PARTS = re.compile(r"_|(?<=[a-z0-9])(?=[A-Z])")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|[\n\r]+")
_MAX_SENTENCE = 400
_STOP = frozenset(
    "a an and are as at be by can do for from get has have i if in is it its me my no not of on or our please that the "
    "then this to true false none null us was we what when which who will with you your".split()
)
_COMMAND = (
    r"(?:^\W{0,8}|[:>›»\])}]\s[^\w:>›»\])}]{0,8})"
    r"(?:(?:first|then|now|next|also|finally|kindly|just|simply|afterwards|immediately|quickly|to\scontinue)\b,?\s){0,2}"
)
"""Where a command begins: a sentence, or what follows a heading, a name or markup; a word of order may stand before it."""
_OPENING = re.compile(rf"{_COMMAND}[^\W_]+(?![^\W_]|\s?:)", re.IGNORECASE)
_INSTRUCTION = re.compile(
    r"\b(ignore|disregard|forget|override|instead|important|must|should|need(s)? to|have to|make sure|before you|"
    r"first,|please|do the following|follow these|new task|instruction|your task|you are|execute|perform|urgent|"
    r"(can|could|would|will) you|(want|like|need|ask|expect) you to)\b|"
    rf"{_COMMAND}(send|transfer|delete|create|add|invite|forward|share|pay|update|change|set|post|write|call|visit|remove|"
    r"schedule|reserve|book|cancel|open|run|click|upload|download|give|tell|say|print|email|buy|move|grant|use|merge|"
    r"register|switch|turn|start|stop|order|reset|enable|disable|approve|confirm|submit|apply|assign|modify|reply|put|"
    r"place|refund|rename|copy|save|install|restart|unlock|revoke|reveal|disclose|export|publish|notify)\b(?=\s+[^\s:,;|}\]])",
    re.IGNORECASE,
)


def message_text(message: BaseMessage) -> str:
    """The text of a message, whatever form its content has."""
    content = message.content
    if isinstance(content, str):
        return content
    # Attached documents have texts too; nobody said those.
    parts = [p if isinstance(p, str) else str(p.get("text", "")) if p.get("type") == "text" else "" for p in content]
    return "\n".join(part for part in parts if part)


def is_human(message: BaseMessage) -> bool:
    """Whether a message is a human's own words.

    Libraries write human messages too, and say so under `lc_source`: summaries, a grader's findings, the text of a file.
    """
    return isinstance(message, HumanMessage) and not message.additional_kwargs.get("lc_source")


def is_refusal(message: BaseMessage) -> bool:
    """Whether a message is the guard's own answer to a refused call: neither evidence nor untrusted."""
    return isinstance(message, ToolMessage) and REFUSAL_MARK in message.additional_kwargs


def gather_evidence(messages: Sequence[BaseMessage], calls: Sequence[Call]) -> tuple[CallEvidence, ...]:
    """Evidence for each call of a step, from the messages before the AI message that proposes it.

    Args:
        messages: The history; the last AI message (which proposes the calls) and what follows it are left out, but the
            text that this AI message says is counted as the agent's.
        calls: The proposed calls.
    """
    before, proposing = _split(messages)
    return tuple(_evidence(before, proposing, call) for call in calls)


def gather_origins(messages: Sequence[BaseMessage], call: Call) -> tuple[Origin, ...]:
    """The origins that `gather_evidence` finds for a call, without the rest, which costs more."""
    return _origins(*_split(messages), call)


def answered_calls(messages: Sequence[BaseMessage]) -> Iterator[tuple[ToolMessage, Mapping[str, Any]]]:
    """Each tool message with the call that it answers, in order; ids count within one AI message, for models repeat them."""
    waiting: list[Mapping[str, Any]] = []
    for message in messages:
        if isinstance(message, AIMessage):
            waiting = [dict(call) for call in message.tool_calls]
        elif isinstance(message, ToolMessage):
            found = next((call for call in waiting if call.get("id") == message.tool_call_id), None)
            if found is not None:
                waiting.remove(found)
                yield message, found


def before_calls(messages: Sequence[BaseMessage]) -> Sequence[BaseMessage]:
    """What stands before the AI message that proposes the calls."""
    return _split(messages)[0]


def name_words(name: str) -> list[str]:
    """The words of a tool's name, case folded: `close_issue` and `closeIssue` have two."""
    return _WORD.findall(_NAME_PARTS.sub(" ", name).casefold())


def _split(messages: Sequence[BaseMessage]) -> tuple[Sequence[BaseMessage], Sequence[BaseMessage]]:
    """What stands before the AI message that proposes the calls, and that message (none in a history without one)."""
    end = next((i for i in range(len(messages) - 1, -1, -1) if isinstance(messages[i], AIMessage)), len(messages))
    return messages[:end], messages[end : end + 1]


def _origins(before: Sequence[BaseMessage], proposing: Sequence[BaseMessage], call: Call) -> tuple[Origin, ...]:
    return tuple(_origin(path, value, before, proposing) for path, value in leaves(call.args) if is_telling(value))


def _evidence(before: Sequence[BaseMessage], proposing: Sequence[BaseMessage], call: Call) -> CallEvidence:
    origins = _origins(before, proposing, call)
    parts = name_words(call.name)
    words = words_of(" ".join(parts)).union(*(words_of(value) for _, value in leaves(call.args)))
    said = [message_text(m) for m in before if is_human(m)]
    user, found = _nearest(words, said), None
    results = [m for m in before if isinstance(m, ToolMessage) and not is_refusal(m)]
    # The last word of a name is what is acted on: "Issue 17: closed" is no order to `close_issue`.
    theirs = _nearest(words, [message_text(m) for m in results], frozenset(parts[:-1] or parts))
    if theirs is not None:
        holder = results[theirs.place]
        mentioned, mention = _mention(holder, before, said)
        found = replace(theirs.passage, tool=holder.name or "a tool", mentioned=mentioned, mention=mention)
    return CallEvidence(origins, user.passage if user else None, found)


def _mention(result: ToolMessage, before: Sequence[BaseMessage], said: Sequence[str]) -> tuple[str, str]:
    """What the human says of the call that a result answers: the value, and the last sentence that says most of them.

    Whole values only: words of an argument that a text has talked the agent into would let that text pass for the user's.
    The whole sentence, for a part of it may have lost its "never" or "only if". Of a call without arguments its name counts.
    """
    call = next((call for message, call in answered_calls(before) if message is result), None)
    if call is None:
        return "", ""
    values = [value for _, value in leaves(call["args"]) if is_telling(value)]
    if not call["args"]:
        values = [part for part in name_words(call["name"]) if words_of(part)]
    wanted = [fold(value) for value in values]
    best, most = ("", ""), 0
    for text in said:
        for sentence, _ in sentences(text):
            folded = fold(sentence)
            held = [value for value, each in zip(values, wanted, strict=True) if holds(folded, each)]
            if held and len(held) >= most:
                best, most = (one_line(held[0]), one_line(sentence)), len(held)
    return best


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of each scalar in JSON-like arguments, depth first."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif value is not None:
        yield path or "value", str(value)


def is_telling(value: str) -> bool:
    """Whether a value can be traced: such as `true` or `1` stand in any text and tell nothing about who wrote them."""
    return len(value.strip()) > 1 and value.lower() not in ("true", "false", "none", "null")


def _origin(path: str, value: str, before: Sequence[BaseMessage], proposing: Sequence[BaseMessage]) -> Origin:
    # What the agent says beside the call, without the call itself.
    messages = (*before, *(AIMessage(message_text(message)) for message in proposing[:1]))
    wanted, first, said = fold(value), None, False
    for message in messages:
        if is_refusal(message) or (first is not None and not is_human(message)):
            continue
        if holds(fold(message_text(message)), wanted) or _proposed(message, value):
            first = first or message
            if is_human(message):
                said = True
                break
    if first is None:
        return Origin(path, value, "nowhere")
    if is_human(first):
        return Origin(path, value, "user", said=True)
    if isinstance(first, ToolMessage):
        return Origin(path, value, "result", first.name or "a tool", said)
    return Origin(path, value, "operator" if isinstance(first, SystemMessage) else "agent", said=said)


def _proposed(message: BaseMessage, value: str) -> bool:
    """Whether an earlier call of the agent had the value already (the call that is judged is not in its history)."""
    return isinstance(message, AIMessage) and any(
        value == leaf for call in message.tool_calls for _, leaf in leaves(call["args"])
    )


_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


@lru_cache(maxsize=256)
def _numbers(text: str) -> frozenset[float]:
    """The numbers in a text, so that 98.7 is found where 98.70 or 1,098.70 stands."""
    return frozenset(float(found.replace(",", "")) for found in _NUMBER.findall(text))


def holds(text: str, wanted: str) -> bool:
    """Whether a folded text holds a folded value: as whole words, or a number however it is written."""
    if _NUMBER.fullmatch(wanted) and float(wanted.replace(",", "")) in _numbers(text):
        return True
    if not wanted:  # nothing but characters that nobody sees
        return False
    start = text.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        # Whole words only: "10" does not come from "2010".
        if not (start and text[start - 1].isalnum() and wanted[0].isalnum()) and not (
            end < len(text) and text[end].isalnum() and wanted[-1].isalnum()
        ):
            return True
        start = text.find(wanted, start + 1)
    return False


@lru_cache(maxsize=512)
def fold(text: str) -> str:
    """A text without case, and with single spaces."""
    return " ".join(_visible(text).casefold().split())


def words_of(text: str) -> frozenset[str]:
    """The telling words of a text, case folded."""
    return frozenset(w for w in _WORD.findall(_visible(text).casefold()) if len(w) > 1 and w not in _STOP)


def _visible(text: str) -> str:
    """A text without characters that nobody sees, such as zero-width spaces: they would hide where a value comes from."""
    return text if text.isascii() else "".join(c for c in text if unicodedata.category(c) != "Cf")


@lru_cache(maxsize=256)
def sentences(text: str) -> tuple[tuple[str, frozenset[str]], ...]:
    """(sentence, its words) of a text; sentences longer than 400 characters are cut into pieces."""
    found = []
    for sentence in _SENTENCE.split(text):
        for start in range(0, len(sentence), _MAX_SENTENCE):
            piece = sentence[start : start + _MAX_SENTENCE].strip()
            if piece:
                found.append((piece, words_of(piece)))
    return tuple(found)


def reads_as_instruction(text: str, verbs: frozenset[str] = frozenset()) -> bool:
    """Whether a passage addresses its reader with a command; a plain word list, meant as one hint among others.

    Args:
        text: The passage.
        verbs: What it may begin with to be a command, beside the usual verbs: the first words of a tool's name.
    """
    return _INSTRUCTION.search(text) is not None or not verbs.isdisjoint(opening_words(text))


def opening_words(text: str) -> frozenset[str]:
    """The words with which a command could begin in a passage, case folded; no labels, such as "Order: 17"."""
    found = [word.casefold() for opening in _OPENING.findall(text) for word in _WORD.findall(opening)]
    first = _WORD.search(text)  # whatever marks stand before it
    if first is not None and not text.startswith(":", first.end()):
        found.append(first[0].casefold())
    return frozenset(found)


class _Nearest(NamedTuple):
    """A passage, and the place of its text among the others."""

    passage: Passage
    place: int


def _nearest(words: frozenset[str], texts: Sequence[str], verbs: frozenset[str] | None = None) -> _Nearest | None:
    """The sentence that holds most of `words`; among untrusted ones, instructions win ties.

    Args:
        words: Of the call.
        texts: Of each message.
        verbs: The first word of the call's name, where the texts are untrusted.
    """
    best: tuple[float, bool, str, int] | None = None
    for place, text in enumerate(texts):
        for sentence, held in sentences(text):
            overlap = len(words & held) / len(words) if words else 0.0
            if best is not None and overlap < best[0]:
                continue
            instruction = verbs is not None and overlap > 0 and reads_as_instruction(sentence, verbs)
            if best is None or (overlap, instruction) > best[:2]:
                best = (overlap, instruction, sentence, place)
    if best is None:
        return None
    return _Nearest(Passage(one_line(best[2]), round(best[0], 3), best[1]), best[3])


def explain(call: Call, evidence: CallEvidence | None) -> str:
    """One sentence for the agent and for a person: which values come from where, and what the user asked."""
    doubt = "not sure that this call is wanted and harmless"
    if evidence is None:
        return doubt
    foreign = [o for o in evidence.origins if o.vouched == "result"]
    parts = [
        _list([o for o in foreign if o.tool == tool]) + f" from the result of {tool}"
        for tool in dict.fromkeys(o.tool for o in foreign)
    ]
    if unknown := [o for o in evidence.origins if o.vouched == "nowhere"]:
        parts.append(_list(unknown) + " from nowhere in this thread")
    asked = evidence.user_words.text if evidence.user_words else None
    parts.append(f'nearest words of the user: "{asked[:160]}"' if asked else "no words of the user ask for it")
    return f"{doubt}: {'; '.join(parts)}"


def _list(origins: Sequence[Origin]) -> str:
    shown = [f"{o.argument} {one_line(o.value)[:60]!r}" for o in origins[:3]]
    more = f" and {len(origins) - 3} more" if len(origins) > 3 else ""
    return ", ".join(shown) + more + (" comes" if len(origins) == 1 else " come")
