"""The step that waits: which calls came by which routes, read as each tool node would, and in which history.

Also how the history is read (which of its words are people's), since a step is judged by it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.constants import END

from mosaic_guard._channel import (
    GUARD_CHANNEL,
    ROUTES_CHANNEL,
    WRITTEN,
    Channel,
    channel_of,
    digest_of,
    position,
    read,
    write,
    written_in,
)
from mosaic_guard._decision import Step, canonical_json
from mosaic_guard._errors import UnguardableGraphError
from mosaic_guard._final_answer import STRUCTURED, final_answer
from mosaic_guard._guard import Plan
from mosaic_guard._nested import Nested
from mosaic_guard._recursion import grant_superstep
from mosaic_guard._trajectory import named
from mosaic_guard._transcript import JudgedStep
from mosaic_guard._waiting import Waiting, as_authorised, as_calls, still_begins_with
from mosaic_guard._written import with_ids

State = Any
"""A graph's state in whichever form its schema has."""


class StepRoutes:
    """What `plan` and `check` judge: part of `GuardNodes`.

    Attributes:
        gates: The gated tool nodes by name.
        tools: The tools by name, of all of them.
        messages_key: State key of the messages.
        nested: Guards the graphs inside tools that come up only while running.
    """

    gates: dict[str, Any]
    tools: dict[str, BaseTool]
    messages_key: str
    nested: Nested | None

    def messages_in(self, state: State) -> list[Any]:
        """The messages of a graph's state: a mapping, a dataclass or a pydantic model.

        Raises:
            UnguardableGraphError: If they are no LangChain messages.
        """
        found = state.get(self.messages_key) if isinstance(state, Mapping) else getattr(state, self.messages_key, None)
        odd = next((message for message in found or () if not isinstance(message, BaseMessage)), None)
        if odd is not None:
            raise UnguardableGraphError(
                f"{self.messages_key!r} of the state holds a {type(odd).__name__}, which is no LangChain message: give it the "
                "reducer add_messages, which reads any form"
            )
        return list(found or ())

    def authorised(self, messages: Sequence[Any], config: RunnableConfig) -> Sequence[Any]:
        """A history as the guard may read it: what tools and other agents wrote is no human's word."""
        agents = self.nested.agents if self.nested is not None else ()
        return as_authorised(messages, written_in(config), agents)

    def note_written(self, output: Any, config: RunnableConfig) -> Any:
        """What a tool node returns; the human messages in it are remembered as written by tools."""
        output, ids = with_ids(output, self.messages_key, read(config, self.messages_key) or ())
        if ids:
            write(config, GUARD_CHANNEL, {WRITTEN: ids})
        return output

    def routes_of(self, messages: list[Any]) -> list[list[Any]]:
        """The routes that the calls of a history ask for: [tool node, payload or None, its calls] of each."""
        routes: list[list[Any]] = []
        # A call of no known tool is for a function, if there is one, else for the first tool node, which says so.
        rest = next((name for name, gate in self.gates.items() if not gate.tools_by_name), next(iter(self.gates)))
        owners = {tool: name for name, gate in self.gates.items() for tool in gate.tools_by_name}
        for name in self.gates:
            calls = self._read_calls(name, {self.messages_key: messages})
            own = [call for call in calls if owners.get(call["name"], rest) == name]
            if own or len(self.gates) == 1:
                routes.append([name, None if own == calls else own, own])
        return routes

    def _begin(self, state: State, config: RunnableConfig) -> Waiting:
        grant_superstep(config)
        messages = self.messages_in(state)
        channel = channel_of(config)
        edits = channel.get("edits") or {}
        taken: list[list[Any]] = read(config, ROUTES_CHANNEL) or []
        if edits and not taken and channel["clearances"]["step"] == position(messages):
            return replace(self._open(messages, channel["go"], config, edits), beside=channel["beside"])
        routes = self._routes(messages, [route for route in taken if self._judges(route[0])], config)
        return replace(
            self._open(messages, routes, config), beside=[route for route in taken if not self._judges(route[0])]
        )

    def _resume(self, state: State, config: RunnableConfig) -> tuple[Waiting, Plan | None]:
        """The planned step, and its plan; no plan if the history that it was made for was changed since."""
        grant_superstep(config)
        messages = self.messages_in(state)
        opened = channel_of(config)["open"]
        routes = opened["routes"]
        history = _history(channel_of(config)) if opened["known"] else []
        # What a parallel branch has written since is not part of the step.
        same = still_begins_with(messages, opened["seen"])
        edits = opened["edits"] if same else {}
        if same:
            messages = messages[: opened["seen"][0]]
        else:
            routes = [
                [name, payload, self._read_route(name, payload, messages, routes, config) if payload is None else calls]
                for name, payload, calls in routes
            ]
        waiting = self._waiting(config, messages, routes, history, opened["trajectory"], opened["number"], edits)
        return replace(waiting, beside=opened["beside"]), Plan.from_dict(opened["plan"]) if same else None

    def _changed(self, call: Mapping[str, Any], config: RunnableConfig) -> Waiting:
        messages = list(read(config, self.messages_key) or ())
        # Of its own trajectory, so that the log of the step that proposed it stays what was judged.
        parent = str(channel_of(config).get("trajectory") or uuid.uuid4())
        return self._waiting(config, messages, [["", None, [call]]], [], f"{parent}/changed-{digest_of(call)[:12]}", 0)

    def _judges(self, name: str) -> bool:
        """Whether a route to a node has to pass the guard: into a tool node, or to the end with a final answer."""
        return name in self.gates or name == END

    def _open(
        self,
        messages: list[Any],
        routes: list[list[Any]],
        config: RunnableConfig,
        edits: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Waiting:
        """The step that a task's routes make, with what its thread remembers."""
        channel = channel_of(config)
        trajectory = str(named(config) or channel.get("trajectory") or uuid.uuid4())
        # Another trajectory on the same thread starts counting anew.
        known = channel.get("trajectory") in (None, trajectory)
        history = _history(channel) if known else []
        number = channel.get("step", 0) if known else 0
        return self._waiting(config, messages, routes, history, trajectory, number, edits)

    def _routes(
        self, messages: list[Any], waiting: Sequence[Sequence[Any]] | None, config: RunnableConfig
    ) -> list[list[Any]]:
        """The routes that were taken; where none was recorded (nodes placed by hand), those that the calls ask for."""
        routes: list[list[Any]] = []
        for name, payload in waiting or ():
            # Several edges into one tool node are one route: it runs once.
            if payload is None and any(known[0] == name and known[1] is None for known in routes):
                continue
            routes.append([name, payload, self._read_route(name, payload, messages, waiting or (), config)])
        return routes if waiting else self.routes_of(messages)

    def _read_route(
        self,
        name: str,
        payload: Any,
        messages: list[Any],
        routes: Sequence[Sequence[Any]],
        config: RunnableConfig,
    ) -> list[Any]:
        """The calls of one of a step's routes; of one to the end, the answer."""
        if name != END:
            return self._read_calls(name, {self.messages_key: messages} if payload is None else payload)
        # A structured answer leaves where nothing is left to run.
        ends = all(other[0] == END for other in routes)
        return final_answer(messages, read(config, STRUCTURED) if ends else None)

    def _read_calls(self, name: str, source: Any) -> list[Any]:
        """The tool calls that a tool node would read from its input; none if it could not run any (it says so itself)."""
        try:
            return list(self.gates[name]._parse_input(source)[0])
        except (ValueError, TypeError, AttributeError, KeyError, IndexError):
            return []

    def _waiting(
        self,
        config: RunnableConfig,
        messages: list[Any],
        routes: list[list[Any]],
        history: list[JudgedStep],
        trajectory: str,
        number: int,
        edits: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Waiting:
        calls = [call for _, _, found in routes for call in found]
        cleared: list[str] = []
        said: list[str] = []
        if edits:  # the others are settled; calls that are alike are one
            verdicts = channel_of(config)["clearances"]["verdicts"]
            acting = [call for call in calls if verdicts.get(digest_of(call), {}).get("verdict") == "act"]
            cleared = [verdicts[digest_of(call)].get("run", call)["name"] for call in acting]
            alike = {digest_of(call): call for call in calls}
            calls = [{**alike[digest], **edit} for digest, edit in edits.items()]
            # Their values are a person's, like those of any other words of theirs.
            said = [f"{call['name']} {canonical_json(call['args'])}" for call in calls]
        heard = self.authorised(messages, config)
        step = Step(heard, as_calls(calls), self._tools_of(routes), cleared=tuple(cleared), said=tuple(said))
        return Waiting(messages, step, routes, history, trajectory, number, edits or {})

    def _tools_of(self, routes: list[list[Any]]) -> Mapping[str, BaseTool]:
        """The tools as a step's calls mean them: tool nodes may have different ones of the same name."""
        tools = self.tools
        routed = [
            self.gates[name].tools_by_name for name in sorted({route[0] for route in routes}) if name in self.gates
        ]
        for name in set().union(*routed):
            found = [known[name] for known in routed if name in known]
            if (
                len({id(tool.__dict__) for tool in found}) > 1
            ):  # a rule that goes by what a tool says of itself finds none
                tools = {key: tool for key, tool in tools.items() if key != name}
            elif found[0] is not tools.get(name):
                tools = {**tools, name: found[0]}
        return tools


def _history(channel: Channel) -> list[JudgedStep]:
    return [JudgedStep.from_dict(record) for record in channel.get("history", ())]
