"""A guarded compiled graph: `recursion_limit` in the user's steps, and no new input on an open step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, RemoveMessage, ToolMessage, convert_to_messages
from langchain_core.runnables import RunnableConfig
from langgraph._internal._config import ensure_config, patch_configurable
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.constants import END
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Overwrite, StateUpdate

from mosaic_guard._cancelled import cancelled
from mosaic_guard._channel import CHECKPOINTER, GUARD_CHANNEL, OUTER_WRITTEN, RESUMING, TASK_ID, proposing, written_in
from mosaic_guard._recursion import UserSteps
from mosaic_guard._trajectory import inside_of
from mosaic_guard._waiting import unanswered

if TYPE_CHECKING:
    from mosaic_guard._nodes import GuardNodes


class GuardedGraph(CompiledStateGraph):  # type: ignore[type-arg]
    """A compiled graph with the guard's nodes."""

    guard_nodes: GuardNodes | None = None

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """As the unguarded graph; new input on an open step first closes it as cancelled."""
        if self._may_be_open(input, config):
            thread = ensure_config(self.config, config)
            state = self.get_state(thread)
            # Named, a checkpoint is shown without what its unfinished tasks wrote, which new input drops.
            closing = self._closing(input, self.get_state(_at(thread, state.config))) if state.tasks else ()
            if closing:
                config = _from_there(config, self.bulk_update_state(thread, closing))
        yield from super().stream(input, self._user_steps(config), **kwargs)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """As the unguarded graph; new input on an open step first closes it as cancelled."""
        if self._may_be_open(input, config):
            thread = ensure_config(self.config, config)
            state = await self.aget_state(thread)
            closing = self._closing(input, await self.aget_state(_at(thread, state.config))) if state.tasks else ()
            if closing:
                config = _from_there(config, await self.abulk_update_state(thread, closing))
        async for chunk in super().astream(input, self._user_steps(config), **kwargs):
            yield chunk

    def _infer_as_node(self, versions_seen: dict[str, Any]) -> str | None:
        """Whose edit of the state it is, where nobody says so: as without the guard, the agent's whose calls wait.

        Its routes are then taken anew from what the edit has left. From `check` the recorded ones would be, old calls included.
        """
        own = self.guard_nodes.names[:-1] if self.guard_nodes is not None else ()
        return super()._infer_as_node({name: seen for name, seen in versions_seen.items() if name not in own})

    @property
    def _nodes(self) -> GuardNodes:
        assert self.guard_nodes is not None
        return self.guard_nodes

    def _user_steps(self, config: RunnableConfig | None) -> RunnableConfig:
        """The config of a run: its limit counts the user's steps; what runs inside is told so, and what tools wrote."""
        full = ensure_config(self.config, config)
        given: RunnableConfig = {**(config or {}), "recursion_limit": UserSteps(full["recursion_limit"])}
        handed: dict[str, Any] = {}
        if TASK_ID in full["configurable"] and (written := written_in(full)):
            handed[OUTER_WRITTEN] = written
        # langgraph tells a user who forgot the thread id by an empty config; let it.
        if self.guard_nodes is not None and (full["configurable"] or not self.checkpointer):
            handed |= inside_of(full, graph=True)
        return patch_configurable(given, handed) if handed else given

    def _may_be_open(self, input: Any, config: RunnableConfig | None) -> bool:
        """Whether this is new input to a thread of its own whose last step may be open."""
        if self.guard_nodes is None or input is None:
            return False
        if isinstance(input, Command) and (input.resume is not None or not any(map(_says, self._brought(input)))):
            return False
        given = ensure_config(self.config, config).get("configurable", {})
        saver = given.get(CHECKPOINTER) or self.checkpointer
        # Inside another graph it has a thread of its own only with `checkpointer=True`; the others begin anew.
        own = TASK_ID not in given or (self.checkpointer is True and not given.get(RESUMING))
        return isinstance(saver, BaseCheckpointSaver) and "thread_id" in given and own

    def _closing(self, input: Any, state: Any) -> list[list[StateUpdate]]:
        """The edits of the thread that close its open step before new input; none where none is open.

        Args:
            input: The new input.
            state: The checkpoint that it meets.
        """
        nodes = self._nodes
        messages = nodes.messages_in(state.values)
        index = proposing(messages)
        after = messages[index + 1 :]
        if index < 0 or not all(isinstance(m, ToolMessage) for m in after):
            return []
        calls = unanswered(messages[index].tool_calls, [m.tool_call_id for m in after])
        if not calls:
            return []
        values: dict[str, Any] = {nodes.messages_key: cancelled(calls, *self._left(state))}
        sent = isinstance(input, Command) and bool(input.goto)
        if isinstance(input, Command) and not sent:  # it goes on where the closed step leads
            values[GUARD_CHANNEL] = {"go": nodes.routes_of(messages), "ending": False}
        # New input that removes or replaces the message which proposes the calls leaves nothing to answer.
        gone = any(m.id == messages[index].id for m in self._brought(input))
        closing = [] if gone else [[StateUpdate(values, nodes.refuse_name)]]
        # A command drops no tasks, as other input does: what the step leads to would run beside what it names.
        return [*closing, [StateUpdate(None, END)]] if sent else closing

    def _left(self, state: Any) -> tuple[list[ToolMessage], bool]:
        """What finished tasks of a checkpoint's step returned, and whether any of its calls may have run."""
        nodes = self._nodes
        results = [m for task in state.tasks for m in _tool_messages(task.result, nodes.messages_key)]
        return results, any(task.name in nodes.gates for task in state.tasks)

    def _brought(self, input: Any) -> list[BaseMessage]:
        """The messages of new input, in whichever form it is."""
        key = self._nodes.messages_key
        if isinstance(input, Command):
            given = [value for name, value in input._update_as_tuples() if name == key]
        else:
            given = [input.get(key) if isinstance(input, Mapping) else getattr(input, key, None)]
        given = [value.value if isinstance(value, Overwrite) else value for value in given]
        flat = [m for value in given for m in (value if isinstance(value, list) else [value]) if m is not None]
        try:
            return convert_to_messages(flat)
        except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError):
            return []  # the state's own reducer knows them, or says what is wrong


def _says(message: BaseMessage) -> bool:
    """Whether a message is new words, rather than an answer to a call or an edit of the history."""
    return not isinstance(message, (ToolMessage, RemoveMessage))


def _from_there(config: RunnableConfig | None, closed: RunnableConfig) -> RunnableConfig | None:
    """The config of a run that begins where a step was closed; a run of the thread's latest state does so anyway."""
    if not (config or {}).get("configurable", {}).get("checkpoint_id"):
        return config
    return _at(config, closed)


def _at(config: RunnableConfig | None, place: RunnableConfig) -> RunnableConfig:
    """A config that names the checkpoint of another one."""
    return patch_configurable(config, {"checkpoint_id": place["configurable"]["checkpoint_id"]})


def _tool_messages(result: Any, key: str) -> list[ToolMessage]:
    """The tool messages that a finished task wrote."""
    found = result.get(key) if isinstance(result, Mapping) else result
    return [m for m in found if isinstance(m, ToolMessage)] if isinstance(found, (list, tuple)) else []
