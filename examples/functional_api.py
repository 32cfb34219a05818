"""The functional API (`@entrypoint`, `@task`) has no tool node to stand before: guard the tools themselves.

    python examples/functional_api.py

`guard_tools` makes tools that ask the guard before their body runs. `conversation(messages)` tells them what was said, so
that the guard can see who asked for a call; the calls of the last message are judged together.
"""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import add_messages
from scripted_model import ATTACKER, BILL, ScriptedModel, call, calls, example_guard, ran, show

from mosaic_guard import conversation, guard_tools


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


def build(tools: list[Any]) -> Any:
    """An agent written as a loop, around any tools: guarded ones or not."""
    model, by_name = ScriptedModel(says=SCRIPT), {known.name: known for known in tools}

    @task
    def propose(messages: list[AnyMessage]) -> AIMessage:
        return model.invoke(messages)

    @task
    def run(proposed: Any) -> ToolMessage:
        return by_name[proposed["name"]].invoke(proposed)

    @entrypoint(checkpointer=InMemorySaver())
    def agent(messages: Any) -> Any:
        while (said := propose(messages).result()).tool_calls:
            messages = add_messages(messages, [said])
            with conversation(messages):
                running = [run(proposed) for proposed in said.tool_calls]
            messages = add_messages(messages, [future.result() for future in running])
        return add_messages(messages, [said])

    return agent


def main() -> None:
    agent = build(guard_tools([read_file, send_money], guard=example_guard()))
    question = [HumanMessage("Please pay the rent as it says in rent.txt.")]
    show(agent.invoke(question, {"configurable": {"thread_id": "1"}}))


if __name__ == "__main__":
    main()
