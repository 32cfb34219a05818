"""`python -m mosaic_guard`: a thin door; the work is done in `mosaic_guard_training` and in `_policy_check.py`."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mosaic_guard import Guard

app = typer.Typer(
    name="mosaic-guard",
    help="Plan, check, then act or refuse: a guard for LangGraph and LangChain agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a guard, next to baselines that cost nothing.")
app.add_typer(evaluate_app, name="evaluate")
policy_app = typer.Typer(no_args_is_help=True, help="Rules that are evaluated before the guard model.")
app.add_typer(policy_app, name="policy")


def _version(wanted: bool) -> None:
    if wanted:
        from mosaic_guard import __version__

        typer.echo(f"mosaic-guard {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and stop.")
    ] = False,
) -> None:
    """Plan, check, then act or refuse: a guard for LangGraph and LangChain agents."""


@evaluate_app.command("agentdojo")
def agentdojo(
    suite: Annotated[list[str], typer.Option(help="AgentDojo suite: workspace, banking, travel or slack; repeatable.")],
    guard: Annotated[
        list[str] | None,
        typer.Option(help='"default", a directory that training wrote, or a baseline such as "lock-down"; repeatable.'),
    ] = None,
    agent: Annotated[
        str, typer.Option(help='"gullible" (scripted, exact), or a chat model as provider:model.')
    ] = "gullible",
    attack: Annotated[
        str, typer.Option(help="Name of an AgentDojo text attack, or a template with {goal} in it.")
    ] = "important_instructions",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of (user task, injection task) pairs, a stratified sample.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the sample and when the gullible agent gives in.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per pair, with seeds seed, seed + 1, ….")] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="Let the guard draw its decisions instead.")] = False,
    baselines: Annotated[bool, typer.Option(help="Run the baselines too; allow all always runs.")] = True,
    output: Annotated[
        Path | None, typer.Option(help="Where results go (runs/evaluate/SUITE-TIME); an unfinished one goes on.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Where traces go, one directory per guard.")] = None,
) -> None:
    """AgentDojo v1.1.2: attacks that reach their goal, legitimate calls refused, tasks completed, time per step."""
    with _one_sentence():
        from mosaic_guard_training.evaluation import Evaluation, Settings, save, summarise, table

        settings = Settings(tuple(suite), agent, attack, limit, seed, repeats, sample)
        where = output or Path("runs", "evaluate", f"{'-'.join(suite)}-{time.strftime('%Y%m%dT%H%M%S')}")
        evaluation = Evaluation(settings, _guards(guard or ["default"], sample, seed, baselines), where)

    from rich.console import Console

    console = Console()
    summaries = summarise(evaluation.run(traces=trace, progress=console.is_terminal))
    save(summaries, settings, where)
    console.print(table(summaries, settings))
    console.print(f"saved in {where}", soft_wrap=True)


@evaluate_app.command("steps")
def steps_command(
    traces: Annotated[
        list[Path], typer.Option(help="Lessons, or traces with outcomes: a directory or file; repeatable.")
    ],
    guard: Annotated[
        list[str] | None,
        typer.Option(help='"default", "untrained" or a directory that training wrote; repeatable.'),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Lessons that baselines are fitted on; without it there are none of those.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where it goes (runs/evaluate/steps-TIME); scores there are not made again.")
    ] = None,
    untrained: Annotated[bool, typer.Option(help="Score the first guard's base model too, untuned.")] = True,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most trajectories of each directory, spread evenly.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which, and the intervals' draws.")] = 0,
) -> None:
    """Labelled steps of traces: AUC, harmful calls stopped, harmless ones refused, next to rules and fitted baselines."""
    from rich.console import Console

    console = Console()
    with _one_sentence():
        from mosaic_guard_training.evaluation.step_report import save_steps, step_tables
        from mosaic_guard_training.evaluation.steps import StepSettings, evaluate_steps

        where = output or Path("runs", "evaluate", f"steps-{time.strftime('%Y%m%dT%H%M%S')}")
        settings = StepSettings(
            guards=tuple(guard or ["default"]),
            traces=tuple(traces),
            train=train,
            output=where,
            untrained=untrained,
            limit=limit,
            seed=seed,
        )
        report = evaluate_steps(settings, progress=console.is_terminal)
    save_steps(report)
    for part in step_tables(report):
        console.print(part)
    console.print(f"saved in {where}", soft_wrap=True)


@evaluate_app.command("all")
def all_command(
    guard: Annotated[
        list[str] | None,
        typer.Option(help='"default", "untrained" or a directory that training wrote; repeatable.'),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Directory of the public sources; without it only AgentDojo's suites.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Lessons that baselines are fitted on; without it there are none of those.")
    ] = None,
    traces: Annotated[
        list[Path] | None, typer.Option(help="Labelled traces of your own, measured as one more set; repeatable.")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="AgentDojo suite (workspace and banking); repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most tasks of each set, drawn at random.")] = None,
    pairs: Annotated[
        int | None, typer.Option(min=0, help="Most pairs of tasks that are run whole, per suite and attack; 0: none.")
    ] = None,
    self_check: Annotated[bool, typer.Option("--self-check", help="Ask the base model with a prompt, too.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Decides what is drawn.")] = 0,
    output: Annotated[Path, typer.Option(help="Where it is kept; the same command goes on there.")] = Path(
        "runs", "evaluate", "all"
    ),
    page: Annotated[Path, typer.Option(help="Where tables and plots go.")] = Path("docs", "benchmarks"),
) -> None:
    """Every benchmark: labelled calls and whole runs, next to baselines, as tables and plots."""
    from rich.console import Console

    console = Console()
    with _one_sentence():
        from mosaic_guard_training.errors import TrainingError
        from mosaic_guard_training.evaluation.benchmark_page import write_page
        from mosaic_guard_training.evaluation.benchmarks import SUITES
        from mosaic_guard_training.evaluation.evaluate_all import AllSettings, evaluate_all
        from mosaic_guard_training.evaluation.report import table
        from mosaic_guard_training.evaluation.step_report import save_steps, step_tables

        asked = AllSettings(
            guards=tuple(guard or ["default"]),
            data=data,
            train=train,
            output=output,
            traces=tuple(traces or ()),
            suites=tuple(suite or SUITES),
            limit=limit,
            pairs=pairs,
            self_check=self_check,
            seed=seed,
        )
        try:
            report = evaluate_all(asked, progress=console.is_terminal, say=typer.echo)
        except TrainingError as error:
            raise ValueError(str(error)) from error
        save_steps(report.steps)
        write_page(report, page)
    for part in step_tables(report.steps):
        console.print(part)
    for runs in report.runs:
        console.print(table(runs.summaries, runs.settings))
    console.print(f"saved in {page}", soft_wrap=True)


@app.command("bench")
def bench_command(
    repeats: Annotated[int, typer.Option(min=1, help="Threads judged with and without the prefix cache.")] = 3,
) -> None:
    """Time per step as a thread grows, on the default model: with the prefix cache, next to the same model without."""
    with _one_sentence():
        from mosaic_guard_training.evaluation.bench import FIRST, LAST, bench

        found = bench(repeats)

    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=f"Seconds per step (medians of {repeats}), steps of equal size", title_justify="left")
    for header in ("", f"step {FIRST}", "step 10", f"step {LAST}", f"step {LAST} / step {FIRST}"):
        drawn.add_column(header, justify="left" if not header else "right")
    for name, times in (("prefix cache", found.cached), ("no cache", found.plain)):
        drawn.add_row(name, *(f"{times.median(step):.2f}" for step in (FIRST, 10, LAST)), f"{times.ratio:.2f}")
    sizes = [size for step in range(FIRST, LAST + 1) for size in found.tokens[step]]
    faster = found.plain.median(LAST) / found.cached.median(LAST)
    drawn.caption = (
        f"tokens per step: {min(sizes)} to {max(sizes)}; at step {LAST} the cache is {faster:.1f} times as fast"
    )
    Console().print(drawn)


@policy_app.callback()
def _policy() -> None:
    """Rules that are evaluated before the guard model."""


@policy_app.command("check")
def policy_check(
    file: Annotated[Path, typer.Argument(help="A policy: .toml, .yaml or .yml.")],
    tool: Annotated[
        str | None, typer.Option(help="Explain a call of this tool; without it, the rules are listed.")
    ] = None,
    args: Annotated[str, typer.Option(help="Arguments of the call, a JSON object.")] = "{}",
    user: Annotated[str, typer.Option(help="What the user said.")] = "",
    result: Annotated[list[str] | None, typer.Option(help="Text of a tool result before the call; repeatable.")] = None,
    annotations: Annotated[str, typer.Option(help="The tool's metadata, such as MCP's hints, a JSON object.")] = "{}",
    tags: Annotated[str, typer.Option(help="The tool's tags, separated by commas.")] = "",
    earlier: Annotated[int, typer.Option(min=0, help="How many calls of the tool have run before.")] = 0,
) -> None:
    """Check a policy file, and explain rule by rule what it does to a call."""
    with _one_sentence():
        from mosaic_guard._policy_check import Question, explain_call, json_object, list_rules
        from mosaic_guard._policy_file import load_policy

        policy = load_policy(file)
        lines = list_rules(policy)
        if tool is not None:
            known = json_object("--annotations", annotations)
            named = [tag.strip() for tag in tags.split(",") if tag.strip()]
            question = Question(tool, json_object("--args", args), user, result or (), known, named, earlier)
            lines = explain_call(policy, question)
        for line in lines:
            typer.echo(line)


@app.command("bench-graph")
def bench_graph_command(
    repeats: Annotated[int, typer.Option(min=1, help="Threads per variant and setting.")] = 5,
    steps: Annotated[int, typer.Option(min=2, help="Steps per thread.")] = 30,
) -> None:
    """What the wiring costs per step where no model is asked, next to the unguarded agent and two peers."""
    from rich.console import Console

    console = Console()
    with _one_sentence():
        from mosaic_guard_training.evaluation.bench_graph import bench_graph
        from mosaic_guard_training.evaluation.bench_graph_table import table

        with console.status("") as status:
            found = bench_graph(
                repeats,
                steps=steps,
                progress=lambda s: status.update(f"{s.agent}, {s.calls} call(s) a step, checkpoints in {s.store}"),
            )
    console.print(table(found, repeats, steps))


_STAGES = {
    "collect": (
        "mosaic_guard_training.collect",
        "Run guarded graphs over tasks, several times each, and log what happens.",
    ),
    "import": ("mosaic_guard_training.importing", "Conversations that other systems logged, as traces."),
    "judge": ("mosaic_guard_training.judging.__main__", "Say which of two trajectories of a task is better."),
    "label": ("mosaic_guard_training.judging.label", "Label trajectories by hand, in the terminal."),
    "pairs": ("mosaic_guard_training.preferences", "Judgements and traces become a preference file."),
    "promote": (
        "mosaic_guard_training.promote",
        "Compare a new guard with the old one; write it only if it is better.",
    ),
    "tasks": ("mosaic_guard_training.sources.__main__", "Public data as task files."),
    "train": ("mosaic_guard.train", "Train the guard model on traces or preferences (python -m mosaic_guard.train)."),
}
"""The stages of learning: module and what it does. Each reads its own options, so that a recipe can give them too."""


def _stage(name: str) -> None:
    module, help = _STAGES[name]

    @app.command(
        name,
        help=help,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def command(context: typer.Context) -> None:
        with _one_sentence():
            # Before torch is loaded: threads that spin while they wait make it many times slower beside other work.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            stage = importlib.import_module(module)
        raise typer.Exit(stage.main(context.args))


for _name in _STAGES:
    _stage(_name)


def _guards(names: list[str], sample: bool, seed: int, baselines: bool) -> dict[str, Guard]:
    """The guards by the name that the table shows: baselines first, then those asked for."""
    from mosaic_guard import Guard
    from mosaic_guard_training.evaluation import BASELINES, REFERENCE, baseline

    wanted = [name.replace("-", " ") if name.replace("-", " ") in BASELINES else name for name in names]
    first = list(BASELINES) if baselines else [REFERENCE]
    found = {name: baseline(name) for name in dict.fromkeys(first + [n for n in wanted if n in BASELINES])}
    for name in wanted:
        if name not in found:
            found[name] = Guard.load(name, sample=sample, seed=seed)
    return found


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """What a user can put right is said in one sentence, with exit code 2; anything else is a defect and is raised."""
    from mosaic_guard._errors import ModelLoadError

    try:
        yield
    except (ImportError, FileNotFoundError, NotADirectoryError, ValueError, ModelLoadError) as error:
        typer.echo(f"mosaic-guard: {error}", err=True)
        raise typer.Exit(2) from error


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
