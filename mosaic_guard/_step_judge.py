"""The nodes' functions for the middleware, whose tasks have a whole step in hand: judging it, asking about it, judging late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool

from mosaic_guard._ask import ask_person
from mosaic_guard._channel import GUARD_CHANNEL, digest_of, place, proposing, write
from mosaic_guard._guard import Plan
from mosaic_guard._kept import Kept
from mosaic_guard._late import AT_TOOL, Found, ToolTask, Verdicts
from mosaic_guard._nodes import GuardNodes
from mosaic_guard._waiting import Waiting

Edits = Mapping[str, Mapping[str, Any]]
"""What a person made of calls, by digest of the call as proposed."""

NO_EDITS: Edits = {}

TOO_LATE = "a person would have to decide, and at its tool it is too late to ask"


class StepJudge(GuardNodes):
    """The nodes' functions for a task that has a whole step in hand."""

    def can_ask(self, config: RunnableConfig) -> str | None:
        """Not at a tool, where other calls of the step may have run."""
        return TOO_LATE if config.get("configurable", {}).get(AT_TOOL) else super().can_ask(config)

    def learn(self, tools: Sequence[Any]) -> None:
        """Remember the agent's tools; those that a provider runs are dictionaries and nothing to guard."""
        new = {tool.name: tool for tool in tools if isinstance(tool, BaseTool)}
        if not new.keys() <= self.tools.keys():
            # Another thread may be reading the old ones.
            self.tools = {**self.tools, **new}

    def judge(
        self, messages: Sequence[BaseMessage], calls: list[Any], config: RunnableConfig, edits: Edits
    ) -> dict[str, Any]:
        """Plan and check a step, or what a person made of some of its calls.

        Returns:
            The update of the guard's channel.
        """
        return self._decide(self._open(list(messages), [["tools", None, calls]], config, edits), config)

    async def ajudge(
        self, messages: Sequence[BaseMessage], calls: list[Any], config: RunnableConfig, edits: Edits
    ) -> dict[str, Any]:
        """`judge` for event loops."""
        return await self._adecide(self._open(list(messages), [["tools", None, calls]], config, edits), config)

    def settle(self, update: dict[str, Any], kept: Kept, config: RunnableConfig) -> tuple[dict[str, Any], Edits]:
        """Write what was decided; where a person decides some calls, interrupt once for all of them.

        Returns:
            The update of the guard's channel as it is now, and the calls that are to be judged again.
        """
        write(config, GUARD_CHANNEL, update)
        verdicts = update["clearances"]["verdicts"]
        if any(found["verdict"] == "ask" for found in verdicts.values()):
            answers = ask_person(update, partial(kept.ask, keep=update))
            update = {**update, **self._answered(config, update, answers)}
            write(config, GUARD_CHANNEL, update)
        return update, update["edits"]

    def judge_late(self, task: ToolTask, call: Mapping[str, Any]) -> Found:
        """The verdict of a call without one."""
        key, messages, calls = task.late_step(call)

        def compute() -> Verdicts:
            return verdicts_of(self._decide(self._open_late(key, messages, calls, task.config), task.config))

        return task.once.get(key, compute)[digest_of(call)]

    async def ajudge_late(self, task: ToolTask, call: Mapping[str, Any]) -> Found:
        """`judge_late` for event loops."""
        key, messages, calls = task.late_step(call)

        async def compute() -> Verdicts:
            return verdicts_of(await self._adecide(self._open_late(key, messages, calls, task.config), task.config))

        return (await task.once.aget(key, compute))[digest_of(call)]

    def _decide(self, waiting: Waiting, config: RunnableConfig) -> dict[str, Any]:
        plan = self.guard.plan(waiting.step, waiting.history, key=waiting.key)
        self._announce(waiting, plan)
        judgement = self.guard.check(waiting.step, plan, waiting.history, key=waiting.key, number=waiting.number)
        return self._placed(config, waiting, judgement)

    async def _adecide(self, waiting: Waiting, config: RunnableConfig) -> dict[str, Any]:
        plan = await self.guard.aplan(waiting.step, waiting.history, key=waiting.key)
        self._announce(waiting, plan)
        judgement = await self.guard.acheck(waiting.step, plan, waiting.history, key=waiting.key, number=waiting.number)
        return self._placed(config, waiting, judgement)

    def _announce(self, waiting: Waiting, plan: Plan) -> None:
        if self.events:
            self._planned(waiting, plan)

    def _placed(self, config: RunnableConfig, waiting: Waiting, judgement: Any) -> dict[str, Any]:
        update = self._checked(config, waiting, judgement)
        update["clearances"]["step"] = place(waiting.messages, proposing(waiting.messages))
        return update

    def _open_late(self, key: str, messages: list[BaseMessage], calls: list[Any], config: RunnableConfig) -> Waiting:
        waiting = self._open(messages, [["tools", None, calls]], config)
        return replace(waiting, history=[], trajectory=f"{waiting.trajectory}~{key[:12]}", number=0)

    def farewell(self, verdicts: Verdicts, refusals: int) -> AIMessage:
        """The message that ends a run."""
        return AIMessage(self._farewell(verdicts, refusals).strip())

    @property
    def most_refusals(self) -> int:
        """The run ends at this many steps in a row with a refusal."""
        return 1 if self.on_refuse == "end" else self.max_refusals


def verdicts_of(update: Mapping[str, Any]) -> Verdicts:
    """The verdicts in an update of the guard's channel."""
    found: Verdicts = update["clearances"]["verdicts"]
    return found
