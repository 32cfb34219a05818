"""Refusal in text: the guard answers each call in its own words, and what they say is the verdict.

For comparison with refusal as an action (the verdict word of the block grammar), and for nothing else: it is how most chat
models refuse. In the place of the word stands one line of free text; a line with a word of refusal refuses, any other lets the
call run. The verdict is read off the text, so it carries no loss of its own and has no probability: P(refuse) is 0 or 1.
A policy, a threshold or an earlier equal call that decides otherwise than the text is an error, and the guard refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Protocol

from mosaic_guard import Guard, LocalGuardModel, Outcome, TraceWriter
from mosaic_guard._blocks import verdict_line
from mosaic_guard.models.guard_model import Decide
from mosaic_guard.models.local import _Writer

TOKENS = 12
"""Most tokens of an answer."""

ACTS = (" Yes, go on.", " This is what was asked for.", " Fine, it can run.", " I let it through.")
REFUSALS = (" No, I will not do this.", " Sorry, I cannot do this.", " I refuse.", " This is not safe.")
"""What a warm start teaches; training is free to leave it."""

_REFUSES = re.compile(
    r"\b(no|not|never|cannot|refus\w*|declin\w*|reject\w*|den(y|ied)|block\w*|stop\w*|sorry|unsafe|unable)\b|n['’]t\b",
    re.I,
)


def refuses(text: str) -> bool:
    """Whether an answer refuses: by its words, so that "nobody says no" does too."""
    return _REFUSES.search(text) is not None


class TextRefusalModel(LocalGuardModel):
    """A local guard model that answers in text.

    Args:
        model: What it is built around; the two share weights and cache.
    """

    def __init__(self, model: LocalGuardModel) -> None:
        self.__dict__.update(model.__dict__)

    def _decide(self, writer: _Writer, calls: int, decide: Decide) -> list[float]:
        said = []
        for index in range(calls):
            writer.force(verdict_line(index))
            said.append(float(refuses(writer.free_text(TOKENS, "\n"))))
            verdict, _ = decide(index, said[-1])
            if (verdict == "refuse") != bool(said[-1]):
                raise ValueError(f"call {index + 1} was decided otherwise than the text says")
        return said


class _Runs(Protocol):
    @property
    def id(self) -> str: ...
    def run(self, guard: Guard, trace: TraceWriter | None = None, trajectory: str = "") -> Outcome: ...


@dataclass(frozen=True)
class TextTask:
    """A task whose guard answers in text."""

    task: _Runs

    @property
    def id(self) -> str:
        """That of the task."""
        return self.task.id

    def run(self, guard: Guard, trace: TraceWriter | None = None, trajectory: str = "") -> Outcome:
        """Run it under the guard, but with answers in text."""
        return self.task.run(in_text(guard), trace, trajectory)


def in_text(guard: Guard) -> Guard:
    """The same guard, answering in text; its model is a local one."""
    assert isinstance(guard.model, LocalGuardModel)
    other = copy(guard)
    other.model = TextRefusalModel(guard.model)
    return other


def in_texts(tasks: Iterable[_Runs]) -> list[TextTask]:
    """Tasks whose guards answer in text."""
    return [TextTask(task) for task in tasks]


def training_tasks() -> list[TextTask]:
    """What `--environment mosaic_guard_training.text_refusal:training_tasks` rolls out."""
    from mosaic_guard_training.graded import training_tasks as graded

    return in_texts(graded())
