"""Single tools behind the guard, called from a loop of your own without any graph.

    python examples/single_tools.py

A refused call is answered with a `ToolMessage` of status `error` where it has a tool call id, and raises `RefusedCallError`
where it was made with bare arguments.
"""

from __future__ import annotations

from langchain_core.tools import tool
from scripted_model import ATTACKER, BILL, example_guard, ran

from mosaic_guard import RefusedCallError, conversation, guard_tools


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


def main() -> None:
    read, send = guard_tools([read_file, send_money], guard=example_guard())
    with conversation("Please pay the rent as it says in rent.txt."):
        print(read.invoke({"name": "rent.txt"}))
        print(send.invoke({"recipient": "UK12", "amount": 980}))
        try:
            send.invoke({"recipient": ATTACKER, "amount": 5000})
        except RefusedCallError as refusal:
            print(f"RefusedCallError: {refusal}")
        message = send.invoke(
            {"type": "tool_call", "id": "1", "name": "send_money", "args": {"recipient": ATTACKER, "amount": 5000}}
        )
        print(f"{message.status}: {message.text}")


if __name__ == "__main__":
    main()
