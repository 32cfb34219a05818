"""Any LangChain chat model as a guard model: it writes the whole turn as text, which is parsed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from mosaic_guard._blocks import DECISION_END, Blocks, GrammarError, parse_blocks, verdict_line, write_blocks
from mosaic_guard._evidence import message_text
from mosaic_guard._transcript import Piece, Prompt, Turn
from mosaic_guard.models.guard_model import Checked, Decide, GuardModel, Planned

_ROLES: Mapping[str, type[BaseMessage]] = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
_HINTS = {
    "adaptive": "",
    "always": "\nWrite a <safety_thoughts> block in any case.",
    "never": "\nDo not write a <safety_thoughts> block.",
}
# Nothing of the guard's may show in the callbacks, tags or streams of the run that it guards.
_SILENT: Any = {"callbacks": [], "tags": [], "metadata": {}, "run_name": "mosaic_guard"}


class ChatGuardModel(GuardModel):
    """Asks a chat model for the whole guard turn at once, in `plan`; `check` reads the rest of the answer.

    The probability of refusal is read from the answer's token log-probabilities where the chat model returns them
    (`logprobs=True`, OpenAI's form); else it is 0 or 1.

    Args:
        chat: Any LangChain chat model.
        name: Names it in traces. Default: the model's own name.
        window: Its context length, in tokens.
    """

    def __init__(self, chat: BaseChatModel, *, name: str | None = None, window: int = 32768) -> None:
        self._chat = chat
        own = getattr(chat, "model_name", None) or getattr(chat, "model", None) or type(chat).__name__
        self.name = name or str(own)
        self.window = window

    def plan(self, prompt: Prompt) -> Planned:
        """Ask for the turn.

        Raises:
            GrammarError: If the answer is not a guard turn.
        """
        return self._planned(prompt, self._chat.invoke(_messages(prompt), _SILENT))

    async def aplan(self, prompt: Prompt) -> Planned:
        """`plan` for event loops."""
        return self._planned(prompt, await self._chat.ainvoke(_messages(prompt), _SILENT))

    def check(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        """Read the decisions from the answer."""
        blocks = parse_blocks(planned.state["answer"], len(prompt.step.calls))
        known = planned.state["p_refuse"] or [1.0 if verdict == "refuse" else 0.0 for verdict in blocks.verdicts]
        safety = None if prompt.check == "never" else blocks.safety_thoughts
        pieces = [Piece("sampled", write_blocks(Blocks(blocks.think, safety, ())).removesuffix(DECISION_END))]
        for index, p_refuse in enumerate(known):
            verdict, kind = decide(index, p_refuse)
            pieces += [Piece("forced", verdict_line(index)), Piece(kind, f" {verdict}"), Piece("forced", "\n")]
        pieces.append(Piece("forced", DECISION_END))
        said = "".join(piece.text for piece in pieces)
        return Checked(safety, tuple(known), (*planned.turns, Turn("assistant", tuple(pieces), said)))

    def _planned(self, prompt: Prompt, answer: BaseMessage) -> Planned:
        text = message_text(answer)
        start = text.find("<think>")
        if start < 0:
            raise GrammarError(f"{self.name} did not answer with a guard turn: {text[:80]!r}")
        text = text[start:]
        blocks = parse_blocks(text, len(prompt.step.calls))
        new = tuple(Turn(role, (Piece("context", content),), content) for role, content in prompt.new)
        p_refuse = _probabilities(answer, len(blocks.verdicts))
        return Planned(blocks.think, new, {"answer": text, "p_refuse": p_refuse})


def _messages(prompt: Prompt) -> list[BaseMessage]:
    said = [(turn.role, turn.content) for turn in prompt.turns] + list(prompt.new)
    messages = [_ROLES[role](content=text) for role, text in said]
    messages[-1] = HumanMessage(f"{messages[-1].content}{_HINTS[prompt.check]}")
    return messages


def _probabilities(answer: BaseMessage, calls: int) -> list[float] | None:
    """P(refuse) of each call from OpenAI-style log-probabilities: the tokens ` act` and ` refuse` of the decision lines."""
    tokens = ((answer.response_metadata or {}).get("logprobs") or {}).get("content") or []
    found: list[float] = []
    text = ""
    for token in tokens:
        word = str(token.get("token", "")).strip()
        if "<decision>" in text and DECISION_END not in text and word in ("act", "refuse"):
            chance = math.exp(float(token["logprob"]))
            found.append(chance if word == "refuse" else 1 - chance)
        text += str(token.get("token", ""))
    return found if len(found) == calls else None
