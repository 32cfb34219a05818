"""A process that dies inside tools: LangGraph runs what was not stored again, and the guard adds nothing to that."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from random_agents import INSIDE, KINDS, TOOLS, Steps, build, task
from scripted_agents import assert_valid
from witness import Crashed, WatchedSaver, Witness

pytestmark = pytest.mark.slow

SIDE_BY_SIDE = ("create_agent", "send", "retrying middleware", "middleware", "middleware first")
"""Kinds whose calls are tasks of their own, each with a result that is stored by itself."""
IN_TURN = ("function",)
"""Kinds whose calls run one after the other, as the node has it."""


class Mortal(Witness):
    """Dies in the bodies of some calls, once in each."""

    def __init__(self, doomed: dict[str, str], kind: str) -> None:
        super().__init__()
        self.doomed, self.kind = dict(doomed), kind
        self.siblings: dict[str, list[str]] = {}
        self.died: set[str] = set()
        self.reached: set[str] = set()

    def begin(self, replays: Any = None) -> None:
        super().begin(replays)
        self.died.clear()
        self.reached.clear()

    def run(self, name: str, x: Any, call_id: str, config: RunnableConfig) -> str:
        where = self.doomed.get(call_id)
        if where != "before":
            with self._lock:
                one = self._ran(name, x, call_id, config)
        self.reached.add(call_id)
        if where is not None:
            self._outlive(call_id)
            self.died.add(call_id)
            del self.doomed[call_id]
            raise Crashed
        return f"{name} #{one.number}"

    def _outlive(self, call_id: str) -> None:
        """Wait for the other calls of the step: how far they get before the end is not for threads to decide."""
        if self.kind in IN_TURN:
            return
        dying = self.died | set(self.doomed)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if self.kind in SIDE_BY_SIDE:
                stored = {one.id for one in self.executions if one.number in self.stored}
                if {i for i in self.siblings[call_id] if i not in dying} <= stored:
                    return
            elif set(self.siblings[call_id]) <= self.reached:
                return
            time.sleep(0.001)
        raise AssertionError(f"the calls beside {call_id} have not come this far: {self.siblings[call_id]}")


@st.composite
def lives(draw: Any) -> tuple[Steps, dict[str, str]]:
    """Steps, and in which of their calls the process dies."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    steps = [
        [(draw(st.sampled_from(TOOLS)), draw(st.sampled_from([0, 2])), f"{number}-{i}") for i in range(size)]
        for number, size in enumerate(sizes)
    ]
    ids = [call_id for step in steps for _, _, call_id in step]
    doomed = draw(st.dictionaries(st.sampled_from(ids), st.sampled_from(["before", "after"]), max_size=3))
    return steps, doomed


def lived(kind: str, life: tuple[Steps, dict[str, str]], in_loop: bool, guarded: bool) -> Counter[tuple[Any, ...]]:
    """How often each call ran."""
    steps, doomed = life
    witness = Mortal(doomed, kind)
    witness.siblings = {i: [other for _, _, other in step if other != i] for step in steps for _, _, i in step}
    graph = build(kind, witness, WatchedSaver(witness), guarded=guarded)
    thread: Any = {"configurable": {"thread_id": "1"}}
    put_in: Any = {"messages": [task(steps)]}
    for _ in range(len(doomed) + 1):
        witness.begin()
        try:
            if in_loop:
                asyncio.run(graph.ainvoke(put_in, thread))
            else:
                graph.invoke(put_in, thread)
        except Crashed:
            put_in = None
    state = graph.get_state(thread)
    assert not state.tasks
    assert_valid(state.values["messages"])
    assert not (guarded and witness.violations), witness.violations
    return Counter((one.id, *one.what) for one in witness.executions)


@given(kind=st.sampled_from([kind for kind in KINDS if kind not in INSIDE]), life=lives(), in_loop=st.booleans())
def test_a_kill_inside_a_tool_costs_what_it_costs_without_the_guard(kind: str, life: Any, in_loop: bool) -> None:
    assert lived(kind, life, in_loop, guarded=True) == lived(kind, life, in_loop, guarded=False)
