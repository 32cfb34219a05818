"""Traces to train on, in two makes: synthetic ones for properties, and files that a tiny guard model's tokens fill."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from mosaic_guard import Outcome, TraceWriter, Trajectory
from mosaic_guard._decision import Decision
from mosaic_guard._trace import StepRecord
from mosaic_guard._transcript import Piece

ACT, REFUSE = (10,), (11, 12)
"""Token ids of the verdict words; the tokenizer splits the second."""
WORDS = (ACT, REFUSE)
GUARD = {"model": "tiny", "base_model": "base", "adapter": None, "check": "adaptive", "threshold": 0.5, "sample": True}


def turn(verdicts: Sequence[tuple[str, str]], context: Sequence[int], plan: Sequence[int]) -> list[Piece]:
    """The pieces of a judged step: (verdict, kind) of each call, and the ids that vary."""
    pieces = [
        Piece("context", "…", tuple(context)),
        Piece("forced", "<think>\n", (2,)),
        Piece("sampled", "plan", tuple(plan), (-0.5,) * len(plan)),
        Piece("forced", "\n</think>\n<decision>\n", (3,)),
    ]
    for index, (verdict, kind) in enumerate(verdicts):
        ids = REFUSE if verdict == "refuse" else ACT
        pieces.append(Piece("forced", f"{index + 1}:", (5,)))
        pieces.append(
            Piece(kind, f" {verdict}" if len(ids) == 1 else " ref", ids[:1], (-0.1,) if kind == "sampled" else ())
        )
        if len(ids) > 1:
            pieces.append(Piece("forced", "use", ids[1:]))
        pieces.append(Piece("forced", "\n", (6,)))
    return [*pieces, Piece("forced", "</decision>", (7,))]


def step(
    number: int,
    verdicts: Sequence[tuple[str, str]],
    *,
    segment: int = 0,
    context: Sequence[int] = (20, 21),
    plan: Sequence[int] = (30, 31),
    judged: bool = True,
) -> StepRecord:
    """One step; not judged by the model means without pieces."""
    return StepRecord(
        step=number,
        segment=segment,
        calls=[{"index": i, "id": None, "name": "look", "args": {}, "digest": ""} for i in range(len(verdicts))],
        decisions=[
            Decision(i, verdict, p_refuse=0.5, source="model" if kind == "sampled" else "policy")
            for i, (verdict, kind) in enumerate(verdicts)
        ],
        think="plan",
        safety_thoughts=None,
        pieces=turn(verdicts, context, plan) if judged else [],
        messages=[],
        time="",
        seconds={},
    )


def trajectory(
    name: str, steps: Sequence[StepRecord], outcome: Outcome | None, *, task: str = "task", guard: Any = GUARD
) -> Trajectory:
    """Some steps as a trajectory."""
    return Trajectory(name, task, guard, Path("a.jsonl"), list(steps), outcome)


@st.composite
def trajectories(draw: st.DrawFn, name: str = "t") -> Trajectory:
    """Any trajectory of up to four steps of up to three calls, with or without an outcome."""
    ids = st.lists(st.integers(20, 63), min_size=1, max_size=3)
    verdict = st.tuples(st.sampled_from(["act", "refuse"]), st.sampled_from(["sampled", "sampled", "overridden"]))
    steps, segment = [], 0
    for number in range(draw(st.integers(1, 4))):
        segment += draw(st.integers(0, 3)) == 0 and number > 0
        verdicts = draw(st.lists(verdict, min_size=1, max_size=3))
        judged = draw(st.integers(0, 5)) > 0
        steps.append(step(number, verdicts, segment=segment, context=draw(ids), plan=draw(ids), judged=judged))
    known = st.sampled_from([True, False, None])
    calls = [(s.step, i) for s in steps for i in range(len(s.calls))]
    harmful_calls = draw(st.lists(st.sampled_from(calls), unique=True, max_size=3))
    outcome = draw(st.one_of(st.none(), st.builds(Outcome, known, known, st.just(harmful_calls))))
    return trajectory(name, steps, outcome, task=draw(st.sampled_from("ab")))


def log_traces(
    directory: Path,
    base_model: str,
    *,
    tasks: int = 4,
    steps: int = 3,
    adapter: str | None = None,
    seed: int = 0,
    **mode: Any,
) -> Path:
    """Write a trace file: of each task one harmful trajectory, and one that refused the harmful call and completed.

    `mode` are options of the guard.
    """
    draw = random.Random(seed)

    def some(number: int) -> list[int]:
        return [draw.randrange(20, 64) for _ in range(number)]

    with TraceWriter(directory) as writer:
        key = writer.header({**GUARD, "base_model": base_model, "adapter": adapter, **mode})
        for number in range(2 * tasks):
            harmful = number % 2 == 0
            for at in range(steps):
                second = "act" if harmful or at != 1 else "refuse"
                record = step(
                    at,
                    [("act", "sampled"), (second, "sampled")],
                    segment=int(at > 1),
                    context=some(8),
                    plan=some(3),
                )
                fields = {key: getattr(record, key) for key in ("step", "segment", "calls", "think", "safety_thoughts")}
                writer.step(
                    {
                        **fields,
                        "guard": key,
                        "trajectory": f"{seed}-{number}",
                        "task": f"task {number // 2}",
                        "messages": [],
                        "at": f"{seed}-{number}-{at}",
                        "after": f"{seed}-{number}-{at - 1}" if at else None,
                        "decisions": [decision.to_dict() for decision in record.decisions],
                        "pieces": [piece.to_dict() for piece in record.pieces],
                        "seconds": {},
                    }
                )
            writer.outcome(f"{seed}-{number}", Outcome(harmful, True, [(1, 1)], "test"))
    return directory


def losses_of(pieces: Sequence[Piece]) -> list[bool]:
    """Whether each token of some pieces may carry loss, straight from the rule."""
    return [piece.kind in ("sampled", "target") for piece in pieces for _ in piece.ids]
