"""Invariants 1 to 4 on random agents: random parallel calls, arguments, ids, decisions, rewriting wrappers and failures."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.prebuilt import ToolNode
from scripted_agents import Scripted, assert_valid, calls, hand_written, make_tools

from mosaic_guard import Guard, ScriptedGuardModel, guarded_graph

# langgraph's checkpoints hold integers of 64 bits.
ARGUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
CALL = st.tuples(st.sampled_from(["look", "pay", "send"]), st.fixed_dictionaries({"x": ARGUMENTS}))
IDS = st.sampled_from(["1", "2", "3", ""])


@st.composite
def steps(draw: Any) -> list[AIMessage]:
    """Some AI messages that propose calls, then one that ends the run."""
    script = []
    for _ in range(draw(st.integers(1, 3))):
        proposed = draw(st.lists(CALL, min_size=1, max_size=4))
        ids = draw(st.lists(IDS, min_size=len(proposed), max_size=len(proposed)))
        script.append(calls(*proposed, ids=ids))
    return [*script, AIMessage("done")]


class Meddles(AgentMiddleware):
    """Rewrites the arguments of every call whose tool is in `names`."""

    def __init__(self, names: frozenset[str], value: Any) -> None:
        self.names, self.value = names, value

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        call = request.tool_call
        if call["name"] in self.names:
            return handler(request.override(tool_call={**call, "args": {"x": self.value}}))
        return handler(request)


class Recorder:
    """Decides by a list of booleans (True: act), fails where told to, and remembers what it cleared."""

    def __init__(self, verdicts: list[bool], fails: bool) -> None:
        self.verdicts, self.fails, self.asked = verdicts, fails, 0
        self.cleared: Counter[tuple[str, str]] = Counter()
        # Rewritten calls are judged again in the threads of their tools.
        self._lock = threading.Lock()

    def __call__(self, step: Any) -> list[str]:
        with self._lock:
            return self._decide(step)

    def _decide(self, step: Any) -> list[str]:
        first: dict[str, bool] = {}
        answers = []
        for call in step.calls:
            own = self.verdicts[self.asked % len(self.verdicts)]
            self.asked += 1
            act = first.setdefault(call.digest, own)
            answers.append("act" if own else "refuse")
            if act and not self.fails:
                self.cleared[(call.name, repr(call.args["x"]))] += 1
        if self.fails:
            raise RuntimeError("no decision")
        return answers


def run(
    script: list[AIMessage], recorder: Recorder, kind: str, middleware: Any, **options: Any
) -> tuple[list[Any], Any]:
    log: list[Any] = []
    model, tools = Scripted(script=script), make_tools(log)
    if kind == "create_agent":
        plain: Any = create_agent(model, tools, middleware=middleware)
    else:
        wrap = middleware[0].wrap_tool_call if middleware else None
        plain = hand_written(model, ToolNode(tools, wrap_tool_call=wrap), kind)
    out = guarded_graph(plain, guard=Guard(ScriptedGuardModel(recorder)), **options).invoke(
        {"messages": [HumanMessage("go")]}
    )
    return log, out["messages"]


@pytest.mark.slow
@given(
    script=steps(),
    verdicts=st.lists(st.booleans(), min_size=1, max_size=6),
    kind=st.sampled_from(["create_agent", "condition", "send", "edge"]),
    meddled=st.none() | st.tuples(st.frozensets(st.sampled_from(["look", "pay", "send"])), ARGUMENTS),
    fails=st.booleans(),
    on_refuse=st.sampled_from(["replan", "end"]),
)
def test_nothing_runs_uncleared_and_every_call_is_answered(
    script: Any, verdicts: Any, kind: str, meddled: Any, fails: bool, on_refuse: Any
) -> None:
    recorder = Recorder(verdicts, fails)
    log, messages = run(
        script, recorder, kind, [Meddles(*meddled)] if meddled else [], on_refuse=on_refuse, max_refusals=4
    )
    ran = Counter((name, repr(x)) for name, x in log)
    assert not ran - recorder.cleared, "a tool body ran without a clearance for exactly that call"
    assert_valid(messages)
    if fails:
        assert not log


@pytest.mark.slow
@given(script=steps(), kind=st.sampled_from(["create_agent", "condition", "send"]))
def test_an_allowing_guard_changes_nothing(script: Any, kind: str) -> None:
    logs, histories = [], []
    for guarded in (False, True):
        log: list[Any] = []
        model, tools = Scripted(script=script), make_tools(log)
        plain: Any = (
            create_agent(model, tools) if kind == "create_agent" else hand_written(model, ToolNode(tools), kind)
        )
        graph = guarded_graph(plain, guard=Guard(ScriptedGuardModel("act"))) if guarded else plain
        out = graph.invoke({"messages": [HumanMessage("go")]})
        logs.append(sorted(map(repr, log)))
        histories.append([(m.type, m.content, getattr(m, "tool_call_id", None)) for m in out["messages"]])
    assert logs[0] == logs[1]
    assert histories[0] == histories[1]


@pytest.mark.parametrize(
    # On disk as well where PostgreSQL is: what is fast stays in memory.
    "stores",
    ["memory", *(pytest.param(kind, marks=pytest.mark.postgres) for kind in ("sqlite", "postgres"))],
    indirect=True,
)
# One store for all examples: each is a thread of its own.
@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(script=steps(), verdicts=st.lists(st.booleans(), min_size=1, max_size=6), stops=st.integers(0, 4))
def test_a_run_that_is_stopped_and_resumed_keeps_the_invariants(
    saver: Any, script: Any, verdicts: Any, stops: int
) -> None:
    recorder = Recorder(verdicts, fails=False)
    log: list[Any] = []
    plain = hand_written(Scripted(script=script), ToolNode(make_tools(log)), "condition", checkpointer=saver)
    graph = guarded_graph(plain, guard=Guard(ScriptedGuardModel(recorder)), max_refusals=4)
    thread: Any = {"configurable": {"thread_id": str(uuid4())}}
    given_: Any = {"messages": [HumanMessage("go")]}
    for _ in range(stops):
        graph.invoke(given_, thread, interrupt_before=["plan", "check", "refuse", "tools"])
        given_ = None
        if not graph.get_state(thread).next:
            break
    if graph.get_state(thread).next or given_ is not None:
        graph.invoke(given_, thread)
    assert not Counter((name, repr(x)) for name, x in log) - recorder.cleared
    assert_valid(graph.get_state(thread).values["messages"])
