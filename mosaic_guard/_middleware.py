"""`MosaicMiddleware`: the guard as middleware for `create_agent(middleware=[...])`.

Not here: explicit `plan`, `check` and `refuse` nodes (LangChain names the nodes), and graphs that are not `create_agent`'s;
`guarded_graph` is for those.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Literal, NotRequired, cast

from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command

from mosaic_guard._cancelled import Answers, acut_off_answers, closed, cut_off_answers
from mosaic_guard._channel import HiddenChannel, digest_of, proposing, write
from mosaic_guard._errors import MissingExtraError
from mosaic_guard._gate import CHANGED, NOT_JUDGED, answer_message, refusal_message, with_notice
from mosaic_guard._guard import Guard, as_guard
from mosaic_guard._kept import Kept
from mosaic_guard._late import Found, ToolTask
from mosaic_guard._refusals import refused_in_a_row
from mosaic_guard._step_judge import NO_EDITS, StepJudge, verdicts_of
from mosaic_guard._step_verdicts import NOT_RUN
from mosaic_guard._tool_gate import GatedTools, Handling, RefusedAtToolError
from mosaic_guard._trace import TraceWriter
from mosaic_guard._trajectory import inside_of
from mosaic_guard._waiting import open_calls, speaking_for
from mosaic_guard._written import with_ids

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


class MosaicMiddleware(AgentMiddleware[GuardState, Any, Any]):
    """Plan and check every step of a `create_agent` agent; no call runs without a clearance for exactly its arguments.

    After the model, all client-side calls of the step are judged together. What a person has to decide is asked in one
    `interrupt` for the step, in the form of `HumanInTheLoopMiddleware`; the step is not judged again when the run resumes, a
    call that the person edits is. A wholly refused step is answered and the agent goes on (`on_refuse="end"`: the run ends); in
    a partly refused one the refused calls are answered in their tools' place. At the tool, a call that was rewritten since, or
    never judged, is judged again as it would run; nobody can be asked there. A step that new input cuts off is closed before
    the model speaks.

    It works at any place in the list. Last is best: it then judges before others ask a person, and sees arguments as they run.
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
        self._judge = StepJudge(
            as_guard(guard),
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
        """Close steps that new input cut off; look at the agent's tools, for the guard's transcript."""
        self._judge.learn(request.tools)
        answers = cut_off_answers(request.state["messages"])
        if not answers:
            return handler(request)
        return self._close(request, answers, handler(request.override(messages=closed(request.messages, answers))))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """`wrap_model_call` for event loops."""
        self._judge.learn(request.tools)
        answers = await acut_off_answers(request.state["messages"])
        if not answers:
            return await handler(request)
        response = await handler(request.override(messages=closed(request.messages, answers)))
        return self._close(request, answers, response)

    def _close(self, request: ModelRequest[Any], answers: Answers, response: ModelResponse[Any]) -> ModelResponse[Any]:
        """Put the answers into the thread, together with what the model said."""
        config, messages = get_config(), closed(request.state["messages"], answers)
        rewritten = [RemoveMessage(REMOVE_ALL_MESSAGES), *messages]
        write(config, "messages", rewritten)
        # One update of the node, as ever, and not one for each of its writes.
        write(config, RETURN, {"messages": [*rewritten, *response.result]})
        return response

    @hook_config(can_jump_to=["model", "end"])
    def after_model(self, state: GuardState, runtime: Any) -> dict[str, Any] | None:
        """Judge the step; ask a person about what the guard does not decide."""
        calls = pending_calls(state["messages"])
        if not calls:
            return None
        if self._too_often(state):
            return self._stop(state, calls)
        config, edits = get_config(), NO_EDITS
        kept = Kept(config)
        while True:
            update = kept.recall() or self._judge.judge(state["messages"], calls, config, edits)
            update, edits = self._judge.settle(update, kept, config)
            if not edits:
                return self._conclude(config, state, calls, update)

    @hook_config(can_jump_to=["model", "end"])
    async def aafter_model(self, state: GuardState, runtime: Any) -> dict[str, Any] | None:
        """`after_model` for event loops."""
        calls = pending_calls(state["messages"])
        if not calls:
            return None
        if self._too_often(state):
            return self._stop(state, calls)
        config, edits = get_config(), NO_EDITS
        kept = Kept(config)
        while True:
            update = kept.recall() or await self._judge.ajudge(state["messages"], calls, config, edits)
            update, edits = self._judge.settle(update, kept, config)
            if not edits:
                return self._conclude(config, state, calls, update)

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolResult]) -> ToolResult:
        """Run a call that carries a clearance; judge one that carries none."""
        task, answer = self._admit(request)
        if task is None:
            return answer
        call = request.tool_call
        found = task.verdict(call, request.runtime.tool_call_id) or self._judge.judge_late(task, call)
        if found["verdict"] != "act":
            return answer_message(call, found)
        request = _as_edited(request, found)
        try:
            with self._handle(request, task) as passed:
                result = handler(passed)
        except RefusedAtToolError as error:
            return refusal_message(call, error.reason)
        result = _as_the_tools(result, task)
        return with_notice(result, request.tool_call) if "run" in found else result

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
            return answer_message(call, found)
        request = _as_edited(request, found)
        try:
            with self._handle(request, task) as passed:
                result = await handler(passed)
        except RefusedAtToolError as error:
            return refusal_message(call, error.reason)
        result = _as_the_tools(result, task)
        return with_notice(result, request.tool_call) if "run" in found else result

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
        # Agents inside the tool are told by the config that it is run with: it is this task's own.
        request.runtime.config["configurable"].update(inside_of(task.config))
        said = self._judge.authorised(task.messages, task.config)
        with speaking_for(said), self._gated.handle(request, handling) as passed:
            yield passed

    def _conclude(
        self, config: RunnableConfig, state: GuardState, calls: list[Any], update: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Answer the step where none of it runs."""
        verdicts = verdicts_of(update)
        shown: dict[str, Any] | None = None
        if update["ending"] or not any(found["verdict"] == "act" for found in verdicts.values()):
            answers: list[BaseMessage] = [answer_message(c, verdicts[digest_of(c)]) for c in calls]
            # An agent that has given its structured answer beside these calls is done, whether they run or not.
            done = update["ending"] or state.get("structured_response") is not None
            if update["ending"]:
                answers.append(self._judge.farewell(verdicts, update["refusals"]))
            shown = {"messages": answers, "jump_to": "end" if done else "model"}
        write(config, RETURN, shown)
        return shown

    def _too_often(self, state: GuardState) -> bool:
        """Whether enough steps in a row had a refusal; those at the tools are counted after the fact."""
        return refused_in_a_row(state["messages"]) >= self._judge.most_refusals

    def _stop(self, state: GuardState, calls: list[Any]) -> dict[str, Any]:
        answers: list[BaseMessage] = [refusal_message(call, NOT_RUN) for call in calls]
        answers.append(self._judge.farewell({}, refused_in_a_row(state["messages"])))
        return {"messages": answers, "jump_to": "end"}


def _as_edited(request: ToolCallRequest, found: Found) -> ToolCallRequest:
    """The request for the call that runs: what a person made of it, if one did."""
    if "run" not in found:
        return request
    call = cast(ToolCall, {**request.tool_call, **found["run"]})
    # None for a tool that the agent does not have: the tool node says so.
    tool: Any = next((tool for tool in request.runtime.tools if tool.name == call["name"]), None)
    return request.override(tool_call=call, tool=tool)


def pending_calls(messages: Sequence[BaseMessage]) -> list[Any]:
    """The calls that LangChain would run next: those of the last AI message that have no answer yet."""
    if any(isinstance(message, AIMessage) for message in messages[proposing(messages) + 1 :]):
        return []
    return open_calls(messages)


def _as_the_tools(result: ToolResult, task: ToolTask) -> ToolResult:
    """What a tool returns; human messages in it say that the tool wrote them."""
    said: ToolResult = with_ids(result, "messages", task.messages, marked=True)[0]
    return said
