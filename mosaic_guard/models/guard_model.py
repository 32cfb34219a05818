"""The one seam to a language model: `plan` writes the think block, `check` continues the same turn to the decisions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mosaic_guard._deadline import in_thread
from mosaic_guard._decision import Verdict
from mosaic_guard._transcript import Kind, Prompt, Turn


@dataclass(frozen=True)
class Planned:
    """The guard's turn up to the end of the plan.

    Attributes:
        think: The plan.
        turns: The turns that this step has added so far; the last is the guard's, unfinished.
        state: Whatever else `check` of the same model needs; JSON-like, for it may pass through a checkpoint.
    """

    think: str
    turns: tuple[Turn, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """The finished guard turn.

    Attributes:
        safety_thoughts: The safety block; None where the model went straight to the decision.
        p_refuse: Probability of refusal per call, in [0, 1].
        turns: All turns that this step added to the transcript.
    """

    safety_thoughts: str | None
    p_refuse: tuple[float, ...]
    turns: tuple[Turn, ...] = ()


Decide = Callable[[int, float], "tuple[Verdict, Kind]"]
"""(call index, probability of refusal) -> the verdict to write into the transcript, and who chose it."""


class GuardModel(ABC):
    """A language model behind the guard. Subclasses fill `plan` and `check`; both may raise, and the guard then refuses.

    Attributes:
        name: Names the model in traces; two models that read each other's tokens have the same name.
        window: Context length in tokens.
        computes_plans: Whether it begins with a computed plan where `Prompt.plan` says so; others write theirs.
    """

    name: str = "guard model"
    window: int = 8192
    computes_plans: bool = False

    @abstractmethod
    def plan(self, prompt: Prompt) -> Planned:
        """Write the think block."""

    @abstractmethod
    def check(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        """Continue the turn: the safety block if it opens one, then one decision per call.

        Args:
            prompt: The prompt that `plan` got.
            planned: What `plan` returned.
            decide: Must be called once for each call, in order; its verdict is what the transcript says.
        """

    async def aplan(self, prompt: Prompt) -> Planned:
        """`plan`, without blocking the event loop."""
        return await in_thread(self.plan, prompt)

    async def acheck(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        """`check`, without blocking the event loop."""
        return await in_thread(self.check, prompt, planned, decide)

    def count(self, text: str) -> int:
        """Number of tokens of a text; at least this many where the tokenizer is not known."""
        return len(text.encode("utf-8", "surrogatepass")) // 3 + 1

    def describe(self) -> dict[str, Any]:
        """What a trace's header says about the model: `model`, `base_model`, `adapter`."""
        return {"model": self.name, "base_model": None, "adapter": None}
