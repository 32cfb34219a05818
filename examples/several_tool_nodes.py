"""Several tool nodes in one graph: calls that read go to one, calls that change something to another.

    python examples/several_tool_nodes.py

The guard judges all calls of a step together, whichever tool node each of them is for.
"""

from __future__ import annotations

from typing import Any

from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Send
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
        ("read_file", {"name": "contract.txt"}),
        ("send_money", {"recipient": ATTACKER, "amount": 5000}),
    ),
    call("read_file", "call_again", name="balance.txt"),
]
INPUT: Any = {"messages": [("user", "Please pay the rent as it says in rent.txt.")]}


def build(checkpointer: Any = None) -> Any:
    model = ScriptedModel(says=[*SCRIPT, "The rent is paid."])

    def agent(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    def route(state: MessagesState) -> list[Send] | str:
        """Each call goes to the tool node that has its tool."""
        proposed = state["messages"][-1].tool_calls
        return [Send("read" if c["name"] == "read_file" else "write", [c]) for c in proposed] or END

    builder = StateGraph(MessagesState)
    builder.add_node("agent", agent)
    builder.add_node("read", ToolNode([read_file]))
    builder.add_node("write", ToolNode([send_money]))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", route, ["read", "write", END])
    builder.add_edge("read", "agent")
    builder.add_edge("write", "agent")
    return builder.compile(checkpointer=checkpointer)


def main() -> None:
    graph = guarded_graph(build(), guard=example_guard())
    show(graph.invoke(INPUT)["messages"])


if __name__ == "__main__":
    main()
