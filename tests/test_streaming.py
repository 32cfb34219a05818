"""Streams: what the guard adds to them, what it never shows, and what `hold=True` keeps back until the decision."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Overwrite
from scripted_agents import Scripted, State, assert_valid, by_name, calls, hand_written, make_tools

from mosaic_guard import Guard, ScriptedGuardModel, guarded_graph
from mosaic_guard._hold import Decided, HeldStream

pytestmark = pytest.mark.slow

ASK = {"messages": [HumanMessage("go")]}
THREAD: Any = {"configurable": {"thread_id": "1"}}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[\d:.+]+")
VERSIONS = "ignore:The v3 streaming protocol:langchain_core._api.beta_decorator.LangChainBetaWarning"


class Streaming(Scripted):
    """Says its script word by word, then the tool calls."""

    def _stream(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        said = self._generate(messages).generations[0].message
        chunks = [AIMessageChunk(word) for word in re.findall(r"\S+\s*", said.content)]
        for index, call in enumerate(said.tool_calls):
            written = f'{{"x": "{call["args"]["x"]}"}}'
            part = tool_call_chunk(name=call["name"], args=written, id=call["id"], index=index)
            chunks.append(AIMessageChunk("", tool_call_chunks=[part]))
        for chunk in chunks:
            made = ChatGenerationChunk(message=chunk)
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=made)
            yield made


def step(number: int, *names: str, ids: Sequence[str] | None = None) -> AIMessage:
    """Proposes calls, in tokens that name the step."""
    said = calls(*[(name, {"x": f"s{number}"}) for name in names], ids=ids)
    return said.model_copy(update={"content": f"s{number}.first s{number}.last "})


# The ids repeat from step to step, as some models' do.
SCRIPT = [step(0, "look", "pay"), step(1, "pay"), step(2, "look", "send"), AIMessage("the end of it")]


class Order:
    """What happened when: decisions, as the guard takes them, and tokens, as the user gets them."""

    def __init__(self) -> None:
        self.happened: list[tuple[str, str]] = []
        self._arrived = threading.Condition()

    def guard(self, patient: bool = False, **verdicts: Any) -> Guard:
        """A guard; a patient one decides when the user has got the step before, or else in half a minute.

        A graph inside another runs on while the user reads: without patience the order of the two is a matter of luck.
        """

        def decide(asked: Any) -> Any:
            with self._arrived:
                before = [name for what, name in self.happened if what == "decided"][-1:]
                if patient and before:
                    self._arrived.wait_for(lambda: f"{before[0]}.last" in self.tokens(), timeout=30)
                self.happened.append(("decided", asked.calls[0].args["x"]))
            return by_name(**verdicts)(asked)

        return Guard(ScriptedGuardModel(decide))

    def got(self, text: str) -> None:
        with self._arrived:
            self.happened += [("token", word) for word in text.split()]
            self._arrived.notify_all()

    def early(self) -> list[str]:
        """The tokens of a step that came before its decision."""
        decided: set[str] = set()
        found = []
        for what, name in self.happened:
            if what == "decided":
                decided.add(name)
            elif re.match(r"s\d+\.", name) and name.split(".")[0] not in decided:
                found.append(name)
        return found

    def tokens(self) -> list[str]:
        return [name for what, name in self.happened if what == "token"]


def message_of(chunk: Any, modes: Any, subgraphs: bool, version: str) -> Any:
    """The message chunk in a chunk of the stream; None for other modes."""
    if version == "v2":
        return chunk["data"][0] if chunk["type"] == "messages" else None
    if isinstance(modes, list):
        return chunk[-1][0] if chunk[-2] == "messages" else None
    return chunk[1][0] if subgraphs else chunk[0]


async def chunks_of(graph: Any, run_async: bool, given: Any = ASK, **options: Any) -> Any:
    if run_async:
        async for chunk in graph.astream(given, THREAD, **options):
            yield chunk
    else:
        for chunk in graph.stream(given, THREAD, **options):
            yield chunk


async def follow(
    graph: Any, order: Order, run_async: bool, modes: Any = "messages", subgraphs: bool = False, version: str = "v1"
) -> list[Any]:
    """The chunks of a run; their tokens go into `order` as they come."""
    got = []
    async for chunk in chunks_of(graph, run_async, stream_mode=modes, subgraphs=subgraphs, version=version):
        got.append(chunk)
        message = message_of(chunk, modes, subgraphs, version)
        if isinstance(message, AIMessageChunk):
            order.got(message.text)
    return got


def build(kind: str, script: Sequence[AIMessage] = SCRIPT, **compile_args: Any) -> Any:
    tools = make_tools([])
    if kind == "create_agent":
        return create_agent(Streaming(script=list(script)), tools, **compile_args)
    return hand_written(Streaming(script=list(script)), ToolNode(tools), kind, **compile_args)


def alike(chunks: Any) -> list[str]:
    """Without ids and times of one run."""
    return [UUID.sub("_", re.sub(r"'(plan|check)': [\d.e-]+", r"'\1': 0", repr(chunk))) for chunk in chunks]


# What the guard shows


@pytest.mark.parametrize("run_async", [False, True])
async def test_events_tell_the_plan_the_decision_and_their_times(run_async: bool) -> None:
    graph = guarded_graph(build("create_agent"), guard=Order().guard(pay="refuse"), events=True)
    events = [chunk async for chunk in chunks_of(graph, run_async, stream_mode="custom")]
    assert [event["event"] for event in events] == ["plan", "decision"] * 3
    for plan, decision in zip(events[::2], events[1::2], strict=True):
        assert plan["type"] == decision["type"] == "mosaic_guard"
        assert (plan["trajectory"], plan["step"]) == (decision["trajectory"], decision["step"])
        assert plan["think"] == "scripted"
        assert [call["name"] for call in plan["calls"]] == [call["name"] for call in decision["calls"]]
        assert set(plan["seconds"]) == {"plan"}
        assert set(decision["seconds"]) == {"plan", "check"}
        assert all(seconds >= 0 for seconds in decision["seconds"].values())
    assert [[d["verdict"] for d in event["decisions"]] for event in events[1::2]] == [
        ["act", "refuse"],
        ["refuse"],
        ["act", "act"],
    ]


# What it never shows

MODES = ["values", "updates", "messages", "custom", "tasks", "checkpoints", "debug"]
TURN = "<think>\nPRIVATE PLAN\n</think>\n<safety_thoughts>\nPRIVATE SAFETY\n</safety_thoughts>\n<decision>\n{}</decision>\n"


ONE_STEP = [step(0, "look", "pay"), AIMessage("the end")]


def private(kind: str = "create_agent", **options: Any) -> Any:
    guard = Guard(Streaming(script=[AIMessage(TURN.format("1: act\n2: refuse\n"))]))
    return guarded_graph(build(kind, ONE_STEP, checkpointer=InMemorySaver()), guard=guard, **options)


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("kind", ["create_agent", "condition", "send"])
@pytest.mark.parametrize("run_async", [False, True])
async def test_a_chat_models_guard_tokens_show_in_no_stream_and_no_state(
    run_async: bool, kind: str, hold: bool
) -> None:
    for modes in [*MODES, MODES]:
        for subgraphs in (False, True):
            graph = private(kind, hold=hold)
            got = [c async for c in chunks_of(graph, run_async, stream_mode=modes, subgraphs=subgraphs)]
            assert "PRIVATE" not in repr(got)
            assert "mosaic_hold" not in repr(got)
            assert "Decided" not in repr(got)
            state = await graph.aget_state(THREAD) if run_async else graph.get_state(THREAD)
            assert "PRIVATE" not in repr(state)
            assert_valid(state.values["messages"])
            assert [m.status for m in state.values["messages"] if isinstance(m, ToolMessage)] == ["success", "error"]


@pytest.mark.filterwarnings(VERSIONS)
@pytest.mark.filterwarnings("ignore:astream_events version='v1' is deprecated")
@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
async def test_a_chat_models_guard_tokens_show_in_no_event(version: Any) -> None:
    graph = private()
    run = graph.astream_events(ASK, THREAD, version=version)
    events = [event async for event in (await run if version == "v3" else run)]
    assert "s0.first" in repr(events)
    assert "PRIVATE" not in repr(events)
    assert "__mosaic_guard__" not in repr(events)


@pytest.mark.filterwarnings(VERSIONS)
def test_a_chat_models_guard_tokens_show_in_no_synchronous_event() -> None:
    events = list(private().stream_events(ASK, THREAD, version="v3"))
    assert "s0.first" in repr(events)
    assert "PRIVATE" not in repr(events)


# What it holds back


@pytest.mark.parametrize(
    ("kind", "version"), [("create_agent", "v1"), ("condition", "v1"), ("condition", "v2"), ("send", "v1")]
)
@pytest.mark.parametrize("subgraphs", [False, True])
@pytest.mark.parametrize("modes", ["messages", ["messages"], ["values", "updates", "messages", "custom", "tasks"]])
@pytest.mark.parametrize("run_async", [False, True])
async def test_no_token_of_a_step_comes_before_its_decision(
    run_async: bool, kind: str, modes: Any, subgraphs: bool, version: str
) -> None:
    orders, streams = [], []
    for hold in (False, True):
        order = Order()
        graph = guarded_graph(build(kind), guard=order.guard(pay="refuse"), events=True, hold=hold)
        streams.append(await follow(graph, order, run_async, modes, subgraphs, version))
        orders.append(order)
    free, held = orders
    assert free.early(), "without hold they do come before: else this shows nothing"
    assert held.early() == []
    assert held.tokens() == free.tokens()
    assert sorted(alike(streams[0])) == sorted(alike(streams[1]))
    if kind != "condition":
        return  # its parallel tool tasks end in any order
    others = [
        [chunk for chunk in chunks if not isinstance(message_of(chunk, modes, subgraphs, version), BaseMessage)]
        for chunks in streams
    ]
    assert alike(others[0]) == alike(others[1])


@pytest.mark.parametrize("run_async", [False, True])
async def test_a_steps_tokens_come_with_its_decision_not_at_the_end(run_async: bool) -> None:
    order = Order()
    graph = guarded_graph(build("create_agent"), guard=order.guard(pay="refuse"), hold=True)
    await follow(graph, order, run_async)
    told = [name for what, name in order.happened if what == "decided" or name.endswith(".last")]
    assert told == ["s0", "s0.last", "s1", "s1.last", "s2", "s2.last"]


@pytest.mark.parametrize("run_async", [False, True])
async def test_the_decision_event_comes_before_the_tokens_that_it_releases(run_async: bool) -> None:
    graph = guarded_graph(build("condition"), guard=Order().guard(), events=True, hold=True)
    got = [c async for c in chunks_of(graph, run_async, stream_mode=["messages", "custom"])]
    kinds = [chunk["event"] if mode == "custom" else "token" for mode, chunk in got]
    assert kinds.index("token") > kinds.index("decision")


@pytest.mark.parametrize("modes", ["values", "custom", ["updates", "tasks", "custom"], None])
@pytest.mark.parametrize("run_async", [False, True])
async def test_streams_without_tokens_and_invoke_are_as_without_hold(run_async: bool, modes: Any) -> None:
    found = []
    for hold in (False, True):

        def graph(hold: bool = hold) -> Any:
            return guarded_graph(
                build("condition", checkpointer=InMemorySaver()), guard=Order().guard(), events=True, hold=hold
            )

        chunks = [c async for c in chunks_of(graph(), run_async, stream_mode=modes)]
        options = {} if modes is None else {"stream_mode": modes}
        out = await graph().ainvoke(ASK, THREAD, **options) if run_async else graph().invoke(ASK, THREAD, **options)
        found.append((alike(chunks), alike([out])))
    assert found[0] == found[1]


@pytest.mark.parametrize("run_async", [False, True])
async def test_invoke_may_ask_for_messages(run_async: bool) -> None:
    graph = guarded_graph(build("condition"), guard=Order().guard(), hold=True)
    options: Any = {"stream_mode": ["messages", "values"]}
    out = await graph.ainvoke(ASK, **options) if run_async else graph.invoke(ASK, **options)
    assert "s0.first" in repr(out)
    assert "Decided" not in repr(out)


def test_with_config_keeps_it() -> None:
    order = Order()
    graph = guarded_graph(build("create_agent"), guard=order.guard(), hold=True).with_config({"tags": ["t"]})
    for message, _ in graph.stream(ASK, stream_mode="messages"):
        order.got(message.text)
    assert order.tokens()
    assert order.early() == []


def test_a_forgotten_thread_id_is_named_as_without() -> None:
    graph = guarded_graph(build("create_agent", checkpointer=InMemorySaver()), guard=Order().guard(), hold=True)
    with pytest.raises(ValueError, match="thread_id"):
        list(graph.stream(ASK, stream_mode="messages"))


@pytest.mark.filterwarnings(VERSIONS)
async def test_events_are_held_in_version_3_and_refused_before() -> None:
    order = Order()
    graph = guarded_graph(build("create_agent"), guard=order.guard(pay="refuse"), hold=True)
    for version in ("v1", "v2"):
        with pytest.raises(ValueError, match=r"astream\(stream_mode=\['messages'"):
            graph.astream_events(ASK, version=version)
    with pytest.raises(ValueError, match="astream_events shows tokens"):
        graph.astream_events(ASK)
    with pytest.raises(ValueError, match="astream_log"):
        graph.astream_log(ASK)
    async for event in await graph.astream_events(ASK, version="v3"):
        order.got(" ".join(re.findall(r"s\d\.first", repr(event))) if event["method"] == "messages" else "")
    assert {"s0.first", "s1.first", "s2.first"} <= set(order.tokens())
    assert order.early() == []


def test_an_interrupt_releases_what_waits() -> None:
    order = Order()
    plain = build("create_agent", checkpointer=InMemorySaver())
    graph = guarded_graph(plain, guard=order.guard(), hold=True)
    for message, _ in graph.stream(ASK, THREAD, stream_mode="messages", interrupt_after=["model"]):
        order.got(message.text)
    assert order.tokens() == ["s0.first", "s0.last"]


def test_a_run_that_fails_before_the_decision_shows_nothing_of_the_step() -> None:
    from langgraph.errors import GraphRecursionError

    order = Order()
    graph = guarded_graph(build("create_agent"), guard=order.guard(), hold=True)
    chunks = graph.stream(ASK, {"recursion_limit": 1}, stream_mode="messages")
    with pytest.raises(GraphRecursionError):
        order.got(" ".join(message.text for message, _ in chunks))
    assert order.tokens() == []


# Graphs in graphs


def team(order: Order, hold: bool) -> Any:
    """An outer agent with tools of its own, behind a node that is a guarded agent."""
    inner = guarded_graph(
        build("create_agent", [step(0, "look"), step(1, "pay"), AIMessage("inner end")]),
        guard=order.guard(patient=hold, pay="refuse"),
        hold=hold,
    )
    model = Streaming(script=[step(5, "look"), AIMessage("outer end")])
    builder = StateGraph(State)
    builder.add_node("team", inner)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode(make_tools([])))
    builder.add_edge(START, "team")
    builder.add_edge("team", "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    return guarded_graph(builder.compile(), guard=order.guard(patient=hold), hold=hold)


@pytest.mark.parametrize("modes", ["messages", ["messages", "updates", "custom"]])
@pytest.mark.parametrize("run_async", [False, True])
async def test_a_nested_agents_tokens_wait_for_its_own_decision(run_async: bool, modes: Any) -> None:
    orders, streams = [], []
    for hold in (False, True):
        order = Order()
        streams.append(await follow(team(order, hold), order, run_async, modes, subgraphs=True))
        orders.append(order)
    assert orders[0].early()
    assert orders[1].early() == []
    assert sorted(orders[1].tokens()) == sorted(orders[0].tokens())
    assert sorted(alike(streams[0])) == sorted(alike(streams[1]))
    told = [name for what, name in orders[1].happened if what == "decided" or name.endswith(".last")]
    assert told == ["s0", "s0.last", "s1", "s1.last", "s5", "s5.last"]


@pytest.mark.parametrize("run_async", [False, True])
async def test_an_agent_that_is_a_graph_waits_for_the_outer_decision(run_async: bool) -> None:
    order = Order()
    model = Streaming(script=[step(0, "look"), AIMessage("the end")])
    inner = StateGraph(State)
    inner.add_node("say", lambda state: {"messages": [model.invoke(state["messages"])]})
    inner.add_edge(START, "say")
    inner.add_edge("say", END)
    builder = StateGraph(State)
    builder.add_node("agent", inner.compile())
    builder.add_node("tools", ToolNode(make_tools([])))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    graph = guarded_graph(builder.compile(), guard=order.guard(), hold=True)
    await follow(graph, order, run_async, subgraphs=True)
    assert order.early() == []
    assert order.tokens() == ["s0.first", "s0.last", "the", "end"]


# The filter by itself


def token(text: str, *path: str) -> tuple[str, Any]:
    return "messages", (AIMessageChunk(text), {"langgraph_checkpoint_ns": "|".join(path)})


def ended(name: str, *said: Any, **more: Any) -> tuple[str, Any]:
    task, _, number = name.partition(":")
    return "tasks", {"id": number, "name": task, "result": {"messages": said}, "error": None, "interrupts": [], **more}


def decided(*ids: str, graph: Sequence[str] = ()) -> tuple[str, Any]:
    return "custom", Decided(tuple(graph), ids)


def released(*chunks: Any) -> Iterator[str]:
    """What each chunk releases, as one string per chunk; at last, what the end releases."""
    held = HeldStream("messages", subgraphs=False, version="v1")
    for chunk in chunks:
        yield "".join(message.text for message, _ in held.feed(chunk))
    yield "".join(message.text for message, _ in held.rest())


PROPOSED = calls(("look", {}), ("pay", {}), ids=["1", "2"])


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ([token("a", "x:1"), ended("x:1", AIMessage("a"))], ["", "a", ""]),
        ([token("a", "x:1"), ended("x:1", PROPOSED), decided("1", "2")], ["", "", "a", ""]),
        ([token("a", "x:1"), ended("x:1", PROPOSED), decided("1")], ["", "", "", "a"]),
        ([token("a", "x:1"), ended("x:1", PROPOSED), decided("1"), decided("2")], ["", "", "", "a", ""]),
        # Another graph's decision about calls of the same ids.
        ([token("a", "x:1"), ended("x:1", PROPOSED), decided("1", "2", graph=["y:2"])], ["", "", "", "a"]),
        # A second agent that speaks and proposes meanwhile.
        (
            [
                token("a", "x:1"),
                token("b", "y:2"),
                ended("x:1", PROPOSED),
                ended("y:2", calls(("pay", {}), ids=["3"])),
                decided("1", "2"),
                decided("3"),
            ],
            ["", "", "", "", "a", "b", ""],
        ),
        # A decision about a step before does not release a step with the same ids.
        ([decided("1", "2"), token("a", "x:1"), ended("x:1", PROPOSED)], ["", "", "", "a"]),
        # Calls that a node has answered in the guard's place, as a rejection by a person does.
        (
            [
                token("a", "x:1"),
                ended("x:1", PROPOSED),
                ended("h:2", ToolMessage("no", tool_call_id="1")),
                decided("2"),
            ],
            ["", "", "", "a", ""],
        ),
        # What a node hands on, answered already.
        (
            [token("a", "x:1"), ended("x:1", calls(("look", {}), ids=["1"]), ToolMessage("", tool_call_id="1"))],
            ["", "a", ""],
        ),
        # A nested agent that nobody guards waits for the node that it runs in.
        (
            [token("a", "o:1", "x:2"), ended("x:2", PROPOSED), ended("o:1", AIMessage("a"))],
            ["", "", "a", ""],
        ),
        ([token("a", "x:1"), ended("x:1", error="crash")], ["", "", "a"]),
        ([token("a", "x:1"), ended("x:1", interrupts=[{}])], ["", "", "a"]),
        # The forms in which a node may write messages.
        ([token("a", "x:1"), ended("x:1", result={"messages": Overwrite([PROPOSED])})], ["", "", "a"]),
        ([token("a", "x:1"), ended("x:1", result={"other": {"$writes": [[PROPOSED]]}})], ["", "", "a"]),
        (
            [
                token("a", "x:1"),
                ended(
                    "x:1",
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [{"name": "look", "args": {}, "id": "1", "type": "tool_call"}],
                    },
                ),
            ],
            ["", "", "a"],
        ),
    ],
)
def test_the_filter_releases_what_is_decided_and_nothing_before(chunks: list[Any], says: list[str]) -> None:
    assert list(released(*chunks)) == says


def test_the_filter_survives_circular_state() -> None:
    circular: dict[str, Any] = {}
    circular["me"] = circular
    assert list(released(token("a", "x:1"), ended("x:1", result=circular))) == ["", "a", ""]
