"""Late judgements: calls that reach their tool without a clearance, because something rewrote them or led around the check.

They are judged where they stand, before the tool's body. All unjudged calls of the agent's message are one step; a call that
is not in that message (an edited one) is a step of its own. A late step is a trajectory of its own in the trace: the thread's
transcript stays what the check has written, whichever of a step's parallel tasks judges first.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig

from mosaic_guard._channel import GUARD_CHANNEL, HiddenChannel, digest_of, hidden_channel, place, proposing, read
from mosaic_guard._waiting import open_calls

Found = Mapping[str, Any]
"""What was decided about a call: `{"verdict", "reason"}`, and `run` where a person changed it."""

Verdicts = Mapping[str, Found]
"""By digest of the call."""

AT_TOOL = "mosaic_guard_at_tool"
"""In the config of what is judged late."""


class Once:
    """Computes each value once for a run, whichever of its parallel tasks asks first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: dict[str, Future[Verdicts]] = {}

    def get(self, key: str, compute: Callable[[], Verdicts]) -> Verdicts:
        """The value; computed by the first that asks, waited for by the others. An error is not kept."""
        future, first = self._claim(key)
        if first:
            with self._settling(key, future):
                future.set_result(compute())
        return future.result()

    async def aget(self, key: str, compute: Callable[[], Awaitable[Verdicts]]) -> Verdicts:
        """`get` for event loops."""
        future, first = self._claim(key)
        if first:
            with self._settling(key, future):
                future.set_result(await compute())
        return await asyncio.wrap_future(future)

    def _claim(self, key: str) -> tuple[Future[Verdicts], bool]:
        with self._lock:
            first = key not in self._futures
            if first:
                self._futures[key] = Future()
                # A future that runs is not cancelled with a task that waits for it.
                self._futures[key].set_running_or_notify_cancel()
            return self._futures[key], first

    @contextmanager
    def _settling(self, key: str, future: Future[Verdicts]) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            with self._lock:
                del self._futures[key]
            future.set_exception(error if isinstance(error, Exception) else RuntimeError("the judgement was cancelled"))
            raise


@dataclass(frozen=True)
class ToolTask:
    """What a task that is about to run a tool call knows of the call's step.

    Attributes:
        config: The task's config.
        messages: The history.
        index: Index of the message that proposes the step's calls.
        channel: The guard's channel.
    """

    config: RunnableConfig
    messages: Sequence[BaseMessage]
    index: int
    channel: HiddenChannel

    @classmethod
    def of(cls, request: Any) -> ToolTask | None:
        """The task of a tool call request; None where there is no guarded agent around it."""
        # Not request.state: other middleware may have replaced it.
        config = cast(RunnableConfig, dict(getattr(request.runtime, "config", None) or {}))
        channel = hidden_channel(config, GUARD_CHANNEL)
        messages = read(config, "messages") or ()
        index = proposing(messages)
        config["configurable"] = {**config.get("configurable", {}), AT_TOOL: True}
        return cls(config, messages, index, channel) if channel is not None and index >= 0 else None

    @property
    def step(self) -> str:
        """Names the step."""
        return place(self.messages, self.index)

    @property
    def issued(self) -> Verdicts:
        """The verdicts of this step's check."""
        clearances = self.channel.value.get("clearances") or {}
        return cast(Verdicts, clearances["verdicts"]) if clearances.get("step") == self.step else {}

    def verdict(self, call: Mapping[str, Any], made_as: str | None) -> Found | None:
        """The check's verdict of a call; None where it was not judged.

        Args:
            call: The call as it would run.
            made_as: The id that the agent gave it: a call that was rewritten into a cleared sibling has no clearance.
        """
        return self.issued.get(digest_of(call)) if call.get("id") == made_as else None

    def answered(self, call_id: str | None) -> bool:
        """Whether a call of the step has its result already."""
        return any(isinstance(m, ToolMessage) and m.tool_call_id == call_id for m in self.messages[self.index + 1 :])

    def late_step(self, call: Mapping[str, Any]) -> tuple[str, list[BaseMessage], list[Any]]:
        """The step that a call without a verdict belongs to: its key, its history and its calls."""
        proposal = cast(AIMessage, self.messages[self.index])
        calls: list[Any] = [c for c in open_calls(self.messages) if digest_of(c) not in self.issued]
        if digest_of(call) not in map(digest_of, calls):
            calls = [call]
            others = [c for c in proposal.tool_calls if c["id"] != call.get("id")]
            proposal = proposal.model_copy(update={"tool_calls": [*others, dict(call)]})
        key = hashlib.sha256("".join([self.step, *map(digest_of, calls)]).encode()).hexdigest()
        return key, [*self.messages[: self.index], proposal], calls

    @property
    def once(self) -> Once:
        """What the run has judged late."""
        return cast(Once, self.channel.beside.setdefault("late", Once()))
