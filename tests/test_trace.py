"""Traces: append-only, safe against a crash in mid-write, private, complete."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from scripted_agents import Scripted, by_name, calls, hand_written, make_tools

from mosaic_guard import (
    Guard,
    Outcome,
    ScriptedGuardModel,
    TraceError,
    TraceWarning,
    TraceWriter,
    guarded_graph,
    read_traces,
)
from mosaic_guard._trace import tool_spec

SCRIPT = [calls(("look", {"x": "a"}), ("pay", {"x": "b"})), calls(("send", {"x": 1})), AIMessage("done")]


def run(trace: Any, script: list[Any] | None = None, log: list[Any] | None = None, **config: Any) -> Any:
    graph = guarded_graph(
        hand_written(Scripted(script=script or SCRIPT), ToolNode(make_tools([] if log is None else log))),
        guard=Guard(ScriptedGuardModel(by_name(pay="refuse"))),
        trace=trace,
    )
    return graph.invoke({"messages": [HumanMessage("look at a")]}, {"metadata": config})


def test_reading_back_gives_the_trajectory(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path)
    run(writer, mosaic_task="t", mosaic_trajectory="x")
    writer.outcome("x", Outcome(harmful=False, completed=True, harmful_calls=[(0, 1)], source="human"))
    (found,) = read_traces(tmp_path)
    assert (found.id, found.task, found.guard["model"]) == ("x", "t", "scripted")
    assert [s.step for s in found.steps] == [0, 1]
    assert [d.verdict for d in found.steps[0].decisions] == ["act", "refuse"]
    assert [c["name"] for c in found.steps[0].calls] == ["look", "pay"]
    assert found.outcome == Outcome(False, True, [(0, 1)], "human", {})
    said = [m["data"]["content"] for s in found.steps for m in s.messages]
    assert said[0] == "look at a"
    assert any(str(text).startswith("Refused by the guard") for text in said)
    text = "".join(p.text for s in found.steps for p in s.pieces)
    assert text.count("<decision>\n1: act\n2: refuse\n</decision>") == 1


def test_every_message_is_logged_once(tmp_path: Path) -> None:
    out = run(tmp_path)
    (found,) = read_traces(tmp_path)
    logged = [m["data"]["id"] for s in found.steps for m in s.messages]
    assert logged == [m.id for m in out["messages"][: len(logged)]]


def test_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    run(tmp_path / "traces")
    assert stat.S_IMODE((tmp_path / "traces").stat().st_mode) == 0o700
    (file,) = (tmp_path / "traces").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_torn_last_line_is_reported_and_skipped(tmp_path: Path) -> None:
    run(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, len(lines[-1]) // 2, len(lines[-1]) - 2):
        file.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        with pytest.warns(TraceWarning, match=rf":{len(lines)}: torn last line"):
            (found,) = read_traces(tmp_path)
        assert len(found.steps) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not a trace record"),
        ("[]", "not a JSON object"),
        ('{"type": "step"}', "missing field"),
        ('{"type": "outcome", "trajectory": "x"}', "missing field"),
        ('{"type": "header", "version": 99, "id": "", "guard": {}}', "trace version 99"),
    ],
)
def test_a_bad_record_is_an_error_with_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    run(tmp_path)
    (file,) = tmp_path.iterdir()
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(TraceError, match=rf"{file.name}:2: .*{says}"):
        read_traces(tmp_path)


def test_no_traces_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="TraceWriter"):
        read_traces(tmp_path / "nothing")


def test_redaction_sees_every_record_before_it_is_written(tmp_path: Path) -> None:
    def redact(record: dict[str, Any]) -> dict[str, Any] | None:
        if record["type"] == "outcome":
            return None
        return json.loads(json.dumps(record).replace("look at a", "XXX"))

    writer = TraceWriter(tmp_path, redact=redact)
    run(writer, mosaic_trajectory="x")
    writer.outcome("x", Outcome(harmful=True))
    (file,) = tmp_path.iterdir()
    assert "look at a" not in file.read_text()
    (found,) = read_traces(tmp_path)
    assert found.outcome is None


def test_a_redaction_hook_that_fails_writes_nothing(tmp_path: Path) -> None:
    def redact(record: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("oops")

    writer = TraceWriter(tmp_path, redact=redact)
    with pytest.warns(TraceWarning, match="redaction hook failed"):
        writer.outcome("x", Outcome())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_loses_nothing_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.write, [1400]

    def write(fd: int, data: Any) -> int:
        if fd > 2 and room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = bytes(data)[: max(room[0], 1)] if fd > 2 else data
        written = real(fd, part)
        if fd > 2:
            room[0] -= written
        return written

    log: list[Any] = []
    writer = TraceWriter(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mosaic_guard._trace.os.write", write)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(writer, log=log)
        assert any("wait in memory" in str(w.message) for w in caught)
        assert log == [("look", "a"), ("send", 1)]
        with pytest.warns(TraceWarning), pytest.raises(OSError, match="wait for room"):
            writer.close()
        read_traces(tmp_path)  # what is on the disk is whole
        room[0] = 10**9
        writer.close()
    (found,) = read_traces(tmp_path)
    assert len(found.steps) == 2


def test_a_killed_process_leaves_whole_records(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom mosaic_guard import TraceWriter, Outcome\nw = TraceWriter(sys.argv[1])\n"
        "n = 0\nwhile True:\n    w.outcome(str(n), Outcome(details={'x': 'y' * 5000})); n += 1\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    written = 0
    for line in process.stdout:
        written = int(line)
        if written >= 50:
            break
    process.kill()
    process.communicate()
    (file,) = tmp_path.iterdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        read_traces(tmp_path)
    assert len(file.read_bytes().splitlines()) >= written


def test_one_writer_per_file_and_threads_share_one(tmp_path: Path) -> None:
    first, second = TraceWriter(tmp_path), TraceWriter(tmp_path)
    workers = [
        threading.Thread(target=lambda w=w, n=n: [w.outcome(f"{n}", Outcome()) for _ in range(50)])  # type: ignore[misc]
        for w in (first, second)
        for n in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert all(len(file.read_text().splitlines()) == 200 for file in files)
    read_traces(tmp_path)


def test_a_thread_that_goes_on_later_is_one_trajectory(tmp_path: Path) -> None:
    plain = hand_written(
        Scripted(script=[SCRIPT[0], AIMessage("ok"), SCRIPT[1], AIMessage("ok")]),
        ToolNode(make_tools([])),
        checkpointer=InMemorySaver(),
    )
    thread: Any = {"configurable": {"thread_id": "7"}}
    for words in ("look", "send"):
        graph = guarded_graph(plain, guard=Guard(ScriptedGuardModel()), trace=tmp_path)
        graph.invoke({"messages": [HumanMessage(words)]}, thread)
    (found,) = read_traces(tmp_path)
    assert [s.step for s in found.steps] == [0, 1]
    assert {s.segment for s in found.steps} == {0}


def asking(trace: Any, answer: dict[str, Any], trajectory: str = "x") -> None:
    """A run in which the guard asks about `pay`, and a person answers."""
    graph = guarded_graph(
        hand_written(
            Scripted(script=[calls(("pay", {"x": "b"})), AIMessage("done")]),
            ToolNode(make_tools([])),
            checkpointer=InMemorySaver(),
        ),
        guard=Guard(ScriptedGuardModel(by_name(pay=0.4)), ask_threshold=0.3),
        trace=trace,
    )
    config: Any = {"configurable": {"thread_id": trajectory}, "metadata": {"mosaic_trajectory": trajectory}}
    graph.invoke({"messages": [HumanMessage("pay b")]}, config)
    graph.invoke(Command(resume={"decisions": [answer]}), config)


@pytest.mark.parametrize(
    ("answer", "type_", "message"),
    [({"type": "approve"}, "approve", ""), ({"type": "reject", "message": "not that one"}, "reject", "not that one")],
)
def test_what_a_person_answered_stands_with_the_step(
    tmp_path: Path, answer: dict[str, Any], type_: str, message: str
) -> None:
    asking(tmp_path, answer)
    (found,) = read_traces(tmp_path)
    (said,) = found.steps[0].feedback
    assert (said["type"], said["message"] or "") == (type_, message)
    assert said["digest"] == found.steps[0].calls[0]["digest"]
    assert [d.verdict for d in found.steps[0].decisions] == ["ask"]


def test_an_answer_about_another_step_or_history_is_not_mixed_in(tmp_path: Path) -> None:
    with TraceWriter(tmp_path) as writer:
        run(writer, mosaic_trajectory="x")
        (found,) = read_traces(tmp_path)
        writer.feedback("x", 0, "some other history", [{"digest": "d", "type": "approve"}])
        writer.feedback("x", 7, found.steps[0].at, [{"digest": "d", "type": "approve"}])
        writer.feedback("y", 0, found.steps[0].at, [{"digest": "d", "type": "approve"}])
        writer.feedback("x", 1, found.steps[1].at, [{"digest": "d", "type": "reject"}])
        writer.feedback("x", 1, found.steps[1].at, [{"digest": "e", "type": "edit", "action": {}}])
    (found,) = read_traces(tmp_path)
    assert [[a["type"] for a in s.feedback] for s in found.steps] == [[], ["reject", "edit"]]


def test_the_tools_are_written_once_and_read_with_each_step(tmp_path: Path) -> None:
    run(tmp_path)
    (file,) = tmp_path.iterdir()
    kinds = [json.loads(line)["type"] for line in file.read_text().splitlines()]
    assert kinds == ["header", "tools", "step", "step"]
    (found,) = read_traces(tmp_path)
    first, second = (step.tools for step in found.steps)
    assert first == second
    tools = {tool.name: tool for tool in make_tools([])}
    assert {spec["name"] for spec in first} == set(tools)
    for spec in first:
        assert set(spec) == {"name", "description", "parameters", "metadata", "tags"}
        assert spec["description"] == tools[spec["name"]].description
        assert list(spec["parameters"]["properties"]) == ["x"]


def test_a_new_file_names_its_tools_again(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path)
    run(writer, mosaic_trajectory="x")
    writer.close()
    run(writer, mosaic_trajectory="y")
    assert all(step.tools for found in read_traces(tmp_path) for step in found.steps)


def test_a_tool_whose_schema_cannot_be_written_is_known_by_name() -> None:
    @tool
    def odd(x: Any) -> str:
        """Odd."""
        return ""

    odd.args_schema = {"$ref": "#/nowhere"}
    assert tool_spec(odd)["name"] == "odd"


def test_traces_without_tools_or_at_are_read(tmp_path: Path) -> None:
    run(tmp_path)
    (file,) = tmp_path.iterdir()
    old = [record for line in file.read_text().splitlines() if (record := json.loads(line))["type"] != "tools"]
    for record in old:
        for key in ("tools", "at", "after"):
            record.pop(key, None)
    file.write_text("".join(json.dumps(record) + "\n" for record in old))
    (found,) = read_traces(tmp_path)
    assert [(s.step, list(s.tools), list(s.feedback), s.at) for s in found.steps] == [(0, [], [], ""), (1, [], [], "")]


def test_redaction_sees_the_tools_and_the_answers(tmp_path: Path) -> None:
    seen: list[str] = []

    def redact(record: dict[str, Any]) -> dict[str, Any] | None:
        seen.append(record["type"])
        return None if record["type"] in ("tools", "feedback") else record

    asking(TraceWriter(tmp_path, redact=redact), {"type": "approve"})
    assert {"tools", "feedback"} <= set(seen)
    (found,) = read_traces(tmp_path)
    assert (list(found.steps[0].tools), list(found.steps[0].feedback)) == ([], [])


SPEC = st.fixed_dictionaries(
    {
        "name": st.text(min_size=1, max_size=5),
        "description": st.text(max_size=9),
        "parameters": st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=2),
        "metadata": st.dictionaries(st.text(max_size=4), st.booleans(), max_size=2),
        "tags": st.lists(st.text(max_size=4), max_size=2),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sets=st.lists(st.lists(SPEC, max_size=3), min_size=1, max_size=3),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), min_size=1, max_size=6),
    cut=st.integers(0, 400),
)
def test_what_is_written_is_read_back_and_a_torn_line_loses_only_itself(
    tmp_path: Path, sets: list[list[dict[str, Any]]], steps: list[tuple[int, int, bool]], cut: int
) -> None:
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    expected: dict[str, list[tuple[Any, Any]]] = {}
    with TraceWriter(directory) as writer:
        for which, trajectory, answered in steps:
            specs = sets[which % len(sets)]
            known = expected.setdefault(str(trajectory), [])
            number, at = len(known), f"{trajectory}-{len(known)}"
            named = {"guard": writer.header({"model": "m"}), "tools": writer.tool_specs(specs)}
            writer.step(
                {
                    **named,
                    "trajectory": str(trajectory),
                    "task": "t",
                    "step": number,
                    "segment": 0,
                    "at": at,
                    "after": f"{trajectory}-{number - 1}" if number else None,
                    "messages": [],
                    "calls": [],
                    "decisions": [],
                    "pieces": [],
                    "think": "",
                    "safety_thoughts": None,
                    "seconds": {},
                }
            )
            answers = [{"digest": at, "type": "approve"}] if answered else []
            if answered:
                writer.feedback(str(trajectory), number, at, answers)
            known.append((specs, answers))
    found = {t.id: [(list(s.tools), list(s.feedback)) for s in t.steps] for t in read_traces(directory)}
    assert found == expected
    (file,) = directory.iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    kept = lines[-1][: cut % (len(lines[-1]) - 1)]
    file.write_bytes(b"".join(lines[:-1]) + kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        torn = {t.id: [list(s.tools) for s in t.steps] for t in read_traces(directory)}
    lost = json.loads(lines[-1])
    whole = {name: [specs for specs, _ in known] for name, known in expected.items()}
    if lost["type"] == "step":
        whole[lost["trajectory"]].pop()
    assert torn == {name: known for name, known in whole.items() if known}
