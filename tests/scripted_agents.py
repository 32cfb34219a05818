"""Agents from a script, and checks of what every guarded run must keep.

`Scripted` plays AI messages in turn; `run_log` records which tool bodies ran; `assert_valid` checks a closed history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypedDict

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send
from pydantic import PrivateAttr


class Scripted(BaseChatModel):
    """Says the given messages in turn, the last one for ever."""

    script: list[Any]
    _turn: int = PrivateAttr(default=0)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Scripted:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        said = self.script[min(self._turn, len(self.script) - 1)]
        self._turn += 1
        return ChatResult(generations=[ChatGeneration(message=said.model_copy(update={"id": None}, deep=True))])


def calls(*proposed: tuple[str, dict[str, Any]], ids: Sequence[str | None] | None = None) -> AIMessage:
    """An AI message that proposes tool calls: (name, arguments) each."""
    named = ids if ids is not None else [f"call_{number}" for number in range(len(proposed))]
    return AIMessage(
        "",
        tool_calls=[
            {"name": name, "args": args, "id": call_id, "type": "tool_call"}
            for (name, args), call_id in zip(proposed, named, strict=True)
        ],
    )


def make_tools(log: list[tuple[str, Any]], names: Sequence[str] = ("look", "pay", "send")) -> list[BaseTool]:
    """Tools with one argument `x` that write (name, x) into `log` when their body runs."""

    def make(name: str) -> BaseTool:
        def body(x: Any = None) -> str:
            log.append((name, x))
            return f"{name} did {x}"

        async def abody(x: Any = None) -> str:
            return body(x)

        return StructuredTool.from_function(body, coroutine=abody, name=name, description=f"Does {name}.")

    return [make(name) for name in names]


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def hand_written(model: BaseChatModel, node: ToolNode, route: str = "condition", **compile_args: Any) -> Any:
    """A StateGraph around a tool node; `route` is `condition`, `send` or `edge`."""
    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", node)
    builder.add_edge(START, "agent")
    if route == "condition":
        builder.add_conditional_edges("agent", tools_condition)
        builder.add_edge("tools", "agent")
    elif route == "send":

        def fan_out(state: State) -> list[Send] | str:
            proposed = getattr(state["messages"][-1], "tool_calls", [])
            return [Send("tools", [call]) for call in proposed] or END

        builder.add_conditional_edges("agent", fan_out, ["tools", END])
        builder.add_edge("tools", "agent")
    else:
        builder.add_edge("agent", "tools")
        builder.add_edge("tools", END)
    return builder.compile(**compile_args)


def assert_valid(messages: Sequence[BaseMessage]) -> None:
    """By position: each tool call of an AI message has exactly one ToolMessage before the next AI or human message."""
    open_ids: list[str | None] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            assert message.tool_call_id in open_ids, f"an answer without its call: {message!r}"
            open_ids.remove(message.tool_call_id)
        else:
            assert not open_ids, f"calls {open_ids} were not answered before {message!r}"
            open_ids = [call["id"] for call in getattr(message, "tool_calls", [])]
    assert not open_ids, f"calls {open_ids} were not answered"


def visible(messages: Sequence[BaseMessage]) -> list[tuple[str, Any, Any]]:
    """What messages say, without generated ids."""
    return [(m.type, m.content, getattr(m, "tool_call_id", None)) for m in messages]


def answers(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    """The tool messages."""
    return [m for m in messages if isinstance(m, ToolMessage)]


def by_name(**verdicts: Any) -> Callable[[Any], Iterator[Any]]:
    """A `decide` for ScriptedGuardModel: an answer by tool name, `act` for others."""
    return lambda step: [verdicts.get(call.name, "act") for call in step.calls]
