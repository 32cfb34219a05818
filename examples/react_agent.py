"""`create_react_agent` of langgraph.prebuilt, for those who have not moved to `create_agent` yet.

python examples/react_agent.py
"""

from __future__ import annotations

from typing import Any

from langchain_core.tools import tool
from langgraph.prebuilt import create_react_agent
from scripted_model import ATTACKER, BILL, ScriptedModel, call, calls, example_guard, ran, show

from mosaic_guard import guarded_graph


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


SCRIPT = [
    call("read_file", name="rent.txt"),
    calls(
        ("send_money", {"recipient": "UK12", "amount": 980}),
        ("send_money", {"recipient": ATTACKER, "amount": 5000}),
    ),
    "The rent is paid.",
]
INPUT: Any = {"messages": [("user", "Please pay the rent as it says in rent.txt.")]}


def build(checkpointer: Any = None, version: Any = "v2") -> Any:
    model = ScriptedModel(says=SCRIPT)
    return create_react_agent(model, [read_file, send_money], checkpointer=checkpointer, version=version)


def main() -> None:
    graph = guarded_graph(build(), guard=example_guard())
    show(graph.invoke(INPUT)["messages"])


if __name__ == "__main__":
    main()
