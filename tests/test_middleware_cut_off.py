"""New input on an open step under MosaicMiddleware: the step is closed, in order, before the model speaks."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypedDict

import pytest
from checkpointers import Stores
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph, add_messages
from scripted_agents import Scripted, answers, assert_valid, calls, make_tools

from mosaic_guard import Guard, MosaicMiddleware, ScriptedGuardModel
from mosaic_guard._cancelled import CANCELLED, CUT_OFF

ASK: Any = {"messages": [HumanMessage("look at a, then pay b")]}
NEW: Any = {"messages": [HumanMessage("never mind")]}
STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}))
DONE = AIMessage("done")
THREAD: Any = {"configurable": {"thread_id": "1"}}
BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
PLACES = pytest.mark.parametrize("first", [False, True], ids=["last", "first"])


class Vendor(Scripted):
    """The scripted model; like a chat model's vendor it insists on a valid history."""

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        assert_valid(messages)
        return super()._generate(messages, *args, **kwargs)


def mosaic(decide: Any = "act", **options: Any) -> MosaicMiddleware:
    return MosaicMiddleware(guard=Guard(ScriptedGuardModel(decide)), **options)


def build(script: list[AIMessage], middleware: list[Any], log: list[Any], saver: Any, **options: Any) -> Any:
    tools = options.pop("tools", None) or make_tools(log)
    return create_agent(Vendor(script=script), tools, middleware=middleware, checkpointer=saver, **options)


async def run(graph: Any, asynchronous: bool, given: Any, **options: Any) -> dict[str, Any]:
    if asynchronous:
        return dict(await graph.ainvoke(given, THREAD, **options))
    return dict(graph.invoke(given, THREAD, **options))


def kinds(messages: list[BaseMessage]) -> list[str]:
    return [message.type for message in messages]


@BOTH
@PLACES
async def test_a_step_that_waits_for_a_person_is_cancelled(first: bool, asynchronous: bool) -> None:
    log: list[Any] = []
    person = HumanInTheLoopMiddleware(interrupt_on={"pay": True})
    middleware = [mosaic(), person] if first else [person, mosaic()]
    graph = build([STEP, DONE], middleware, log, InMemorySaver())
    assert "__interrupt__" in await run(graph, asynchronous, ASK)
    out = await run(graph, asynchronous, NEW)
    assert log == []
    assert kinds(out["messages"]) == ["human", "ai", "tool", "tool", "human", "ai"]
    assert [(m.text, m.tool_call_id, m.status) for m in answers(out["messages"])] == [
        (CANCELLED, "call_0", "error"),
        (CANCELLED, "call_1", "error"),
    ]
    assert_valid(out["messages"])
    assert graph.get_state(THREAD).values["messages"] == out["messages"]


def cut_off_tools(log: list[Any]) -> list[Any]:
    """`look` returns; `pay` has its effect, and then its process is gone."""

    @tool
    def pay(x: str) -> str:
        """Pay."""
        log.append(("pay", x))
        raise KeyboardInterrupt

    return [*make_tools(log, ["look"]), pay]


def test_what_a_finished_call_returned_is_kept(stores: Stores) -> None:
    log: list[Any] = []
    address = stores.new()
    with stores.saver(address) as saver:
        graph = build([STEP], [mosaic()], log, saver, tools=cut_off_tools(log))
        with pytest.raises(KeyboardInterrupt):
            graph.invoke(ASK, {**THREAD, "max_concurrency": 1})
        # Another process, where there is one.
        with stores.saver(address) as again:
            out = build([DONE], [mosaic()], log, saver if stores.kind == "memory" else again).invoke(NEW, THREAD)
    assert log == [("look", "a"), ("pay", "b")]
    assert [m.text for m in answers(out["messages"])] == ["look did a", CUT_OFF]
    assert kinds(out["messages"]) == ["human", "ai", "tool", "tool", "human", "ai"]
    assert_valid(out["messages"])


async def test_what_a_finished_call_returned_is_kept_on_async_savers(async_saver: Any) -> None:
    log: list[Any] = []

    looked = asyncio.Event()

    @tool
    async def look(x: str) -> str:
        """Look."""
        looked.set()
        return f"look did {x}"

    @tool
    async def pay(x: str) -> str:
        """Pay."""
        await looked.wait()
        for _ in range(3000):  # until the other task's result is written
            kept = await async_saver.aget_tuple(THREAD)
            if any(channel == "messages" for _, channel, _ in kept.pending_writes):
                break
            await asyncio.sleep(0.01)
        raise ConnectionError("gone")

    graph = build([STEP], [mosaic()], log, async_saver, tools=[look, pay])
    with pytest.raises(ConnectionError):
        await graph.ainvoke(ASK, THREAD)
    out = await build([DONE], [mosaic()], log, async_saver).ainvoke(NEW, THREAD)
    assert [m.text for m in answers(out["messages"])] == ["look did a", CUT_OFF]
    assert_valid(out["messages"])


@BOTH
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("stop", ["model", "MosaicMiddleware.after_model"])
async def test_the_answer_says_whether_the_tools_were_due(stop: str, durability: Any, asynchronous: bool) -> None:
    log: list[Any] = []
    graph = build([STEP, DONE], [mosaic()], log, InMemorySaver())
    await run(graph, asynchronous, ASK, interrupt_after=[stop], durability=durability)
    out = await run(graph, asynchronous, NEW, durability=durability)
    assert log == []
    assert {m.text for m in answers(out["messages"])} == {CANCELLED if stop == "model" else CUT_OFF}
    assert_valid(out["messages"])


class Busy(AgentMiddleware):
    """Nodes between the input and the model."""

    def before_agent(self, state: Any, runtime: Any) -> None:
        return None

    def before_model(self, state: Any, runtime: Any) -> None:
        return None


@BOTH
async def test_nodes_before_the_model_do_not_hide_what_was_cut_off(asynchronous: bool) -> None:
    log: list[Any] = []
    graph = build([STEP, DONE], [mosaic(), Busy()], log, InMemorySaver())
    await run(graph, asynchronous, ASK, interrupt_after=["MosaicMiddleware.after_model"])
    out = await run(graph, asynchronous, NEW)
    assert {m.text for m in answers(out["messages"])} == {CUT_OFF}
    assert_valid(out["messages"])


@BOTH
async def test_steps_are_closed_in_their_places_though_ids_repeat(asynchronous: bool) -> None:
    """Steps that a thread without the guard has left open; every one of them has the same ids, one has them twice."""
    log: list[Any] = []
    saver = InMemorySaver()
    twice = calls(("look", {"x": "c"}), ("look", {"x": "d"}), ids=["call_0", "call_0"])
    plain = create_agent(Scripted(script=[STEP, twice, STEP]), make_tools(log), checkpointer=saver)
    for number in range(2):
        plain.invoke({"messages": [HumanMessage(str(number))]}, THREAD, interrupt_after=["model"])
    graph = build([STEP, DONE], [mosaic()], log, saver)
    out = await run(graph, asynchronous, NEW)
    closed = ["human", "ai", "tool", "tool"]
    assert kinds(out["messages"]) == [*closed * 3, "ai"]
    assert sorted(log) == [("look", "a"), ("pay", "b")]
    assert_valid(out["messages"])


@BOTH
async def test_answers_that_stand_there_stay_and_the_others_follow_them(asynchronous: bool) -> None:
    log: list[Any] = []
    graph = build([STEP, DONE], [mosaic()], log, InMemorySaver())
    await run(graph, asynchronous, ASK, interrupt_after=["model"])
    by_hand = ToolMessage("by hand", name="pay", tool_call_id="call_1", id="mine")
    graph.update_state(THREAD, {"messages": [by_hand]}, as_node="model")
    out = await run(graph, asynchronous, NEW)
    assert [m.text for m in answers(out["messages"])] == ["by hand", CANCELLED]
    assert kinds(out["messages"]) == ["human", "ai", "tool", "tool", "human", "ai"]
    assert_valid(out["messages"])


@BOTH
async def test_a_history_that_came_with_the_input_is_closed(asynchronous: bool) -> None:
    """Nobody knows what became of its calls."""
    for saver in (None, InMemorySaver()):
        graph = build([DONE], [mosaic()], [], saver)
        out = await run(graph, asynchronous, {"messages": [*ASK["messages"], STEP, *NEW["messages"]]})
        assert [m.text for m in answers(out["messages"])] == [CUT_OFF, CUT_OFF]
        assert_valid(out["messages"])


@BOTH
async def test_where_nothing_is_open_nothing_is_added(asynchronous: bool) -> None:
    log: list[Any] = []
    graph = build([STEP, DONE, DONE], [mosaic()], log, InMemorySaver())
    # What five nodes need, as without closing: model, after_model, tools, model, after_model.
    limit = {**THREAD, "recursion_limit": 6}
    given = [ASK, NEW]
    for value in given:
        chunks = [c async for c in graph.astream(value, limit)] if asynchronous else list(graph.stream(value, limit))
        assert "remove" not in repr(chunks)
    messages = graph.get_state(THREAD).values["messages"]
    assert kinds(messages) == ["human", "ai", "tool", "tool", "ai", "human", "ai"]


@BOTH
async def test_closing_a_step_is_one_update_of_the_model_node(asynchronous: bool) -> None:
    graph = build([STEP, DONE], [mosaic()], [], InMemorySaver())
    await run(graph, asynchronous, ASK, interrupt_after=["model"])
    limit = {**THREAD, "recursion_limit": 3}
    chunks = [c async for c in graph.astream(NEW, limit)] if asynchronous else list(graph.stream(NEW, limit))
    (update,) = [chunk["model"] for chunk in chunks if "model" in chunk]
    state = graph.get_state(THREAD).values["messages"]
    assert add_messages([], update["messages"]) == state
    assert kinds(state) == ["human", "ai", "tool", "tool", "human", "ai"]


@BOTH
async def test_the_guard_judges_with_the_closed_history(asynchronous: bool) -> None:
    seen: list[list[BaseMessage]] = []

    def decide(step: Any) -> str:
        seen.append(list(step.messages))
        return "act"

    log: list[Any] = []
    graph = build([STEP, STEP, DONE], [mosaic(decide)], log, InMemorySaver())
    await run(graph, asynchronous, ASK, interrupt_after=["model"])
    out = await run(graph, asynchronous, NEW)
    assert sorted(log) == [("look", "a"), ("pay", "b")]
    assert [kinds(messages) for messages in seen] == [["human", "ai", "tool", "tool", "human", "ai"]]
    assert_valid(out["messages"])


class Shared(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def test_what_is_open_around_an_inner_agent_is_not_its_own() -> None:
    inner = create_agent(Scripted(script=[DONE]), make_tools([]), middleware=[mosaic()])
    builder = StateGraph(Shared)
    builder.add_node("propose", lambda state: {"messages": [STEP]})
    builder.add_node("inner", inner)
    builder.add_edge(START, "propose")
    builder.add_edge("propose", "inner")
    out = builder.compile(checkpointer=InMemorySaver()).invoke(ASK, THREAD)
    assert kinds(out["messages"]) == ["human", "ai", "ai"]


def test_langchains_own_repair_in_the_same_turn_puts_it_off_to_the_next() -> None:
    """LangChain answers calls with unreadable arguments by writing the whole history; the model reads a closed one at once."""
    saver = InMemorySaver()
    unreadable: Any = {"type": "invalid_tool_call", "id": "bad", "name": "look", "args": "{", "error": "no JSON"}
    step = STEP.model_copy(update={"invalid_tool_calls": [unreadable]})
    graph = create_agent(Scripted(script=[step, DONE, DONE]), make_tools([]), middleware=[mosaic()], checkpointer=saver)
    graph.invoke(ASK, THREAD, interrupt_after=["model"])
    graph.invoke(NEW, THREAD)
    out = graph.invoke(NEW, THREAD)
    assert [m.tool_call_id for m in answers(out["messages"])] == ["bad", "call_0", "call_1"]
    assert kinds(out["messages"])[:6] == ["human", "ai", "tool", "tool", "tool", "human"]


NODES = ["model", "MosaicMiddleware.after_model", "tools"]


@pytest.mark.slow
@given(
    stops=st.lists(st.sampled_from([None, *NODES]), min_size=1, max_size=6),
    new=st.lists(st.booleans(), min_size=6, max_size=6),
    refused=st.frozensets(st.sampled_from(["look", "pay"])),
)
def test_whatever_a_run_is_stopped_after(stops: list[Any], new: list[bool], refused: frozenset[str]) -> None:
    log: list[Any] = []
    script = [calls(("look", {"x": f"{n}a"}), ("pay", {"x": f"{n}b"})) if n % 3 else DONE for n in range(1, 40)]
    graph = build(
        script,
        [mosaic(lambda step: ["refuse" if c.name in refused else "act" for c in step.calls], max_refusals=99)],
        log,
        InMemorySaver(),
    )
    graph.invoke(ASK, THREAD, interrupt_after=[stops[0]] if stops[0] else [])
    for stop, fresh in zip(stops[1:], new, strict=False):
        given = NEW if fresh or not graph.get_state(THREAD).next else None
        graph.invoke(given, THREAD, interrupt_after=[stop] if stop else [])
    out = graph.invoke(NEW, THREAD)
    assert_valid(out["messages"])
    assert len(log) == len(set(log)), "a call ran twice"
    assert not refused & {name for name, _ in log}
    results = [m.text for m in answers(out["messages"])]
    assert all(f"{name} did {x}" in results for name, x in log), "a result is lost"
