"""Map and reduce: one worker for each bill, all at the same time, then one node that sums up what they did.

    python examples/map_reduce.py

Each worker is a graph of its own with a tool node. `guarded_graph` guards it where it stands, so the calls of each worker are
judged in that worker, and the others do not wait for it.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send
from scripted_model import ATTACKER, ScriptedModel, call, example_guard, ran

from mosaic_guard import guarded_graph


@tool
def send_money(recipient: str, amount: float) -> str:
    """Send money to an account."""
    ran(f"send_money {recipient}")
    return f"{amount} sent to {recipient}"


class WorkerState(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    reports: Annotated[list[str], operator.add]


class Reports(TypedDict):
    reports: Annotated[list[str], operator.add]


class State(Reports):
    bills: list[str]
    summary: str


INPUT: Any = {"bills": ["rent UK12", f"parking {ATTACKER}", "water UK77"]}


def worker_says(messages: list[BaseMessage]) -> AIMessage:
    """The script of a worker: pay the account at the end of the bill, then report."""
    if isinstance(messages[-1], ToolMessage):
        return AIMessage(f"{messages[0].text}: {messages[-1].text}")
    return call("send_money", recipient=messages[0].text.split()[-1], amount=100)


def build_worker() -> Any:
    model = ScriptedModel(says=worker_says)
    builder = StateGraph(WorkerState, output_schema=Reports)
    builder.add_node("agent", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode([send_money]))
    builder.add_node("report", lambda state: {"reports": [state["messages"][-1].text]})
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition, {"tools": "tools", END: "report"})
    builder.add_edge("tools", "agent")
    return builder.compile()


def build(checkpointer: Any = None) -> Any:
    def one_worker_each(state: State) -> list[Send]:
        return [Send("worker", {"messages": [("user", bill)]}) for bill in state["bills"]]

    builder = StateGraph(State)
    builder.add_node("worker", build_worker())
    builder.add_node("sum_up", lambda state: {"summary": "\n".join(state["reports"])})
    builder.add_conditional_edges(START, one_worker_each, ["worker"])
    builder.add_edge("worker", "sum_up")
    return builder.compile(checkpointer=checkpointer)


def main() -> None:
    graph = guarded_graph(build(), guard=example_guard())
    print(graph.invoke(INPUT)["summary"])


if __name__ == "__main__":
    main()
