"""Invariants 1 to 3 over the whole life of a thread: random graphs, kills, resumes, edits, forks, people's answers.

One thread at a time. What runs is compared with what was cleared, call by call in its own step, and with what was stored
on the branch of time that goes on: `witness.py`. No rule is left out by what a run did, since threads of a tool node race.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.errors import InvalidUpdateError
from langgraph.types import Command
from random_agents import INSIDE, KINDS, MIDDLEWARE, NOT_EDITED, RETRYING, REWRITTEN, TOOLS, build, noted, task
from scripted_agents import assert_valid
from witness import ASKS, Crashed, Killed, WatchedPolicy, WatchedSaver, Witness, proposed

pytestmark = pytest.mark.slow

# Most calls act.
X = st.sampled_from([0, 1, 2, 0, 1, 2, 3, 4, 5, 6])
CALL = st.tuples(st.sampled_from(TOOLS), X, st.sampled_from(["a", "b", "c"]))
STEPS = st.lists(st.lists(CALL, min_size=1, max_size=3), min_size=1, max_size=3)
STOP = st.sampled_from([None, None, "plan", "check", "tools", "agent"])
ANSWERS = st.lists(
    st.tuples(st.sampled_from(["approve", "reject", "respond", "edit"]), st.sampled_from(TOOLS), X),
    min_size=3,
    max_size=3,
)
DEATH = (
    st.none()
    | st.tuples(st.sampled_from(["guard", "before", "after"]), st.integers(0, 1), st.booleans())
    | st.tuples(st.sampled_from(["put", "put_writes"]), st.integers(0, 7), st.booleans())
)
"""Where the process dies, after how many times there, and whether the store hears no more of it."""
BACK = st.integers(0, 3)

COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def counts() -> Iterator[None]:
    """What all examples together did."""
    yield
    print("\n".join(f"{count:7} {what}" for what, count in sorted(COUNTS.items())))


class RandomThread(RuleBasedStateMachine):
    """One thread, and all that people and machines do to it."""

    @initialize(
        kind=st.sampled_from(KINDS),
        rewrites=st.booleans(),
        allowed=st.booleans(),
        on_refuse=st.sampled_from(["replan", "end"]),
        max_refusals=st.sampled_from([2, 9]),
        in_loop=st.booleans(),
        steps=STEPS,
        stop=STOP,
        death=DEATH,
    )
    def start(
        self, kind: str, rewrites: bool, allowed: bool, in_loop: bool, steps: Any, stop: Any, death: Any, **options: Any
    ) -> None:
        self.kind, self.in_loop = kind, in_loop
        self.witness = Witness(REWRITTEN if rewrites else None, middleware=kind in MIDDLEWARE)
        self.allowed = ["look"] if allowed else []
        saver = WatchedSaver(self.witness)
        policy = WatchedPolicy(allow=self.allowed).watched_by(self.witness)
        self.make = lambda: build(kind, self.witness, saver, policy, **options)
        self.graph = self.make()
        self.thread: Any = {"configurable": {"thread_id": "1"}}
        COUNTS[f"threads: {kind}"] += 1
        self.say(steps, stop, death, fails=False)

    @rule(steps=STEPS, stop=STOP, death=DEATH, fails=st.booleans())
    def say(self, steps: Any, stop: str | None, death: Any, fails: bool) -> None:
        """A person says something, and the agent does some steps."""
        self.go({"messages": [task(steps)]}, stop, death, fails)

    @rule(new_process=st.booleans(), answers=ANSWERS, stop=STOP, death=DEATH, fails=st.booleans())
    def go_on(self, new_process: bool, answers: Any, stop: str | None, death: Any, fails: bool) -> None:
        """Resume; what is asked, a person decides."""
        if new_process:
            self.graph = self.make()
        state = self.state()
        asked = [(i, waiting.state) for waiting in state.tasks for i in waiting.interrupts]
        if asked:
            inside = self.kind in INSIDE
            resume = {i.id: self.decide(i.value, (own if inside else state), answers) for i, own in asked}
            self.go(Command(resume=resume), stop, death, fails)
        elif state.tasks:
            self.go(None, stop, death, fails)

    @rule(back=st.integers(1, 12), stop=STOP, death=DEATH, fails=st.booleans())
    def travel(self, back: int, stop: str | None, death: Any, fails: bool) -> None:
        """Go on from an earlier checkpoint."""
        history = list(self.graph.get_state_history(self.thread, limit=back + 1))
        if len(history) > back:
            self.go(None, stop, death, fails, history[back].config)

    @rule(x=X, back=BACK)
    def edit(self, x: int, back: int) -> None:
        """A person edits the open step behind the guard's back: now, or in the past, which makes a fork."""
        state = self.to_edit(back)
        index, calls = proposed(self.messages(state))
        if state and calls and index == len(self.messages(state)) - 1:
            edited = self.messages(state)[index].model_copy(
                update={"tool_calls": [{**call, "args": {"x": x}} for call in calls]}
            )
            self.update(state, edited, back)

    @rule(note=st.integers(1, 3), back=BACK)
    def reword(self, note: int, back: int) -> None:
        """A person changes what was asked for, while the agent is at it."""
        state = self.to_edit(back)
        messages = self.messages(state)
        asked = [message for message in messages if isinstance(message, HumanMessage)]
        if state and asked and isinstance(messages[-1], AIMessage) and messages[-1].tool_calls:
            self.update(state, noted(asked[-1], note), back)

    @rule(back=BACK)
    def correct(self, back: int) -> None:
        """A person corrects a result that is there."""
        state = self.to_edit(back)
        messages = self.messages(state)
        if state and messages and isinstance(messages[-1], ToolMessage) and not open_ids(messages):
            last = messages[-1]
            self.update(state, last.model_copy(update={"content": f"in fact {last.content}"}), back)

    def go(self, given: Any, stop: str | None, death: Any, fails: bool, config: Any = None) -> None:
        """Run the graph.

        Args:
            given: The input.
            stop: A node to stop before.
            death: Where the process dies.
            fails: Whether a tool fails once, where that is tried again.
            config: The checkpoint to travel to.
        """
        self.witness.begin(("", config["configurable"]["checkpoint_id"]) if config else None)
        self.witness.kill, self.witness.flaky = death, fails and self.kind in RETRYING
        config = {**(config or self.thread), "recursion_limit": 40}
        options: Any = {"interrupt_before": [stop]} if stop in self.graph.nodes else {}
        try:
            if self.in_loop:
                asyncio.run(self.graph.ainvoke(given, config, **options))
            else:
                self.graph.invoke(given, config, **options)
        except (Killed, Crashed):
            assert self.witness.dead is not None
        self.witness.end()
        assert not self.witness.violations, self.witness.violations

    def decide(self, payload: Any, state: Any, answers: Any) -> Any:
        """A person's decisions; what they approve is cleared."""
        messages = self.messages(state)
        calls = [c for c in proposed(messages)[1] if c["args"]["x"] == ASKS and c["name"] not in self.allowed]
        once = list({(c["id"], c["name"]): c for c in calls}.values())
        actions = payload["action_requests"]
        first = [(c["name"], c["args"]) for c in once] == [(a["name"], a["args"]) for a in actions]
        decisions = []
        for number, action in enumerate(actions):
            kind, name, x = answers[number % len(answers)]
            decision: dict[str, Any] = {"type": kind, "message": "so"}
            # What was edited into what is asked again may be any of the asked calls.
            for call in [once[number]] if first else once:
                if kind == "approve":
                    self.witness.clear(messages, call["id"], action["name"], action["args"]["x"])
                if kind == "edit":
                    self.witness.edited_call(messages, call["id"])
            if kind == "edit":
                decision["edited_action"] = {"name": name, "args": {"x": x}}
            decisions.append(decision)
        return {"decisions": decisions}

    def to_edit(self, back: int) -> Any:
        """A checkpoint that holds all that the thread shows; None where langgraph itself goes nowhere from an edit."""
        if self.kind in NOT_EDITED:
            return None
        history = list(self.graph.get_state_history(self.thread, limit=back + 1))
        if len(history) <= back:
            return None
        found = history[back]
        shown = self.graph.get_state(found.config).values if back else self.state().values
        return found if shown == found.values else None

    def update(self, state: Any, message: Any, back: int) -> None:
        self.witness.begin()
        self.witness.forking = back > 0
        # Whose edit it is, is not told where several nodes ran side by side; create_agent's routes expect an AI message.
        with contextlib.suppress(InvalidUpdateError, KeyError, Crashed):
            self.graph.update_state(state.config if back else self.thread, {"messages": [message]})
        self.witness.forking = False
        self.witness.end()
        assert not self.witness.violations, self.witness.violations

    def state(self) -> Any:
        return self.graph.get_state(self.thread, subgraphs=True)

    def messages(self, state: Any) -> list[Any]:
        return list(state.values.get("messages", [])) if state else []

    @invariant()
    def closed_threads_are_valid(self) -> None:
        """Every call of a closed step has one answer, by position."""
        if hasattr(self, "graph"):
            state = self.state()
            if not state.tasks:
                assert_valid(self.messages(state))
                owed = self.witness.owed.get(("", state.config["configurable"].get("checkpoint_id")))
                assert not owed, "stored results were lost"

    def teardown(self) -> None:
        """Every thread ends."""
        if not hasattr(self, "graph"):
            return
        for _ in range(12):
            if not self.state().tasks:
                break
            self.go_on(False, [("approve", "", 0)], None, None, False)
        assert not self.state().tasks, "the thread does not end"
        self.closed_threads_are_valid()
        COUNTS.update(self.witness.counts)
        COUNTS["executions"] += len(self.witness.executions)


def open_ids(messages: Any) -> list[str]:
    """The ids of calls without an answer."""
    index, calls = proposed(messages)
    ids = [call["id"] for call in calls]
    for message in messages[index + 1 :]:
        if isinstance(message, ToolMessage) and message.tool_call_id in ids:
            ids.remove(message.tool_call_id)
    return ids


TestRandomThread = RandomThread.TestCase
TestRandomThread.settings = settings(stateful_step_count=12)
