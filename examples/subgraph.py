"""A node that is itself a compiled graph: the agent works inside a larger graph.

    python examples/subgraph.py

The outer graph has no tool node of its own. `guarded_graph` finds the agent inside and guards it there.
"""

from __future__ import annotations

from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
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


def build(checkpointer: Any = None) -> Any:
    clerk = create_agent(ScriptedModel(says=SCRIPT), [read_file, send_money], name="clerk")

    builder = StateGraph(MessagesState)
    builder.add_node("clerk", clerk)
    builder.add_node("sign", lambda state: {"messages": [("ai", "Yours, the office")]})
    builder.add_edge(START, "clerk")
    builder.add_edge("clerk", "sign")
    return builder.compile(checkpointer=checkpointer)


def main() -> None:
    graph = guarded_graph(build(), guard=example_guard())
    show(graph.invoke(INPUT)["messages"])


if __name__ == "__main__":
    main()
