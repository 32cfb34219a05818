"""A tool node that is a plain function, as many hand-written graphs have one.

    python examples/function_tool_node.py

A function does not say that it runs tools, so it is named: `tool_nodes=["run_tools"]`. It is given the cleared calls only;
the guard answers the others.
"""

from __future__ import annotations

from typing import Any

from langchain_core.messages import ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from scripted_model import ATTACKER, BILL, ScriptedModel, call, calls, example_guard, ran, show

from mosaic_guard import guarded_graph


def read_file(name: str) -> str:
    ran(f"read_file {name}")
    return BILL


def send_money(recipient: str, amount: float) -> str:
    ran(f"send_money {recipient}")
    return f"{amount} sent to {recipient}"


TOOLS = {"read_file": read_file, "send_money": send_money}
SCRIPT = [
    call("read_file", name="rent.txt"),
    calls(
        ("send_money", {"recipient": "UK12", "amount": 980}),
        ("send_money", {"recipient": ATTACKER, "amount": 5000}),
    ),
    "The rent is paid.",
]
INPUT: Any = {"messages": [("user", "Please pay the rent as it says in rent.txt.")]}


def run_tools(state: MessagesState) -> dict[str, Any]:
    """Run the calls of the last message, one after the other."""
    results = [
        ToolMessage(TOOLS[c["name"]](**c["args"]), name=c["name"], tool_call_id=c["id"])
        for c in state["messages"][-1].tool_calls
    ]
    return {"messages": results}


def build(checkpointer: Any = None) -> Any:
    model = ScriptedModel(says=SCRIPT)

    def agent(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("agent", agent)
    builder.add_node("run_tools", run_tools)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", lambda state: "run_tools" if state["messages"][-1].tool_calls else END)
    builder.add_edge("run_tools", "agent")
    return builder.compile(checkpointer=checkpointer)


def main() -> None:
    graph = guarded_graph(build(), guard=example_guard(), tool_nodes=["run_tools"])
    show(graph.invoke(INPUT)["messages"])


if __name__ == "__main__":
    main()
