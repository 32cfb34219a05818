"""What fails around a step, and what must hold then: nothing uncleared runs, the thread stays valid and resumable."""

from __future__ import annotations

import asyncio
import contextlib
import math
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode
from scripted_agents import Scripted, State, answers, assert_valid, by_name, calls, hand_written, make_tools

from mosaic_guard import Call, Guard, Limits, ScriptedGuardModel, Step, guarded_graph
from mosaic_guard._deadline import Deadline, GuardTimeoutError, held
from mosaic_guard._transcript import Prompt
from mosaic_guard.models.guard_model import Checked, Decide, GuardModel, Planned

pytestmark = pytest.mark.slow

THREAD: Any = {"configurable": {"thread_id": "1"}}
ASK = {"messages": [HumanMessage("look at a, then pay b, then send c")]}
SCRIPT = [
    calls(("look", {"x": "a"}), ("pay", {"x": "b"}), ids=["1", "2"]),
    calls(("send", {"x": "c"}), ids=["3"]),
    AIMessage("done"),
]
SHORT = 0.2
"""A guard's timeout, in seconds, where it is to pass."""
LONG = 30.0
"""Seconds within which everything that does not hang is over, on a busy machine."""


class Remembering(Scripted):
    """Says what comes next by the history, as a process that resumes the thread would."""

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self._turn = sum(isinstance(message, AIMessage) for message in messages)
        return super()._generate(messages, *args, **kwargs)


def agent(log: list[Any], **compile_args: Any) -> Any:
    return hand_written(Remembering(script=SCRIPT), ToolNode(make_tools(log)), **compile_args)


def one_step() -> Step:
    message = SCRIPT[0]
    return Step(
        [*ASK["messages"], message],
        tuple(Call(i, c["id"], c["name"], c["args"]) for i, c in enumerate(message.tool_calls)),
    )


async def judge(guard: Guard, run_async: bool) -> Any:
    asked = one_step()
    if run_async:
        return await guard.acheck(asked, await guard.aplan(asked))
    return guard.check(asked, guard.plan(asked))


async def run(graph: Any, run_async: bool, given: Any = ASK) -> Any:
    return await graph.ainvoke(given, THREAD) if run_async else graph.invoke(given, THREAD)


def assert_failed_closed(judgement: Any, says: str) -> None:
    assert [(d.verdict, d.source) for d in judgement.decisions] == [("refuse", "error")] * 2
    assert all(says in d.reason for d in judgement.decisions)
    assert judgement.judged is None


# A guard model that fails


class OutOfMemoryError(RuntimeError):
    """As torch's own is made."""


class Failing(GuardModel):
    """Calls a function at `plan` or at `check`; acts otherwise."""

    name = "failing"

    def __init__(self, at: str, what: Callable[[Decide], Any]) -> None:
        self.at, self.what = at, what

    def plan(self, prompt: Prompt) -> Planned:
        return self.what(lambda index, p: ("act", "sampled")) if self.at == "plan" else Planned("fine")

    def check(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        if self.at == "check":
            return self.what(decide)
        for index in range(len(prompt.step.calls)):
            decide(index, 0.0)
        return Checked(None, (0.0,) * len(prompt.step.calls))


def raising(error: BaseException) -> Callable[[Decide], Any]:
    def fail(decide: Decide) -> Any:
        raise error

    return fail


def deciding(*chances: Any) -> Callable[[Decide], Any]:
    def answer(decide: Decide) -> Checked:
        for index, chance in enumerate(chances):
            decide(index, chance)
        return Checked(None, tuple(chances))

    return answer


ERRORS = [
    (raising(RuntimeError("crash")), "crash"),
    (raising(MemoryError("no memory")), "no memory"),
    (raising(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), "CUDA out of memory"),
    (raising(StopIteration("over")), "over"),
    (raising(TimeoutError("the endpoint's own")), "the endpoint's own"),
    (lambda decide: None, "returned NoneType"),
]
MALFORMED = [
    (deciding(), "0 of 2 calls"),
    (deciding(0.0), "1 of 2 calls"),
    (deciding(0.0, 0.0, 0.0), "out of order"),
    (deciding(0.0, math.nan), "nan"),
    (deciding(0.0, math.inf), "inf"),
    (deciding(0.0, -0.1), "-0.1"),
    (deciding(0.0, "act"), "real number"),
    (deciding(0.0, None), "real number"),
]


@pytest.mark.parametrize("limit", [None, LONG])
@pytest.mark.parametrize("run_async", [False, True])
@pytest.mark.parametrize(
    ("at", "what", "says"),
    [*[(at, *error) for at in ("plan", "check") for error in ERRORS], *[("check", *answer) for answer in MALFORMED]],
)
async def test_a_model_that_fails_refuses_and_says_why(
    at: str, what: Any, says: str, run_async: bool, limit: float | None
) -> None:
    assert_failed_closed(await judge(Guard(Failing(at, what), timeout=limit), run_async), says)


@pytest.mark.parametrize("answer", ["maybe", ["act"], ["act", "ACT"], [0.1, 2], [], {"look": "act"}])
async def test_a_scripted_answer_outside_the_grammar_refuses(answer: Any) -> None:
    for run_async in (False, True):
        judgement = await judge(Guard(ScriptedGuardModel(lambda step: answer)), run_async)
        assert [(d.verdict, d.source) for d in judgement.decisions] == [("refuse", "error")] * 2


@pytest.mark.parametrize("run_async", [False, True])
@pytest.mark.parametrize("at", ["plan", "check"])
async def test_a_thread_whose_guard_failed_goes_on_with_a_healthy_one(at: str, run_async: bool) -> None:
    log: list[Any] = []
    saver = InMemorySaver()
    broken = guarded_graph(
        agent(log, checkpointer=saver), guard=Guard(Failing(at, raising(MemoryError("no memory")))), max_refusals=1
    )
    out = await run(broken, run_async)
    assert_valid(out["messages"])
    assert "no memory" in out["messages"][-1].text
    assert log == []
    healthy = guarded_graph(
        hand_written(Scripted(script=SCRIPT), ToolNode(make_tools(log)), checkpointer=saver),
        guard=Guard(ScriptedGuardModel(by_name(pay="refuse"))),
    )
    out = await run(healthy, run_async, {"messages": [HumanMessage("again")]})
    assert_valid(out["messages"])
    assert log == [("look", "a"), ("send", "c")]


# Time


class Slow(GuardModel):
    """Waits at `plan` or `check` until it is let go, or forever; `polite` looks at its deadline meanwhile."""

    name = "slow"

    def __init__(self, at: str, *, polite: bool = False) -> None:
        self.at, self.polite = at, polite
        self.go, self.started = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self.working: list[threading.Thread] = []

    def _work(self, at: str, prompt: Prompt) -> None:
        with held(self.lock, prompt.deadline if self.polite else None):
            self.working.append(threading.current_thread())
            self.started.set()
            while at == self.at and not self.go.wait(0.01):
                if self.polite:
                    assert prompt.deadline is not None
                    prompt.deadline.check()

    def plan(self, prompt: Prompt) -> Planned:
        self._work("plan", prompt)
        return Planned("fine")

    def check(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
        self._work("check", prompt)
        return deciding(*[0.0] * len(prompt.step.calls))(decide)


@pytest.fixture
def slow() -> Iterator[Callable[..., Slow]]:
    made: list[Slow] = []

    def make(at: str, **options: Any) -> Slow:
        made.append(Slow(at, **options))
        return made[-1]

    yield make
    for model in made:
        model.go.set()
        for worker in model.working:
            worker.join(LONG)


@pytest.mark.parametrize("polite", [False, True])
@pytest.mark.parametrize("run_async", [False, True])
@pytest.mark.parametrize("at", ["plan", "check"])
async def test_a_model_that_takes_too_long_refuses_and_so_does_the_next_step_while_it_is_busy(
    at: str, run_async: bool, polite: bool, slow: Any
) -> None:
    model = slow(at, polite=polite)
    guard = Guard(model, timeout=SHORT)
    started = time.monotonic()
    for _ in range(3):
        judgement = await judge(guard, run_async)
        assert_failed_closed(judgement, "the guard took longer than 0.2 seconds")
    assert time.monotonic() - started < LONG
    model.go.set()
    judgement = await judge(Guard(model, timeout=LONG), run_async)
    assert [d.verdict for d in judgement.decisions] == ["act", "act"]


@pytest.mark.parametrize("run_async", [False, True])
@pytest.mark.parametrize("at", ["plan", "check"])
async def test_a_run_whose_guard_takes_too_long_ends_with_a_valid_thread(at: str, run_async: bool, slow: Any) -> None:
    log: list[Any] = []
    graph = guarded_graph(agent(log), guard=Guard(slow(at), timeout=SHORT), max_refusals=1, events=True)
    events: list[Any] = []
    if run_async:
        async for mode, chunk in graph.astream(ASK, stream_mode=["custom", "values"]):
            events.append((mode, chunk))
    else:
        events += graph.stream(ASK, stream_mode=["custom", "values"])
    out = [chunk for mode, chunk in events if mode == "values"][-1]
    decided = [chunk for mode, chunk in events if mode == "custom" and chunk["event"] == "decision"]
    assert log == []
    assert_valid(out["messages"])
    assert [d["source"] for d in decided[0]["decisions"]] == ["error", "error"]
    assert "longer than 0.2 seconds" in answers(out["messages"])[0].text


async def test_the_time_is_that_of_plan_and_check_together(slow: Any) -> None:
    model = slow("never")
    guard = Guard(model, timeout=5.0)
    asked = one_step()
    plan = replace(guard.plan(asked), seconds=6.0)
    model.working.clear()
    assert_failed_closed(guard.check(asked, plan), "longer than 5 seconds")
    assert_failed_closed(await guard.acheck(asked, plan), "longer than 5 seconds")
    assert model.working == []


async def test_a_model_of_coroutines_is_cancelled_and_may_swallow_that() -> None:
    class Own(Failing):
        swallows = False

        async def aplan(self, prompt: Prompt) -> Planned:
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                if not self.swallows:
                    raise
            return Planned("late")

    for swallows in (False, True):
        model = Own("never", raising(ValueError()))
        model.swallows = swallows
        guard = Guard(model, timeout=SHORT)
        assert (await guard.aplan(one_step())).error == "the guard took longer than 0.2 seconds"
        assert_failed_closed(await judge(guard, True), "longer than 0.2 seconds")


def test_context_variables_reach_a_model_with_a_timeout() -> None:
    from contextvars import ContextVar

    mine: ContextVar[str] = ContextVar("mine", default="none")
    mine.set("set")
    seen: list[str] = []
    guard = Guard(ScriptedGuardModel(lambda step: seen.append(mine.get()) or "act"), timeout=LONG)
    guard.check(one_step(), guard.plan(one_step()))
    assert seen == ["set"]


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_timeout_that_is_no_time_is_named(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Guard(ScriptedGuardModel(), timeout=timeout)


def test_an_abandoned_call_neither_holds_up_the_process_nor_the_loop() -> None:
    program = (
        "import asyncio, time\n"
        "from mosaic_guard._deadline import Deadline, GuardTimeoutError, in_thread\n"
        "for use in (lambda: Deadline(0.05).run(lambda: time.sleep(600)),\n"
        "            lambda: asyncio.run(Deadline(0.05).arun(lambda: in_thread(time.sleep, 600)))):\n"
        "    try:\n        use()\n    except GuardTimeoutError:\n        print('gave up')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["gave up", "gave up"]


def test_waiting_for_a_lock_ends_when_the_call_is_given_up() -> None:
    lock = threading.Lock()
    deadline = Deadline(None)
    with held(lock, deadline):
        deadline.stop()
        with pytest.raises(GuardTimeoutError), held(lock, deadline):
            pass
    assert not lock.locked()


@pytest.mark.model
@pytest.mark.parametrize("run_async", [False, True])
async def test_an_abandoned_generation_stops_at_the_next_token(run_async: bool, monkeypatch: Any) -> None:
    from tiny_model import tiny_model

    from mosaic_guard.models.local import LocalGuardModel

    model = LocalGuardModel.of(*tiny_model(), name="tiny")
    forward, tokens = model.model.forward, [0]

    def slowly(*args: Any, **kwargs: Any) -> Any:
        tokens[0] += 1
        time.sleep(0.05)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", slowly)
    guard = Guard(model, timeout=5.0, limits=Limits(plan=400))
    assert_failed_closed(await judge(guard, run_async), "longer than 5 seconds")
    assert model._lock.acquire(timeout=LONG)
    model._lock.release()
    assert tokens[0] < 400
    # What was read by then need not be read again.
    assert len(model._cache._entries) == 1
    monkeypatch.undo()
    judgement = await judge(Guard(model, timeout=LONG, limits=Limits(plan=6, safety=6)), run_async)
    assert [d.source for d in judgement.decisions] == ["model", "model"]


# Cancellation


class Gate:
    """Where one coroutine waits until it is let go."""

    def __init__(self) -> None:
        self.at = ""
        self.reached = asyncio.Event()
        self.runs: Counter[str] = Counter()

    async def __call__(self, name: str) -> None:
        self.runs[name] += 1
        if name == self.at:
            self.reached.set()
            await asyncio.Event().wait()


def gated_agent(gate: Gate, log: list[Any], saver: Any, guarded: bool) -> Any:
    class Model(ScriptedGuardModel):
        async def aplan(self, prompt: Prompt) -> Planned:
            await gate("plan")
            return self.plan(prompt)

        async def acheck(self, prompt: Prompt, planned: Planned, decide: Decide) -> Checked:
            await gate("check")
            return self.check(prompt, planned, decide)

    class Waiting(Remembering):
        async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
            await gate("agent")
            return self._generate(messages)

    async def around(request: Any, handler: Any) -> Any:
        await gate(f"before {request.tool_call['name']}")
        result = await handler(request)
        await gate(f"after {request.tool_call['name']}")
        return result

    node = ToolNode(make_tools(log), awrap_tool_call=around)
    model = Waiting(script=SCRIPT)
    graph = hand_written(model, node, checkpointer=saver)

    async def say(state: Any) -> Any:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph.builder.nodes["agent"].runnable.afunc = say
    return guarded_graph(graph, guard=Guard(Model(by_name(pay="refuse")))) if guarded else graph


async def cancelled_and_resumed(at: str, guarded: bool) -> tuple[list[Any], Any]:
    log: list[Any] = []
    gate = Gate()
    gate.at = at
    graph = gated_agent(gate, log, InMemorySaver(), guarded)
    running = asyncio.create_task(graph.ainvoke(ASK, THREAD))
    await asyncio.wait_for(gate.reached.wait(), LONG)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    gate.at = ""
    state = await graph.aget_state(THREAD)
    assert state.next
    assert ("pay", "b") not in log or not guarded
    return log, await graph.ainvoke(None, THREAD)


@pytest.mark.parametrize("at", ["agent", "plan", "check", "before look", "after look", "before send", "after send"])
async def test_a_run_that_is_cancelled_resumes_where_it_was(at: str) -> None:
    log, out = await cancelled_and_resumed(at, guarded=True)
    assert_valid(out["messages"])
    assert out["messages"][-1].text == "done"
    plain = log
    if at not in ("plan", "check"):
        plain, _ = await cancelled_and_resumed(at, guarded=False)
    for call in (("look", "a"), ("send", "c")):
        # Once; where it was cancelled inside the tool node, LangGraph's at-least-once, no worse than unguarded.
        assert 1 <= log.count(call) <= max(1, plain.count(call))
    assert ("pay", "b") not in log


async def test_a_cancelled_run_tells_a_model_in_a_thread_to_stop(slow: Any) -> None:
    model = slow("plan", polite=True)
    graph = guarded_graph(agent([], checkpointer=InMemorySaver()), guard=Guard(model))
    running = asyncio.create_task(graph.ainvoke(ASK, THREAD))
    assert await asyncio.to_thread(model.started.wait, LONG)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.to_thread(model.working[0].join, LONG)
    assert not model.working[0].is_alive()
    assert (await graph.aget_state(THREAD)).next == ("plan",)


# A checkpointer that fails


class StoreError(Exception):
    """The checkpoint store is gone."""


class FailingSaver(InMemorySaver):
    """Fails at its k-th write; `calls` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.k: int | None = None
        self.calls = 0
        self._counting = threading.Lock()

    def _count(self) -> None:
        with self._counting:
            self.calls += 1
            if self.calls == self.k:
                raise StoreError(f"write {self.k} failed")

    def put(self, *args: Any, **kwargs: Any) -> Any:
        self._count()
        return super().put(*args, **kwargs)

    def put_writes(self, *args: Any, **kwargs: Any) -> None:
        self._count()
        super().put_writes(*args, **kwargs)


def stored_results(saver: InMemorySaver) -> list[tuple[str, Any]]:
    """The (tool, argument) of every successful result that the store holds, pending writes included."""
    found = saver.get_tuple(THREAD)
    if found is None:
        return []
    messages = list(found.checkpoint["channel_values"].get("messages", ()))
    for _, channel, value in found.pending_writes or ():
        if channel == "messages":
            messages += value if isinstance(value, list) else [value]
    made = {"1": ("look", "a"), "2": ("pay", "b"), "3": ("send", "c")}
    return [made[m.tool_call_id] for m in messages if isinstance(m, ToolMessage) and m.status == "success"]


async def fail_and_resume(k: int, run_async: bool, durability: Any, guarded: bool) -> tuple[bool, list[Any]]:
    log: list[Any] = []
    saver = FailingSaver()
    saver.k = k
    graph = agent(log, checkpointer=saver)
    if guarded:
        graph = guarded_graph(graph, guard=Guard(ScriptedGuardModel(by_name(pay="refuse"))))

    async def invoke(given: Any) -> Any:
        if run_async:
            return await graph.ainvoke(given, THREAD, durability=durability)
        return graph.invoke(given, THREAD, durability=durability)

    failed = False
    try:
        out = await invoke(ASK)
    except StoreError:
        failed = True
        saver.k = None
        done, ran = stored_results(saver), Counter(log)
        out = await invoke(None if saver.get_tuple(THREAD) else ASK)
        for call in done:
            assert Counter(log)[call] == ran[call], f"{call} ran again although its result was stored"
    assert_valid(out["messages"])
    assert out["messages"][-1].text == "done"
    return failed, log


@pytest.mark.parametrize("durability", ["sync", "async"])
@pytest.mark.parametrize("run_async", [False, True])
async def test_a_checkpointer_that_fails_at_any_write_leaves_a_thread_that_resumes(
    run_async: bool, durability: Any
) -> None:
    most: dict[bool, Counter[Any]] = {True: Counter(), False: Counter()}
    for guarded in (False, True):
        for k in range(1, 200):
            failed, log = await fail_and_resume(k, run_async, durability, guarded)
            if guarded:
                assert ("pay", "b") not in log
            assert {("look", "a"), ("send", "c")} <= set(log)
            most[guarded] |= Counter(log)
            if not failed:
                break
        assert k > 5
    assert all(count <= most[False][call] for call, count in most[True].items())


@pytest.mark.parametrize("run_async", [False, True])
@pytest.mark.parametrize(("verdict", "on_refuse"), [("act", "replan"), ("refuse", "replan"), ("refuse", "end")])
async def test_new_input_after_any_write_that_failed_finds_a_valid_history(
    run_async: bool, verdict: Any, on_refuse: Any
) -> None:
    """What was written last may be the agent's message, or the answers to it, which are not in a checkpoint yet."""
    for k in range(1, 200):
        saver = FailingSaver()
        saver.k = k
        guard = Guard(ScriptedGuardModel(verdict))
        graph = guarded_graph(agent([], checkpointer=saver), guard=guard, on_refuse=on_refuse)

        async def say(words: str, graph: Any = graph) -> Any:
            given: Any = {"messages": [HumanMessage(words)]}
            return (await graph.ainvoke(given, THREAD)) if run_async else graph.invoke(given, THREAD)

        failed = False
        try:
            await say("look")
        except StoreError:
            failed = True
        saver.k = None
        assert_valid((await say("what now?"))["messages"])
        if not failed:
            break
    assert k > 5


def test_a_cancelled_call_does_not_run_where_a_join_still_leads_to_its_tools() -> None:
    """New input empties the join; a write that fails between the answers and the input leaves it full."""
    for k in range(1, 9):
        log: list[Any] = []
        saver = FailingSaver()
        builder = StateGraph(State)
        builder.add_node("agent", lambda state: {"messages": [SCRIPT[0]]})
        builder.add_node("beside", lambda state: {})
        builder.add_node("tools", ToolNode(make_tools(log)))
        builder.add_edge(START, "agent")
        builder.add_edge(START, "beside")
        builder.add_edge(["agent", "beside"], "tools")
        graph = guarded_graph(builder.compile(checkpointer=saver), guard=Guard(ScriptedGuardModel("act")))
        graph.invoke(ASK, THREAD, interrupt_before=["tools"])
        saver.k = saver.calls + k
        with contextlib.suppress(StoreError):
            graph.invoke({"messages": [HumanMessage("what now?")]}, THREAD, interrupt_before=["agent"])
        saver.k = None
        closed = sum("cancelled" in m.text for m in graph.get_state(THREAD).values["messages"])
        out = graph.invoke(None, THREAD, interrupt_before=["agent"])
        assert_valid(out["messages"])
        assert len(log) == (0 if closed else 2)


# A process that is killed

PROGRAM = """
import os, signal, sys
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.prebuilt import ToolNode
from mosaic_guard import Guard, ScriptedGuardModel, guarded_graph
from scripted_agents import by_name, calls, hand_written, make_tools
from test_failures import ASK, SCRIPT, THREAD, Remembering

where, at, guarded = sys.argv[1:]

class Log(list):
    def append(self, item):
        with open(where + ".log", "a") as file:
            file.write(f"{item[0]} {item[1]}\\n")

def here(name):
    if name == at:
        os.kill(os.getpid(), signal.SIGKILL)

class Model(ScriptedGuardModel):
    def plan(self, prompt):
        here("plan")
        return super().plan(prompt)
    def check(self, prompt, planned, decide):
        here("check")
        return super().check(prompt, planned, decide)

def around(request, handler):
    here("before " + request.tool_call["name"])
    result = handler(request)
    here("after " + request.tool_call["name"])
    return result

with SqliteSaver.from_conn_string(where) as saver:
    node = ToolNode(make_tools(Log()), wrap_tool_call=around)
    graph = hand_written(Remembering(script=SCRIPT), node, checkpointer=saver)
    if guarded == "guarded":
        graph = guarded_graph(graph, guard=Guard(Model(by_name(pay="refuse"))))
    resumed = saver.get_tuple(THREAD) is not None
    out = graph.invoke(None if resumed else ASK, THREAD, durability="sync")
    from scripted_agents import assert_valid
    assert_valid(out["messages"])
    print("resumed" if resumed else "anew", out["messages"][-1].text)
"""


def killed_and_resumed(where: Path, at: str, guarded: str) -> list[str]:
    """The tool bodies that ran before the kill and after the resume."""
    program = f"import sys; sys.path[:0] = {sys.path!r}\n{PROGRAM}"
    store = where / f"{guarded}.sqlite"
    log = Path(f"{store}.log")
    log.touch()
    for kill, code, says in ((at, -9, ""), ("", 0, "resumed done\n")):
        done = subprocess.run(
            [sys.executable, "-c", program, str(store), kill, guarded],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, says), done.stderr
    return log.read_text().splitlines()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("at", ["plan", "check", "before look", "after look"])
def test_a_killed_process_is_resumed_by_another(at: str, tmp_path: Path) -> None:
    pytest.importorskip("langgraph.checkpoint.sqlite")
    ran = Counter(killed_and_resumed(tmp_path, at, "guarded"))
    assert set(ran) == {"look a", "send c"}
    if at == "after look":
        # Killed after a body ran and before its result was stored: at least once, as without a guard.
        plain = Counter(killed_and_resumed(tmp_path, at, "plain"))
        assert all(count <= plain[call] for call, count in ran.items())
    else:
        assert set(ran.values()) == {1}
