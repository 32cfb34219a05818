"""A worker that may be killed at any time: takes threads from a queue in PostgreSQL and runs them to their end.

    python tests/guarded_worker.py URL LANES

Each lane works on one thread at a time, on a connection of its own that holds both the thread's advisory lock and the saver:
the server ends a dead worker's statements before it gives its locks away. What ran and what was decided is written to
tables of its own, committed at once.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import time
from typing import Any

import psycopg
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.prebuilt import ToolNode
from psycopg.rows import dict_row
from scripted_agents import hand_written

from mosaic_guard import Guard, ScriptedGuardModel, guarded_graph

TABLES = """
CREATE TABLE queue (thread text PRIMARY KEY, done boolean NOT NULL DEFAULT false);
CREATE TABLE workers (pid integer, ready timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE verdicts (thread text, call text, verdict text, pid integer, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE executions (
    id bigserial PRIMARY KEY, thread text, call text, pid integer,
    started timestamptz NOT NULL DEFAULT clock_timestamp(), finished timestamptz
);
-- The first write of a result keeps its time: the saver writes a row that is there already no second time.
ALTER TABLE checkpoint_writes ADD COLUMN written timestamptz NOT NULL DEFAULT clock_timestamp();
ALTER TABLE checkpoints ADD COLUMN written timestamptz NOT NULL DEFAULT clock_timestamp();
"""


def _drawn(*key: Any) -> int:
    """A number that every process draws alike."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4])


def steps_of(thread: str) -> int:
    """How many steps a thread has."""
    return 3 + _drawn(thread, "steps") % 3


def calls_of(thread: str, step: int) -> list[str]:
    """The ids of the calls that its agent proposes at a step."""
    return [f"{step}-{number}" for number in range(1 + _drawn(thread, step, "calls") % 3)]


def verdict_of(thread: str, call: str) -> str:
    """What the guard decides about a call."""
    return "refuse" if _drawn(thread, call, "verdict") % 5 == 0 else "act"


class Agent(BaseChatModel):
    """Proposes the calls of a thread; where it stands is told by the history alone."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Agent:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        thread = next(m.text for m in messages if isinstance(m, HumanMessage))
        step = sum(isinstance(m, AIMessage) for m in messages)
        ids = calls_of(thread, step) if step < steps_of(thread) else []
        made = [{"name": "pay", "args": {"thread": thread, "call": call}, "id": call} for call in ids]
        said = AIMessage("" if made else "done", tool_calls=made)
        return ChatResult(generations=[ChatGeneration(message=said)])


class Worker:
    """One guard, one connection for what is recorded, and lanes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pid = os.getpid()
        # psycopg lets threads share a connection; each statement is committed by itself.
        self.records = psycopg.connect(url, autocommit=True)
        self.guard = Guard(ScriptedGuardModel(self.decide))

    def decide(self, step: Any) -> list[str]:
        found = [(c.args["thread"], c.id, verdict_of(c.args["thread"], c.id)) for c in step.calls]
        for thread, call, verdict in found:
            self.records.execute(
                "INSERT INTO verdicts (thread, call, verdict, pid) VALUES (%s, %s, %s, %s)",
                (thread, call, verdict, self.pid),
            )
        return [verdict for _, _, verdict in found]

    def pay(self, thread: str, call: str) -> str:
        row = self.records.execute(
            "INSERT INTO executions (thread, call, pid) VALUES (%s, %s, %s) RETURNING id", (thread, call, self.pid)
        ).fetchone()
        assert row is not None
        time.sleep(random.uniform(0, 0.03))
        self.records.execute("UPDATE executions SET finished = clock_timestamp() WHERE id = %s", row)
        return f"paid {call}"

    def graphs(self, saver: PostgresSaver) -> tuple[Any, Any]:
        """One graph that runs the calls of a step as tasks of their own, and one that runs them in a single task."""
        tools: list[BaseTool] = [StructuredTool.from_function(self.pay, name="pay", description="Pays.")]
        plain = (
            create_agent(Agent(), tools, checkpointer=saver),
            hand_written(Agent(), ToolNode(tools), checkpointer=saver),
        )
        one, other = (guarded_graph(graph, guard=self.guard, max_refusals=100) for graph in plain)
        return one, other

    def lane(self) -> None:
        with psycopg.connect(self.url, autocommit=True, prepare_threshold=0, row_factory=dict_row) as connection:
            graphs = self.graphs(PostgresSaver(connection))
            while True:
                waiting = connection.execute("SELECT thread FROM queue WHERE NOT done ORDER BY random()").fetchall()
                if not waiting:
                    return
                for row in waiting:
                    self.take(connection, row["thread"], graphs)
                time.sleep(0.05)

    def take(self, connection: psycopg.Connection[Any], thread: str, graphs: tuple[Any, Any]) -> None:
        """Run a thread to its end, unless somebody else has it."""
        row = connection.execute("SELECT pg_try_advisory_lock(hashtext(%s)) AS mine", (thread,)).fetchone()
        if not row["mine"]:
            return
        try:
            waits = connection.execute("SELECT 1 FROM queue WHERE thread = %s AND NOT done", (thread,)).fetchone()
            if waits:
                graph = graphs[_drawn(thread, "graph") % 2]
                config: Any = {"configurable": {"thread_id": thread}}
                begun = graph.get_state(config)
                # Not `next`: it leaves out tasks that were done, but whose worker died before the next checkpoint.
                if begun.tasks:
                    graph.invoke(None, config)
                elif not begun.values:
                    graph.invoke({"messages": [HumanMessage(thread)]}, config)
                connection.execute("UPDATE queue SET done = true WHERE thread = %s", (thread,))
        finally:
            connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", (thread,))


def main() -> None:
    url, lanes = sys.argv[1], int(sys.argv[2])
    worker = Worker(url)
    worker.records.execute("INSERT INTO workers (pid) VALUES (%s)", (worker.pid,))
    failed: list[BaseException] = []

    def lane() -> None:
        try:
            worker.lane()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=lane) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.records.close()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
