"""What a step costs as a thread grows, with the prefix cache and without, measured side by side.

Reports ratios of medians within one run: absolute times on a shared machine mean little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from mosaic_guard import Call, Guard, LocalGuardModel, Step

FIRST, LAST = 3, 20
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


def equal_steps(steps: int) -> list[list[BaseMessage]]:
    """The histories that the steps of one thread see; every step adds a look-up of the same size."""
    messages: list[BaseMessage] = [HumanMessage("Please read my notes one after the other and tell me what is due.")]
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


def measure(model: LocalGuardModel, repeats: int, only: Sequence[int] | None = None) -> StepTimes:
    """Judge the thread `repeats` times.

    Args:
        model: The guard model; its plans are cut at a fixed length by the guard's limits.
        repeats: How often.
        only: Time only these steps (from 1); the others are judged all the same, for the history.
    """
    seconds: dict[int, list[float]] = {}
    for _ in range(repeats):
        guard = Guard(model)
        history = []
        for number, messages in enumerate(equal_steps(LAST), 1):
            call = messages[-1].tool_calls[0]  # type: ignore[attr-defined]
            step = Step(messages, (Call(0, call["id"], call["name"], call["args"]),))
            started = time.perf_counter()
            judgement = guard.check(step, guard.plan(step, history), history, number=number - 1)
            if only is None or number in only:
                seconds.setdefault(number, []).append(time.perf_counter() - started)
            if judgement.judged is not None:
                history.append(judgement.judged)
    return StepTimes(seconds)


def bench(repeats: int = 3) -> dict[str, StepTimes]:
    """The default model with and without its prefix cache, interleaved."""
    cached = LocalGuardModel()
    plain = LocalGuardModel.of(cached.model, cached.tokenizer, name=cached.base, cache_tokens=0)
    measure(cached, 1)  # the first run of a process is slower
    found: dict[str, dict[int, list[float]]] = {"prefix cache": {}, "no cache": {}}
    for _ in range(repeats):
        for name, model in (("prefix cache", cached), ("no cache", plain)):
            for step, times in measure(model, 1).seconds.items():
                found[name].setdefault(step, []).extend(times)
    return {name: StepTimes(seconds) for name, seconds in found.items()}
