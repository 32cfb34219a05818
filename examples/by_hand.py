"""Place the guard's nodes yourself: you draw every edge, and see in the graph where the guard stands.

    python examples/by_hand.py

Yours are three edges: the agent's calls go to `plan`, and the tools and `refuse` go back to the agent. From `plan` on,
`add_guard` has drawn the way: to `check`, then to the tools, to `ask` or to `refuse`. A tool node that is reached past `plan`
sends its calls there.
"""

from __future__ import annotations

from typing import Any

from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from scripted_model import ATTACKER, BILL, ScriptedModel, call, calls, example_guard, ran, show

from mosaic_guard import Guard, GuardedStateGraph, GuardNodes


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


def draw(builder: StateGraph[Any], tools_of_agent: str) -> None:
    """What both graphs have: the agent, and where its calls go."""
    model = ScriptedModel(says=SCRIPT)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition, {"tools": tools_of_agent, END: END})
    builder.add_edge("tools", "agent")


def build(checkpointer: Any = None) -> Any:
    """Without the guard: agent -> tools -> agent."""
    builder = StateGraph(MessagesState)
    builder.add_node("tools", ToolNode([read_file, send_money]))
    draw(builder, "tools")
    return builder.compile(checkpointer=checkpointer)


def build_guarded(guard: Guard, checkpointer: Any = None) -> Any:
    """With it: agent -> plan -> check -> tools or refuse -> agent."""
    builder = GuardedStateGraph(MessagesState)
    builder.add_guard(GuardNodes(guard, {"tools": ToolNode([read_file, send_money])}))
    draw(builder, "plan")
    builder.add_edge("refuse", "agent")
    return builder.compile(checkpointer=checkpointer)


def main() -> None:
    graph = build_guarded(example_guard())
    print(graph.get_graph().draw_mermaid())
    show(graph.invoke(INPUT)["messages"])


if __name__ == "__main__":
    main()
