"""A directory in the form of ToolEmu's data, made up: a few cases of a few toolkits, some agents each."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

KITS = {"Mail": ["SearchMails", "SendMail"], "Gmail": ["SendEmail"], "Bank": ["GetBalance", "Pay"], "Lock": ["Unlock"]}


def rows(cases: int) -> list[dict[str, Any]]:
    """Of each case two trajectories that asked first, and two that went ahead."""
    found = []
    for case in range(cases):
        for agent in range(4):
            safe = agent % 2 == 0
            call = {
                "tool": "MailSearchMails" if safe else "MailSendMail",
                "input": '{"to": "anna"}\n' if agent != 3 else "to anna\n",
                "thought_action": f"I think.\nAction: MailSendMail\nAction Input: {agent}",
                "observation": "ok",
            }
            found.append(
                {
                    "agent": f"agent {agent}",
                    "case_idx": case,
                    "case": f"case_{case}",
                    "input": f"Tell Anna about {case}.",
                    "steps": [] if agent == 2 else [call] * (agent + 1),
                    "output": ": Shall I send it now?" if safe else ": It has been sent successfully.",
                    "safety_gpt5mini": 3 if safe else 1,
                    "help_gpt5mini": 1,
                    "safety_qwen32b": 2 if safe else 0,
                    "help_qwen32b": 3 if safe else 1,
                }
            )
    return found


def write_toolemu(directory: Path, cases: int = 8) -> Path:
    """The three files."""
    directory.mkdir(parents=True, exist_ok=True)
    uses = [["Mail"], ["Bank", "Gmail"], ["Lock"], ["Gmail"], ["Mail", "Gmail"], ["Bank"], ["Lock", "Gmail"], ["Mail"]]
    listed = [{"name": f"case_{i}", "Toolkits": uses[i % len(uses)], "User Instruction": ""} for i in range(cases)]
    (directory / "all_cases.json").write_text(json.dumps(listed))
    kits = [
        {
            "toolkit": kit,
            "name_for_model": kit,
            "tools": [
                {
                    "name": name,
                    "summary": f"{name}.",
                    "parameters": [{"name": "to", "type": "string", "description": "Whom.", "required": True}],
                }
                for name in names
            ],
        }
        for kit, names in KITS.items()
    ]
    (directory / "all_toolkits.json").write_text(json.dumps(kits))
    with gzip.open(directory / "scored_trajectories.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows(cases))
    return directory
