"""Judge in the terminal: `python -m mosaic_guard_training.judging.label --traces DIR --output FILE`.

Two trajectories of a task stand side by side, in an order drawn by chance; a task with one trajectory shows it alone.
An answer is a line, so that a file or a pipe can answer too:

    1, 2, t     the left one is better, the right one is, neither is
    h 1 3       call 3 of the left one is harmful (3.2: the second call of its step 3); then the pair is asked again
    3           (one trajectory) call 3 is harmful
    n           (one trajectory) nothing harmful in it
    s, q        skip; stop for now

What was answered is kept at once, and not asked again.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from mosaic_guard_training.judging.cache import JudgementLog
from mosaic_guard_training.judging.human import ASKED, HUMAN
from mosaic_guard_training.judging.judgement import (
    Judgement,
    Vote,
    Winner,
    by_task,
    judgement_key,
    now,
    step_judgement,
)
from mosaic_guard_training.judging.render import render
from mosaic_guard_training.judging.stage import Pair, keep_apart, pairs_to_judge, read_with_notes
from mosaic_guard_training.judging.tables import side_by_side
from mosaic_guard_training.options import check_ranges, parse, setting
from mosaic_guard_training.pairs import legitimate_calls
from mosaic_guard_training.twins import verdict_of

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory

PAIR_KEYS = "1, 2: which is better · t: tie · h SIDE STEP: harmful call, such as h 1 3 · s: skip · q: stop"
ONE_KEYS = "STEP: harmful call, such as 3 or 3.2 · n: nothing harmful · s: skip · q: stop"

_CALL = re.compile(r"(\d+)(?:\.(\d+))?")
_HARM = re.compile(r"h\s+([12])\s+(\S+)")


class _Stop(Exception):
    """The person has had enough."""


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """What is labelled; `help` of each field says what it does.

    Raises:
        ValueError: If a number is outside its range, or the name cannot be used; the message names the option.
    """

    traces: Path = setting("trace file, or directory of trace files")
    output: Path = setting("file of judgements; what stands there is not asked again")
    name: str | None = setting("who labels, where several people do", default=None)
    single: bool = setting("show each trajectory alone, also where a task has several", default=False)
    pairs_per_task: int = setting("most pairs of one task, a random sample of more", default=8, low=1, high=10**9)
    max_characters: int = setting("most characters of a trajectory that are shown", default=6000, low=200, high=10**9)
    seed: int = setting("decides which pairs are drawn, and which stands left", default=0, low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.judge == ASKED or (self.name is not None and not self.name.strip()):
            raise ValueError(f"--name must be a name other than 'ask', not {self.name!r}")

    @property
    def judge(self) -> str:
        """Who judges."""
        return HUMAN if self.name is None else f"{HUMAN}:{self.name}"


def label(settings: LabelSettings, answers: Iterator[str], console: Console) -> int:
    """Ask about all that is not labelled yet.

    Args:
        settings: What.
        answers: One line each; where they end, labelling stops.
        console: Where things are shown.

    Returns:
        Number of new judgements.

    Raises:
        TrainingError: If the traces or the file of judgements cannot be used.
    """
    keep_apart(settings.output, settings.traces)
    trajectories = read_with_notes(settings.traces, console)
    with JudgementLog(settings.output) as log:
        labelling = _Labelling(settings, answers, console, log)
        before = len(log)
        try:
            labelling.go(trajectories)
        except _Stop:
            console.print("stopped; the same command goes on from here")
        return len(log) - before


class _Labelling:
    def __init__(self, settings: LabelSettings, answers: Iterator[str], console: Console, log: JudgementLog) -> None:
        self._settings, self._answers, self._console, self._log = settings, answers, console, log

    def go(self, trajectories: Sequence[Trajectory]) -> None:
        settings = self._settings
        pairs = [] if settings.single else pairs_to_judge(trajectories, settings.pairs_per_task, settings.seed)
        members = by_task(trajectories).values()
        alone = [each for group in members if settings.single or len(group) == 1 for each in group]
        waiting = [pair for pair in pairs if self._log.known(self._pair_key(pair)) is None]
        labelled = {j.one for j in self._log if j.judge == settings.judge and j.one == j.other}
        lonely = [each for each in alone if each.id not in labelled]
        total = len(waiting) + len(lonely)
        if not total:
            self._console.print("nothing left to label")
        for number, pair in enumerate(waiting, 1):
            self._ask_pair(pair, f"{number} of {total}")
        for number, each in enumerate(lonely, len(waiting) + 1):
            self._ask_one(each, f"{number} of {total}")

    def _pair_key(self, pair: Pair) -> str:
        texts = [render(each) for each in pair]
        return judgement_key(self._settings.judge, pair[0].id, pair[1].id, *texts)

    def _ask_pair(self, pair: Pair, progress: str) -> None:
        one, other = pair
        key = self._pair_key(pair)
        swapped = random.Random(f"{self._settings.seed}\0{key}").random() < 0.5
        left, right = (other, one) if swapped else pair
        self._show(one.task, progress, [("1", left), ("2", right)])
        while True:
            said = self._read(PAIR_KEYS)
            harm = _HARM.fullmatch(said)
            if harm:
                self._harm(left if harm[1] == "1" else right, harm[2])
                continue
            winner = self._winner(said, swapped)
            if winner is None:
                self._console.print(f"not an answer: {said!r}", markup=False)
                continue
            vote = Vote("other" if swapped else "one", winner, said)
            reason = "skipped" if winner == "abstain" else ""
            judge = self._settings.judge
            self._log.add(Judgement(key, one.task, one.id, other.id, winner, judge, (vote,), reason, now()))
            return

    def _winner(self, said: str, swapped: bool) -> Winner | None:
        places: tuple[Winner, Winner] = ("other", "one") if swapped else ("one", "other")
        answers: dict[str, Winner] = {"1": places[0], "2": places[1], "t": "tie", "s": "abstain"}
        return answers.get(said)

    def _ask_one(self, trajectory: Trajectory, progress: str) -> None:
        self._show(trajectory.task, progress, [(trajectory.id, trajectory)])
        while True:
            said = self._read(ONE_KEYS)
            if said == "s" or (said == "n" and not legitimate_calls(trajectory)):
                reason = "skipped" if said == "s" else "nothing ran"
                key = judgement_key(self._settings.judge, trajectory.id, reason)
                names = (trajectory.task, trajectory.id, trajectory.id)
                self._log.add(Judgement(key, *names, "abstain", self._settings.judge, reason=reason, time=now()))
            elif said == "n":
                for at, step in enumerate(trajectory.steps):
                    for call, verdict in sorted(verdict_of(step).items()):
                        if verdict == "act":
                            self._log.add(self._about(trajectory, at, [call], "one", "nothing harmful"))
            elif not self._harm(trajectory, said):
                continue
            return

    def _harm(self, trajectory: Trajectory, where: str) -> bool:
        """Keep that a call is harmful; False, and a word about it, if there is no such call."""
        match = _CALL.fullmatch(where)
        at = next((i for i, s in enumerate(trajectory.steps) if match and s.step + 1 == int(match[1])), None)
        calls: list[int] = []
        if match and at is not None:
            step = trajectory.steps[at]
            known = [int(call.get("index", 0)) for call in step.calls]
            wanted = known if match[2] is None else [int(match[2]) - 1]
            ran = [call for call in wanted if verdict_of(step).get(call) == "act"]
            # A whole step means what ran of it; a call that was refused must be named.
            calls = [call for call in (ran or wanted) if call in known]
        if not calls or at is None:
            self._console.print(f"no call {where!r} there", markup=False)
            return False
        self._log.add(self._about(trajectory, at, calls, "other", "harmful"))
        return True

    def _about(self, trajectory: Trajectory, at: int, calls: Sequence[int], winner: Winner, reason: str) -> Judgement:
        return step_judgement(self._settings.judge, trajectory, at, calls, winner, reason)

    def _show(self, task: str, progress: str, columns: Sequence[tuple[str, Trajectory]]) -> None:
        self._console.print(Text(f"\n{progress}: task {task}", style="bold"))
        self._console.print(side_by_side(columns, self._settings.max_characters))

    def _read(self, keys: str) -> str:
        self._console.print(keys, style="dim", markup=False)
        said = next(self._answers, "q").strip().lower()
        if said == "q":
            raise _Stop
        return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; None for this process's own.

    Returns:
        The exit code: 0, 2 for an error that its user can mend, 130 when stopped by Ctrl-C.
    """
    from mosaic_guard_training.judging.__main__ import in_one_sentence

    settings = parse(LabelSettings, "python -m mosaic_guard label", (__doc__ or "").partition("\n")[0], arguments)
    console = Console(highlight=False, emoji=False)

    def work() -> None:
        number = label(settings, iter(sys.stdin.readline, ""), console)
        console.print(f"{number} new judgements in {settings.output}", markup=False, soft_wrap=True)

    return in_one_sentence(work)


if __name__ == "__main__":
    sys.exit(main())
