"""A judgement: which of two trajectories of one task is better, or whether some calls of one should have run.

A judgement about whole trajectories has no `step`. One about a step names the same trajectory twice: `one` is the
trajectory that lets `calls` run there, `other` the one that refuses them, whichever of the two was logged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mosaic_guard._decision import canonical_json

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory

Place = Literal["one", "other"]
Winner = Literal["one", "other", "tie", "abstain"]
WINNERS: tuple[Winner, ...] = ("one", "other", "tie", "abstain")

Subject = tuple[str, str, int | None, tuple[int, ...]]
"""What was judged: `one`, `other`, `step`, `calls`."""


class JudgeFailedError(RuntimeError):
    """A judge could not judge a pair (a service that does not answer); the pair can be judged later."""


@dataclass(frozen=True)
class Vote:
    """What a judge said when it saw the two in one order.

    Attributes:
        first: Which of the two it saw first.
        winner: Whom it preferred; `abstain` where it gave no answer that can be read.
        answer: Its own words.
    """

    first: Place
    winner: Winner
    answer: str = ""

    def to_dict(self) -> dict[str, str]:
        """The form that a file of judgements holds."""
        return {"first": self.first, "winner": self.winner, "answer": self.answer}


@dataclass(frozen=True)
class Judgement:
    """What one judge made of one subject; the attributes are the fields of a line in a file of judgements.

    Attributes:
        key: Digest of the judge and of what it read.
        task: The task of both.
        one: Id of a trajectory.
        other: Id of the trajectory that it is compared with; the same where a step is judged.
        winner: The better of the two, `tie`, or `abstain` where the judge cannot say.
        judge: `outcome`, `hindsight`, `human`, `human:ask`, `human:NAME`, `llm:NAME`.
        votes: What it said in each order that it saw.
        reason: Why, in one sentence.
        time: When, ISO 8601.
        step: Number of the step that is judged; None for whole trajectories.
        calls: Indices of the calls that are judged there.
    """

    key: str
    task: str
    one: str
    other: str
    winner: Winner
    judge: str
    votes: tuple[Vote, ...] = ()
    reason: str = ""
    time: str = field(default="", compare=False)
    step: int | None = None
    calls: tuple[int, ...] = ()

    @property
    def subject(self) -> Subject:
        """What was judged."""
        return self.one, self.other, self.step, self.calls

    @property
    def judge_kind(self) -> str:
        """The judge without its own name: `outcome`, `hindsight`, `human` or `llm`."""
        return self.judge.split(":", 1)[0]

    def to_dict(self) -> dict[str, Any]:
        """The form that a file of judgements holds."""
        return {
            "key": self.key,
            "task": self.task,
            "one": self.one,
            "other": self.other,
            "step": self.step,
            "calls": list(self.calls),
            "winner": self.winner,
            "judge": self.judge,
            "votes": [vote.to_dict() for vote in self.votes],
            "reason": self.reason,
            "time": self.time or now(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Judgement:
        """Read what `to_dict` wrote.

        Raises:
            KeyError: If a field is missing.
            ValueError: If one holds something else.
        """
        if record["winner"] not in WINNERS:
            raise ValueError(f"the winner is {record['winner']!r}, not one of {', '.join(WINNERS)}")
        votes = tuple(Vote(vote["first"], vote["winner"], vote["answer"]) for vote in record.get("votes", ()))
        step = record.get("step")
        return cls(
            key=str(record["key"]),
            task=str(record["task"]),
            one=str(record["one"]),
            other=str(record["other"]),
            winner=record["winner"],
            judge=str(record["judge"]),
            votes=votes,
            reason=str(record.get("reason", "")),
            time=str(record.get("time", "")),
            step=None if step is None else int(step),
            calls=tuple(int(call) for call in record.get("calls", ())),
        )


class Judge(Protocol):
    """Compares two trajectories of one task. `judge` may be called from several threads."""

    name: str

    def key(self, one: Trajectory, other: Trajectory) -> str:
        """Names the judgement by the judge and by what it reads of the two."""

    def judge(self, one: Trajectory, other: Trajectory) -> Judgement:
        """Compare two.

        Raises:
            JudgeFailedError: If that cannot be done now.
        """


class StepJudge(Protocol):
    """Says of single steps of a trajectory whether their calls should have run."""

    name: str

    def judgements(self, trajectory: Trajectory) -> Iterator[Judgement]:
        """All that it has to say about one."""


def judgement_key(judge: str, *read: Any) -> str:
    """Digest of a judge's name and of what it read, hexadecimal."""
    return hashlib.sha256(canonical_json([judge, *read]).encode("utf-8", "surrogatepass")).hexdigest()


def latest(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Of each judge and subject the last judgement only, in the order of their first ones."""
    found: dict[tuple[str, Subject], Judgement] = {}
    for judgement in judgements:
        found[judgement.judge, judgement.subject] = judgement
    return list(found.values())


def by_task(trajectories: Iterable[Trajectory]) -> dict[str, list[Trajectory]]:
    """The trajectories of each task, by their ids, so that who is `one` does not depend on who was logged first."""
    found: dict[str, list[Trajectory]] = {}
    for trajectory in sorted(trajectories, key=lambda each: each.id):
        found.setdefault(trajectory.task, []).append(trajectory)
    return dict(sorted(found.items()))


def step_judgement(
    judge: str, trajectory: Trajectory, at: int, calls: Sequence[int], winner: Winner, reason: str, *read: Any
) -> Judgement:
    """A judgement about calls of the step `trajectory.steps[at]`; `read` is what the judge read besides."""
    step = trajectory.steps[at].step
    key = judgement_key(judge, trajectory.id, step, list(calls), winner, *read)
    return Judgement(
        key, trajectory.task, trajectory.id, trajectory.id, winner, judge, (), reason, now(), step, tuple(calls)
    )


def now() -> str:
    """The time, ISO 8601 with microseconds, so that judgements can be put in order."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
