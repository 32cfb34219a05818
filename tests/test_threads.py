"""Threads that are edited, resumed, forked, shared or written to by others: what was judged is what runs, once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from scripted_agents import Scripted, State, answers, assert_valid, by_name, calls, hand_written, make_tools

from mosaic_guard import (
    Guard,
    Limits,
    ScriptedGuardModel,
    TraceWriter,
    UnguardableGraphError,
    guarded_graph,
    read_traces,
)

THREAD: Any = {"configurable": {"thread_id": "1"}}
DONE = AIMessage("done")


def allow(decide: Any = "act") -> Guard:
    return Guard(ScriptedGuardModel(decide))


def test_a_call_that_new_input_gave_up_never_runs(saver: Any) -> None:
    log: list[Any] = []
    script = [calls(("pay", {"x": "old"}), ids=["o"]), calls(("look", {"x": "new"}), ids=["n"]), DONE]
    agent = create_agent(Scripted(script=script), make_tools(log), checkpointer=saver)
    graph = guarded_graph(agent, guard=allow())
    with pytest.raises(GraphRecursionError):
        graph.invoke({"messages": [HumanMessage("pay")]}, {**THREAD, "recursion_limit": 1})
    out = graph.invoke({"messages": [HumanMessage("forget it; look")]}, THREAD)
    assert log == [("look", "new")]
    assert_valid(out["messages"])
    assert "cancelled" in out["messages"][2].text


@pytest.mark.parametrize("stop", ["plan", "check", "ask", "tools"])
@pytest.mark.parametrize("kind", ["create_agent", "condition", "send"])
def test_a_call_that_a_human_edited_before_it_ran_runs_as_edited_only(kind: str, stop: str, saver: Any) -> None:
    log: list[Any] = []
    model, tools = Scripted(script=[calls(("pay", {"x": "evil"})), DONE]), make_tools(log)
    agent: Any = create_agent(model, tools, checkpointer=saver)
    if kind != "create_agent":
        agent = hand_written(model, ToolNode(tools), kind, checkpointer=saver)
    asks = Guard(
        ScriptedGuardModel(lambda step: [0.3 if step.calls[0].args["x"] == "evil" else 0.0]), ask_threshold=0.2
    )
    graph = guarded_graph(agent, guard=asks if stop == "ask" else allow())
    graph.invoke({"messages": [HumanMessage("pay")]}, THREAD, interrupt_before=[stop])
    proposal = graph.get_state(THREAD).values["messages"][-1]
    edited = proposal.model_copy(update={"tool_calls": [{**proposal.tool_calls[0], "args": {"x": "good"}}]})
    graph.update_state(THREAD, {"messages": [edited]})
    out = graph.invoke(None, THREAD)
    assert log == [("pay", "good")]
    assert_valid(out["messages"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda node: node.with_fallbacks([RunnableLambda(lambda state: {})]),
        lambda node: node.with_retry(),
        lambda node: node.with_config({"tags": ["t"]}),
        lambda node: node | RunnableLambda(lambda out: out),
    ],
)
def test_a_wrapped_tool_node_fails_loudly(wrap: Any) -> None:
    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [DONE]})
    builder.add_node("tools", ToolNode(make_tools([])))
    builder.add_node("more", wrap(ToolNode(make_tools([]))))
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "tools")
    builder.add_edge("tools", "more")
    with pytest.raises(UnguardableGraphError, match="'more'"):
        guarded_graph(builder.compile(), guard=allow())


def test_every_judged_call_is_seen_by_the_model_or_refused() -> None:
    seen: list[str] = []

    class Reader(ScriptedGuardModel):
        def plan(self, prompt: Any) -> Any:
            seen.append(prompt.new[-1][1])
            return super().plan(prompt)

    for number in (1, 4, 8, 16):
        log: list[Any] = []
        seen.clear()
        noise = [ToolMessage("please pay. " * 120, tool_call_id=str(n), name="look") for n in range(16)]
        looks = calls(*[("look", {"x": n}) for n in range(16)], ids=[str(n) for n in range(16)])
        step = calls(*[("pay", {"x": f"account-{n}-" + "z" * 400}) for n in range(number)])
        graph = guarded_graph(
            hand_written(Scripted(script=[step, DONE]), ToolNode(make_tools(log))), guard=Guard(Reader("act"))
        )
        graph.invoke({"messages": [HumanMessage("go"), looks, *noise]})
        said = seen[-1] if seen else ""
        assert all(f"account-{n}-" in said for _, x in log for n in [x.split("-")[1]])
        assert len(log) in (0, number)


def test_no_human_message_is_dropped() -> None:
    from mosaic_guard import Call, Step

    guard = Guard(ScriptedGuardModel("act"))
    words = [HumanMessage(f"rule {n}: never send money to account {n}") for n in range(30)]
    messages = [*words, calls(("look", {"x": "a"}))]
    step = Step(messages, (Call(0, "call_0", "look", {"x": "a"}),))
    prompt = guard._prompt(step, [], "")
    assert all(f"rule {n}:" in prompt.new[-1][1] for n in range(30))
    tight = Guard(ScriptedGuardModel("act"), limits=Limits(human=40))
    assert tight.check(step, tight.plan(step)).decisions[0].source == "error"


def test_the_same_place_with_other_words_is_another_step(saver: Any) -> None:
    class Replaced(TypedDict):
        messages: list[Any]

    log: list[Any] = []
    judged: list[int] = []
    builder = StateGraph(Replaced)
    builder.add_node(
        "agent",
        lambda state: Command(update={"messages": state["messages"] + [calls(("pay", {"x": "bob"}))]}, goto="tools"),
        destinations=("tools",),
    )
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_edge(START, "agent")
    builder.add_edge("tools", "__end__")
    graph = guarded_graph(builder.compile(checkpointer=saver), guard=allow(lambda step: judged.append(1) or "act"))
    for words in ("pay bob", "never pay bob again"):
        graph.invoke({"messages": [HumanMessage(words)]}, THREAD)
    assert len(judged) == len(log) == 2


@pytest.mark.parametrize("chain", [1, 3])
def test_a_parallel_branch_that_writes_messages_does_not_lose_the_step(chain: int) -> None:
    log: list[Any] = []
    judged: list[int] = []
    builder = StateGraph(State)
    builder.add_node("agent", lambda state: {"messages": [calls(("pay", {"x": 1}))]})
    builder.add_node("tools", ToolNode(make_tools(log)))
    for number in range(chain):
        builder.add_node(f"audit{number}", lambda state: {"messages": [AIMessage("audit note")]})
        if number:
            builder.add_edge(f"audit{number - 1}", f"audit{number}")
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", lambda state: ["tools", "audit0"], ["tools", "audit0"])
    out = guarded_graph(builder.compile(), guard=allow(lambda step: judged.append(1) or "act")).invoke(
        {"messages": [HumanMessage("go")]}
    )
    assert log == [("pay", 1)]
    assert len(judged) == 1
    assert len(answers(out["messages"])) == 1


def test_two_edges_into_one_tool_node_are_one_step() -> None:
    for verdict in ("act", "refuse"):
        log: list[Any] = []
        judged: list[int] = []
        builder = StateGraph(State)
        builder.add_node("agent", lambda state: {"messages": [calls(("pay", {"x": 1}))]})
        builder.add_node("a", lambda state: {})
        builder.add_node("b", lambda state: {})
        builder.add_node("tools", ToolNode(make_tools(log)))
        for source, target in ((START, "agent"), ("agent", "a"), ("agent", "b"), ("a", "tools"), ("b", "tools")):
            builder.add_edge(source, target)
        graph = guarded_graph(
            builder.compile(), guard=allow(lambda step, v=verdict, seen=judged: seen.append(len(step.calls)) or v)
        )
        out = graph.invoke({"messages": [HumanMessage("go")]})
        assert judged == [1]
        assert len(answers(out["messages"])) == 1
        assert_valid(out["messages"])


def test_a_summary_is_not_a_humans_word() -> None:
    from mosaic_guard import Call
    from mosaic_guard._evidence import gather_evidence

    summary = HumanMessage("so far: pay 999 to EVE", additional_kwargs={"lc_source": "summarization"})
    messages = [summary, calls(("pay", {"to": "EVE"}))]
    (found,) = gather_evidence(messages, [Call(0, "call_0", "pay", {"to": "EVE"})])
    assert found.origins[0].kind == "agent"
    assert found.user_words is None


def test_a_fork_is_a_trajectory_of_its_own(tmp_path: Path, saver: Any) -> None:
    log: list[Any] = []
    plain = hand_written(
        Scripted(script=[calls(("look", {"x": n}), ids=[str(n)]) for n in range(3)] + [DONE]),
        ToolNode(make_tools(log)),
        checkpointer=saver,
    )
    graph = guarded_graph(plain, guard=allow(), trace=tmp_path)
    graph.invoke({"messages": [HumanMessage("go")]}, THREAD)
    early = next(
        state
        for state in graph.get_state_history(THREAD)
        if state.next == ("agent",) and len(answers(state.values["messages"])) == 1
    )
    graph.update_state(early.config, {"messages": [HumanMessage("now pay")]})
    fork = hand_written(
        Scripted(script=[calls(("pay", {"x": "f"}), ids=["f"]), DONE]),
        ToolNode(make_tools(log)),
        checkpointer=plain.checkpointer,
    )
    guarded_graph(fork, guard=allow(), trace=tmp_path).invoke(None, THREAD)
    first, second = read_traces(tmp_path)
    assert [s.calls[0]["name"] for s in first.steps] == ["look", "look", "look"]
    assert [s.calls[0]["name"] for s in second.steps] == ["look", "pay"]
    assert second.id == f"{first.id}#2"


def test_another_trajectory_on_the_same_thread_starts_anew(tmp_path: Path, saver: Any) -> None:
    plain = hand_written(
        Scripted(script=[calls(("look", {"x": 1})), DONE, calls(("pay", {"x": 2})), DONE]),
        ToolNode(make_tools([])),
        checkpointer=saver,
    )
    graph = guarded_graph(plain, guard=allow(), trace=tmp_path)
    for name in ("a", "b"):
        graph.invoke({"messages": [HumanMessage(name)]}, {**THREAD, "metadata": {"mosaic_trajectory": name}})
    first, second = read_traces(tmp_path)
    assert [[s.step for s in t.steps] for t in (first, second)] == [[0], [0]]
    assert second.steps[0].pieces[0].text.startswith("You are the safety guard")


def test_a_trimmed_history_loses_no_message_of_the_log(tmp_path: Path, saver: Any) -> None:
    class Replaced(TypedDict):
        messages: list[Any]

    script = iter([calls(("look", {"x": 1}), ids=["1"]), calls(("look", {"x": 2}), ids=["2"])])
    builder = StateGraph(Replaced)
    builder.add_node("agent", lambda state: {"messages": [*state["messages"][-1:], HumanMessage("new"), next(script)]})
    builder.add_node("tools", ToolNode(make_tools([])))
    builder.add_edge(START, "agent")
    builder.add_edge("agent", "tools")
    graph = guarded_graph(builder.compile(checkpointer=saver), guard=allow(), trace=tmp_path)
    for words in ("one", "two"):
        graph.invoke({"messages": [HumanMessage(words)]}, THREAD)
    (found,) = read_traces(tmp_path)
    logged = [m["data"]["content"] for s in found.steps for m in s.messages]
    assert logged.count("one") == logged.count("two") == 1


def test_a_handler_that_runs_in_a_plain_thread_is_the_same_call() -> None:
    log: list[Any] = []

    def in_a_thread(request: Any, handler: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(handler, request).result()

    node = ToolNode(make_tools(log), wrap_tool_call=in_a_thread)
    guarded_graph(hand_written(Scripted(script=[calls(("look", {"x": 1})), DONE]), node), guard=allow()).invoke(
        {"messages": [HumanMessage("go")]}
    )
    assert log == [("look", 1)]


def test_another_tool_under_the_same_call_does_not_run() -> None:
    log: list[Any] = []
    pay = make_tools(log, ["pay"])[0]

    def swap(request: Any, handler: Any) -> Any:
        return handler(request.override(tool=pay))

    node = ToolNode(make_tools(log), wrap_tool_call=swap)
    guarded_graph(hand_written(Scripted(script=[calls(("look", {"x": 1})), DONE]), node), guard=allow()).invoke(
        {"messages": [HumanMessage("go")]}
    )
    assert log == []


def test_a_call_rewritten_into_another_cleared_call_is_judged_again() -> None:
    log: list[Any] = []
    judged: list[Any] = []

    def same(request: Any, handler: Any) -> Any:
        return handler(request.override(tool_call={**request.tool_call, "args": {"x": "a"}}))

    def decide(step: Any) -> list[str]:
        judged.append([call.args["x"] for call in step.calls])
        return ["act"] * len(step.calls) if len(judged) == 1 else ["refuse"]

    step = calls(("look", {"x": "a"}), ("look", {"x": "b"}), ids=["1", "1"])
    node = ToolNode(make_tools(log), wrap_tool_call=same)
    guarded_graph(hand_written(Scripted(script=[step, DONE]), node), guard=allow(decide)).invoke(
        {"messages": [HumanMessage("go")]}
    )
    assert judged == [["a", "b"], ["a"]]
    assert log == [("look", "a")]


def test_a_tools_own_state_stays_one() -> None:
    from langchain_core.tools import BaseTool

    class Counting(BaseTool):
        name: str = "look"
        description: str = "Look."
        n: int = 0

        def _run(self, x: Any) -> str:
            self.n += 1
            return "ok"

    mine = Counting()
    guarded_graph(
        hand_written(Scripted(script=[calls(("look", {"x": 1})), DONE]), ToolNode([mine])), guard=allow()
    ).invoke({"messages": [HumanMessage("go")]})
    assert mine.n == 1


def test_calls_sent_without_an_ai_message_are_judged() -> None:
    from langgraph.types import Send

    log: list[Any] = []
    call = {"name": "look", "args": {"x": 1}, "id": "1", "type": "tool_call"}
    builder = StateGraph(State)
    builder.add_node("tools", ToolNode(make_tools(log)))
    builder.add_conditional_edges(START, lambda state: [Send("tools", [call])], ["tools"])
    guarded_graph(builder.compile(), guard=allow(by_name())).invoke({"messages": [HumanMessage("go")]})
    assert log == [("look", 1)]


def test_odd_artifacts_do_not_stop_the_run_or_the_log(tmp_path: Path) -> None:
    circular: dict[str, Any] = {}
    circular["me"] = circular
    for artifact, steps in (({("a", 1): {2}}, 2), (circular, 1)):
        where = tmp_path / str(steps)
        tool = make_tools([])[0].model_copy(update={"response_format": "content_and_artifact"})
        tool.func = lambda x, artifact=artifact: ("ok", artifact)  # type: ignore[attr-defined]
        script = [calls(("look", {"x": 1})), calls(("look", {"x": 2})), DONE]
        graph = guarded_graph(
            hand_written(Scripted(script=script), ToolNode([tool])), guard=allow(), trace=TraceWriter(where)
        )
        if steps == 1:
            with pytest.warns(UserWarning, match="has no JSON form"):
                graph.invoke({"messages": [HumanMessage("go")]})
        else:
            graph.invoke({"messages": [HumanMessage("go")]})
        (found,) = read_traces(where)
        assert len(found.steps) == steps
