"""`MosaicMiddleware`: the guard as middleware for `create_agent(middleware=[...])`.

Not here: explicit `plan`, `check` and `refuse` nodes (LangChain names the nodes), and graphs that are not `create_agent`'s;
`guarded_graph` is for those.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, NotRequired

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.config import get_config
from langgraph.types import Command

from mosaic_guard._channel import GUARD_CHANNEL, HiddenChannel, digest_of, proposing, write
from mosaic_guard._errors import MissingExtraError
from mosaic_guard._evidence import is_human, is_refusal
from mosaic_guard._gate import CHANGED, NOT_JUDGED, refusal_message
from mosaic_guard._guard import Guard, Plan
from mosaic_guard._late import ToolTask, Verdicts, answered, place
from mosaic_guard._nodes import NOT_RUN, GuardNodes
from mosaic_guard._tool_gate import Found, GatedTools, Handling, RefusedAtToolError
from mosaic_guard._trace import TraceWriter
from mosaic_guard._waiting import Waiting, authority, people_said

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ModelRequest,
        ModelResponse,
        PrivateStateAttr,
        ToolCallRequest,
        hook_config,
    )
except ImportError as error:
    raise MissingExtraError("MosaicMiddleware", "langchain") from error

RETURN = "__return__"
"""What a task writes here is what `updates` shows of it, whatever else it writes."""

ToolResult = ToolMessage | Command[Any]


class GuardState(AgentState[Any]):
    """The agent's state with the guard's channel, which is neither input nor output."""

    __mosaic_guard__: NotRequired[Annotated[dict[str, Any], HiddenChannel, PrivateStateAttr]]


class _StepJudge(GuardNodes):
    """The nodes' functions for a task that has a whole step in hand."""

    def can_ask(self, config: RunnableConfig) -> str | None:
        """Never: LangChain runs `after_model` again from its start when a run resumes, and the step would be judged again."""
        return "a person would have to decide, and MosaicMiddleware does not ask: guarded_graph does"

    def learn(self, tools: Sequence[Any]) -> None:
        """Remember the agent's tools; those that a provider runs are dictionaries and nothing to guard."""
        new = {tool.name: tool for tool in tools if isinstance(tool, BaseTool)}
        if not new.keys() <= self.tools.keys():
            # Another thread may be reading the old ones.
            self.tools = {**self.tools, **new}

    def judge(self, messages: Sequence[BaseMessage], calls: list[Any], config: RunnableConfig) -> dict[str, Any]:
        """Plan and check a step.

        Returns:
            The update of the guard's channel.
        """
        return self._decide(self._open(list(messages), [["tools", None, calls]], config), config)

    async def ajudge(self, messages: Sequence[BaseMessage], calls: list[Any], config: RunnableConfig) -> dict[str, Any]:
        """`judge` for event loops."""
        return await self._adecide(self._open(list(messages), [["tools", None, calls]], config), config)

    def judge_late(self, task: ToolTask, call: Mapping[str, Any]) -> Found:
        """The verdict of a call without one."""
        key, messages, calls = task.late_step(call)

        def compute() -> Verdicts:
            update = self._decide(self._open_late(key, messages, calls, task.config), task.config)
            return _verdicts(update)

        return task.once.get(key, compute)[digest_of(call)]

    async def ajudge_late(self, task: ToolTask, call: Mapping[str, Any]) -> Found:
        """`judge_late` for event loops."""
        key, messages, calls = task.late_step(call)

        async def compute() -> Verdicts:
            update = await self._adecide(self._open_late(key, messages, calls, task.config), task.config)
            return _verdicts(update)

        return (await task.once.aget(key, compute))[digest_of(call)]

    def _decide(self, waiting: Waiting, config: RunnableConfig) -> dict[str, Any]:
        plan = self.guard.plan(waiting.step, waiting.history, key=waiting.key)
        self._announce(waiting, plan)
        judgement = self.guard.check(waiting.step, plan, waiting.history, key=waiting.key, number=waiting.number)
        return self._settled(config, waiting, judgement)

    async def _adecide(self, waiting: Waiting, config: RunnableConfig) -> dict[str, Any]:
        plan = await self.guard.aplan(waiting.step, waiting.history, key=waiting.key)
        self._announce(waiting, plan)
        judgement = await self.guard.acheck(waiting.step, plan, waiting.history, key=waiting.key, number=waiting.number)
        return self._settled(config, waiting, judgement)

    def _announce(self, waiting: Waiting, plan: Plan) -> None:
        if self.events:
            self._planned(waiting, plan)

    def _settled(self, config: RunnableConfig, waiting: Waiting, judgement: Any) -> dict[str, Any]:
        messages = waiting.messages
        update = self._checked(config, waiting, judgement)
        update["clearances"]["step"] = place(messages, proposing(messages))
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


class MosaicMiddleware(AgentMiddleware[GuardState, Any, Any]):
    """Plan and check every step of a `create_agent` agent; no call runs without a clearance for exactly its arguments.

    After the model, all client-side calls of the step are judged together. A wholly refused step is answered and the agent
    goes on (`on_refuse="end"`: the run ends); in a partly refused one the refused calls are answered in their tools' place.
    At the tool, a call that was rewritten since, or never judged, is judged again as it would run.

    It works at any place in the list. Last is best: it then judges before a person is asked, and sees arguments as they run.
    Use one instance for one agent. What it does not reach is in `docs/guarantees.md`.

    Args:
        guard: Judges the steps. Default: `Guard.load("default")`, the local model.
        on_refuse: `replan`: the agent reads the reason and goes on. `end`: a step with a refused call runs none of its calls,
            and the run ends with a message that says why.
        max_refusals: The run ends at this many steps in a row with a refusal. At least 1.
        trace: A directory, or a `TraceWriter`, for what was judged.
        events: Send plans and decisions to the `custom` stream.

    Raises:
        MissingExtraError: If langchain is not installed.
        ValueError: For an unknown option.
    """

    state_schema = GuardState

    def __init__(
        self,
        *,
        guard: Guard | None = None,
        on_refuse: Literal["replan", "end"] = "replan",
        max_refusals: int = 3,
        trace: TraceWriter | str | os.PathLike[str] | None = None,
        events: bool = False,
    ) -> None:
        super().__init__()
        if on_refuse not in ("replan", "end"):
            raise ValueError(f"on_refuse is 'replan' or 'end', not {on_refuse!r}")
        if max_refusals < 1:
            raise ValueError(f"max_refusals is at least 1, not {max_refusals!r}")
        self._judge = _StepJudge(
            guard if guard is not None else Guard.load("default"),
            {},
            on_refuse=on_refuse,
            max_refusals=max_refusals,
            trace=trace if trace is None or isinstance(trace, TraceWriter) else TraceWriter(trace),
            events=events,
        )
        self._gated = GatedTools()

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Only look at the agent's tools, for the guard's transcript."""
        self._judge.learn(request.tools)
        return handler(request)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """`wrap_model_call` for event loops."""
        self._judge.learn(request.tools)
        return await handler(request)

    @hook_config(can_jump_to=["model", "end"])
    def after_model(self, state: GuardState, runtime: Any) -> dict[str, Any] | None:
        """Judge the step."""
        calls = pending_calls(state["messages"])
        if not calls:
            return None
        if self._too_often(state):
            return self._stop(state, calls)
        config = get_config()
        return self._conclude(config, state, calls, self._judge.judge(state["messages"], calls, config))

    @hook_config(can_jump_to=["model", "end"])
    async def aafter_model(self, state: GuardState, runtime: Any) -> dict[str, Any] | None:
        """`after_model` for event loops."""
        calls = pending_calls(state["messages"])
        if not calls:
            return None
        if self._too_often(state):
            return self._stop(state, calls)
        config = get_config()
        return self._conclude(config, state, calls, await self._judge.ajudge(state["messages"], calls, config))

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolResult]) -> ToolResult:
        """Run a call that carries a clearance; judge one that carries none."""
        task, answer = self._admit(request)
        if task is None:
            return answer
        call = request.tool_call
        found = task.verdict(call, request.runtime.tool_call_id) or self._judge.judge_late(task, call)
        if found["verdict"] != "act":
            return refusal_message(call, found["reason"])
        try:
            with self._handle(request, task) as passed:
                return handler(passed)
        except RefusedAtToolError as error:
            return refusal_message(call, error.reason)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolResult]]
    ) -> ToolResult:
        """`wrap_tool_call` for event loops."""
        task, answer = self._admit(request)
        if task is None:
            return answer
        call = request.tool_call
        found = task.verdict(call, request.runtime.tool_call_id) or await self._judge.ajudge_late(task, call)
        if found["verdict"] != "act":
            return refusal_message(call, found["reason"])
        try:
            with self._handle(request, task) as passed:
                return await handler(passed)
        except RefusedAtToolError as error:
            return refusal_message(call, error.reason)

    def _admit(self, request: ToolCallRequest) -> tuple[ToolTask | None, ToolResult]:
        """The task to judge the call in; or no task, and the answer to a call that cannot run."""
        task, call = ToolTask.of(request), request.tool_call
        if task is None:
            return None, refusal_message(call, NOT_JUDGED)
        if request.tool is not None and request.tool.name != call["name"]:
            return None, refusal_message(call, CHANGED)
        if task.answered(call["id"]) or task.answered(request.runtime.tool_call_id):
            # It neither runs again nor gets a second answer.
            return None, Command()
        self._judge.learn(request.runtime.tools)
        return task, Command()

    @contextmanager
    def _handle(self, request: ToolCallRequest, task: ToolTask) -> Iterator[ToolCallRequest]:
        handling = Handling(
            digest_of(request.tool_call), partial(self._judge.judge_late, task), partial(self._judge.ajudge_late, task)
        )
        token = authority.set(people_said(task.messages))
        try:
            with self._gated.handle(request, handling) as passed:
                yield passed
        finally:
            authority.reset(token)

    def _conclude(
        self, config: RunnableConfig, state: GuardState, calls: list[Any], update: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Write the guard's channel; answer the step where none of it runs."""
        verdicts = _verdicts(update)
        shown: dict[str, Any] | None = None
        if update["ending"] or not any(found["verdict"] == "act" for found in verdicts.values()):
            answers: list[BaseMessage] = [refusal_message(c, verdicts[digest_of(c)]["reason"]) for c in calls]
            # An agent that has given its structured answer beside these calls is done, whether they run or not.
            done = update["ending"] or state.get("structured_response") is not None
            if update["ending"]:
                answers.append(self._judge.farewell(verdicts, update["refusals"]))
            shown = {"messages": answers, "jump_to": "end" if done else "model"}
        write(config, GUARD_CHANNEL, update)
        write(config, RETURN, shown)
        return shown

    def _too_often(self, state: GuardState) -> bool:
        """Whether enough steps in a row had a refusal; those at the tools are counted after the fact."""
        return refused_in_a_row(state["messages"]) >= self._judge.most_refusals

    def _stop(self, state: GuardState, calls: list[Any]) -> dict[str, Any]:
        answers: list[BaseMessage] = [refusal_message(call, NOT_RUN) for call in calls]
        answers.append(self._judge.farewell({}, refused_in_a_row(state["messages"])))
        return {"messages": answers, "jump_to": "end"}


def _verdicts(update: Mapping[str, Any]) -> Verdicts:
    found: Verdicts = update["clearances"]["verdicts"]
    return found


def proposal_index(messages: Sequence[BaseMessage]) -> int:
    """Index of the last AI message; -1 if there is none."""
    return next((i for i in reversed(range(len(messages))) if isinstance(messages[i], AIMessage)), -1)


def pending_calls(messages: Sequence[BaseMessage]) -> list[Any]:
    """The calls that LangChain would run next: those of the last AI message that have no answer yet."""
    index = proposal_index(messages)
    message = messages[index] if index >= 0 else None
    if not isinstance(message, AIMessage):
        return []
    done = answered(messages, index)
    return [call for call in message.tool_calls if call["id"] not in done]


def refused_in_a_row(messages: Sequence[BaseMessage]) -> int:
    """Finished steps in a row with a refused call, back from the last one; a human's words and the agent's end the row."""
    count, refused = 0, False
    for message in reversed(messages[: proposal_index(messages)]):
        if is_human(message) or (isinstance(message, AIMessage) and not message.tool_calls):
            break
        refused = refused or is_refusal(message)
        if isinstance(message, AIMessage):
            if not refused:
                break
            count, refused = count + 1, False
    return count
