"""A guard model that follows a function: for tests, for baselines, and for rules that are not worth a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mosaic_guard._blocks import DECISION, DECISION_END, SAFETY, SAFETY_END, THINK, THINK_END, verdict_line
from mosaic_guard._decision import Step, Verdict
from mosaic_guard._transcript import Piece, Prompt, Turn
from mosaic_guard.models.guard_model import Checked, Decide, GuardModel, Planned

Answer = Verdict | float
"""A verdict, or a probability of refusal in [0, 1]."""


class ScriptedGuardModel(GuardModel):
    """Asks `decide(step)` for one answer per call.

    Args:
        decide: Gets the step, with its evidence, and returns a verdict (`act`, `refuse`) or a probability of refusal for
            each call; or one answer for all of them. It may raise, which is a guard failure. Default: everything acts.
        think: What the plan says.
        safety_thoughts: What the safety block says; None for none.
        name: Names it in traces.
    """

    def __init__(
        self,
        decide: Callable[[Step], Answer | Sequence[Answer]] | Answer = "act",
        *,
        think: str = "scripted",
        safety_thoughts: str | None = None,
        name: str = "scripted",
    ) -> None:
        self.name = name
        self._decide = decide
        self._think = think
        self._safety_thoughts = safety_thoughts

    def plan(self, prompt: Prompt) -> Planned:
        """The fixed plan."""
        new = tuple(Turn(role, (Piece("context", text),), text) for role, text in prompt.new)
        return Planned(self._think, new)

    def check(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        """Ask the function.

        Raises:
            ValueError: If it does not give one answer per call.
        """
        calls = prompt.step.calls
        answers = self._decide(prompt.step) if callable(self._decide) else self._decide
        if isinstance(answers, (str, int, float)):
            answers = [answers] * len(calls)
        if len(answers) != len(calls):
            raise ValueError(f"{len(answers)} answers for {len(calls)} calls")
        probabilities = tuple(_probability(answer) for answer in answers)
        safety = self._safety_thoughts
        if prompt.check == "always" and safety is None:
            safety = ""
        opened = "" if safety is None or prompt.check == "never" else f"{SAFETY}{safety}{SAFETY_END}"
        pieces = [Piece("forced", f"{THINK}{self._think}{THINK_END}{opened}{DECISION}")]
        for index, probability in enumerate(probabilities):
            verdict, kind = decide(index, probability)
            pieces += [Piece("forced", verdict_line(index)), Piece(kind, f" {verdict}"), Piece("forced", "\n")]
        pieces.append(Piece("forced", DECISION_END))
        said = "".join(piece.text for piece in pieces)
        return Checked(
            safety if opened else None, probabilities, (*planned.turns, Turn("assistant", tuple(pieces), said))
        )


def _probability(answer: Answer) -> float:
    if answer == "refuse":
        return 1.0
    if answer == "act":
        return 0.0
    if isinstance(answer, (int, float)) and 0 <= answer <= 1:
        return float(answer)
    raise ValueError(f"a scripted answer is 'act', 'refuse' or a probability, not {answer!r}")
