"""Guard blocks for a trajectory that has none, as training targets: a plan from the evidence, and verdicts as given.

The blocks are written by a guard model that knows what to say (`HindsightModel`), through the same guard, transcript and
tokenizer as at inference: what is trained on is, token for token, what `LocalGuardModel` would have read and written, had
it said that. What the model chooses there is `target` here (each token of the text, the line break that ends it, whether the
safety block opens, each verdict); all else is `context` or `forced` as ever. No weights are needed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mosaic_guard._blocks import (
    DECISION,
    DECISION_END,
    SAFETY,
    SAFETY_END,
    VERDICTS,
    one_line,
    verdict_line,
)
from mosaic_guard._evidence import explain
from mosaic_guard._guard import Check, Guard, PlanMode
from mosaic_guard._transcript import Limits, Turn
from mosaic_guard.models.chat_format import ChatFormat
from mosaic_guard.models.guard_model import Checked, Decide, Planned
from mosaic_guard.models.local import LocalGuardModel, _Writer
from mosaic_guard_training.replay import steps_as_judged

if TYPE_CHECKING:
    from mosaic_guard._decision import Verdict
    from mosaic_guard._trace import StepRecord, TraceWriter, Trajectory
    from mosaic_guard._transcript import JudgedStep, Prompt


class HindsightModel(LocalGuardModel):
    """Writes given verdicts as training targets; it has a tokenizer and no weights.

    Args:
        tokenizer: The base model's.
        name: Path or hub id of the base model.
        window: Its context length in tokens.
        safety: Whether a step with a refusal opens the safety block, which then says what the evidence says.

    Attributes:
        verdicts: What to write of each call.
        taught: Whether that is a target; empty: it is.
    """

    def __init__(self, tokenizer: Any, *, name: str, window: int = 8192, safety: bool = True) -> None:
        self.base = self.name = name
        self.window, self.safety = window, safety
        self.verdicts: Sequence[Verdict] = ()
        self.taught: Sequence[bool] = ()
        self._adapter_digest, self._cache, self._lock = None, None, threading.Lock()
        self._format = ChatFormat(tokenizer)
        self._words = {verdict: self._format.content(f" {verdict}") for verdict in VERDICTS}

    def saying(self, verdicts: Sequence[Verdict]) -> HindsightModel:
        """The same with verdicts to write, one per call of the step that it will be asked about."""
        told = copy(self)
        told.verdicts = tuple(verdicts)
        return told

    def plan(self, prompt: Prompt) -> Planned:
        """Write the computed plan: a target, unless the guard that is taught computes it too."""
        return self.state_plan(prompt, "forced" if prompt.plan == "computed" else "target")

    def check(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        """Write the safety block, if there is to be one, and the given verdicts."""
        *before, started = planned.turns
        writer = _Writer(self, [], None)
        safety = self._safety_text(prompt)
        self._open(writer, prompt, safety is not None)
        if safety is not None:
            writer.line("target", safety, prompt.limits.safety, SAFETY_END)
            writer.force(DECISION)
        probabilities = []
        for index, wanted in enumerate(self.verdicts):
            writer.force(verdict_line(index))
            probabilities.append(float(wanted == "refuse"))
            verdict, kind = decide(index, probabilities[-1])
            ids = self._words["refuse" if verdict == "refuse" else "act"]
            taught = kind == "sampled" and (not self.taught or self.taught[index])
            writer.choose("target" if taught else "forced" if kind == "sampled" else kind, f" {verdict}", ids, 1.0)
            writer.force("\n")
        writer.force(DECISION_END)
        pieces = (*started.pieces, *writer.pieces)
        said = started.content + "".join(piece.text for piece in writer.pieces)
        return Checked(safety, tuple(probabilities), (*before, Turn("assistant", pieces, said)))

    def _safety_text(self, prompt: Prompt) -> str | None:
        refused = [i for i, verdict in enumerate(self.verdicts) if verdict == "refuse"]
        if prompt.check == "never" or (prompt.check == "adaptive" and not (self.safety and refused)):
            return None
        step = prompt.step
        about = refused[0] if refused else 0
        text = one_line(explain(step.calls[about], step.evidence[about]))
        while self.count(text) > prompt.limits.safety:
            text = text[: len(text) * 3 // 4].rstrip()
        return text

    def _open(self, writer: _Writer, prompt: Prompt, opens: bool) -> None:
        """The mark of the safety block or of the decision, its choice a target where the model would have had it."""
        ids = self._format.content(SAFETY if opens else DECISION)
        if prompt.check != "adaptive":
            writer.add("forced", self._text(ids), ids)
            return
        other = self._format.content(DECISION if opens else SAFETY)
        shared = next(i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b)
        if shared:
            writer.add("forced", self._text(ids[:shared]), ids[:shared])
        writer.choose("target", self._text(ids[shared:]), ids[shared:], 1.0)


def hindsight(
    trajectory: Trajectory,
    teacher: HindsightModel,
    verdicts: Mapping[tuple[int, int], Verdict] | None = None,
    *,
    check: Check = "adaptive",
    plan: PlanMode = "written",
    limits: Limits | None = None,
) -> Trajectory:
    """A trajectory with guard blocks in place of those that it had, if any.

    Args:
        trajectory: Logged or imported.
        teacher: Writes the blocks.
        verdicts: (step, call index) -> `act` or `refuse`; the others as logged, `ask` being `act`.
        check: As for `Guard`: whether the safety block is the model's choice, always there, or never.
        plan: As for `Guard`: whether the plan is the model's to write, and so a target, or computed.
        limits: As for `Guard`.

    Returns:
        A new trajectory, with the teacher as its guard. A step that does not fit the window has no pieces, as at inference.
    """
    history: list[JudgedStep] = []
    steps: list[StepRecord] = []
    for record, step in steps_as_judged(trajectory):
        logged = {decision.call: decision.verdict for decision in record.decisions}
        wanted: list[Verdict] = [
            (verdicts or {}).get((record.step, i), "refuse" if logged.get(i) == "refuse" else "act")
            for i in range(len(step.calls))
        ]
        guard = Guard(teacher.saying(wanted), check=check, plan=plan, limits=limits)
        judgement = guard.check(step, guard.plan(step, history), history, number=record.step)
        judged = judgement.judged
        if judged is not None:
            history.append(judged)
        steps.append(
            replace(
                record,
                segment=judged.segment if judged else history[-1].segment if history else 0,
                decisions=judgement.decisions,
                think=judgement.think,
                safety_thoughts=judgement.safety_thoughts,
                pieces=[piece for turn in judged.turns for piece in turn.pieces] if judged else [],
                seconds={},
            )
        )
    return replace(trajectory, guard=Guard(teacher, check=check, plan=plan, limits=limits).describe(), steps=steps)


def write_trajectory(writer: TraceWriter, trajectory: Trajectory) -> None:
    """Log a whole trajectory, such as `hindsight` returns, so that training reads it like any other."""
    for step in trajectory.steps:
        writer.step(
            {
                "guard": writer.header(trajectory.guard),
                "tools": writer.tool_specs(step.tools),
                "trajectory": trajectory.id,
                "task": trajectory.task,
                "step": step.step,
                "at": step.at,
                "after": step.after or None,
                "segment": step.segment,
                "thread": None,
                "messages": list(step.messages),
                "calls": list(step.calls),
                "decisions": [decision.to_dict() for decision in step.decisions],
                "think": step.think,
                "safety_thoughts": step.safety_thoughts,
                "pieces": [piece.to_dict() for piece in step.pieces],
                "seconds": dict(step.seconds),
            }
        )
        if step.feedback:
            writer.feedback(trajectory.id, step.step, step.at, step.feedback)
    if trajectory.outcome is not None:
        writer.outcome(trajectory.id, trajectory.outcome)
