"""What a step costs as a thread grows, with the prefix cache and without, measured side by side.

Reports ratios of medians within one run: absolute times on a shared machine mean little.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from mosaic_guard import Call, Guard, LocalGuardModel, Step
from mosaic_guard._transcript import JudgedStep

FIRST, LAST = 3, 20
COMPARED = (FIRST, 10, LAST)
"""The steps (from 1) that are compared."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds of `plan` and `check` together, by step number (from 1)."""

    seconds: dict[int, list[float]]

    def median(self, step: int) -> float:
        """Median over the repeats."""
        return statistics.median(self.seconds[step])

    @property
    def ratio(self) -> float:
        """Time at the last step over time at the first that is compared."""
        return self.median(LAST) / self.median(FIRST)


@dataclass(frozen=True)
class Bench:
    """What was measured."""

    cached: StepTimes
    plain: StepTimes
    """The same model without a prefix cache."""
    tokens: dict[int, list[int]]
    """Tokens that a step added to the transcript, by step number: whether the steps were of equal size."""


def equal_steps(steps: int, thread: int = 0) -> list[list[BaseMessage]]:
    """The histories that the steps of one thread see; every step adds a look-up of the same size.

    Threads differ from their first words on, so that the prefix cache knows nothing of a new one but the system turn.
    """
    messages: list[BaseMessage] = [
        HumanMessage(f"Please read the notes of week {thread} one after the other and tell me what is due.")
    ]
    histories = []
    for number in range(1, steps + 1):
        proposal = {"name": "read_note", "args": {"name": f"note-{number:02}.txt"}, "id": f"{number}"}
        messages.append(AIMessage("", tool_calls=[proposal]))
        histories.append(list(messages))
        text = (
            f"Note {number:02}. " + "The rent is due on Monday, and Anna wants the report by the end of the week. " * 5
        )
        messages.append(ToolMessage(text, tool_call_id=f"{number}", name="read_note"))
    return histories


def bench(repeats: int = 3) -> Bench:
    """The default model as shipped on threads of equal steps; at some of them, without its cache on the same history.

    Args:
        repeats: How many threads. One more is judged first and not counted: a process starts slowly.
    """
    cached = LocalGuardModel()
    plain = LocalGuardModel.of(cached.model, cached.tokenizer, name=cached.name, cache_tokens=0)
    found: tuple[StepTimes, StepTimes] = (StepTimes({}), StepTimes({}))
    tokens: dict[int, list[int]] = {}
    for repeat in range(repeats + 1):
        history: list[JudgedStep] = []
        for number, messages in enumerate(equal_steps(LAST if repeat else FIRST, repeat), 1):
            call = messages[-1].tool_calls[0]  # type: ignore[attr-defined]
            step = Step(messages, (Call(0, call["id"], call["name"], call["args"]),))
            judged = None
            for times, model in zip(found, (cached, plain) if number in COMPARED else (cached,), strict=False):
                guard = Guard(model)
                started = time.perf_counter()
                judgement = guard.check(step, guard.plan(step, history), history, number=number - 1)
                if repeat:
                    times.seconds.setdefault(number, []).append(time.perf_counter() - started)
                judged = judged or judgement.judged
            if judged is not None:
                history.append(judged)
                tokens.setdefault(number, []).append(sum(len(turn.ids) for turn in judged.turns))
    return Bench(*found, tokens)
