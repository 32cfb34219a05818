"""The nodes: `plan`, `check`, `ask` and `refuse`, the gates, and the ways between them.

Routes into a tool node are recorded in the guard's channel; `plan` takes all that wait, so that the calls of a step are
judged together whichever way they came; after `check` (and `ask`, where a person decides) the recorded routes are taken,
or `refuse` answers.

The nodes read and write the guard's channel through their config: as input or return value it would show in
`astream_events` and in traces.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.config import get_stream_writer
from langgraph.constants import END
from langgraph.prebuilt import ToolNode
from langgraph.types import Send, interrupt

from mosaic_guard._ask import Answer, ask_person
from mosaic_guard._channel import (
    CHECKPOINTER,
    GUARD_CHANNEL,
    ROUTES_CHANNEL,
    RUNTIME,
    WRITTEN,
    Channel,
    channel_of,
    digest_of,
    position,
    read,
    start,
    write,
    written_in,
)
from mosaic_guard._decision import Decision, Step
from mosaic_guard._errors import UnguardableGraphError
from mosaic_guard._evidence import REJECTED
from mosaic_guard._final_answer import STRUCTURED, final_answer, withheld
from mosaic_guard._function_node import FunctionNode
from mosaic_guard._gate import ResultCache, answer_message, gated_tool_node
from mosaic_guard._guard import Guard, Judgement, Plan
from mosaic_guard._hold import HOLDING, announce
from mosaic_guard._nested import Nested
from mosaic_guard._recursion import grant_superstep
from mosaic_guard._trace import TraceWriter
from mosaic_guard._trajectory import named
from mosaic_guard._transcript import JudgedStep
from mosaic_guard._waiting import (
    Waiting,
    as_authorised,
    as_calls,
    humans,
    open_calls,
    refusals_so_far,
    remember,
    step_record,
    still_begins_with,
)
from mosaic_guard._written import with_ids

State = Any
"""A graph's state in whichever form its schema has."""

NOT_RUN = "another call of the same step was refused and the run ends"
NOBODY_TO_ASK = "a person would have to decide, and the graph has no checkpointer to wait with"


class GuardNodes:
    """The functions behind the guard's nodes, and the gated tool nodes.

    `guarded_graph` uses nothing else; to place them by hand, see `GuardedStateGraph.add_guard`.

    Args:
        guard: Judges the steps. Default: `Guard.load("default")`, the local model.
        tool_nodes: The tool nodes by name: `ToolNode`s, or functions and runnables that run the calls of the last AI message
            themselves (then nothing verifies a call again behind the function's first line).
        messages_key: State key of the messages. Default: what the tool nodes read, else `messages`.
        on_refuse: `replan`: refused calls are answered with the reason and the agent goes on. `end`: a step with a refused
            call runs none of its calls, and the run ends with a message that says why.
        max_refusals: At this many steps in a row with a refusal `after_refusals` happens. At least 1.
        after_refusals: `end`: the run ends. `ask`: a person decides what the guard would refuse (not what a policy refuses).
        prefix: Put before the names of the nodes.
        trace: Where judged steps are logged.
        events: Whether plans and decisions are sent to the `custom` stream.
        check_final: Whether the answer that ends the run is judged too, as a call of `final_answer`.
        caches: Result caches of tool nodes, which then sit inside the gate.

    Attributes:
        gates: The gated tool nodes by name, to be placed under these names.

    Raises:
        ValueError: For an unknown option.
    """

    def __init__(
        self,
        guard: Guard | None = None,
        tool_nodes: Mapping[str, Any] | None = None,
        *,
        messages_key: str | None = None,
        on_refuse: Literal["replan", "end"] = "replan",
        max_refusals: int = 3,
        after_refusals: Literal["end", "ask"] = "end",
        prefix: str = "",
        trace: TraceWriter | None = None,
        events: bool = False,
        check_final: bool = False,
        caches: Mapping[str, ResultCache] | None = None,
    ) -> None:
        if on_refuse not in ("replan", "end"):
            raise ValueError(f"on_refuse is 'replan' or 'end', not {on_refuse!r}")
        if max_refusals < 1:
            raise ValueError(f"max_refusals is at least 1, not {max_refusals!r}")
        if after_refusals not in ("end", "ask"):
            raise ValueError(f"after_refusals is 'end' or 'ask', not {after_refusals!r}")
        self.guard = guard if guard is not None else Guard.load("default")
        self.on_refuse, self.max_refusals, self.after_refusals = on_refuse, max_refusals, after_refusals
        self.plan_name, self.check_name, self.ask_name, self.refuse_name = (
            f"{prefix}{name}" for name in ("plan", "check", "ask", "refuse")
        )
        self.trace, self.events, self.check_final = trace, events, check_final
        given = dict(tool_nodes or {})
        keys = [node._messages_key for node in given.values() if isinstance(node, ToolNode)]
        self.messages_key = messages_key or (keys[0] if keys else "messages")
        self.nested: Nested | None = None
        """Guards the graphs inside tools that come up only while running."""
        self.joined: set[str] = set()
        """Tool nodes that others wait for: they run even where every call is refused, and answer the calls themselves."""
        self.gates: dict[str, Any] = {
            name: gated_tool_node(node, name=name, nodes=self, results=(caches or {}).get(name))
            if isinstance(node, ToolNode)
            else FunctionNode(node, name=name, nodes=self)
            for name, node in given.items()
        }
        self.tools: dict[str, BaseTool] = {
            name: tool for gate in self.gates.values() for name, tool in gate.tools_by_name.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the guard's own nodes."""
        return self.plan_name, self.check_name, self.ask_name, self.refuse_name

    def plan(self, state: State, config: RunnableConfig) -> None:
        """Ask the guard for its plan of the waiting step."""
        waiting = self._begin(state, config)
        plan = self.guard.plan(waiting.step, waiting.history, key=waiting.key) if waiting.step.calls else Plan()
        write(config, GUARD_CHANNEL, self._planned(waiting, plan))

    async def aplan(self, state: State, config: RunnableConfig) -> None:
        """`plan` for event loops."""
        waiting = self._begin(state, config)
        plan = await self.guard.aplan(waiting.step, waiting.history, key=waiting.key) if waiting.step.calls else Plan()
        write(config, GUARD_CHANNEL, self._planned(waiting, plan))

    def check(self, state: State, config: RunnableConfig) -> None:
        """Ask the guard for its decisions; issue clearances, log the step."""
        waiting, plan = self._resume(state, config)
        if not waiting.step.calls:
            write(config, GUARD_CHANNEL, self._passed(waiting))
            return
        if plan is None:
            plan = self.guard.plan(waiting.step, waiting.history, key=waiting.key)
        judgement = self.guard.check(waiting.step, plan, waiting.history, key=waiting.key, number=waiting.number)
        write(config, GUARD_CHANNEL, self._checked(config, waiting, judgement))

    async def acheck(self, state: State, config: RunnableConfig) -> None:
        """`check` for event loops."""
        waiting, plan = self._resume(state, config)
        if not waiting.step.calls:
            write(config, GUARD_CHANNEL, self._passed(waiting))
            return
        if plan is None:
            plan = await self.guard.aplan(waiting.step, waiting.history, key=waiting.key)
        judgement = await self.guard.acheck(waiting.step, plan, waiting.history, key=waiting.key, number=waiting.number)
        write(config, GUARD_CHANNEL, self._checked(config, waiting, judgement))

    def ask(self, state: State, config: RunnableConfig) -> None:
        """Have a person decide the asked calls: one interrupt for all of the step. Nothing is judged here."""
        grant_superstep(config)
        channel = channel_of(config)
        answers = ask_person(channel, interrupt)
        write(config, GUARD_CHANNEL, self._answered(config, channel, answers))

    def clear_at_once(self, routes: list[list[Any]], config: RunnableConfig) -> bool:
        """Clear a step in the task that proposed it, if the policy alone lets all of it act.

        `plan` and `check` would add nothing but two supersteps.

        Args:
            routes: [tool node, `Send` payload or None] of each route that the task takes.
            config: The task's config.
        """
        running = config.get("configurable", {})
        if HOLDING in running or (self.events and RUNTIME not in running):
            return False
        if any(name == END or name in self.joined for name, _ in routes):
            return False
        messages = self.messages_in({self.messages_key: read(config, self.messages_key, fresh=True)})
        found = self._routes(messages, routes, config)
        waiting = self._open(messages, found, config)
        # The whole step, and nothing but it: what another route may bring is judged with it, in `plan`.
        whole = Counter(map(digest_of, open_calls(messages))) == Counter(map(digest_of, waiting.calls))
        if not (waiting.step.calls and whole and self.guard.lets_all_act(waiting.step)):
            return False
        judgement = self.guard.check(waiting.step, Plan(), key=waiting.key, number=waiting.number)
        if any(decision.verdict != "act" for decision in judgement.decisions):
            return False
        write(config, GUARD_CHANNEL, self._checked(config, waiting, judgement))
        return True

    def after_check(self, state: State, config: RunnableConfig) -> list[str | Send]:
        """Where the step goes: to `ask`, back to `plan` with what a person changed, its recorded routes, or `refuse`."""
        channel = read(config, GUARD_CHANNEL, fresh=True)
        if channel["edits"]:
            return [self.plan_name]
        verdicts = [found["verdict"] for found in channel["clearances"]["verdicts"].values()]
        if "ask" in verdicts:
            return [self.ask_name]
        messages = self.messages_in(state)
        kept = still_begins_with(messages, channel["seen"])
        ids = {call.get("id") for _, _, calls in channel["go"] for call in calls}
        since = messages[channel["seen"][0] :]
        if kept and any(isinstance(message, ToolMessage) and message.tool_call_id in ids for message in since):
            # The step has run: langgraph takes an edit of its results for one by `check`, and would take the routes again.
            # Results of other calls are those of a parallel branch.
            return []
        for name, payload in channel["beside"]:
            if payload is None:
                start(config, name)
        beside: list[str | Send] = [Send(*route) for route in channel["beside"] if route[1] is not None]
        names = {route[0] for route in channel["go"]}
        if verdicts and "act" not in verdicts and (channel["ending"] or not names <= self.joined):
            return [self.refuse_name, *beside]
        return [*beside, *(self._leave(messages if kept else None, *route) for route in channel["go"])]

    def _leave(self, messages: list[Any] | None, name: str, payload: Any, calls: list[Any]) -> str | Send:
        """The way into a tool node: as recorded, or with the calls themselves if a parallel branch has written since.

        Not if the history itself was edited (None here): the tool node then reads that, and its gate finds it unjudged.
        """
        if payload is not None:
            return Send(name, payload)
        if name == END or messages is None:
            return name
        return name if self._read_calls(name, {self.messages_key: messages}) == calls else Send(name, calls)

    def refuse(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Answer every call of a step of which none runs; where the run ends, say so."""
        channel = channel_of(config)
        verdicts = channel["clearances"]["verdicts"]
        answers: list[BaseMessage] = []
        # Several tool nodes may read the same calls: each is answered as often as the agent has proposed it.
        left = Counter(map(digest_of, open_calls(self.messages_in(state))))
        proposed = set(left)
        for call in (call for name, _, calls in channel["go"] for call in calls if name != END):
            digest = digest_of(call)
            left[digest] -= 1
            if digest in proposed and left[digest] < 0:
                continue
            found = verdicts.get(digest_of(call)) or {"verdict": "refuse", "reason": "it was not judged"}
            answers.append(answer_message(call, found))
        if any(name == END and calls for name, _, calls in channel["go"]):
            answers += withheld(self.messages_in(state), self.tools)
            structured = read(config, STRUCTURED) is not None
            return {self.messages_key: answers, **({STRUCTURED: None} if structured else {})}
        if channel["ending"]:
            answers.append(AIMessage(content=self._farewell(verdicts, channel["refusals"])))
        return {self.messages_key: answers}

    def can_ask(self, config: RunnableConfig) -> str | None:
        """Why nobody can be asked in this run; None if somebody can."""
        return NOBODY_TO_ASK if config.get("configurable", {}).get(CHECKPOINTER) in (None, False) else None

    def judge_again(self, call: Mapping[str, Any], config: RunnableConfig) -> Mapping[str, str]:
        """The verdict on a call that was changed behind its check, as a step of its own; never raises."""
        waiting = self._changed(call, config)
        plan = self.guard.plan(waiting.step, key=waiting.key)
        return self._again(config, waiting, self.guard.check(waiting.step, plan, key=waiting.key))

    async def ajudge_again(self, call: Mapping[str, Any], config: RunnableConfig) -> Mapping[str, str]:
        """`judge_again` for event loops."""
        waiting = self._changed(call, config)
        plan = await self.guard.aplan(waiting.step, key=waiting.key)
        return self._again(config, waiting, await self.guard.acheck(waiting.step, plan, key=waiting.key))

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

    def _changed(self, call: Mapping[str, Any], config: RunnableConfig) -> Waiting:
        messages = list(read(config, self.messages_key) or ())
        # Of its own trajectory, so that the log of the step that proposed it stays what was judged.
        parent = str(channel_of(config).get("trajectory") or uuid.uuid4())
        return self._waiting(config, messages, [["", None, [call]]], [], f"{parent}/changed-{digest_of(call)[:12]}", 0)

    def _again(self, config: RunnableConfig, waiting: Waiting, judgement: Judgement) -> Mapping[str, str]:
        self._log(config, waiting, judgement, fresh=True)
        decision = judgement.decisions[0]
        if decision.verdict == "ask":
            return {"verdict": "refuse", "reason": "it was changed after the check, and a person would have to decide"}
        return {"verdict": decision.verdict, "reason": decision.reason}

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
        if edits:  # the others are settled; calls that are alike are one
            verdicts = channel_of(config)["clearances"]["verdicts"]
            acting = [call for call in calls if verdicts.get(digest_of(call), {}).get("verdict") == "act"]
            cleared = [verdicts[digest_of(call)].get("run", call)["name"] for call in acting]
            alike = {digest_of(call): call for call in calls}
            calls = [{**alike[digest], **edit} for digest, edit in edits.items()]
        step = Step(self.authorised(messages, config), as_calls(calls), self._tools_of(routes), cleared=tuple(cleared))
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

    def _planned(self, waiting: Waiting, plan: Plan) -> dict[str, Any]:
        if self.events and waiting.step.calls:
            calls = [call.to_dict() for call in waiting.step.calls]
            self._event(
                waiting,
                event="plan",
                think=plan.think,
                error=plan.error,
                calls=calls,
                seconds={"plan": round(plan.seconds, 4)},
            )
        opened = {
            "routes": waiting.routes,
            "beside": list(waiting.beside),
            "seen": waiting.seen,
            "known": bool(waiting.history),
            "trajectory": waiting.trajectory,
            "number": waiting.number,
            "edits": dict(waiting.edits),
            "plan": plan.to_dict(),
        }
        return {"open": opened, "bounced": None, "edits": {}}

    def _passed(self, waiting: Waiting) -> dict[str, Any]:
        """A route was taken without calls to judge: the tool node runs none."""
        return {
            "go": waiting.routes,
            "beside": list(waiting.beside),
            "seen": waiting.seen,
            "clearances": self._clearances(waiting, {}),
            "ending": False,
            "edits": {},
        }

    def _checked(self, config: RunnableConfig, waiting: Waiting, judgement: Judgement) -> dict[str, Any]:
        channel = channel_of(config)
        judgement = self._asks_instead(config, waiting, judgement)
        if waiting.edits:
            verdicts = dict(channel["clearances"]["verdicts"])
            for (digest, edit), decision in zip(waiting.edits.items(), judgement.decisions, strict=True):
                verdicts[digest] = {"verdict": decision.verdict, "reason": decision.reason, "run": dict(edit)}
        else:
            verdicts = {}
            for call, decision in zip(waiting.step.calls, judgement.decisions, strict=True):
                # Calls that are alike cannot be told apart at the gate: one that does not run keeps all from running.
                if verdicts.get(call.digest, {}).get("verdict", "act") == "act":
                    verdicts[call.digest] = {"verdict": decision.verdict, "reason": decision.reason}
        self._log(config, waiting, judgement)
        if self.events:
            self._event(
                waiting,
                event="decision",
                think=judgement.think,
                safety_thoughts=judgement.safety_thoughts,
                calls=[call.to_dict() for call in waiting.step.calls],
                decisions=[d.to_dict() for d in judgement.decisions],
                seconds=judgement.seconds,
            )
        asked = any(found["verdict"] == "ask" for found in verdicts.values())
        refused = any(found["verdict"] == "refuse" for found in verdicts.values())
        refusals = refusals_so_far(channel, waiting.messages)
        # Counted once for each step, when it is first judged.
        refusals = refusals if waiting.edits else (refusals + 1 if refused else refusals if asked else 0)
        ending = refused and (self.on_refuse == "end" or refusals >= self.max_refusals)
        announce(config, waiting.step.calls, judgement.decisions)
        return {
            "go": waiting.routes,
            "beside": list(waiting.beside),
            "seen": waiting.seen,
            "clearances": self._clearances(waiting, _settled(verdicts, ending)),
            "ending": ending,
            "refusals": refusals,
            "humans": humans(waiting.messages),
            "history": remember(waiting.history, judgement.judged),
            "trajectory": waiting.trajectory,
            "step": waiting.number + 1,
            "at": waiting.at,
            "logged": waiting.digests if self.trace else None,
            "edits": {},
            "open": None,
            "bounced": None,
        }

    def _asks_instead(self, config: RunnableConfig, waiting: Waiting, judgement: Judgement) -> Judgement:
        """The decisions as they can be kept: nobody can be asked without a checkpointer; some are asked after refusals."""
        nobody = self.can_ask(config)
        often = refusals_so_far(channel_of(config), waiting.messages) + 1 >= self.max_refusals
        decisions = []
        for d in judgement.decisions:
            if (
                d.verdict == "refuse"
                and d.source != "policy"
                and often
                and nobody is None
                and self.after_refusals == "ask"
            ):
                d = Decision(d.call, "ask", d.reason, d.p_refuse, "limit")
            elif d.verdict == "ask" and nobody is not None:
                reason = f"{d.reason}; {nobody}" if d.reason else nobody
                d = Decision(d.call, "refuse", reason, d.p_refuse, d.source)
            decisions.append(d)
        return replace(judgement, decisions=tuple(decisions))

    def _answered(self, config: RunnableConfig, channel: Channel, answers: Mapping[str, Answer]) -> dict[str, Any]:
        """What the channel holds once a person has answered; edited calls wait to be judged again."""
        verdicts = dict(channel["clearances"]["verdicts"])
        edits: dict[str, Any] = {}
        for digest, answer in answers.items():
            known = verdicts[digest]
            if answer.type == "approve":
                verdicts[digest] = {**known, "verdict": "act", "reason": "a person approved it"}
            elif answer.type == "edit" and answer.action is not None:
                edits[digest] = dict(answer.action)
            elif answer.type == "respond":
                verdicts[digest] = {"verdict": "respond", "reason": answer.message}
            else:
                why = f": {answer.message}" if answer.message else ""
                verdicts[digest] = {"verdict": "refuse", "reason": f"a person rejected it{why}", "mark": REJECTED}
        rejected = any(answer.type == "reject" for answer in answers.values())
        ending = bool(channel["ending"]) or (rejected and self.on_refuse == "end")
        if self.trace is not None and channel.get("trajectory"):
            said = [{"digest": d, "type": a.type, "message": a.message, "action": a.action} for d, a in answers.items()]
            self.trace.feedback(channel["trajectory"], channel["step"] - 1, channel["at"], said)
        clearances = {**channel["clearances"], "verdicts": _settled(verdicts, ending)}
        return {"clearances": clearances, "ending": ending, "edits": {} if ending else edits}

    def _clearances(self, waiting: Waiting, verdicts: dict[str, Any]) -> dict[str, Any]:
        nodes = sorted({name for name, _, _ in waiting.routes})
        return {"step": waiting.position, "nodes": nodes, "verdicts": verdicts}

    def _log(self, config: RunnableConfig, waiting: Waiting, judgement: Judgement, *, fresh: bool = False) -> None:
        if self.trace is None:
            return
        channel = {} if fresh or not waiting.number else channel_of(config)
        record = step_record(
            waiting,
            judgement,
            task=(config.get("metadata") or {}).get("mosaic_task"),
            after=channel.get("at"),
            thread=config.get("configurable", {}).get("thread_id"),
            logged=channel.get("logged") or (),
        )
        named = {"guard": self.trace.header(self.guard.describe()), "tools": self.trace.tools(waiting.step.tools)}
        self.trace.step({**named, **record})

    def _event(self, waiting: Waiting, **event: Any) -> None:
        writer = get_stream_writer()
        writer({"type": "mosaic_guard", "trajectory": waiting.trajectory, "step": waiting.number, **event})

    def _farewell(self, verdicts: Mapping[str, Mapping[str, str]], refusals: int) -> str:
        reasons = [found["reason"] for found in verdicts.values() if found["reason"] != NOT_RUN]
        often = "" if self.on_refuse == "end" else f" after {refusals} refused steps in a row"
        return f"I stopped{often}: the guard refused what I was about to do. {'; '.join(reasons)[:600]}"


def _history(channel: Channel) -> list[JudgedStep]:
    return [JudgedStep.from_dict(record) for record in channel.get("history", ())]


def _settled(verdicts: Mapping[str, Mapping[str, Any]], ending: bool) -> dict[str, Any]:
    """Where the run ends, no call of the step runs and nobody is asked."""
    if not ending:
        return dict(verdicts)
    return {
        digest: found if found["verdict"] in ("refuse", "respond") else {"verdict": "refuse", "reason": NOT_RUN}
        for digest, found in verdicts.items()
    }
