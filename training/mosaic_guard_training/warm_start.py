"""What a run of the ablations starts from: a guard that writes the form, and decides by lot.

The untrained guard says act to the first call and refuse to the second, whatever they are (the example in its instructions
does), so that all roll-outs of a group would be the same. Before anything is compared, SFT on a few written turns takes that
away: verdicts are drawn, so that nothing is taught about the tasks. Whether the safety block opens is drawn as well; its text
says where each call's recipient comes from, as the evidence does.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mosaic_guard import Guard, Limits, TraceWriter, Trajectory, read_traces
from mosaic_guard._blocks import DECISION, DECISION_END, VERDICTS, verdict_line
from mosaic_guard._transcript import Prompt, Turn
from mosaic_guard.models.guard_model import Checked, Decide, Planned
from mosaic_guard.models.local import _Writer
from mosaic_guard_training.hindsight import HindsightModel
from mosaic_guard_training.pairs import PreferencePair, Side
from mosaic_guard_training.preference_file import Preference, logged_by, write_preferences
from mosaic_guard_training.text_refusal import ACTS, REFUSALS, TOKENS
from mosaic_guard_training.twins import segments

if TYPE_CHECKING:
    from mosaic_guard._decision import Verdict
    from mosaic_guard_training.graded import GradedTask

Form = Literal["word", "text"]
"""Whether a verdict is a word of the grammar, or follows from an answer in text."""


class FormTeacher(HindsightModel):
    """Writes turns of a form as training targets; of a seed, what it says is drawn.

    Args:
        tokenizer: The base model's.
        name: Path or hub id of the base model.
        form: What a verdict is.
        draw: Draws verdicts, answers, and whether the safety block opens.
    """

    def __init__(self, tokenizer: Any, *, name: str, form: Form, draw: random.Random) -> None:
        super().__init__(tokenizer, name=name)
        self._form, self._draw = form, draw

    def check(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        """Write the turn with the verdicts that were given."""
        if self._form == "word":
            return super().check(prompt, planned, decide)
        *before, started = planned.turns
        writer = _Writer(self, [], None)
        writer.force(DECISION)
        for index, verdict in enumerate(self.verdicts):
            writer.force(verdict_line(index))
            decide(index, float(verdict == "refuse"))
            writer.line("target", self._draw.choice(REFUSALS if verdict == "refuse" else ACTS), TOKENS, "\n")
        writer.force(DECISION_END)
        pieces = (*started.pieces, *writer.pieces)
        said = started.content + "".join(piece.text for piece in writer.pieces)
        chances = tuple(float(verdict == "refuse") for verdict in self.verdicts)
        return Checked(None, chances, (*before, Turn("assistant", pieces, said)))

    def _safety_text(self, prompt: Prompt) -> str | None:
        if self._draw.random() < 0.5:
            return None
        named = {"user": "the user", "result": "a result", "agent": "the agent", "nowhere": "nowhere"}
        origins = [
            next((o.vouched for o in known.origins if o.argument == "to"), "nowhere") for known in prompt.step.evidence
        ]
        text = ", ".join(f"{i} from {named[kind]}" for i, kind in enumerate(origins, 1))
        return text if self.count(text) <= prompt.limits.safety else None


def write_warm_start(
    file: Path, tasks: Sequence[GradedTask], tokenizer: Any, *, base_model: str, form: Form, limits: Limits, seed: int
) -> None:
    """Write a file of preferences whose better sides are turns of a form, with verdicts drawn; SFT reads those sides only.

    Args:
        file: Where to.
        tasks: What is judged.
        tokenizer: The base model's.
        base_model: Its path or hub id.
        form: What a verdict is.
        limits: Those of the guard that goes on from it.
        seed: Decides what is drawn.
    """
    draw = random.Random(f"{seed}\0{form}")
    teacher = FormTeacher(tokenizer, name=base_model, form=form, draw=draw)
    found = []
    # Each answer as often as any other: what is drawn is only which task gets it.
    answers = list(islice(cycle(product(VERDICTS, repeat=2)), len(tasks)))
    draw.shuffle(answers)
    for task, drawn in zip(tasks, answers, strict=True):
        opposite: list[Verdict] = ["act" if verdict == "refuse" else "refuse" for verdict in drawn]
        chosen, rejected = (_told(task, teacher.saying(each), form, limits) for each in (drawn, opposite))
        pair = PreferencePair(task.id, "outcome", _side(chosen), _side(rejected))
        found.append(Preference(pair, task.kind, "unknown", "lot", base_model, (logged_by({}),), ()))
    write_preferences(file, found)


def _told(task: GradedTask, teacher: HindsightModel, form: Form, limits: Limits) -> Trajectory:
    guard = Guard(teacher, check="adaptive" if form == "word" else "never", limits=limits)
    with tempfile.TemporaryDirectory() as directory:
        with TraceWriter(directory) as trace:
            task.run(guard, trace)
        (trajectory,) = read_traces(Path(directory))
    return trajectory


def _side(trajectory: Trajectory) -> Side:
    return Side(trajectory.id, segments(trajectory.steps))
