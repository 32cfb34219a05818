"""The gate of a tool node that is no `ToolNode`: a function or runnable that runs the calls of the last AI message itself.

It sees the cleared calls only. What it does with them nothing verifies: a function is trusted to run what it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph._internal._runnable import RunnableCallable, coerce_to_runnable
from langgraph.types import Command

from mosaic_guard._channel import Clearances, digest_of, proposing
from mosaic_guard._errors import UnguardableGraphError
from mosaic_guard._gate import NOT_JUDGED, answer_message, send_back
from mosaic_guard._waiting import open_calls

if TYPE_CHECKING:
    from mosaic_guard._nodes import GuardNodes


class FunctionNode(RunnableCallable):
    """A function tool node behind its gate.

    Args:
        inner: The function or runnable.
        name: Its name in the graph.
        nodes: The guard's nodes.
    """

    tools_by_name: Mapping[str, BaseTool] = {}
    """Unknown: a function does not say which tools it runs."""

    def __init__(self, inner: Any, *, name: str, nodes: GuardNodes) -> None:
        super().__init__(self._run, self._arun, name=name, trace=False)
        self._inner = coerce_to_runnable(inner, name=name, trace=True)
        self._node_name, self._nodes = name, nodes

    def _run(self, input: Any, config: RunnableConfig) -> Any:
        calls, verdicts = self._verdicts(input, config)
        if calls and not verdicts and self._node_name not in self._nodes.joined:
            return send_back(self._nodes, self._node_name, input, config)
        runs, answers = _sorted(calls, verdicts)
        if calls and not any(runs):
            return self._with_answers(None, answers)
        return self._with_answers(self._inner.invoke(self._only(input, runs), config), answers)

    async def _arun(self, input: Any, config: RunnableConfig) -> Any:
        calls, verdicts = self._verdicts(input, config)
        if calls and not verdicts and self._node_name not in self._nodes.joined:
            return send_back(self._nodes, self._node_name, input, config)
        runs, answers = _sorted(calls, verdicts)
        if calls and not any(runs):
            return self._with_answers(None, answers)
        return self._with_answers(await self._inner.ainvoke(self._only(input, runs), config), answers)

    def _parse_input(self, input: Any) -> tuple[list[Any], str]:
        """The tool calls of an input, and its form: `state`, `messages`, `calls`, `call` or `inside` (a key of a mapping)."""
        if _is_call(input):
            return [input], "call"
        if isinstance(input, list) and input and all(map(_is_call, input)):
            return list(input), "calls"
        held = [call for value in input.values() for call in _calls_in(value)] if isinstance(input, Mapping) else []
        if held:  # they are what the function was sent to run, whatever else comes with them
            return held, "inside"
        messages = input if isinstance(input, list) else self._nodes.messages_in(input)
        if not messages:
            raise UnguardableGraphError(
                f"tool node {self._node_name!r} got no messages and no tool calls, so the guard cannot see what it will run: "
                f"let its input hold {self._nodes.messages_key!r} or the calls themselves"
            )
        calls = open_calls(messages)
        return calls, "messages" if isinstance(input, list) else "state"

    def _verdicts(self, input: Any, config: RunnableConfig) -> tuple[list[Any], Mapping[str, Mapping[str, Any]]]:
        calls, _ = self._parse_input(input)
        return calls, Clearances.of_task(config, self._nodes.messages_key, self._node_name).verdicts

    def _only(self, input: Any, runs: list[Any]) -> Any:
        """The input with the cleared calls only, as edited where a person edited them.

        Args:
            input: The node's input.
            runs: What runs in the place of each of its calls, in their order; None for nothing.
        """
        form = self._parse_input(input)[1]
        cleared = [call for call in runs if call is not None]
        if form == "call":
            return cleared[0]
        if form == "calls":
            return cleared
        if form == "inside":
            places = iter(runs)
            given = {key: _in_its_place(value, places) for key, value in input.items()}
            return self._with_messages(given, self._nodes.messages_in(input), cleared)
        messages = list(input if form == "messages" else self._nodes.messages_in(input))
        return self._with_messages(input, messages, cleared)

    def _with_messages(self, input: Any, messages: list[Any], cleared: list[Any]) -> Any:
        """The input, its AI message with the cleared calls only: also where the others were answered before."""
        index = proposing(messages)
        if index < 0 or messages[index].tool_calls == cleared:
            return input
        messages = list(messages)
        proposed: AIMessage = messages[index]
        messages[index] = proposed.model_copy(update={"tool_calls": cleared, "additional_kwargs": {}})
        return messages if isinstance(input, list) else _with(input, self._nodes.messages_key, messages)

    def _with_answers(self, output: Any, answers: list[ToolMessage]) -> Any:
        """What the function returned, and the answers to the calls that did not run."""
        if not answers:
            return output
        update = {self._nodes.messages_key: answers}
        if output is None:
            return update
        if isinstance(output, Mapping) and self._nodes.messages_key in output:
            said = output[self._nodes.messages_key]
            return {**output, self._nodes.messages_key: [*(said if isinstance(said, list) else [said]), *answers]}
        if isinstance(output, Mapping):
            return {**output, **update}
        outputs = output if isinstance(output, (list, tuple)) else [output]
        return [*(o if isinstance(o, Command) else Command(update=o) for o in outputs), Command(update=update)]


def _sorted(calls: list[Any], verdicts: Mapping[str, Mapping[str, Any]]) -> tuple[list[Any], list[ToolMessage]]:
    """What runs in the place of each call (None for nothing), and the answers to the calls that do not run."""
    runs: list[Any] = []
    answers = []
    for call in calls:
        found = verdicts.get(digest_of(call)) or {"verdict": "refuse", "reason": NOT_JUDGED}
        acts = found["verdict"] == "act"
        runs.append({**call, **found.get("run", {})} if acts else None)
        if not acts:
            answers.append(answer_message(call, found))
    return runs, answers


def _is_call(value: Any) -> bool:
    return isinstance(value, Mapping) and {"name", "args", "id"} <= set(value)


def _calls_in(value: Any) -> list[Any]:
    """The calls that a value of a mapping is, or is a list of."""
    if _is_call(value):
        return [value]
    return list(value) if isinstance(value, list) and value and all(map(_is_call, value)) else []


def _in_its_place(value: Any, places: Iterator[Any]) -> Any:
    """A value of the input with what runs in the place of each of its calls."""
    runs = [next(places) for _ in _calls_in(value)]
    if not runs:
        return value
    return runs[0] if _is_call(value) else [call for call in runs if call is not None]


def _with(state: Any, key: str, value: Any) -> Any:
    """The state with another value under a key, in its own form."""
    if isinstance(state, Mapping):
        return {**state, key: value}
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return dataclasses.replace(state, **{key: value})
    return state.model_copy(update={key: value})
