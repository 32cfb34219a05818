"""MosaicMiddleware: the step's check, both gates, and any order with LangChain's own middleware and with meddling ones."""

from __future__ import annotations

import itertools
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
    hook_config,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import InjectedState, ToolNode, ToolRuntime
from langgraph.types import Command
from pydantic import BaseModel
from scripted_agents import Scripted, answers, assert_valid, calls, hand_written, make_tools, visible

from mosaic_guard import Guard, MosaicMiddleware, ScriptedGuardModel, UnguardableGraphError, guarded_graph, read_traces
from mosaic_guard._channel import GUARD_CHANNEL
from mosaic_guard._middleware import GuardState

pytestmark = pytest.mark.slow

ASK: Any = {"messages": [("user", "look at a, then pay b")]}
STEP = calls(("look", {"x": "a"}), ("pay", {"x": "b"}))
DONE = AIMessage("done")
THREAD: Any = {"configurable": {"thread_id": "1"}}


class Judge:
    """A guard that decides by a function of (tool, x), and remembers the steps that it judged and what it let through."""

    def __init__(self, decide: Callable[[str, Any], Any] = lambda name, x: "act") -> None:
        self.decide, self.steps = decide, list[list[tuple[str, Any]]]()
        self.cleared: Counter[str] = Counter()

    def __call__(self, step: Any) -> list[Any]:
        made = [(call.name, call.args.get("x")) for call in step.calls]
        self.steps.append(made)
        verdicts = [self.decide(name, x) for name, x in made]
        self.cleared.update(repr(call) for call, verdict in zip(made, verdicts, strict=True) if verdict == "act")
        return verdicts

    def middleware(self, **options: Any) -> MosaicMiddleware:
        return MosaicMiddleware(guard=Guard(ScriptedGuardModel(self)), **options)


def refusing(*names: str) -> Judge:
    return Judge(lambda name, x: "refuse" if name in names or x == "evil" else "act")


async def run(graph: Any, asynchronous: bool, given: Any = ASK, thread: Any = THREAD) -> dict[str, Any]:
    out: dict[str, Any] = await graph.ainvoke(given, thread) if asynchronous else graph.invoke(given, thread)
    return out


def build(script: list[AIMessage], middleware: list[Any], log: list[Any], **options: Any) -> Any:
    tools = options.pop("tools", None) or make_tools(log)
    return create_agent(Scripted(script=script), tools, middleware=middleware, **options)


BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
PLACES = pytest.mark.parametrize("first", [False, True], ids=["last", "first"])


def placed(mosaic: MosaicMiddleware, other: Any, first: bool) -> list[Any]:
    return [mosaic, other] if first else [other, mosaic]


@BOTH
async def test_a_partly_refused_step_runs_the_cleared_calls_only(asynchronous: bool) -> None:
    log: list[Any] = []
    judge = refusing("pay")
    out = await run(build([STEP, DONE], [judge.middleware()], log), asynchronous)
    assert log == [("look", "a")]
    assert judge.steps == [[("look", "a"), ("pay", "b")]]
    assert [m.status for m in answers(out["messages"])] == ["success", "error"]
    assert_valid(out["messages"])
    assert set(out) == {"messages"}


@BOTH
async def test_a_wholly_refused_step_is_answered_and_the_agent_goes_on(asynchronous: bool) -> None:
    log: list[Any] = []
    out = await run(build([STEP, DONE], [refusing("look", "pay").middleware()], log), asynchronous)
    assert log == []
    assert [m.status for m in answers(out["messages"])] == ["error", "error"]
    assert out["messages"][-1].text == "done"
    assert_valid(out["messages"])


@BOTH
async def test_on_refuse_end_runs_nothing_of_the_step_and_ends(asynchronous: bool) -> None:
    log: list[Any] = []
    out = await run(build([STEP, DONE], [refusing("pay").middleware(on_refuse="end")], log), asynchronous)
    assert log == []
    assert "guard refused" in out["messages"][-1].text
    assert_valid(out["messages"])


def test_the_run_ends_after_max_refusals_and_new_words_start_the_count_again() -> None:
    script = [calls(("pay", {"x": n})) for n in range(20)]
    graph = build(script, [refusing("pay").middleware(max_refusals=3)], [], checkpointer=InMemorySaver())
    for turn in (1, 2):
        out = graph.invoke(ASK, THREAD)
        assert len(answers(out["messages"])) == 3 * turn
        assert "3 refused steps in a row" in out["messages"][-1].text
        assert_valid(out["messages"])


@BOTH
async def test_a_guard_that_fails_refuses(asynchronous: bool) -> None:
    def fail(name: str, x: Any) -> Any:
        raise RuntimeError("no decision")

    log: list[Any] = []
    out = await run(build([STEP, DONE], [Judge(fail).middleware()], log), asynchronous)
    assert log == []
    assert "no decision" in answers(out["messages"])[0].text
    assert_valid(out["messages"])


@pytest.mark.parametrize("options", [{"on_refuse": "stop"}, {"max_refusals": 0}])
def test_unknown_options_are_errors(options: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Judge().middleware(**options)


def test_a_missing_langchain_is_one_sentence() -> None:
    code = """if True:
        import sys
        sys.modules["langchain"] = None
        import mosaic_guard
        try:
            mosaic_guard.MosaicMiddleware
        except mosaic_guard.MissingExtraError as error:
            print(error)
        """
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert 'pip install "mosaic-guard[langchain]"' in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_an_agent_with_the_middleware_is_guarded_already() -> None:
    assert GUARD_CHANNEL in GuardState.__annotations__
    with pytest.raises(UnguardableGraphError, match="guarded already"):
        guarded_graph(build([DONE], [Judge().middleware()], []), guard=Guard(ScriptedGuardModel()))


# --- what shows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["values", "updates", "messages", "custom", "checkpoints"])
@BOTH
async def test_streams_and_state_hide_the_guard(mode: Any, asynchronous: bool) -> None:
    seen: list[Any] = []

    @tool
    def look(x: str, state: Annotated[Any, InjectedState], runtime: ToolRuntime) -> str:
        """Look."""
        seen.extend([state, runtime.state])
        return "ok"

    tools = [look, *make_tools([], ["pay"])]
    script = [STEP, calls(("pay", {"x": 1})), DONE]
    graph = build(script, [refusing("pay").middleware()], [], tools=tools, checkpointer=InMemorySaver())
    if asynchronous:
        got = [chunk async for chunk in graph.astream(ASK, THREAD, stream_mode=mode)]
        events = repr([event async for event in graph.astream_events(ASK, {"configurable": {"thread_id": "2"}})])
        assert "clearances" not in events
    else:
        got = list(graph.stream(ASK, THREAD, stream_mode=mode))
    assert GUARD_CHANNEL not in repr(got)
    assert GUARD_CHANNEL not in repr(seen)
    assert "clearances" not in repr(got)
    assert set(graph.get_state(THREAD).values) == {"messages"}
    assert "clearances" not in repr(list(graph.get_state_history(THREAD)))


@BOTH
async def test_an_allowing_guard_changes_nothing(asynchronous: bool) -> None:
    script = [STEP, calls(("send", {"x": [1]}), ("nosuch", {"x": 1}), ("look", {"y": 1})), DONE]
    logs, histories = [], []
    for middleware in ([], [Judge().middleware()]):
        log: list[Any] = []
        out = await run(build(script, middleware, log), asynchronous)
        logs.append(sorted(map(repr, log)))
        histories.append(visible(out["messages"]))
    assert logs[0] == logs[1]
    assert histories[0] == histories[1]


def test_events_and_traces_hold_the_step(tmp_path: Path) -> None:
    middleware = refusing("pay").middleware(events=True, trace=tmp_path)
    events = list(build([STEP, DONE], [middleware], []).stream(ASK, stream_mode="custom"))
    assert [event["event"] for event in events] == ["plan", "decision"]
    (trajectory,) = read_traces(tmp_path)
    assert [d.verdict for d in trajectory.steps[0].decisions] == ["act", "refuse"]


def test_the_guard_sees_the_agents_tools_and_the_threads_earlier_steps() -> None:
    seen: list[Any] = []

    def decide(step: Any) -> str:
        seen.append(sorted(step.tools))
        return "act"

    middleware = MosaicMiddleware(guard=Guard(ScriptedGuardModel(decide)))
    graph = build([STEP, STEP, DONE], [middleware], [], checkpointer=InMemorySaver())
    graph.invoke(ASK, THREAD)
    assert seen == [["look", "pay", "send"]] * 2
    saved = graph.checkpointer.get_tuple(THREAD).checkpoint["channel_values"][GUARD_CHANNEL]
    assert len(saved["history"]) == 2


# --- the gates --------------------------------------------------------------------------------------------------------


class AtTool(AgentMiddleware):
    """Changes the request at the tool in one of the ways that a middleware can."""

    def __init__(self, how: str, log: list[Any], x: Any = "evil") -> None:
        self.how, self.x = how, x
        self.other = make_tools(log, ["pay"])[0]
        self.dynamic = make_tools(log, ["look"])[0]

    def _changed(self, request: Any) -> Any:
        call = request.tool_call
        changed = {**call, "args": {"x": self.x}}
        if self.how == "args":
            return request.override(tool_call=changed)
        if self.how == "id":
            return request.override(tool_call={**changed, "id": "another"})
        if self.how == "name":
            return request.override(tool_call={**call, "name": "pay"})
        if self.how == "tool":
            return request.override(tool_call=changed, tool=self.dynamic)
        if self.how == "only tool":
            return request.override(tool=self.other)
        if self.how == "runtime tool":
            known = next(t for t in request.runtime.tools if t.name == "pay")
            return request.override(tool_call={**changed, "name": "pay"}, tool=known)
        if self.how == "state":
            return request.override(state={}, tool_call=changed)
        if self.how == "mutate":
            call["args"]["x"] = self.x
        return request

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        if self.how == "invoke":
            return request.tool.invoke({**request.tool_call, "args": {"x": self.x}})
        if self.how == "run":
            return ToolMessage(request.tool.run({"x": self.x}), tool_call_id=request.tool_call["id"])
        return handler(self._changed(request))

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        if self.how == "invoke":
            return await request.tool.ainvoke({**request.tool_call, "args": {"x": self.x}})
        if self.how == "run":
            return ToolMessage(await request.tool.arun({"x": self.x}), tool_call_id=request.tool_call["id"])
        return await handler(self._changed(request))


CHANGES = ["args", "id", "name", "tool", "only tool", "runtime tool", "state", "mutate"]


@BOTH
@PLACES
@pytest.mark.parametrize("how", CHANGES)
async def test_a_call_that_is_changed_at_the_tool_runs_only_if_it_is_judged_again(
    how: str, first: bool, asynchronous: bool
) -> None:
    for allows in (False, True):
        log: list[Any] = []
        judge = Judge(lambda name, x, allows=allows: "act" if allows or (name, x) == ("look", "a") else "refuse")
        script = [calls(("look", {"x": "a"})), DONE]
        out = await run(build(script, placed(judge.middleware(), AtTool(how, log), first), log), asynchronous)
        assert not Counter(map(repr, log)) - judge.cleared
        # With another name only, the tool that was put in place is still the cleared one.
        assert bool(log) <= (allows or (how == "name" and first))
        if how != "id":
            assert_valid(out["messages"])


@BOTH
@PLACES
async def test_a_call_that_is_changed_into_a_cleared_sibling_has_no_clearance(first: bool, asynchronous: bool) -> None:
    class Doubles(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool_call={**STEP.tool_calls[1]}, tool=request.runtime.tools[1]))

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tool_call={**STEP.tool_calls[1]}, tool=request.runtime.tools[1]))

    log: list[Any] = []
    judge = Judge()
    await run(build([STEP, DONE], placed(judge.middleware(), Doubles(), first), log), asynchronous)
    assert log == [("pay", "b")] * 2
    assert judge.steps == [[("look", "a"), ("pay", "b")], [("pay", "b")]]


@BOTH
@PLACES
async def test_a_guard_that_fails_at_the_tool_refuses(first: bool, asynchronous: bool) -> None:
    def decide(name: str, x: Any) -> Any:
        if x == "evil":
            raise RuntimeError("no decision")
        return "act"

    log: list[Any] = []
    middleware = placed(Judge(decide).middleware(), AtTool("args", log), first)
    out = await run(build([STEP, DONE], middleware, log), asynchronous)
    assert log == []
    assert all("no decision" in m.text for m in answers(out["messages"]))
    assert_valid(out["messages"])


@BOTH
@pytest.mark.parametrize("how", ["invoke", "run"])
async def test_a_wrapper_behind_ours_that_runs_the_tool_itself_is_judged(how: str, asynchronous: bool) -> None:
    log: list[Any] = []
    judge = refusing()
    script = [calls(("look", {"x": "a"})), DONE]
    out = await run(build(script, [judge.middleware(), AtTool(how, log)], log), asynchronous)
    assert log == []
    assert answers(out["messages"])[0].status == "error"
    assert_valid(out["messages"])


@BOTH
@PLACES
@pytest.mark.parametrize("verdict", ["act", "refuse"])
async def test_a_tool_that_a_middleware_brings_along_is_gated(verdict: str, first: bool, asynchronous: bool) -> None:
    log: list[Any] = []
    (extra,) = make_tools(log, ["extra"])

    class Brings(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tools=[*request.tools, extra]))

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tools=[*request.tools, extra]))

        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool=extra) if request.tool is None else request)

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tool=extra) if request.tool is None else request)

    judge = Judge(lambda name, x: verdict)
    script = [calls(("extra", {"x": 1})), DONE]
    out = await run(build(script, placed(judge.middleware(), Brings(), first), log), asynchronous)
    assert log == ([("extra", 1)] if verdict == "act" else [])
    assert judge.steps == [[("extra", 1)]]
    assert_valid(out["messages"])


@BOTH
async def test_injected_arguments_are_not_part_of_the_call(asynchronous: bool) -> None:
    seen: list[Any] = []

    @tool
    def look(x: str, state: Annotated[Any, InjectedState], runtime: ToolRuntime) -> str:
        """Look."""
        seen.append((x, "messages" in state, runtime.tool_call_id))
        return "ok"

    judge = refusing()
    await run(build([calls(("look", {"x": "a"})), DONE], [judge.middleware()], [], tools=[look]), asynchronous)
    assert seen == [("a", True, "call_0")]
    assert judge.steps == [[("look", "a")]]


@BOTH
async def test_a_tool_that_calls_another_tool_of_the_agent_is_stopped(asynchronous: bool) -> None:
    log: list[Any] = []

    @tool
    def look(x: str, runtime: ToolRuntime) -> str:
        """Look."""
        try:
            return str(next(t for t in runtime.tools if t.name == "pay").invoke({"x": "b"}))
        except Exception as error:
            return f"stopped: {error}"

    tools = [look, *make_tools(log, ["pay"])]
    out = await run(build([calls(("look", {"x": "a"})), DONE], [Judge().middleware()], log, tools=tools), asynchronous)
    assert log == []
    assert answers(out["messages"])[0].text.startswith("stopped")


def test_outside_an_agent_it_refuses() -> None:
    log: list[Any] = []
    node = ToolNode(make_tools(log), wrap_tool_call=Judge().middleware().wrap_tool_call)
    out = hand_written(Scripted(script=[STEP, DONE]), node).invoke(ASK)
    assert log == []
    assert_valid(out["messages"])


class AfterModel(AgentMiddleware):
    """Changes the step between the model and the tools."""

    def __init__(self, how: str) -> None:
        self.how = how

    @hook_config(can_jump_to=["tools"])
    def after_model(self, state: Any, runtime: Any) -> Any:
        said = state["messages"][-1]
        if not isinstance(said, AIMessage) or not said.tool_calls:
            return None
        if self.how == "jump":
            return {"jump_to": "tools"}
        if self.how == "text":
            return {"messages": [said.model_copy(update={"content": "redacted"})]}
        if self.how == "answer":
            first = said.tool_calls[0]
            return {"messages": [ToolMessage("by the middleware", name=first["name"], tool_call_id=first["id"])]}
        made = [dict(call) for call in said.tool_calls]
        if self.how == "edit":
            made[-1]["args"] = {"x": "evil"}
        if self.how == "add":
            made.append({"name": "pay", "args": {"x": "evil"}, "id": "added", "type": "tool_call"})
        return {"messages": [said.model_copy(update={"tool_calls": made})]}


@BOTH
@PLACES
@pytest.mark.parametrize("how", ["jump", "text", "answer", "edit", "add"])
async def test_a_step_that_is_changed_between_model_and_tools(how: str, first: bool, asynchronous: bool) -> None:
    log: list[Any] = []
    judge = refusing("pay")
    out = await run(build([STEP, DONE], placed(judge.middleware(), AfterModel(how), first), log), asynchronous)
    assert log == ([] if how == "answer" else [("look", "a")])
    assert_valid(out["messages"])
    if how in ("jump", "text"):
        # Judged once and whole, wherever: a text that was redacted after the check leaves its clearances.
        assert judge.steps == [[("look", "a"), ("pay", "b")]]


class JumpsBeforeModel(AgentMiddleware):
    """Sends the last step to the tools a second time."""

    def __init__(self) -> None:
        self.left = 1

    @hook_config(can_jump_to=["tools"])
    def before_model(self, state: Any, runtime: Any) -> Any:
        if self.left and isinstance(state["messages"][-1], ToolMessage):
            self.left -= 1
            return {"jump_to": "tools"}
        return None


@BOTH
@PLACES
async def test_a_call_with_a_result_never_runs_again(first: bool, asynchronous: bool) -> None:
    log: list[Any] = []
    out = await run(build([STEP, DONE], placed(Judge().middleware(), JumpsBeforeModel(), first), log), asynchronous)
    assert sorted(log) == [("look", "a"), ("pay", "b")]
    assert_valid(out["messages"])


@BOTH
async def test_a_checkpoint_of_the_unguarded_agent_is_judged_whole(asynchronous: bool) -> None:
    log: list[Any] = []
    saver = InMemorySaver()
    build([STEP, DONE], [], log, checkpointer=saver, interrupt_before=["tools"]).invoke(ASK, THREAD)
    judge = refusing("pay")
    out = await run(build([DONE], [judge.middleware()], log, checkpointer=saver), asynchronous, given=None)
    assert log == [("look", "a")]
    assert judge.steps == [[("look", "a"), ("pay", "b")]]
    assert_valid(out["messages"])


def test_a_call_that_was_edited_in_the_checkpoint_is_judged_again() -> None:
    log: list[Any] = []
    judge = refusing()
    graph = build([STEP, DONE], [judge.middleware()], log, checkpointer=InMemorySaver(), interrupt_before=["tools"])
    graph.invoke(ASK, THREAD)
    proposal = graph.get_state(THREAD).values["messages"][-1]
    made = [proposal.tool_calls[0], {**proposal.tool_calls[1], "args": {"x": "evil"}}]
    graph.update_state(THREAD, {"messages": [proposal.model_copy(update={"tool_calls": made})]})
    out: Any = {}
    while graph.get_state(THREAD).next:
        out = graph.invoke(None, THREAD)
    assert log == [("look", "a")]
    assert judge.steps[-1] == [("pay", "evil")] or judge.steps[-1] == [("look", "a"), ("pay", "evil")]
    assert_valid(out["messages"])


@BOTH
async def test_refusals_at_the_tool_count(asynchronous: bool) -> None:
    log: list[Any] = []
    script = [calls(("look", {"x": n})) for n in range(20)]
    judge = refusing()
    graph = build(script, [judge.middleware(max_refusals=3), AtTool("args", log)], log)
    out = await run(graph, asynchronous)
    assert log == []
    assert len(answers(out["messages"])) == 4
    assert "3 refused steps in a row" in out["messages"][-1].text
    assert_valid(out["messages"])


def flaky(attempts: list[Any]) -> Any:
    """A tool that fails twice."""

    @tool
    def look(x: str) -> str:
        """Look."""
        attempts.append(x)
        if len(attempts) < 3:
            raise ConnectionError("later")
        return "ok"

    return look


@BOTH
async def test_a_tool_that_fails_is_retried_without_another_judgement(asynchronous: bool) -> None:
    for first in (False, True):
        attempts: list[Any] = []
        look = flaky(attempts)
        judge = Judge()
        retry = ToolRetryMiddleware(max_retries=3, initial_delay=0, jitter=False)
        agent = build([calls(("look", {"x": "a"})), DONE], placed(judge.middleware(), retry, first), [], tools=[look])
        out = await run(agent, asynchronous)
        assert attempts == ["a"] * 3
        assert len(judge.steps) == 1
        assert answers(out["messages"])[0].text == "ok"


@BOTH
async def test_an_agent_in_a_tool_of_an_agent_is_guarded_by_its_own_middleware(asynchronous: bool) -> None:
    log: list[Any] = []
    inner_judge, judge = refusing("pay"), refusing()
    inner = build([STEP, DONE], [inner_judge.middleware()], log)

    @tool
    def delegate(x: str, runtime: ToolRuntime) -> str:
        """Delegate."""
        return str(inner.invoke(ASK, runtime.config)["messages"][-1].text)

    script = [calls(("delegate", {"x": "a"})), DONE]
    out = await run(build(script, [judge.middleware()], log, tools=[delegate]), asynchronous)
    assert log == [("look", "a")]
    assert judge.steps == [[("delegate", "a")]]
    assert inner_judge.steps == [[("look", "a"), ("pay", "b")]]
    assert answers(out["messages"])[0].text == "done"


def test_the_channel_survives_new_turns_edits_and_forks() -> None:
    saver = InMemorySaver()

    def judged() -> int:
        return len(
            saver.get_tuple(graph.get_state(THREAD).config).checkpoint["channel_values"][GUARD_CHANNEL]["history"]
        )

    graph = build([STEP, DONE, STEP, DONE, STEP, DONE], [Judge().middleware()], [], checkpointer=saver)
    graph.invoke(ASK, THREAD)
    assert judged() == 1
    graph.update_state(THREAD, {"messages": [("user", "and again")]})
    assert judged() == 1
    graph.invoke(ASK, THREAD)
    assert judged() == 2
    before = next(s for s in graph.get_state_history(THREAD) if len(s.values["messages"]) == 5)
    graph.update_state(before.config, {"messages": [("user", "something else")]})
    assert judged() == 1
    graph.invoke(ASK, THREAD)
    assert judged() == 2


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "middleware.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "Refused by the guard: not sure" in out
    assert "recipient 'US999'" in out
    assert "980.0 sent to UK12" in out


# --- LangChain's own middleware ----------------------------------------------------------------------------------------


@BOTH
@PLACES
@pytest.mark.parametrize("mode", ["batched", "per_call"])
@pytest.mark.parametrize("decision", ["approve", "edit", "edit to evil", "reject"])
async def test_a_persons_review(decision: str, mode: Any, first: bool, asynchronous: bool) -> None:
    log: list[Any] = []
    judge = refusing()
    person = HumanInTheLoopMiddleware(interrupt_on={"pay": True}, interrupt_mode=mode)
    graph = build([STEP, DONE], placed(judge.middleware(), person, first), log, checkpointer=InMemorySaver())
    out = await run(graph, asynchronous)
    (interrupt,) = out["__interrupt__"]
    answer: dict[str, Any] = {"type": decision.split(maxsplit=1)[0]}
    x = "evil" if "evil" in decision else "c"
    if answer["type"] == "edit":
        answer["edited_action"] = {"name": "pay", "args": {"x": x}}
    resume = {"decisions": [answer]} if mode == "batched" else {interrupt.id: answer}
    out = await run(graph, asynchronous, given=Command(resume=resume))
    ran = {"approve": [("pay", "b")], "edit": [("pay", "c")]}.get(decision, [])
    assert sorted(log) == [("look", "a"), *ran]
    assert not Counter(map(repr, log)) - judge.cleared
    assert_valid(out["messages"])


@BOTH
@PLACES
async def test_a_person_may_choose_another_tool(first: bool, asynchronous: bool) -> None:
    for refused in ("send", "none"):
        log: list[Any] = []
        judge = refusing(refused)
        person = HumanInTheLoopMiddleware(interrupt_on={"pay": True})
        graph = build([STEP, DONE], placed(judge.middleware(), person, first), log, checkpointer=InMemorySaver())
        await run(graph, asynchronous)
        edit = {"type": "edit", "edited_action": {"name": "send", "args": {"x": "c"}}}
        out = await run(graph, asynchronous, given=Command(resume={"decisions": [edit]}))
        assert sorted(log) == ([("look", "a")] if refused == "send" else [("look", "a"), ("send", "c")])
        assert_valid(out["messages"])


@BOTH
@PLACES
async def test_redacted_text_costs_no_second_judgement(first: bool, asynchronous: bool) -> None:
    log: list[Any] = []
    judge = refusing("pay")
    step = STEP.model_copy(update={"content": "I write to bob@example.org"})
    pii = PIIMiddleware("email", apply_to_output=True)
    out = await run(build([step, DONE], placed(judge.middleware(), pii, first), log), asynchronous)
    assert log == [("look", "a")]
    assert len(judge.steps) == 1
    assert "bob@" not in out["messages"][1].text
    assert_valid(out["messages"])


@BOTH
@PLACES
@pytest.mark.parametrize("behaviour", ["continue", "end"])
async def test_a_limit_of_tool_calls(behaviour: Any, first: bool, asynchronous: bool) -> None:
    log: list[Any] = []
    judge = refusing("pay")
    limit = ToolCallLimitMiddleware(run_limit=1, exit_behavior=behaviour)
    out = await run(build([STEP, STEP, DONE], placed(judge.middleware(), limit, first), log), asynchronous)
    assert not Counter(map(repr, log)) - judge.cleared
    assert_valid(out["messages"])


@BOTH
@PLACES
async def test_parallel_todo_lists_are_answered_once(first: bool, asynchronous: bool) -> None:
    todos = {"todos": [{"content": "a", "status": "pending"}]}
    step = calls(("write_todos", todos), ("write_todos", todos), ("look", {"x": "a"}), ids=["1", "2", "3"])
    for refused in ((), ("look",), ("look", "write_todos")):
        log: list[Any] = []
        middleware = placed(refusing(*refused).middleware(), TodoListMiddleware(), first)
        out = await run(build([step, DONE], middleware, log), asynchronous)
        assert log == ([] if refused else [("look", "a")])
        assert_valid(out["messages"])


class Selects(Scripted):
    """A chat model that selects every tool it is asked about."""

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Any:
        return RunnableLambda(lambda _: {"tools": ["look", "pay"]})


OTHERS: dict[str, Callable[[list[Any]], Any]] = {
    "person": lambda log: HumanInTheLoopMiddleware(interrupt_on={"pay": True}),
    "person per call": lambda log: HumanInTheLoopMiddleware(interrupt_on={"send": True}, interrupt_mode="per_call"),
    "pii": lambda log: PIIMiddleware("email", apply_to_output=True, apply_to_tool_results=True),
    "tool retry": lambda log: ToolRetryMiddleware(max_retries=1, initial_delay=0, jitter=False),
    "model retry": lambda log: ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False),
    "model limit": lambda log: ModelCallLimitMiddleware(run_limit=3),
    "tool limit": lambda log: ToolCallLimitMiddleware(tool_name="look", run_limit=1),
    "summary": lambda log: SummarizationMiddleware(
        Scripted(script=[AIMessage("said")]), trigger=("messages", 5), keep=("messages", 2)
    ),
    "selector": lambda log: LLMToolSelectorMiddleware(model=Selects(script=[])),
    "context": lambda log: ContextEditingMiddleware(),
    "todo": lambda log: TodoListMiddleware(),
    "at tool": lambda log: AtTool("args", log, x="new"),
    "after model": lambda log: AfterModel("edit"),
}


def play(graph: Any, decisions: list[str]) -> list[Any]:
    """Run to the end, answering interrupts in turn."""
    given: Any = ASK
    answered = itertools.cycle(decisions)
    while True:
        out = graph.invoke(given, THREAD)
        if "__interrupt__" not in out:
            return list(out["messages"])
        resume = {}
        for interrupt in out["__interrupt__"]:
            value = interrupt.value
            requests = value.get("action_requests", [value])
            made = []
            for request in requests:
                kind = next(answered)
                edited = {"name": request["name"], "args": {"x": "edited"}}
                made.append({"type": kind, **({"edited_action": edited} if kind == "edit" else {})})
            resume[interrupt.id] = made[0] if "action_requests" not in value else {"decisions": made}
        given = Command(resume=resume)


CALL = st.tuples(st.sampled_from(["look", "pay", "send"]), st.fixed_dictionaries({"x": st.sampled_from("abc")}))


@st.composite
def scripts(draw: Any) -> list[AIMessage]:
    """Steps of calls with different ids, then the end."""
    numbers = itertools.count()
    proposed = draw(st.lists(st.lists(CALL, min_size=1, max_size=3), min_size=1, max_size=4))
    said = [calls(*step, ids=[str(next(numbers)) for _ in step]) for step in proposed]
    texts = draw(st.lists(st.sampled_from(["", "mail to bob@example.org"]), min_size=4, max_size=4))
    return [*(m.model_copy(update={"content": text}) for m, text in zip(said, texts, strict=False)), DONE]


@given(
    script=scripts(),
    names=st.lists(st.sampled_from(sorted(OTHERS)), unique=True, max_size=5),
    place=st.integers(0, 5),
    refused=st.frozensets(
        st.tuples(st.sampled_from(["look", "pay", "send"]), st.sampled_from(["a", "b", "new", "edited"]))
    ),
    decisions=st.lists(st.sampled_from(["approve", "edit", "reject"]), min_size=1, max_size=3),
    on_refuse=st.sampled_from(["replan", "end"]),
)
def test_any_order(
    script: Any, names: list[str], place: int, refused: Any, decisions: list[str], on_refuse: Any
) -> None:
    if {"person", "person per call"} <= set(names):
        names.remove("person per call")  # langchain takes one of each class
    log: list[Any] = []
    judge = Judge(lambda name, x: "refuse" if (name, x) in refused or x == "evil" else "act")
    middleware = [OTHERS[name](log) for name in names]
    middleware.insert(place, judge.middleware(on_refuse=on_refuse))
    graph = build(script, middleware, log, checkpointer=InMemorySaver())
    messages = play(graph, decisions)
    assert not Counter(map(repr, log)) - judge.cleared, "a body ran without an act verdict for exactly that call"
    assert_valid([m for m in messages if m.additional_kwargs.get("lc_source") != "summarization"])
    assert GUARD_CHANNEL not in graph.get_state(THREAD).values


# --- calls that are not ours -------------------------------------------------------------------------------------------


@BOTH
async def test_what_a_provider_runs_is_left_alone(asynchronous: bool) -> None:
    blocks = [
        {"type": "server_tool_call", "id": "srv", "name": "web_search", "args": {"query": "x"}},
        {"type": "server_tool_result", "tool_call_id": "srv", "status": "success", "output": []},
    ]
    judge = refusing("web_search")
    log: list[Any] = []
    mixed = calls(("look", {"x": "a"})).model_copy(update={"content": blocks})
    script = [mixed, AIMessage(content=blocks), DONE]
    tools = [*make_tools(log), {"type": "web_search_20250305", "name": "web_search"}]
    out = await run(build(script, [judge.middleware()], log, tools=tools), asynchronous)
    assert log == [("look", "a")]
    assert judge.steps == [[("look", "a")]]
    assert out["messages"][-1].content == blocks


class Verdict(BaseModel):
    """A structured answer."""

    good: bool


@BOTH
@pytest.mark.parametrize("refused", ["look", "none"])
async def test_a_structured_answer_is_no_call_to_judge(refused: str, asynchronous: bool) -> None:
    log: list[Any] = []
    judge = refusing(refused)
    step = calls(("look", {"x": "a"}), ("Verdict", {"good": True}))
    agent = build([step, DONE], [judge.middleware()], log, response_format=ToolStrategy(Verdict))
    out = await run(agent, asynchronous)
    assert judge.steps == [[("look", "a")]]
    assert out["structured_response"] == Verdict(good=True)
    assert bool(log) == (refused == "none")
    assert_valid(out["messages"])
