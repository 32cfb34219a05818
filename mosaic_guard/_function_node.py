"""The gate of a tool node that is no `ToolNode`: a function or runnable that runs the calls of the last AI message itself.

It sees the cleared calls only. What it does with them nothing verifies: a function is trusted to run what it is given.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph._internal._runnable import RunnableCallable, coerce_to_runnable
from langgraph.types import Command

from mosaic_guard._channel import Clearances, channel_of, digest_of, proposing, read
from mosaic_guard._cleared_view import Fates, as_cleared, calls_in, is_call, with_calls
from mosaic_guard._errors import UnguardableGraphError
from mosaic_guard._gate import NOT_JUDGED, answer_message, send_back, was_sent
from mosaic_guard._waiting import open_calls, speaking_for

if TYPE_CHECKING:
    from mosaic_guard._nodes import GuardNodes

Runs = list[tuple[Any, Any]]
"""Each call, and what runs in its place; None for nothing."""


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
        runs, answers, bounced = self._judged(input, config)
        if bounced is not None:
            return bounced
        if runs and not any(run for _, run in runs):
            return self._with_answers(None, answers)
        with speaking_for(self._nodes.authorised(self._messages(config), config)):
            output = self._inner.invoke(self._only(input, runs, config), config)
        return self._with_answers(self._nodes.note_written(output, config), answers)

    async def _arun(self, input: Any, config: RunnableConfig) -> Any:
        runs, answers, bounced = self._judged(input, config)
        if bounced is not None:
            return bounced
        if runs and not any(run for _, run in runs):
            return self._with_answers(None, answers)
        with speaking_for(self._nodes.authorised(self._messages(config), config)):
            output = await self._inner.ainvoke(self._only(input, runs, config), config)
        return self._with_answers(self._nodes.note_written(output, config), answers)

    def _judged(self, input: Any, config: RunnableConfig) -> tuple[Runs, list[ToolMessage], Command[Any] | None]:
        """What runs, the answers to the calls that do not, and the way back to `plan` where nothing was judged."""
        sent = was_sent(config)
        # The calls of a state are its messages': what else it holds may be anything, an earlier call among it.
        calls = self._parse_input(input)[0] if sent else open_calls(self._messages(config))
        beside = [] if calls or sent else list(calls_in(self._without_messages(input)))
        verdicts = Clearances.of_task(config, self._nodes.messages_key, self._node_name).verdicts
        if (calls or beside) and not verdicts and self._node_name not in self._nodes.joined:
            return [], [], send_back(self._nodes, self._node_name, input, config, payload=sent or bool(beside))
        runs: Runs = []
        refused: list[tuple[Any, Mapping[str, Any]]] = []
        for call in calls or beside:
            found: Mapping[str, Any] = verdicts.get(digest_of(call)) or {"verdict": "refuse", "reason": NOT_JUDGED}
            acts = found["verdict"] == "act"
            runs.append((call, ({**call, **found["run"]} if "run" in found else call) if acts else None))
            if not acts:
                refused.append((call, found))
        return runs, self._answers(refused, input, config), None

    def _answers(
        self, refused: list[tuple[Any, Mapping[str, Any]]], input: Any, config: RunnableConfig
    ) -> list[ToolMessage]:
        """The answers to the refused calls that are this task's to give: each is answered once, whoever else reads it."""
        proposed = Counter(digest_of(call) for call in open_calls(self._messages(config)))
        routes = channel_of(config).get("go", ())
        answers = []
        for call, found in refused:
            digest = digest_of(call)
            first = next((route for route in routes if any(digest_of(c) == digest for c in route[2])), None)
            if proposed[digest] and (first is None or self._is_route(first, input, config)):
                proposed[digest] -= 1
                answers.append(answer_message(call, found))
        return answers

    def _is_route(self, route: list[Any], input: Any, config: RunnableConfig) -> bool:
        """Whether a recorded route is the one that has led here."""
        name, payload, calls = route
        if name != self._node_name:
            return False
        if payload is None:  # or sent with the calls of it, if a parallel branch has written since
            return not was_sent(config) or bool(input == calls)
        return was_sent(config) and bool(input == payload)

    def _parse_input(self, input: Any) -> tuple[list[Any], str]:
        """The tool calls of a payload, and its form: `state`, `messages`, `calls`, `call` or `inside` (somewhere in it)."""
        if is_call(input):
            return [input], "call"
        if isinstance(input, list) and input and all(map(is_call, input)):
            return list(input), "calls"
        held = list(calls_in(self._without_messages(input)))
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

    def _only(self, input: Any, runs: Runs, config: RunnableConfig) -> Any:
        """The input with the cleared calls only, as edited where a person edited them.

        Args:
            input: The node's input.
            runs: What runs in the place of each of its calls, in their order.
            config: The task's config.
        """
        fates: Fates = {digest_of(call): run for call, run in runs if run is not call}
        cleared = [run for _, run in runs if run is not None]
        if is_call(input):
            return cleared[0]
        messages = input if isinstance(input, list) else self._nodes.messages_in(input)
        given = as_cleared(input, {**self._other_fates(config), **fates})
        index = proposing(messages) if messages and not is_call(messages[0]) else -1
        if index < 0 or messages[index].tool_calls == cleared:
            return given
        proposed = with_calls(messages[index], cleared, fates)
        messages = list(given if isinstance(given, list) else self._nodes.messages_in(given))
        messages[index] = proposed
        return messages if isinstance(given, list) else _with(given, self._nodes.messages_key, messages)

    def _other_fates(self, config: RunnableConfig) -> Fates:
        """The calls of the step that do not run, whichever task they belong to."""
        verdicts = Clearances.of_task(config, self._nodes.messages_key, self._node_name).verdicts
        return {digest: None for digest, found in verdicts.items() if found["verdict"] != "act"}

    def _messages(self, config: RunnableConfig) -> list[Any]:
        return list(read(config, self._nodes.messages_key) or ())

    def _without_messages(self, input: Any) -> Any:
        """A state without its messages; nothing of a list of messages."""
        if isinstance(input, list):
            return None
        if isinstance(input, Mapping):
            return {key: value for key, value in input.items() if key != self._nodes.messages_key}
        return input

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


def _with(state: Any, key: str, value: Any) -> Any:
    """The state with another value under a key, in its own form."""
    if isinstance(state, Mapping):
        return {**state, key: value}
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return dataclasses.replace(state, **{key: value})
    return state.model_copy(update={key: value})
