"""Hindsight twins: a logged trajectory, and the same one had the guard decided otherwise at one step.

A twin is a rewrite of `pieces`: the same tokens up to the verdict word of a call, the other word with kind `target`, and
the rest of the guard's turn as it was. It ends after that turn, because nobody knows what the agent would
have done next. Its original is cut at the same place: beyond it the two cannot be compared, and log-probabilities of
hundreds of later tokens would drown those of the decision.

Both copies keep only the changed words in the comparison. Everything before them is shared, so it cancels in the
difference that DPO trains on; the verdicts after them were sampled in another context than the twin's, so both sides
mark them `forced`. A word that a policy or threshold chose stays `overridden` in the original and has no loss there:
such a pair trains only the twin's word, a hindsight target.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic_guard._trace import StepRecord, Trajectory
    from mosaic_guard._transcript import Piece

Segments = tuple[tuple["Piece", ...], ...]
"""The pieces of each segment, in order."""

VerdictIds = tuple[Sequence[int], Sequence[int]]
"""The token ids of ` act` and of ` refuse` in a guard model's tokenizer."""

ACT, REFUSE = " act", " refuse"
"""The verdict words, with their leading space."""

_VERDICT_LINE = re.compile(r"(?:^|\n)(\d+):$")


def segments(steps: Sequence[StepRecord]) -> Segments:
    """The pieces of some steps, one tuple per segment; a segment without tokens is left out."""
    found: dict[int, list[Piece]] = {}
    for step in steps:
        found.setdefault(step.segment, []).extend(piece for piece in step.pieces if piece.ids)
    return tuple(tuple(pieces) for _, pieces in sorted(found.items()) if pieces)


def last_word(some: Segments, call: int) -> str | None:
    """The verdict word on a call of the last step, with its leading space; None if no step of these has such a call."""
    pieces = some[-1] if some else ()
    for at in range(len(pieces) - 2, -1, -1):
        match = _VERDICT_LINE.search(pieces[at].text) if pieces[at].kind == "forced" else None
        if match and int(match[1]) - 1 == call:
            rest = "".join(piece.text for piece in pieces[at + 1 :])
            return rest.split("\n", 1)[0]
    return None


def verdict_words(step: StepRecord) -> dict[int, slice]:
    """Where the verdict words of a step stand: call index to a slice of `step.pieces`.

    A word is one piece or, where the tokenizer splits it, the piece that decides and a `forced` one with the rest.
    Empty where no model with tokens judged the step: a policy settled it, or the guard failed.
    """
    found: dict[int, slice] = {}
    for at, piece in enumerate(step.pieces[1:], 1):
        line = step.pieces[at - 1]
        match = _VERDICT_LINE.search(line.text) if line.kind == "forced" else None
        if match and piece.ids and piece.kind in ("sampled", "overridden", "target"):
            end = at + 1
            while end < len(step.pieces) and not step.pieces[end].text.startswith("\n"):
                end += 1
            found[int(match[1]) - 1] = slice(at, end)
    return found


@dataclass(frozen=True)
class Sides:
    """A trajectory up to one step, had the guard let some of its calls run, and had it refused them.

    Attributes:
        acts: The copy in which they run.
        refuses: The copy in which they do not.
        acts_is_twin: Whether `acts` is a rewrite of what was logged.
        refuses_is_twin: Whether `refuses` is.
    """

    acts: Segments
    refuses: Segments
    acts_is_twin: bool
    refuses_is_twin: bool


def both_sides(
    trajectory: Trajectory, at: int, calls: Collection[int], act_ids: Sequence[int], refuse_ids: Sequence[int]
) -> Sides | None:
    """Both decisions about some calls of one step: what was logged, where it says so, and else its twin.

    A call that a person was asked about has the word that the model itself chose in the log.

    Args:
        trajectory: What was logged.
        at: Index of the step in `trajectory.steps`.
        calls: Indices of the calls.
        act_ids: Token ids of ` act` in the guard model's tokenizer.
        refuse_ids: Token ids of ` refuse` there.

    Returns:
        None if the log does not hold the tokens of one of these verdicts.
    """
    step = trajectory.steps[at]
    words = verdict_words(step)
    if not calls or not set(calls) <= set(words):
        return None
    said = {call: "".join(piece.text for piece in step.pieces[words[call]]) for call in calls}
    earlier = trajectory.steps[:at]

    def side(word: str, ids: Sequence[int]) -> tuple[Segments, bool]:
        changed = [call for call in calls if said[call] != word]
        copy = _decided(step, calls, word, ids, changed)
        return segments([*earlier, copy]), bool(changed)

    (acts, acts_is_twin), (refuses, refuses_is_twin) = side(ACT, act_ids), side(REFUSE, refuse_ids)
    return Sides(acts, refuses, acts_is_twin, refuses_is_twin)


def _decided(
    step: StepRecord, calls: Collection[int], word: str, ids: Sequence[int], changed: Collection[int]
) -> StepRecord:
    """The step with a verdict word written for `changed`, which are some of the calls; later verdicts have no loss."""
    words = verdict_words(step)
    starts = {words[call].start for call in changed}
    gone = {i for call in changed for i in range(words[call].start, words[call].stop)}
    kept = {i for call in calls if call not in changed for i in range(words[call].start, words[call].stop)}
    first = min(words[call].start for call in calls)
    pieces: list[Piece] = []
    for i, piece in enumerate(step.pieces):
        if i in gone:
            pieces += _word(piece, word, ids) if i in starts else []
        elif i > first and i not in kept and piece.kind in ("sampled", "target"):
            pieces.append(replace(piece, kind="forced", logprobs=()))
        else:
            pieces.append(piece)
    return replace(step, pieces=pieces)


def _word(was: Piece, text: str, ids: Sequence[int]) -> list[Piece]:
    """The word that a twin writes: its first token is the target, what the tokenizer adds to it follows from it."""
    first = replace(was, kind="target", text=text, ids=tuple(ids[:1]), logprobs=())
    rest = replace(first, kind="forced", text="", ids=tuple(ids[1:]))
    return [first, rest] if rest.ids else [first]


def verdict_ids(tokenizer: Any) -> VerdictIds:
    """The token ids of the verdict words in a guard model's tokenizer."""
    act, refuse = (tokenizer.encode(word, add_special_tokens=False) for word in (ACT, REFUSE))
    return act, refuse


def logged_verdict_ids(trajectories: Sequence[Trajectory]) -> VerdictIds | None:
    """The same, read from steps that wrote the words; None where one of them was never written.

    Args:
        trajectories: Logged by guards of one base model.
    """
    found: dict[str, tuple[int, ...]] = {}
    for trajectory in trajectories:
        for step in trajectory.steps:
            for word in verdict_words(step).values():
                pieces = step.pieces[word]
                found.setdefault(
                    "".join(piece.text for piece in pieces), tuple(i for piece in pieces for i in piece.ids)
                )
                if ACT in found and REFUSE in found:
                    return found[ACT], found[REFUSE]
    return None


def verdict_of(step: StepRecord) -> Mapping[int, str]:
    """The verdict on each call of a step, by call index."""
    return {decision.call: decision.verdict for decision in step.decisions}
