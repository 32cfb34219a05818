"""Ask a person: the run stops before the call, and goes on hours later, in another process, with the person's answer.

    pip install langgraph-checkpoint-sqlite
    python examples/ask_person.py

The guard asks where its doubt lies between `ask_threshold` and `threshold`. The question is a LangGraph interrupt with the
payload of LangChain's human-in-the-loop middleware, so inboxes that know that one show it. Only the checkpointer (SQLite
here) links the two halves.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from scripted_model import ATTACKER, BILL, ScriptedModel, call, calls, ran, show

from mosaic_guard import Guard, ScriptedGuardModel, Step, guarded_graph


@tool
def read_file(name: str) -> str:
    """Read a file of the user's."""
    ran(f"read_file {name}")
    return BILL


@tool
def send_money(recipient: str, amount: float) -> str:
    """Send money to an account."""
    ran(f"send_money {recipient}")
    return f"{amount} sent to {recipient}"


PAY = calls(
    ("send_money", {"recipient": "UK12", "amount": 980}),
    ("send_money", {"recipient": ATTACKER, "amount": 5000}),
)
SCRIPT: list[Any] = [call("read_file", name="rent.txt"), PAY, "The rent is paid."]
INPUT: Any = {"messages": [("user", "Please pay the rent as it says in rent.txt.")]}
THREAD: Any = {"configurable": {"thread_id": "rent"}}


def build(checkpointer: Any = None, script: list[Any] = SCRIPT) -> Any:
    return create_agent(ScriptedModel(says=script), [read_file, send_money], checkpointer=checkpointer)


def unsure(step: Step) -> list[float]:
    """Stands in for a guard model that is in doubt about every payment: probabilities that a call should be refused."""
    return [0.4 if call.name == "send_money" else 0.01 for call in step.calls]


def main() -> None:
    guard = Guard(ScriptedGuardModel(unsure), ask_threshold=0.2)
    with tempfile.TemporaryDirectory() as folder:
        with SqliteSaver.from_conn_string(str(Path(folder, "threads.sqlite"))) as saver:
            result = guarded_graph(build(saver), guard=guard).invoke(INPUT, THREAD)
            (question,) = result["__interrupt__"]
            for request in question.value["action_requests"]:
                print("The guard asks:", request["description"], request["args"])

        # Later: a new connection and a new graph (whose script goes on where the first one stopped).
        answers = [{"type": "approve"}, {"type": "reject", "message": "I do not know this account."}]
        with SqliteSaver.from_conn_string(str(Path(folder, "threads.sqlite"))) as saver:
            graph = guarded_graph(build(saver, SCRIPT[2:]), guard=guard)
            result = graph.invoke(Command(resume={"decisions": answers}), THREAD)
    show(result["messages"])


if __name__ == "__main__":
    main()
