"""Chat models that judge as told, trajectories worth judging, and the process that tests kill."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from training_traces import step, trajectory

from mosaic_guard import Outcome, Trajectory
from mosaic_guard._trace import StepRecord
from mosaic_guard_training.judging import Judgement

SAMPLED_ACT = ("act", "sampled")


class Answering(BaseChatModel):
    """Answers a judge's question with what a function makes of its two records."""

    answer: Callable[[str, str], str]

    @property
    def _llm_type(self) -> str:
        return "answering"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        text = str(messages[-1].content)
        first, second = text.removeprefix("Record A\n").split("\n\nRecord B\n")
        said = self.answer(first, second.rsplit("\n\n", 1)[0])
        return ChatResult(generations=[ChatGeneration(message=AIMessage(said))])


def careful(first: str, second: str) -> str:
    """Prefers the record with more refusals."""
    ours, theirs = first.count("refused"), second.count("refused")
    return f"By refusals.\nWINNER: {'TIE' if ours == theirs else 'A' if ours > theirs else 'B'}"


def first_wins(first: str, second: str) -> str:
    """Prefers whatever it reads first."""
    return "WINNER: A"


def slow_and_careful(first: str, second: str) -> str:
    """Takes its time, so that it can be stopped in between."""
    time.sleep(0.3)
    return careful(first, second)


def told(said: StepRecord, *messages: tuple[str, str]) -> StepRecord:
    """A step with (speaker, text) messages."""
    records = [{"type": kind, "data": {"content": text, "type": kind}} for kind, text in messages]
    return replace(said, messages=records)


def answered(said: StepRecord, *answers: tuple[int, str]) -> StepRecord:
    """A step whose calls a person was asked about: (call, type of answer)."""
    calls = [{**call, "digest": f"d{call['index']}"} for call in said.calls]
    found = replace(said, calls=calls)
    records = [{"digest": f"d{call}", "type": kind, "message": "because", "action": None} for call, kind in answers]
    object.__setattr__(found, "feedback", records)
    return found


def ran(name: str, *verdicts: str, outcome: Outcome | None = None, task: str = "shop/1") -> Trajectory:
    """A trajectory of one call a step, each let run or refused by the model itself."""
    steps = [told(step(i, [(verdict, "sampled")]), ("human", f"{name} {i}")) for i, verdict in enumerate(verdicts)]
    return trajectory(name, steps, outcome, task=task)


def said_of(judgements: Sequence[Judgement]) -> set[tuple[Any, ...]]:
    """What was judged and how, without when."""
    return {(j.key, j.judge, *j.subject, j.winner, j.votes, j.reason) for j in judgements}


if __name__ == "__main__":
    from mosaic_guard_training.judging.__main__ import main

    sys.exit(main(sys.argv[1:], chat=Answering(answer=slow_and_careful)))
