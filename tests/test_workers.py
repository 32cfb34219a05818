"""Workers that are killed at random: no call whose result is checkpointed runs again, and every thread ends valid."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
import pytest
from guarded_worker import TABLES, calls_of, steps_of, verdict_of
from langchain_core.messages import AIMessage, ToolMessage
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from scripted_agents import answers, assert_valid

WORKER = Path(__file__).with_name("guarded_worker.py")
SECONDS = 900.0
"""A run that takes longer is stuck."""

pytestmark = pytest.mark.postgres

Call = tuple[str, str]
"""Thread and id: ids are unique within a thread here."""


@dataclass
class Supervisor:
    """Keeps workers running, and kills some: each between `kill_after` seconds after it was ready, while kills are left."""

    url: str
    folder: Path
    lanes: int
    kills: int
    kill_after: tuple[float, float]
    random: random.Random = field(default_factory=lambda: random.Random(0))
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    deadlines: dict[int, float] = field(default_factory=dict)
    killed: int = 0

    def run(self, workers: int) -> None:
        ends = time.monotonic() + SECONDS
        try:
            with psycopg.connect(self.url, autocommit=True) as connection:
                while self.open_threads(connection):
                    assert time.monotonic() < ends, "the threads do not end"
                    while len(self.running) < workers:
                        self.start()
                    self.kill_some(connection)
                    self.bury()
                    time.sleep(0.02)
            for process in self.running.values():
                assert process.wait(60) == 0, self.said()
        finally:
            for process in self.running.values():
                process.kill()
                process.wait()

    def open_threads(self, connection: psycopg.Connection[Any]) -> int:
        row = connection.execute("SELECT count(*) FROM queue WHERE NOT done").fetchone()
        return int(row[0]) if row else 0

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (self.folder / "workers.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(WORKER), self.url, str(self.lanes)], stdout=log, stderr=log, env=environment
            )
        self.running[process.pid] = process

    def kill_some(self, connection: psycopg.Connection[Any]) -> None:
        now = time.monotonic()
        for (pid,) in connection.execute("SELECT pid FROM workers").fetchall():
            if pid in self.running and pid not in self.deadlines:
                self.deadlines[pid] = now + self.random.uniform(*self.kill_after)
        for pid, deadline in list(self.deadlines.items()):
            if self.killed < self.kills and now >= deadline and self.running[pid].poll() is None:
                self.running[pid].kill()
                self.running.pop(pid).wait()
                del self.deadlines[pid]
                self.killed += 1

    def bury(self) -> None:
        """A worker ends by itself once nothing is left to do; any other end is a failure."""
        for pid, process in list(self.running.items()):
            if process.poll() is not None:
                assert process.returncode == 0, self.said()
                del self.running[pid]
                self.deadlines.pop(pid, None)

    def said(self) -> str:
        return (self.folder / "workers.log").read_text(errors="replace")[-4000:]


@dataclass(frozen=True)
class Execution:
    thread: str
    call: str
    pid: int
    started: datetime
    finished: datetime | None


def executions(connection: psycopg.Connection[Any]) -> list[Execution]:
    found = connection.execute("SELECT thread, call, pid, started, finished FROM executions ORDER BY id").fetchall()
    return [Execution(*row) for row in found]


def orphans(connection: psycopg.Connection[Any]) -> int:
    """How many tasks have writes for a checkpoint that is not in the store."""
    row = connection.execute(
        "SELECT count(DISTINCT w.task_id) FROM checkpoint_writes w LEFT JOIN checkpoints c "
        "USING (thread_id, checkpoint_ns, checkpoint_id) WHERE c.checkpoint_id IS NULL"
    ).fetchone()
    return int(row[0]) if row else 0


def checkpointed(connection: psycopg.Connection[Any], saver: PostgresSaver) -> dict[Call, datetime]:
    """When the result of each call could first be found in the store: in a checkpoint, or among the writes that wait at one.

    langgraph saves a superstep's checkpoint and what its tasks wrote side by side. Of a worker that dies in between, writes
    may stay for a checkpoint that never came to be: nobody can find them, and the calls run again, guarded or not.
    """
    found = "SELECT thread_id, checkpoint_id, written FROM checkpoints WHERE checkpoint_ns = ''"
    stored = {(thread, name): at for thread, name, at in connection.execute(found).fetchall()}
    serde = JsonPlusSerializer()
    first: dict[Call, datetime] = {}

    def save(thread: str, value: Any, at: datetime) -> None:
        for message in value if isinstance(value, list) else [value]:
            if isinstance(message, ToolMessage):
                key = (thread, message.tool_call_id)
                first[key] = min(first.get(key, at), at)

    for one in saver.list(None):
        thread, name = one.config["configurable"]["thread_id"], one.config["configurable"]["checkpoint_id"]
        save(thread, one.checkpoint["channel_values"].get("messages", []), stored[thread, name])
    pending = "SELECT thread_id, checkpoint_id, type, blob, written FROM checkpoint_writes WHERE channel = 'messages'"
    for thread, name, kind, blob, written in connection.execute(pending).fetchall():
        if (thread, name) in stored:
            save(thread, serde.loads_typed((kind, blob)), max(written, stored[thread, name]))
    return first


def run_again(ran: list[Execution]) -> Counter[str]:
    """How often a call ran again, by what had become of the run before: killed in its body, or behind it."""
    found: Counter[str] = Counter()
    by_call: dict[Call, list[Execution]] = defaultdict(list)
    for one in ran:
        by_call[one.thread, one.call].append(one)
    for runs in by_call.values():
        for before in runs[:-1]:
            found["killed in the body" if before.finished is None else "killed before the result was saved"] += 1
    return found


def assert_invariants(url: str, threads: list[str]) -> Counter[str]:
    """What must hold however the workers died.

    Returns:
        How often calls ran again under langgraph's at-least-once rule.
    """
    with psycopg.connect(url, autocommit=True) as connection, PostgresSaver.from_conn_string(url) as saver:
        ran, saved = executions(connection), checkpointed(connection, saver)
        cleared: dict[Call, datetime] = {}
        for thread, call, verdict, at in connection.execute(
            "SELECT thread, call, verdict, at FROM verdicts"
        ).fetchall():
            if verdict == "act":
                cleared[thread, call] = min(cleared.get((thread, call), at), at)
    for one in ran:
        key = (one.thread, one.call)
        assert key in cleared, f"{key} ran without an act verdict"
        assert cleared[key] < one.started, f"{key} ran before its verdict"
        assert one.started < saved[key], f"{key} ran again after its result was checkpointed"
    for thread in threads:
        own = [one for one in ran if one.thread == thread]
        workers = [pid for pid, _ in groupby(one.pid for one in own)]
        assert len(workers) == len(set(workers)), f"two workers ran {thread} at once: {workers}"
        wanted = {call for step in range(steps_of(thread)) for call in calls_of(thread, step)}
        acted = {call for call in wanted if verdict_of(thread, call) == "act"}
        assert {one.call for one in own} == acted
    with PostgresSaver.from_conn_string(url) as saver:
        for thread in threads:
            found = saver.get_tuple({"configurable": {"thread_id": thread}})
            assert found is not None
            assert_ended(thread, found.checkpoint["channel_values"]["messages"])
    found = run_again(ran)
    with psycopg.connect(url) as connection:
        found["tasks whose writes lack their checkpoint"] = orphans(connection)
    return found


def assert_ended(thread: str, messages: list[Any]) -> None:
    assert_valid(messages)
    assert messages[-1].text == "done"
    proposed = [call["id"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]
    assert proposed == [call for step in range(steps_of(thread)) for call in calls_of(thread, step)]
    for answer in answers(messages):
        acted = verdict_of(thread, answer.tool_call_id) == "act"
        assert answer.status == ("success" if acted else "error")


@pytest.mark.parametrize(
    ("threads", "workers", "lanes", "kills"),
    [
        pytest.param(20, 2, 10, 5, id="20-threads"),
        pytest.param(200, 4, 50, 80, id="200-threads", marks=pytest.mark.nightly),
    ],
)
def test_killed_workers_run_nothing_twice(
    postgres: Any,
    tmp_path: Path,
    record_property: Any,
    threads: int,
    workers: int,
    lanes: int,
    kills: int,
) -> None:
    url = postgres.new_database()
    names = [f"thread-{number:03}" for number in range(threads)]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLES)
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO queue (thread) VALUES (%s)", [(name,) for name in names])
    supervisor = Supervisor(url, tmp_path, lanes, kills, kill_after=(0.1, 0.6) if threads < 100 else (0.5, 4.0))
    supervisor.run(workers)
    again = assert_invariants(url, names)
    print(f"{threads} threads, {supervisor.killed} kills; calls run again: {dict(again)}")
    record_property("kills", supervisor.killed)
    for name, count in again.items():
        record_property(name, count)
    assert supervisor.killed > 0
