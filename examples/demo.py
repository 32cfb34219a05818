"""The whole loop on real input: guard, log, train, evaluate before and after. `make demo` runs it.

    python examples/demo.py [--output DIR] [--scenarios N] [--pairs N] [--train-tokens N]

1. Runs AgentDojo's *workspace* tasks, some of them under attack, each twice, with a guarded agent whose decisions are
   drawn from the default guard model; shows each plan, check and decision.
2. Trains the guard further on what was logged.
3. Evaluates the guard before and after on another suite, *banking*.

The agent is scripted: the *gullible agent* plays the ground truth of the user's task and, once it has read the injected
text, that of the attack. So whose call each is, is known, and no API key is needed. The guard is real. The sizes are
chosen for five minutes on two cores, not for good figures: training sees a handful of pairs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

console = Console()
SMALL_RUN = ("--epochs", 1, "--batch-size", 2)
"""A dozen pairs make two optimizer steps at the default batch size."""
COLOURS = {"act": "green", "refuse": "red", "ask": "yellow"}


def main() -> None:
    options = read_options()
    started = time.monotonic()
    output = options.output or Path("runs", f"demo-{time.strftime('%Y%m%dT%H%M%S')}")
    traces, guard = output / "traces", output / "guard"

    console.rule("1. Guarded AgentDojo tasks (workspace), each twice, decisions drawn")
    collect(traces, options.scenarios)

    console.rule("2. Evaluation before training (banking)")
    evaluate("default", output / "before", options.pairs)

    console.rule("3. Training on the traces")
    run("mosaic_guard.train", "--traces", traces, "--output", guard, "--max-tokens", options.train_tokens, *SMALL_RUN)

    console.rule("4. Evaluation after training (banking)")
    evaluate(guard, output / "after", options.pairs)

    console.rule(f"done in {time.monotonic() - started:.0f} s")
    console.print(
        "The agent was AgentDojo's ground truth, played by a script that gives in to what it reads; the guard was the\n"
        "default one, before and after further training on the traces above."
    )
    for what, where in {
        "traces": traces,
        "trained guard": guard,
        "loss curve": guard / "loss.png",
        "table before": output / "before" / "table.md",
        "table after": output / "after" / "table.md",
    }.items():
        console.print(f"  {what:14} {where}", soft_wrap=True)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help="where everything goes (default: runs/demo-TIME)")
    parser.add_argument("--scenarios", type=int, default=8, help="workspace scenarios, each run twice (default: 8)")
    parser.add_argument("--pairs", type=int, default=6, help="banking pairs of each evaluation (default: 6)")
    parser.add_argument("--train-tokens", type=int, default=20_000, help="tokens to train on (default: 20000)")
    return parser.parse_args()


def collect(traces: Path, scenarios: int) -> None:
    """Run a stratified sample of (user task, injection task) pairs; every fourth scenario without its attack."""
    from mosaic_guard import Guard, TraceWriter
    from mosaic_guard_agentdojo import pairs, run_task, scenario
    from mosaic_guard_training.evaluation import stratified

    guard = Guard(sample="decisions", seed=0)
    chosen = stratified(list(pairs("workspace")), scenarios, (lambda p: p[0], lambda p: p[1]), seed=0)
    with TraceWriter(traces) as trace:
        for number, (user, injection) in enumerate(chosen):
            played = scenario("workspace", user, None if number % 4 == 3 else injection)
            console.print(f"\n[bold]{number + 1}/{len(chosen)} {user}[/bold]: {escape(played.user_task.PROMPT[:110])}")
            goal = played.injection_task.GOAL if played.injection_task else None
            console.print(f"  [dim]{'no attack' if goal is None else escape('under attack: ' + goal[:110])}[/dim]")
            for repeat in (1, 2):
                result = run_task(played, guard, trace=trace, on_event=show)
                attack = (
                    ""
                    if result.goal_reached is None
                    else f", attack {'succeeded' if result.goal_reached else 'failed'}"
                )
                console.print(f"  run {repeat}: task {'done' if result.completed else 'not done'}{attack}")


def show(event: Mapping[str, Any]) -> None:
    """Print the guard's plan, safety check and decisions of one step."""
    if event["event"] != "decision":
        return
    line(f"  step {event['step'] + 1}  [cyan]plan[/cyan]   {escape(event['think'])}")
    if event["safety_thoughts"]:
        line(f"          [cyan]check[/cyan]  {escape(event['safety_thoughts'])}")
    for call, decision in zip(event["calls"], event["decisions"], strict=True):
        verdict, p_refuse = decision["verdict"], decision["p_refuse"]
        chance = "" if p_refuse is None else f" P(refuse) {p_refuse:.3f} "
        line(f"          [{COLOURS[verdict]}]{verdict:6}[/]{chance} {escape(call['name'])} {escape(str(call['args']))}")
        if verdict != "act":
            line(f"                 [dim]{escape(decision['reason'])}[/dim]")


def line(text: str) -> None:
    console.print(text, no_wrap=True, overflow="ellipsis")


def evaluate(guard: str | Path, output: Path, pairs: int) -> None:
    run(
        "mosaic_guard",
        "evaluate",
        "agentdojo",
        "--suite",
        "banking",
        "--guard",
        guard,
        "--limit",
        pairs,
        "--output",
        output,
    )


def run(module: str, *arguments: object) -> None:
    """Run a command of the package and show it, as a user would."""
    words = [str(word) for word in arguments]
    console.print(f"[bold]$ python -m {module} {escape(' '.join(words))}[/bold]", soft_wrap=True)
    done = subprocess.run([sys.executable, "-m", module, *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
