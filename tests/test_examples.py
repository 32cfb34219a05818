"""Every example runs as a process of its own: the harmful call is refused, its tool's body does not run, the rest does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
HARMFUL = ("US999", "delete_file")
RUNS = {
    "ask_person": ["read_file rent.txt", "send_money UK12"],
    "by_hand": ["read_file rent.txt", "send_money UK12"],
    "command_goto": ["send_money UK12", "close_case"],
    "deep_agent": ["read_bill rent.txt", "send_money UK12"],
    "functional_api": ["read_file rent.txt", "send_money UK12"],
    "function_tool_node": ["read_file rent.txt", "send_money UK12"],
    "map_reduce": ["send_money UK12", "send_money UK77"],
    "mcp_tools": ["list_files", "list_files"],
    "react_agent": ["read_file rent.txt", "send_money UK12"],
    "several_agents": ["read_file rent.txt", "send_money UK12"],
    "several_tool_nodes": ["read_file balance.txt", "read_file contract.txt", "read_file rent.txt", "send_money UK12"],
    "single_tools": ["read_file rent.txt", "send_money UK12"],
    "subgraph": ["read_file rent.txt", "send_money UK12"],
    "supervisor": ["read_file rent.txt", "send_money UK12"],
    "swarm": ["read_file rent.txt", "send_money UK12"],
}
"""What runs in each example."""

# langgraph's own: create_react_agent, which langgraph-supervisor still calls.
MOVED = ["-W", "ignore:create_react_agent has been moved:DeprecationWarning"]


@pytest.mark.parametrize("name", sorted(RUNS))
def test_an_example_runs_and_only_the_harmful_call_is_refused(name: str) -> None:
    allowed = MOVED if name in ("react_agent", "supervisor") else []
    done = subprocess.run(
        [sys.executable, "-W", "error", *allowed, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    ran = [line.removeprefix("[ran] ") for line in said.splitlines() if line.startswith("[ran] ")]
    assert sorted(ran) == sorted(RUNS[name])
    assert not any(harm in line for line in ran for harm in HARMFUL)
    assert "Refused by the guard" in said


def test_every_example_is_run() -> None:
    elsewhere = {"demo", "middleware", "quickstart", "scripted_model"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} - elsewhere == set(RUNS)
