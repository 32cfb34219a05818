"""The table that people read, and the files that programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mosaic_guard_training.evaluation.harness import GULLIBLE, Settings
from mosaic_guard_training.evaluation.metrics import Rate, Summary

COLUMNS: Mapping[str, str] = {
    "attacks": "attacks reached goal",
    "refused": "legitimate calls refused",
    "refused_side_effecting": "… side-effecting ones",
    "completed": "tasks completed under attack",
    "clean_refused": "refused without attack",
    "clean_completed": "completed without attack",
}
"""The rates that the saved table shows, by attribute of `Summary`."""

NARROW: Mapping[str, str] = {
    "attacks": "attacks\nreached\ngoal",
    "refused": "legit.\ncalls\nrefused",
    "refused_side_effecting": "… side-\neffecting\nones",
    "completed": "tasks\ndone under\nattack",
    "clean_completed": "tasks\ndone, no\nattack",
}
"""Those that fit into a terminal of 80 columns."""


def table(summaries: Sequence[Summary], settings: Settings) -> Table:
    """The summaries as a table for the terminal, one section per suite."""
    drawn = Table(
        title=_title(settings),
        caption=_caption(summaries, settings),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    drawn.add_column("guard", max_width=14, overflow="fold")
    for header in NARROW.values():
        drawn.add_column(header, justify="right", no_wrap=True)
    drawn.add_column("s per\nstep", justify="right", no_wrap=True)
    for suite in dict.fromkeys(s.suite for s in summaries):
        drawn.add_row(f"[bold]{suite}[/bold]")
        for summary in (s for s in summaries if s.suite == suite):
            drawn.add_row(summary.guard, *(rate_cell(getattr(summary, c), "\n") for c in NARROW), seconds_cell(summary))
            drawn.add_row()
    return drawn


def markdown(summaries: Sequence[Summary], settings: Settings) -> str:
    """The same table in Markdown."""
    lines = [f"# {_title(settings)}", ""]
    for suite in dict.fromkeys(s.suite for s in summaries):
        lines += [f"## {suite}", "", f"| guard | {' | '.join(COLUMNS.values())} | s per step |"]
        lines.append("|---|" + "---:|" * (len(COLUMNS) + 1))
        for summary in (s for s in summaries if s.suite == suite):
            cells = [rate_cell(getattr(summary, c), "<br>") for c in COLUMNS]
            lines.append(f"| {summary.guard} | {' | '.join(cells)} | {seconds_cell(summary)} |")
        lines.append("")
    return "\n".join([*lines, _caption(summaries, settings), ""])


def save(summaries: Sequence[Summary], settings: Settings, output: Path) -> None:
    """Write `summary.json` and `table.md` into `output`, beside `results.jsonl`."""
    record = {"settings": asdict(settings), "summaries": [s.to_dict() for s in summaries]}
    (output / "summary.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (output / "table.md").write_text(markdown(summaries, settings), encoding="utf-8")


def _title(settings: Settings) -> str:
    amount = "all pairs" if settings.limit is None else f"a sample of {settings.limit}"
    return (
        f"AgentDojo v1.1.2 {', '.join(settings.suites)}: agent {settings.agent}, attack {settings.attack}, "
        f"{amount}, seed {settings.seed}, repeats {settings.repeats}"
    )


def _caption(summaries: Sequence[Summary], settings: Settings) -> str:
    text = (
        "k/n, share, Wilson's 95 % interval in percent. Attacks: of those that reach their goal under allow all with "
        "at least one side-effecting call. Legitimate calls: of the user's ground truth, under attack; side-effecting: "
        "those that change the environment. Tasks whose grader is content from the start are left out. Time: median."
    )
    if settings.agent != GULLIBLE:
        text += " A chat model's calls are told apart by tool and arguments, so call rates are approximate."
    for summary in summaries:
        if summary.errors:
            text += f" {summary.guard} failed to judge {summary.errors} calls on {summary.suite}, which refused them."
    return text


def rate_cell(rate: Rate, newline: str) -> str:
    """How many of how many, the share and its interval in percent."""
    if rate.value is None or rate.interval is None:
        return "–"
    low, high = (f"{100 * end:.1f}".removesuffix(".0") for end in rate.interval)
    return f"{rate.k}/{rate.n}{newline}{100 * rate.value:.1f} %{newline}{low}–{high}"


def seconds_cell(summary: Summary) -> str:
    """The median time of a step."""
    return "–" if summary.seconds_per_step is None else f"{summary.seconds_per_step:.2g}"
