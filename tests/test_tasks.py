"""Tasks as JSON lines: what is written is read, and what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from collecting import task, tasks
from hypothesis import given
from hypothesis import strategies as st

from mosaic_guard_training.tasks import Task, TaskError, read_tasks, task_from_dict, write_tasks

LEAST = {"id": "a", "environment": "e", "category": "benign", "user": "Do it."}


@pytest.mark.slow
@given(st.lists(tasks(), max_size=4, unique_by=lambda found: found.id))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, written: list[Task]) -> None:
    file = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    assert write_tasks(file, written) == len(written)
    assert read_tasks(file) == written


def test_only_four_fields_are_needed() -> None:
    found = task_from_dict(LEAST)
    assert (found.user, found.tools, found.script, found.system) == (("Do it.",), (), (), None)


def test_one_request_is_a_text_and_several_are_a_list() -> None:
    assert task_from_dict({**LEAST, "user": ["Do it."]}).to_dict()["user"] == "Do it."
    assert task_from_dict({**LEAST, "user": ["One.", "Two."]}).to_dict()["user"] == ["One.", "Two."]


CALL = {"tool": "pay", "args": {"x": 1}}
TOOLS = [{"name": "pay"}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"usr": "x"}, "the line: unknown key 'usr'; did you mean 'user'?"),
        ({"id": None}, "id: a text is needed, not null"),
        ({"id": "two\nlines"}, "id: a name on one line is needed"),
        ({"user": []}, "user: at least one request is needed"),
        ({"user": ["One.", " "]}, "user: a request is empty"),
        ({"user": 3}, "user: a list is needed, not a number"),
        ({"tools": [{"name": "pay"}, {"name": "pay"}]}, "tools: two have the name 'pay'"),
        ({"tools": [{"name": "pay", "parameters": {"type": "array"}}]}, "tools[0].parameters: the JSON Schema"),
        ({"tools": [{"name": "pay", "desc": ""}]}, "tools[0]: unknown key 'desc'"),
        ({"tools": TOOLS, "script": [{"calls": [{"args": {}}]}]}, "script[0].calls[0]: 'tool' is missing"),
        ({"tools": TOOLS, "script": [{"calls": [{"tool": "pai"}]}]}, "script[0].calls[0]: the task has no tool 'pai'"),
        (
            {"tools": TOOLS, "script": [{"calls": [{**CALL, "harmful": 1}]}]},
            "script[0].calls[0].harmful: true or false",
        ),
        (
            {"tools": TOOLS, "script": [{"calls": [CALL]}, {"text": "so"}]},
            "script: 1 requests need 0 turns without calls",
        ),
        (
            {"tools": TOOLS, "script": [{"calls": [CALL, {**CALL, "harmful": True}]}]},
            "script: the same call of 'pay' is harmful in one place and harmless in another",
        ),
        (
            {"tools": TOOLS, "script": [{"calls": [{**CALL, "harmful": True, "required": True}]}]},
            "script: a call of 'pay' is both harmful and required",
        ),
        ({"results": [{"tool": "pay", "result": "x"}]}, "results[0]: the task has no tool 'pay'"),
        ({"source": {"file": 1}}, "source.file: a text is needed"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_place(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(LEAST) + "\n\n" + json.dumps({**LEAST, "id": "b", **change}) + "\n")
    with pytest.raises(TaskError) as caught:
        read_tasks(file)
    assert str(caught.value).startswith(f"{file}:3: {said}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[1]", "the line: an object is needed, not a list"),
        (b'{"id": "a", "environment": "e", "category": "c"}', "the line: 'user' is missing"),
        (json.dumps(LEAST).replace('"Do it."', "NaN").encode(), "not JSON: NaN is not a number of JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_is_no_task(tmp_path: Path, line: bytes, said: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(line + b"\n")
    with pytest.raises(TaskError, match=r"bad\.jsonl:1: ") as caught:
        read_tasks(tmp_path / "bad.jsonl")
    assert said in str(caught.value)


def test_an_id_is_used_once(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text((json.dumps(LEAST) + "\n") * 2)
    with pytest.raises(TaskError, match=r"tasks\.jsonl:2: id 'a' is line 1's already"):
        read_tasks(tmp_path / "tasks.jsonl")


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    def half() -> Any:
        yield task(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tasks(tmp_path / "tasks.jsonl", half())
    assert not (tmp_path / "tasks.jsonl").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="name a file of JSON lines"):
        read_tasks(tmp_path / "none.jsonl")
