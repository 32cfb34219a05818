"""`ask` under MosaicMiddleware: one interrupt for a step, judged once, answered from any process."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from checkpointers import Stores
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, Interrupt
from scripted_agents import Scripted, answers, assert_valid, calls, make_tools

from mosaic_guard import Guard, MosaicMiddleware, Policy, ScriptedGuardModel, read_traces
from mosaic_guard._cancelled import CANCELLED
from mosaic_guard._channel import GUARD_CHANNEL

THREAD: Any = {"configurable": {"thread_id": "1"}}
ASK: Any = {"messages": [HumanMessage("look at a, then pay b and send c")]}
STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}), ("send", {"x": "c"}))
DONE = AIMessage("done")
BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
PLACES = pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
DURABILITIES = pytest.mark.parametrize("durability", ["sync", "async", "exit"])


class Asks:
    """Asks for `pay` and `send` unless `x` is `fine`, refuses `evil`, and remembers what it judged."""

    def __init__(self) -> None:
        self.judged: list[list[Any]] = []

    def __call__(self, step: Any) -> list[float]:
        self.judged.append([call.args["x"] for call in step.calls])
        return [
            0.9 if call.args["x"] == "evil" else 0.3 if call.name != "look" and call.args["x"] != "fine" else 0.0
            for call in step.calls
        ]

    def middleware(self, **options: Any) -> MosaicMiddleware:
        return MosaicMiddleware(guard=Guard(ScriptedGuardModel(self), ask_threshold=0.2), **options)


def build(log: list[Any], asks: Asks, saver: Any, script: Any = (STEP, DONE), **options: Any) -> Any:
    others = options.pop("others", [])
    tools = options.pop("tools", None) or make_tools(log)
    middleware = [*others, asks.middleware(**options)]
    return create_agent(Scripted(script=list(script)), tools, middleware=middleware, checkpointer=saver)


async def run(graph: Any, asynchronous: bool, given: Any, **options: Any) -> dict[str, Any]:
    if asynchronous:
        return dict(await graph.ainvoke(given, THREAD, **options))
    return dict(graph.invoke(given, THREAD, **options))


def decisions(*types: Any) -> Command[Any]:
    return Command(resume={"decisions": [t if isinstance(t, dict) else {"type": t} for t in types]})


def edit(value: str, name: str = "pay") -> dict[str, Any]:
    return {"type": "edit", "edited_action": {"name": name, "args": {"x": value}}}


def requests(out: dict[str, Any]) -> list[tuple[str, Any]]:
    (interrupt,) = out["__interrupt__"]
    return [(request["name"], request["args"]["x"]) for request in interrupt.value["action_requests"]]


@BOTH
@DURABILITIES
async def test_asked_calls_of_a_step_are_one_interrupt_and_run_as_answered(durability: Any, asynchronous: bool) -> None:
    log: list[Any] = []
    asks = Asks()
    graph = build(log, asks, InMemorySaver())
    out = await run(graph, asynchronous, ASK, durability=durability)
    assert log == []
    assert requests(out) == [("pay", "b"), ("send", "c")]
    configs = out["__interrupt__"][0].value["review_configs"]
    assert [c["action_name"] for c in configs] == ["pay", "send"]
    assert configs[0]["allowed_decisions"] == ["approve", "edit", "reject", "respond"]
    answer = decisions("approve", {"type": "reject", "message": "too dear"})
    out = await run(graph, asynchronous, answer, durability=durability)
    assert sorted(log) == [("look", "a"), ("pay", "b")]
    assert asks.judged == [["a", "b", "c"]], "the check is not repeated"
    assert_valid(out["messages"])
    assert "too dear" in answers(out["messages"])[2].text
    assert out["messages"][-1].text == "done"


def test_any_process_resumes_and_none_judges_again(stores: Stores) -> None:
    """Edited, asked again, edited again, approved: each answer is given to a new graph on a new saver."""
    if stores.kind == "memory":
        pytest.skip("memory does not outlive its process")
    log: list[Any] = []
    asks = Asks()
    address = stores.new()
    given = [
        (ASK, [("pay", "b"), ("send", "c")]),
        (None, [("pay", "b"), ("send", "c")]),
        (decisions("approve"), [("pay", "b"), ("send", "c")]),
        (decisions(edit("1"), "approve"), [("pay", "1")]),
        (None, [("pay", "1")]),
        (decisions("maybe"), [("pay", "1")]),
        (decisions(edit("2")), [("pay", "2")]),
        (decisions("approve"), None),
    ]
    for value, asked in given:
        with stores.saver(address) as saver:
            out = build(log, asks, saver, [STEP if value is ASK else DONE]).invoke(value, THREAD)
        if asked is not None:
            assert requests(out) == asked
            assert log == []
    assert sorted(log) == [("look", "a"), ("pay", "2"), ("send", "c")]
    assert asks.judged == [["a", "b", "c"], ["1"], ["2"]], "each once"
    assert "changed this call" in answers(out["messages"])[1].text
    assert_valid(out["messages"])


async def test_any_process_resumes_on_async_savers(stores: Stores) -> None:
    if stores.kind == "memory":
        pytest.skip("memory does not outlive its process")
    log: list[Any] = []
    asks = Asks()
    address = stores.new()
    for value in (ASK, decisions(edit("1"), "approve"), decisions(edit("fine"))):
        async with stores.async_saver(address) as saver:
            out = await build(log, asks, saver, [STEP if value is ASK else DONE]).ainvoke(value, THREAD)
    assert sorted(log) == [("look", "a"), ("pay", "fine"), ("send", "c")]
    assert asks.judged == [["a", "b", "c"], ["1"], ["fine"]]
    assert_valid(out["messages"])


@BOTH
async def test_an_answer_by_the_id_of_the_interrupt(asynchronous: bool) -> None:
    log: list[Any] = []
    asks = Asks()
    graph = build(log, asks, InMemorySaver())
    out = await run(graph, asynchronous, ASK)
    for value in (edit("1"), {"type": "approve"}):
        (interrupt,) = out["__interrupt__"]
        made = [value, {"type": "reject"}][: len(interrupt.value["action_requests"])]
        out = await run(graph, asynchronous, Command(resume={interrupt.id: {"decisions": made}}))
    assert sorted(log) == [("look", "a"), ("pay", "1")]
    assert asks.judged == [["a", "b", "c"], ["1"]]
    assert_valid(out["messages"])


@BOTH
@PLACES
async def test_an_edited_call_is_judged_again(first: bool, asynchronous: bool) -> None:
    class Other(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request)

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(request)

    for value, ran in (("fine", True), ("evil", False)):
        log: list[Any] = []
        asks = Asks()
        middleware = [asks.middleware(), Other()] if first else [Other(), asks.middleware()]
        graph = create_agent(
            Scripted(script=[STEP, DONE]), make_tools(log), middleware=middleware, checkpointer=InMemorySaver()
        )
        await run(graph, asynchronous, ASK)
        out = await run(graph, asynchronous, decisions(edit(value), "approve"))
        assert asks.judged == [["a", "b", "c"], [value]]
        assert sorted(log) == sorted([("look", "a"), ("send", "c"), *([("pay", value)] if ran else [])])
        assert_valid(out["messages"])
        told = answers(out["messages"])[1].text
        assert ("changed this call" in told) if ran else told.startswith("Refused")


@BOTH
@pytest.mark.parametrize("name", ["look", "nosuch"])
async def test_an_edit_may_name_another_tool(name: str, asynchronous: bool) -> None:
    log: list[Any] = []
    graph = build(log, Asks(), InMemorySaver())
    await run(graph, asynchronous, ASK)
    out = await run(graph, asynchronous, decisions(edit("fine", name), "reject"))
    assert sorted(log) == [("look", "a"), *([("look", "fine")] if name == "look" else [])]
    assert_valid(out["messages"])


@BOTH
async def test_an_answer_in_the_place_of_the_tool(asynchronous: bool) -> None:
    for others, ran in ((["reject"], [("look", "a")]), (["approve"], [("look", "a"), ("send", "c")])):
        log: list[Any] = []
        graph = build(log, Asks(), InMemorySaver())
        await run(graph, asynchronous, ASK)
        out = await run(graph, asynchronous, decisions({"type": "respond", "message": "paid by hand"}, *others))
        assert sorted(log) == ran
        assert (answers(out["messages"])[1].text, answers(out["messages"])[1].status) == ("paid by hand", "success")
        assert_valid(out["messages"])


@BOTH
async def test_a_step_of_which_nothing_runs_is_answered_and_the_agent_goes_on(asynchronous: bool) -> None:
    log: list[Any] = []
    step = calls(("pay", {"x": "b"}), ("send", {"x": "c"}))
    graph = build(log, Asks(), InMemorySaver(), [step, DONE])
    await run(graph, asynchronous, ASK)
    out = await run(graph, asynchronous, decisions({"type": "respond", "message": "paid by hand"}, "reject"))
    assert log == []
    assert [m.status for m in answers(out["messages"])] == ["success", "error"]
    assert out["messages"][-1].text == "done"
    assert_valid(out["messages"])


@BOTH
async def test_without_a_checkpointer_an_asked_call_is_refused(asynchronous: bool) -> None:
    log: list[Any] = []
    out = await run(build(log, Asks(), None), asynchronous, ASK)
    assert log == [("look", "a")]
    assert "no checkpointer" in answers(out["messages"])[1].text
    assert_valid(out["messages"])


@BOTH
async def test_on_refuse_end_ends_at_a_rejection(asynchronous: bool) -> None:
    log: list[Any] = []
    graph = build(log, Asks(), InMemorySaver(), on_refuse="end")
    await run(graph, asynchronous, ASK)
    out = await run(graph, asynchronous, decisions("approve", "reject"))
    assert log == []
    assert_valid(out["messages"])
    assert "I stopped" in out["messages"][-1].text


@BOTH
async def test_what_a_person_rejects_is_no_refusal_of_the_guard(asynchronous: bool) -> None:
    script = [calls(("pay", {"x": value}), ids=[value]) for value in ("evil", "b", "c", "d", "evil", "fine")]
    log: list[Any] = []
    graph = build(log, Asks(), InMemorySaver(), [*script, DONE], max_refusals=3)
    await run(graph, asynchronous, ASK)
    for asked in ("b", "c", "d"):
        assert requests({"__interrupt__": graph.get_state(THREAD).interrupts}) == [("pay", asked)]
        out = await run(graph, asynchronous, decisions("reject"))
    assert log == [("pay", "fine")], "refused twice, rejected three times"
    assert out["messages"][-1].text == "done"
    assert_valid(out["messages"])


@BOTH
async def test_new_input_while_a_person_is_asked_closes_the_step_as_cancelled(asynchronous: bool) -> None:
    log: list[Any] = []
    graph = build(log, Asks(), InMemorySaver())
    await run(graph, asynchronous, ASK)
    out = await run(graph, asynchronous, {"messages": [HumanMessage("never mind")]})
    assert log == []
    assert [m.type for m in out["messages"]] == ["human", "ai", "tool", "tool", "tool", "human", "ai"]
    assert {m.text for m in answers(out["messages"])} == {CANCELLED}
    assert_valid(out["messages"])


@BOTH
async def test_several_asked_steps_of_one_run(asynchronous: bool) -> None:
    log: list[Any] = []
    asks = Asks()
    more = calls(("pay", {"x": "d"}), ids=["4"])
    graph = build(log, asks, InMemorySaver(), [STEP, more, DONE])
    await run(graph, asynchronous, ASK)
    out = await run(graph, asynchronous, decisions("approve", "approve"))
    assert requests(out) == [("pay", "d")]
    out = await run(graph, asynchronous, decisions("approve"))
    assert len(log) == 4
    assert asks.judged == [["a", "b", "c"], ["d"]]
    assert_valid(out["messages"])


@BOTH
@PLACES
async def test_beside_langchains_own_person(first: bool, asynchronous: bool) -> None:
    """Both ask, one after the other; neither answer goes to the other's question."""
    log: list[Any] = []
    asks = Asks()
    person = HumanInTheLoopMiddleware(interrupt_on={"pay": True, "look": True})
    middleware = [asks.middleware(), person] if first else [person, asks.middleware()]
    graph = create_agent(
        Scripted(script=[STEP, DONE]), make_tools(log), middleware=middleware, checkpointer=InMemorySaver()
    )
    guards = ([("pay", "b"), ("send", "c")], decisions("approve", "reject"))
    theirs = ([("look", "a"), ("pay", "b")], decisions("approve", "approve"))
    value: Any = ASK
    for asked, answer in [theirs, guards] if first else [guards, theirs]:
        assert requests(await run(graph, asynchronous, value)) == asked
        value = answer
    out = await run(graph, asynchronous, value)
    assert sorted(log) == [("look", "a"), ("pay", "b")]
    assert asks.judged == [["a", "b", "c"]]
    assert_valid(out["messages"])


@BOTH
async def test_a_call_that_is_changed_after_the_answer_cannot_be_asked_about(asynchronous: bool) -> None:
    class Rewrites(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool_call={**request.tool_call, "args": {"x": "more"}}))

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tool_call={**request.tool_call, "args": {"x": "more"}}))

    for first in (False, True):
        log: list[Any] = []
        asks = Asks()
        middleware = [asks.middleware(), Rewrites()] if first else [Rewrites(), asks.middleware()]
        script = [calls(("pay", {"x": "b"})), DONE]
        graph = create_agent(
            Scripted(script=script), make_tools(log), middleware=middleware, checkpointer=InMemorySaver()
        )
        await run(graph, asynchronous, ASK)
        out = await run(graph, asynchronous, decisions("approve"))
        assert log == []
        assert "too late to ask" in answers(out["messages"])[0].text
        assert_valid(out["messages"])


@BOTH
async def test_an_inner_agent_asks_through_the_outer_one(asynchronous: bool) -> None:
    log: list[Any] = []
    asks, outer = Asks(), Asks()
    inner = create_agent(Scripted(script=[STEP, DONE]), make_tools(log), middleware=[asks.middleware()])

    @tool
    async def adelegate(x: str) -> str:
        """Delegate."""
        return str((await inner.ainvoke(ASK))["messages"][-1].text)

    @tool
    def delegate(x: str) -> str:
        """Delegate."""
        return str(inner.invoke(ASK)["messages"][-1].text)

    used = adelegate if asynchronous else delegate
    script = [calls((used.name, {"x": "fine"})), DONE]
    graph = create_agent(Scripted(script=script), [used], middleware=[outer.middleware()], checkpointer=InMemorySaver())
    assert requests(await run(graph, asynchronous, ASK)) == [("pay", "b"), ("send", "c")]
    out = await run(graph, asynchronous, decisions("approve", "reject"))
    assert sorted(log) == [("look", "a"), ("pay", "b")]
    assert (asks.judged, outer.judged) == ([["a", "b", "c"]], [["fine"]])
    assert answers(out["messages"])[0].text == "done"


@BOTH
async def test_an_answer_is_never_taken_for_the_guards_judgement(asynchronous: bool) -> None:
    """Whoever may answer could name the interrupt of a task that has asked nothing yet."""
    asks = Asks()
    saver = InMemorySaver()
    graph = build([], asks, saver)
    await run(graph, asynchronous, ASK)
    paused = graph.get_state(THREAD).tasks[0].id
    (kept,) = next(value for task, name, value in saver.get_tuple(THREAD).pending_writes if name == "__resume__")
    for found in kept["clearances"]["verdicts"].values():
        found["verdict"] = "act"

    log: list[Any] = []
    graph = build(log, asks, InMemorySaver())
    await run(graph, asynchronous, ASK, interrupt_before=["MosaicMiddleware.after_model"])
    task = graph.get_state(THREAD).tasks[0]
    assert task.id != paused
    # langgraph looks at answers only where something is pending at the checkpoint: here an update, else a task that failed.
    name = Interrupt.from_ns(kept, f"{task.name}:{task.id}").id
    forged = Command(resume={name: kept}, update={"messages": []})
    out = await run(graph, asynchronous, forged)
    assert log == []
    assert requests(out) == [("pay", "b"), ("send", "c")]
    assert asks.judged == [["a", "b", "c"]] * 2
    await run(graph, asynchronous, decisions("approve", "reject"))
    assert sorted(log) == [("look", "a"), ("pay", "b")]


def test_a_replay_from_the_past_judges_and_asks_anew() -> None:
    log: list[Any] = []
    asks = Asks()
    graph = build(log, asks, InMemorySaver(), [STEP, DONE, DONE])
    graph.invoke(ASK, THREAD)
    graph.invoke(decisions("approve", "approve"), THREAD)
    past = [s for s in graph.get_state_history(THREAD) if s.next == ("MosaicMiddleware.after_model",)][-1]
    assert requests(graph.invoke(None, past.config)) == [("pay", "b"), ("send", "c")]
    out = graph.invoke(decisions("reject", "reject"), THREAD)
    assert len(log) == 4
    assert asks.judged == [["a", "b", "c"]] * 2
    assert_valid(out["messages"])


@pytest.mark.parametrize("mode", ["values", "updates", "messages", "custom", "checkpoints", "tasks", "debug"])
def test_what_is_kept_over_the_interrupt_does_not_show(mode: Any) -> None:
    graph = build([], Asks(), InMemorySaver())
    got = list(graph.stream(ASK, THREAD, stream_mode=mode))
    state = graph.get_state(THREAD)
    assert GUARD_CHANNEL not in repr([got, state, list(graph.get_state_history(THREAD))])
    assert "clearances" not in repr([got, state, list(graph.get_state_history(THREAD))])
    assert len(state.interrupts) == 1


def test_the_trace_holds_the_step_once_and_what_the_person_said(tmp_path: Path) -> None:
    graph = build([], Asks(), InMemorySaver(), trace=tmp_path, events=True)
    for value in (ASK, decisions(edit("1"), "approve"), decisions("approve")):
        graph.invoke(value, THREAD)
    (trajectory,) = read_traces(tmp_path)
    assert [[call["args"]["x"] for call in step.calls] for step in trajectory.steps] == [["a", "b", "c"], ["1"]]
    assert [[d.verdict for d in step.decisions] for step in trajectory.steps] == [["act", "ask", "ask"], ["ask"]]
    records = [json.loads(line) for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
    said = [record for record in records if record["type"] == "feedback"]
    assert [[answer["type"] for answer in record["answers"]] for record in said] == [["edit", "approve"], ["approve"]]
    assert [record["at"] for record in said] == [step.at for step in trajectory.steps]


@BOTH
async def test_a_policy_asks(asynchronous: bool) -> None:
    log: list[Any] = []
    guard = Guard(ScriptedGuardModel("act"), policy=Policy(ask=["pay"]))
    graph = create_agent(
        Scripted(script=[STEP, DONE]),
        make_tools(log),
        middleware=[MosaicMiddleware(guard=guard)],
        checkpointer=InMemorySaver(),
    )
    assert requests(await run(graph, asynchronous, ASK)) == [("pay", "b")]
    await run(graph, asynchronous, decisions("approve"))
    assert sorted(log) == [("look", "a"), ("pay", "b"), ("send", "c")]


class ByPlace(Scripted):
    """The scripted model, as a new process finds it: its turn is told by the history."""

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self._turn = sum(isinstance(message, AIMessage) for message in messages)
        return super()._generate(messages, *args, **kwargs)


CALL = st.tuples(st.sampled_from(["look", "pay", "send"]), st.sampled_from("abc"))
ANSWER = st.one_of(
    st.sampled_from([{"type": "approve"}, {"type": "reject"}, {"type": "respond", "message": "no"}, {"type": "maybe"}]),
    st.builds(edit, st.sampled_from("abc"), st.sampled_from(["look", "pay", "send"])),
)


@pytest.mark.slow
@given(
    steps=st.lists(st.lists(CALL, min_size=1, max_size=3), min_size=1, max_size=3),
    asked=st.frozensets(CALL, max_size=6),
    refused=st.frozensets(CALL, max_size=3),
    answered=st.lists(ANSWER, min_size=1, max_size=12),
    person=st.sampled_from([None, "before", "after"]),
    on_refuse=st.sampled_from(["replan", "end"]),
)
def test_whatever_a_person_answers(
    steps: Any, asked: Any, refused: Any, answered: list[Any], person: str | None, on_refuse: Any
) -> None:
    """On another graph for every answer: nothing runs that neither guard nor person let run, and nothing is judged twice."""
    numbers = itertools.count()
    script = [calls(*((n, {"x": x}) for n, x in step), ids=[str(next(numbers)) for _ in step]) for step in steps]
    log: list[Any] = []
    judged = Counter[str]()
    let = Counter[tuple[str, str]]()

    def decide(step: Any) -> list[float]:
        made = [(call.name, call.args["x"]) for call in step.calls]
        verdicts = [0.9 if call in refused else 0.3 if call in asked else 0.0 for call in made]
        judged.update({f"{call.id} {call.digest}": 1 for call in step.calls})
        let.update(call for call, verdict in zip(made, verdicts, strict=True) if verdict == 0.0)
        return verdicts

    saver = InMemorySaver()
    value: Any = ASK
    answers_in_turn = itertools.cycle([*answered, {"type": "reject"}, {"type": "approve"}])
    for turn in itertools.count():
        guard = Guard(ScriptedGuardModel(decide), ask_threshold=0.2)
        middleware: list[Any] = [MosaicMiddleware(guard=guard, on_refuse=on_refuse)]
        if person is not None:
            theirs = HumanInTheLoopMiddleware(interrupt_on={"look": {"allowed_decisions": ["approve", "reject"]}})
            middleware.insert(0 if person == "before" else 1, theirs)
        agent = create_agent(
            ByPlace(script=[*script, DONE]), make_tools(log), middleware=middleware, checkpointer=saver
        )
        out = agent.invoke(value, THREAD)
        if "__interrupt__" not in out:
            break
        assert turn < 60
        asked_about = out["__interrupt__"][0].value["action_requests"]
        ours = "The guard asks" in asked_about[0]["description"]
        made = [next(answers_in_turn) if ours else {"type": "approve"} for _ in asked_about]
        if ours and turn > 20:  # each turn had a "maybe", after which all are asked again
            made = [{"type": "reject"} for _ in asked_about]
        if ours and all(answer["type"] != "maybe" for answer in made):
            shown = zip(asked_about, made, strict=True)
            let.update((r["name"], r["args"]["x"]) for r, answer in shown if answer["type"] == "approve")
        value = Command(resume={"decisions": made})
    assert not Counter(log) - let
    assert_valid(out["messages"])
    proposed = [call["id"] for m in out["messages"] if isinstance(m, AIMessage) for call in m.tool_calls]
    assert len(proposed) == len(set(proposed))
    edits = sum(answer["type"] == "edit" for answer in answered)
    assert edits or set(judged.values()) <= {1}
