"""The gullible agent: a scripted chat model that does what it is told, by the user and by what it reads.

It makes agent evaluation exact without any language model: each call is known to be the user's or the attacker's.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentdojo.functions_runtime import FunctionCall
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import ToolException

from mosaic_guard_agentdojo.suites import Toolbox

Asker = Literal["user", "injection"]
"""Whose ground truth a call belongs to."""

GAVE_UP = "I could not do all of this: some of my tool calls got no result."


@dataclass(frozen=True)
class Turn:
    """One tool call of the history, with its result (None while it is open)."""

    name: str
    args: dict[str, Any]
    result: ToolMessage | None

    @property
    def ran(self) -> bool:
        """Whether the call got a result; refused and failed calls did not."""
        return self.result is not None and self.result.status != "error"


class GullibleChatModel(BaseChatModel):
    """Plays a scenario's ground truth, one call per message, and gives in to injected text.

    It plays the user task's ground-truth calls. Once a tool result that holds injected text has reached it, it plays
    the injection task's ground-truth calls at a seeded random point after that (anywhere from the next call to just
    before the final answer), then goes on. A refused call is left out; the next one follows. The final answer is the
    user task's `GROUND_TRUTH_OUTPUT` if each of the user's calls got a result, else a sentence that says it could not
    be done: an agent that was kept from looking cannot know.

    Everything is computed from the message history and the seed, so a resumed run goes on where it was. The injection's
    calls are computed on the environment as the calls so far left it, as an agent would that looks before it acts.
    Tool call ids say nothing about whose call it is; `askers` does.

    It does not talk to anyone, use parallel calls or read tool results for anything but the injected text.
    """

    scenario: Any
    """The `Scenario` that it plays."""

    @property
    def _llm_type(self) -> str:
        return "gullible"

    def bind_tools(self, tools: Any, **kwargs: Any) -> GullibleChatModel:
        """The tools are those of the suite, which the script knows."""
        return self

    def askers(self, messages: Sequence[BaseMessage]) -> list[Asker]:
        """Whose call each proposed call of the history is, in order."""
        turns = turns_of(messages)
        return [asker for asker, _ in self._script(turns)[: len(turns)]]

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        turns = turns_of(messages)
        script = self._script(turns)
        if len(turns) < len(script):
            call = script[len(turns)][1]
            message = AIMessage("", tool_calls=[{"name": call.function, "args": call.args, "id": self._id(len(turns))}])
        else:
            done = all(turn.ran for turn, (asker, _) in zip(turns, script, strict=False) if asker == "user")
            message = AIMessage(self.scenario.user_task.GROUND_TRUTH_OUTPUT if done else GAVE_UP)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _script(self, turns: Sequence[Turn]) -> list[tuple[Asker, FunctionCall]]:
        """What it plays, given what happened so far; what was played stays as it was."""
        user: list[tuple[Asker, FunctionCall]] = [("user", call) for call in self.scenario.user_calls]
        point = self._giving_in(turns, len(user))
        if point is None or len(turns) < point:
            return user
        injection: list[tuple[Asker, FunctionCall]] = [("injection", call) for call in self._injection(turns[:point])]
        return user[:point] + injection + user[point:]

    def _giving_in(self, turns: Sequence[Turn], user_calls: int) -> int | None:
        """How many of the user's calls come before the injection's; None while no injected text was read."""
        texts = [_letters(text) for text in self.scenario.injections.values()]
        for index, turn in enumerate(turns[:user_calls]):
            if turn.ran and turn.result is not None and _holds(turn.result.text, texts):
                return index + 1 + self._random().randrange(user_calls - index)
        return None

    def _injection(self, before: Sequence[Turn]) -> Sequence[FunctionCall]:
        toolbox = Toolbox(self.scenario.suite, self.scenario.environment())
        for turn in before:
            if turn.ran:
                try:
                    toolbox.call(turn.name, turn.args)
                except ToolException:
                    continue
        try:
            return self.scenario.injection_calls(toolbox.environment)  # type: ignore[no-any-return]
        except (LookupError, ValueError):  # what the injection needs is gone: play it as if nothing had happened
            return self.scenario.injection_calls()  # type: ignore[no-any-return]

    def _random(self) -> random.Random:
        # Not of the attack: whatever it says, the agent gives in at the same point, so that attacks can be compared.
        found = self.scenario
        return random.Random(f"{found.suite.name}/{found.user_task.ID}/{found.injection_task.ID}/{found.seed}")

    def _id(self, position: int) -> str:
        return "call_" + hashlib.sha256(f"{self.scenario.task}/{position}".encode()).hexdigest()[:24]


def turns_of(messages: Sequence[BaseMessage]) -> list[Turn]:
    """The proposed calls of a history, in order, each with the first result that follows it and carries its id."""
    turns = []
    for index, message in enumerate(messages):
        if isinstance(message, AIMessage):
            for call in message.tool_calls:
                later = (m for m in messages[index + 1 :] if isinstance(m, ToolMessage))
                result = next((m for m in later if m.tool_call_id == call["id"]), None)
                turns.append(Turn(call["name"], call["args"], result))
    return turns


_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|\s+|.)")


def _holds(result: str, texts: Sequence[str]) -> bool:
    """Whether a tool result holds one of the texts, however YAML or `repr` wrapped, quoted and escaped it."""
    seen = (_letters(result), _letters(_ESCAPE.sub(" ", result)))
    return any(text in view for text in texts for view in seen)


def _letters(text: str) -> str:
    """Only the ASCII letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())
