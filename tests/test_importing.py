"""Importers: conversations of other systems become trajectories, or are left out with a reason and a count."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from mosaic_guard import Guard, Outcome, ScriptedGuardModel, TraceWriter, Trajectory, read_traces
from mosaic_guard_training.importing import Conversation, import_conversations, import_files, main
from mosaic_guard_training.replay import rejudge

CHAT: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Pay Anna 5 euros."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "find", "arguments": '{"who": "Anna"}'}},
            {"id": "b", "type": "function", "function": {"name": "balance", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "DE12"},
    {"role": "tool", "tool_call_id": "b", "content": "7"},
    {
        "role": "assistant",
        "content": "I pay.",
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "pay", "arguments": '{"iban": "DE12", "sum": 5}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c", "content": "done"},
    {"role": "assistant", "content": "Paid."},
]
PAY = {"type": "object", "properties": {"iban": {"type": "string"}, "sum": {"type": "number"}}}
TOOLS = [{"type": "function", "function": {"name": "pay", "description": "Pay somebody.", "parameters": PAY}}]


def said(trajectory: Trajectory) -> list[tuple[list[str], list[Any]]]:
    return [([c["name"] for c in step.calls], [c["args"] for c in step.calls]) for step in trajectory.steps]


EXPECTED = [(["find", "balance"], [{"who": "Anna"}, {}]), (["pay"], [{"iban": "DE12", "sum": 5}])]


def imported(kind: str, tmp_path: Path, content: Any, *, lines: bool = False) -> list[Trajectory]:
    file = tmp_path / "log.json"
    text = "".join(json.dumps(line) + "\n" for line in content) if lines else json.dumps(content)
    file.write_text(text)
    import_files(kind, [file], tmp_path / "out")
    return read_traces(tmp_path / "out")


@pytest.mark.parametrize("lines", [True, False])
def test_chat_completions(tmp_path: Path, lines: bool) -> None:
    record = {
        "id": "x",
        "messages": CHAT,
        "tools": TOOLS,
        "outcome": {"harmful": False, "completed": True, "who": "me"},
    }
    first, second = imported("openai", tmp_path, [record, CHAT], lines=lines)
    assert said(first) == said(second) == EXPECTED
    assert (first.id, first.guard["model"]) == ("x", "imported")
    assert first.task == second.task
    assert first.outcome == Outcome(False, True, [], "imported", {"who": "me"})
    assert second.outcome is None
    assert first.steps[0].tools == [
        {"name": "pay", "description": "Pay somebody.", "parameters": PAY, "metadata": {}, "tags": []}
    ]
    assert [d.source for d in first.steps[0].decisions] == ["imported", "imported"]
    results = [m["data"] for m in first.steps[1].messages if m["type"] == "tool"]
    assert [(r["name"], r["content"]) for r in results] == [("find", "DE12"), ("balance", "7")]


def test_one_conversation_alone_is_a_file_too(tmp_path: Path) -> None:
    (found,) = imported("openai", tmp_path, CHAT)
    assert said(found) == EXPECTED


def test_responses_items(tmp_path: Path) -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Pay Anna 5 euros."}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "a", "name": "find", "arguments": '{"who": "Anna"}'},
        {"type": "function_call", "call_id": "b", "name": "balance", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "DE12"},
        {"type": "function_call_output", "call_id": "b", "output": "7"},
    ]
    output = [
        {"type": "function_call", "call_id": "c", "name": "pay", "arguments": '{"iban": "DE12", "sum": 5}'},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Paid."}]},
    ]
    record = {
        "instructions": "Be brief.",
        "input": items,
        "output": output,
        "tools": [{"type": "function", "name": "pay"}],
    }
    (found,) = imported("openai", tmp_path, [record])
    assert said(found) == EXPECTED
    assert found.steps[0].messages[0]["type"] == "system"
    assert found.steps[0].tools[0]["name"] == "pay"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"messages": CHAT[:2]}, "no tool calls"),
        ({"messages": "hello"}, "no list of messages"),
        ({}, "no list of messages"),
        (7, "neither a list of messages nor an object"),
        ({"messages": [*CHAT, {"role": "tool", "tool_call_id": "zz", "content": ""}]}, "a tool result answers no call"),
        ({"messages": [*CHAT, {"content": "who?"}]}, "a message has no role"),
        ({"messages": [*CHAT, {"role": "wizard", "content": "?"}]}, "a message cannot be read"),
        (
            {"messages": [*CHAT, {"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}]},
            "the arguments of a call are no JSON object",
        ),
        ({"messages": CHAT, "outcome": {"harmful": "maybe"}}, "its outcome is no object"),
        ({"id": "same", "messages": CHAT}, "its id came before"),
    ],
)
def test_a_malformed_conversation_is_left_out_with_its_reason(
    tmp_path: Path, broken: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in ({"id": "same", "messages": CHAT}, broken)))
    assert main(["openai", str(file), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"left out: 1, {reason}" in printed
    (found,) = read_traces(tmp_path / "out")
    assert said(found) == EXPECTED


def test_a_broken_file_is_an_error_with_file_and_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(json.dumps(CHAT) + "\n{broken\n")
    assert main(["openai", str(file), "--output", str(tmp_path / "out")]) == 1
    assert "log.jsonl:2: neither JSON nor JSON lines" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    file.write_text(json.dumps(CHAT) + "\n")  # and the next try is not in its way
    assert main(["openai", str(file), "--output", str(tmp_path / "out")]) == 0
    assert len(read_traces(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no such file"), ("", "they are empty"), ("[]", "they are empty"), ("\xff", "")],
)
def test_nothing_to_import_is_an_error(
    tmp_path: Path, content: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log.json"
    if content is not None:
        file.write_bytes(content.encode("latin-1"))
    assert main(["openai", str(file), "--output", str(tmp_path / "out")]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log.json"
    file.write_text(json.dumps(CHAT))
    assert main(["openai", str(file), "--output", str(tmp_path / "out")]) == 0
    assert main(["openai", str(file), "--output", str(tmp_path / "out")]) == 1
    assert "name a new directory" in capsys.readouterr().err


def messages() -> list[BaseMessage]:
    return [
        SystemMessage("Be brief.", id="0"),
        HumanMessage("Pay Anna 5 euros.", id="1"),
        AIMessage(
            "",
            id="2",
            tool_calls=[
                {"name": "find", "args": {"who": "Anna"}, "id": "a"},
                {"name": "balance", "args": {}, "id": "b"},
            ],
        ),
        ToolMessage("DE12", tool_call_id="a", name="find"),
        ToolMessage("7", tool_call_id="b"),
        AIMessage("I pay.", id="5", tool_calls=[{"name": "pay", "args": {"iban": "DE12", "sum": 5}, "id": "c"}]),
        ToolMessage("done", tool_call_id="c", name="pay"),
        AIMessage("Paid.", id="7"),
    ]


def test_langchain_messages_as_they_are(tmp_path: Path) -> None:
    with TraceWriter(tmp_path) as writer:
        result = import_conversations([Conversation("x", messages(), judge_answer=True)], writer)
    (found,) = read_traces(tmp_path)
    assert said(found) == [*EXPECTED, (["final_answer"], [{"text": "Paid."}])]
    assert (result.trajectories, result.steps) == (1, 3)
    assert [d.verdict for j in rejudge(found, Guard(ScriptedGuardModel())) for d in j.decisions] == ["act"] * 4


def langsmith_run(kind: str, inputs: Any, outputs: Any, **more: Any) -> dict[str, Any]:
    """A run as LangSmith's own schema writes it."""
    schemas = pytest.importorskip("langsmith.schemas")
    identity = more.pop("id", uuid4())
    run = schemas.Run(
        id=identity,
        name=kind,
        run_type=kind,
        start_time=more.pop("start_time", datetime(2026, 1, 1, tzinfo=UTC)),
        inputs=inputs,
        outputs=outputs,
        trace_id=more.pop("trace_id", identity),
        **more,
    )
    return dict(run.model_dump(mode="json"))


def model_run(trace: Any, seen: list[BaseMessage], answer: BaseMessage, second: int) -> dict[str, Any]:
    return langsmith_run(
        "llm",
        {"messages": [[dumpd(message) for message in seen]]},
        {"generations": [[{"text": "", "type": "ChatGeneration", "message": dumpd(answer)}]]},
        trace_id=trace,
        parent_run_id=trace,
        start_time=datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC),
        extra={"invocation_params": {"tools": TOOLS}},
    )


@pytest.mark.parametrize("form", ["dumpd", "model_dump"])
def test_a_langsmith_export_of_a_graph(tmp_path: Path, form: str) -> None:
    trace = uuid4()
    wrote = [dumpd(m) if form == "dumpd" else m.model_dump(mode="json") for m in messages()]
    root = langsmith_run(
        "chain",
        {"messages": wrote[:2]},
        {"messages": wrote},
        id=trace,
        extra={"metadata": {"mosaic_task": "pay"}},
        feedback_stats={
            "harmful": {"n": 1, "avg": 0.0},
            "correctness": {"n": 2, "avg": 1.0},
            "tone": {"n": 1, "avg": 0.2},
        },
        child_runs=None,
    )
    root["child_runs"] = [model_run(trace, messages()[:2], messages()[2], 1)]
    (found,) = imported("langsmith", tmp_path, [root])
    assert said(found) == EXPECTED
    assert (found.id, found.task) == (str(trace), "pay")
    assert found.outcome is not None
    assert (found.outcome.harmful, found.outcome.completed) == (False, True)
    assert {"key": "tone", "score": 0.2} in found.outcome.details["feedback"]
    assert found.steps[0].tools[0]["name"] == "pay"


def test_a_langsmith_export_of_model_runs_alone_flat_and_with_feedback_records(tmp_path: Path) -> None:
    trace = uuid4()
    root = langsmith_run("chain", {"question": "?"}, {"answer": "Paid."}, id=trace)
    last = model_run(trace, messages()[:-1], messages()[-1], 2)
    first = model_run(trace, messages()[:2], messages()[2], 1)
    feedback = {"id": str(uuid4()), "run_id": str(trace), "trace_id": str(trace), "key": "safe", "score": False}
    (found,) = imported("langsmith", tmp_path, [last, root, feedback, first], lines=True)
    assert said(found) == EXPECTED
    assert found.outcome is not None
    assert found.outcome.harmful is True


def test_a_langsmith_export_of_openais_wrapper(tmp_path: Path) -> None:
    run = langsmith_run(
        "llm", {"messages": CHAT[:-1], "tools": TOOLS}, {"choices": [{"index": 0, "message": CHAT[-1]}]}
    )
    (found,) = imported("langsmith", tmp_path, [run])
    assert said(found) == EXPECTED
    assert found.steps[0].tools[0]["name"] == "pay"


def test_langsmith_traces_without_messages_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = langsmith_run("chain", {}, {"messages": [dumpd(m) for m in messages()]})
    bad = langsmith_run("chain", {"question": "?"}, {"answer": "!"})
    odd = langsmith_run("chain", {}, {"messages": [{"type": "spell", "content": ""}]})
    file = tmp_path / "runs.json"
    file.write_text(json.dumps([good, bad, odd, 7, {"x": 1}]))
    assert main(["langsmith", str(file), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for reason in ("none of its runs holds messages", "unknown kind", "not a run", "neither a run nor feedback"):
        assert reason in printed
    assert len(read_traces(tmp_path / "out")) == 1


def otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    def value(item: Any) -> dict[str, Any]:
        if isinstance(item, bool):
            return {"boolValue": item}
        if isinstance(item, int):
            return {"intValue": str(item)}
        if isinstance(item, list):
            return {"arrayValue": {"values": [value(each) for each in item]}}
        if isinstance(item, dict):
            return {"kvlistValue": {"values": [{"key": k, "value": value(v)} for k, v in item.items()]}}
        return {"stringValue": item}

    made = [
        {
            "traceId": "t1",
            "spanId": str(number),
            "startTimeUnixNano": str(1000 + number),
            "attributes": [{"key": key, "value": value(item)} for key, item in span.items()],
        }
        for number, span in enumerate(spans)
    ]
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": made}]}]}


def inferred(side: str, given: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, message in enumerate(given):
        start = f"llm.{side}_messages.{number}.message"
        found[f"{start}.role"] = message["role"]
        if message.get("content"):
            found[f"{start}.content"] = message["content"]
        if "tool_call_id" in message:
            found[f"{start}.tool_call_id"] = message["tool_call_id"]
        for at, call in enumerate(message.get("tool_calls") or ()):
            found[f"{start}.tool_calls.{at}.tool_call.id"] = call["id"]
            found[f"{start}.tool_calls.{at}.tool_call.function.name"] = call["function"]["name"]
            found[f"{start}.tool_calls.{at}.tool_call.function.arguments"] = call["function"]["arguments"]
    return found


def test_openinference_spans(tmp_path: Path) -> None:
    schema = json.dumps(TOOLS[0])
    first = {"openinference.span.kind": "LLM", **inferred("input", CHAT[:2]), **inferred("output", CHAT[2:3])}
    last = {
        "openinference.span.kind": "LLM",
        **inferred("input", CHAT[:5]),
        **inferred("output", CHAT[5:6]),
        "llm.tools.0.tool.json_schema": schema,
    }
    tool = {"openinference.span.kind": "TOOL", "tool.name": "pay", "tool_call.id": "c", "output.value": "done"}
    (found,) = imported("opentelemetry", tmp_path, otlp({"input.value": "x"}, first, last, tool))
    assert said(found) == EXPECTED
    assert found.steps[0].tools[0]["parameters"] == PAY
    assert found.id == "t1"


@pytest.mark.parametrize("as_text", [True, False])
def test_gen_ai_spans(tmp_path: Path, as_text: bool) -> None:
    def calls(message: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "type": "tool_call",
                "id": call["id"],
                "name": call["function"]["name"],
                "arguments": json.loads(call["function"]["arguments"]),
            }
            for call in message["tool_calls"]
        ]

    given = [
        {"role": "user", "parts": [{"type": "text", "content": "Pay Anna 5 euros."}]},
        {"role": "assistant", "parts": calls(CHAT[2])},
        {
            "role": "tool",
            "parts": [
                {"type": "tool_call_response", "id": "a", "response": "DE12"},
                {"type": "tool_call_response", "id": "b", "response": {"sum": 7}},
            ],
        },
    ]
    answer = [{"role": "assistant", "parts": [{"type": "text", "content": "I pay."}, *calls(CHAT[5])]}]
    tools = [{"type": "function", "name": "pay", "parameters": PAY}]

    def wrote(value: Any) -> Any:
        return json.dumps(value) if as_text else value

    span = {
        "gen_ai.operation.name": "chat",
        "gen_ai.system_instructions": wrote([{"type": "text", "content": "Be brief."}]),
        "gen_ai.input.messages": wrote(given),
        "gen_ai.output.messages": wrote(answer),
        "gen_ai.tool.definitions": wrote(tools),
    }
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "c", "gen_ai.tool.call.result": "done"}
    (found,) = imported("opentelemetry", tmp_path, [otlp(span, tool)], lines=True)
    assert said(found) == EXPECTED
    assert [m["type"] for m in found.steps[0].messages] == ["system", "human", "ai"]
    assert found.steps[1].messages[1]["data"]["content"] == '{"sum": 7}'
    assert found.steps[0].tools[0]["parameters"] == PAY


def test_spans_without_contents_are_left_out_and_other_json_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "spans.json"
    file.write_text(json.dumps(otlp({"gen_ai.operation.name": "chat"})))
    assert main(["opentelemetry", str(file), "--output", str(tmp_path / "out")]) == 1
    assert "1 none of its spans holds messages" in capsys.readouterr().err
    file.write_text(json.dumps(otlp({})) + "\n" + json.dumps({"spans": []}) + "\n")
    assert main(["opentelemetry", str(file), "--output", str(tmp_path / "out")]) == 1
    assert "spans.json:2: no OTLP export" in capsys.readouterr().err


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MESSAGE_LIKE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "tool", "system", "x"]) | JSONS,
        "content": JSONS,
        "tool_calls": st.lists(
            st.fixed_dictionaries({"id": JSONS, "function": st.fixed_dictionaries({"name": JSONS, "arguments": JSONS})})
            | JSONS,
            max_size=2,
        )
        | JSONS,
        "tool_call_id": JSONS,
        "type": st.sampled_from(["function_call", "function_call_output", "message", "human", "ai"]) | JSONS,
        "name": JSONS,
        "arguments": JSONS,
    },
)
SPAN_LIKE = st.fixed_dictionaries(
    {},
    optional={
        "gen_ai.input.messages": st.lists(MESSAGE_LIKE, max_size=2) | JSONS,
        "llm.output_messages.0.message.role": JSONS,
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": JSONS,
        "llm.tools.0.tool.json_schema": JSONS,
    },
)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.tuples(st.just("openai"), st.lists(st.lists(MESSAGE_LIKE, max_size=3) | JSONS, max_size=3)),
        st.tuples(
            st.just("langsmith"),
            st.lists(
                st.fixed_dictionaries(
                    {"id": JSONS, "run_type": st.sampled_from(["llm", "chain"])},
                    optional={
                        "inputs": st.fixed_dictionaries({"messages": st.lists(MESSAGE_LIKE, max_size=2) | JSONS})
                        | JSONS,
                        "outputs": st.fixed_dictionaries({"messages": st.lists(MESSAGE_LIKE, max_size=2) | JSONS})
                        | JSONS,
                        "extra": JSONS,
                        "feedback_stats": JSONS,
                        "child_runs": JSONS,
                    },
                ),
                max_size=2,
            ),
        ),
        st.tuples(st.just("opentelemetry"), st.lists(st.builds(otlp, SPAN_LIKE), min_size=1, max_size=2)),
    )
)
def test_whatever_a_file_holds_it_is_imported_left_out_or_a_plain_error(found: tuple[str, Any]) -> None:
    import tempfile

    kind, content = found
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "log.json")
        file.write_text(json.dumps(content))
        if main([kind, str(file), "--output", str(Path(directory, "out"))]) == 0:
            for trajectory in read_traces(Path(directory, "out")):
                rejudge(trajectory, Guard(ScriptedGuardModel()))
