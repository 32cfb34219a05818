"""What judges made of it, as tables; one judgement with what it compared, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.judging.judgement import WINNERS
from mosaic_guard_training.judging.render import call_name, render

if TYPE_CHECKING:
    from mosaic_guard._trace import Trajectory
    from mosaic_guard_training.evaluation.metrics import Rate
    from mosaic_guard_training.judging.agreement import Agreement
    from mosaic_guard_training.judging.judgement import Judgement
    from mosaic_guard_training.judging.stage import JudgeRun

CIRCLES = 5
"""How many intransitive triples are named on the screen; the report holds all."""


def summary(run: JudgeRun) -> Iterator[str]:
    """What a run did, in sentences."""
    for name in sorted({*run.judged, *run.cached, *run.failed}):
        failed = f", {run.failed[name]} failed" if run.failed[name] else ""
        yield f"{name}: {run.judged[name]} judged, {run.cached[name]} known before{failed}"
    for error, number in run.errors.most_common(3):
        yield f"  failed {number} times: {error}; run the same command again to try those again"


def tables(found: Agreement) -> Iterator[RenderableType]:
    """The judges by themselves, each two of them, and the circles."""
    alone = Table(title="Judges (95 % intervals)", title_justify="left")
    alone.add_column("")
    for report in found.judges:
        alone.add_column(Text(report.judge), justify="right")
    alone.add_row("judgements", *(str(report.judged) for report in found.judges))
    for name in WINNERS:
        alone.add_row(f"  {name}", *(str(report.winners[name]) for report in found.judges))
    alone.add_row("coverage", *(_rate(report.coverage) for report in found.judges))
    alone.add_row("orders contradict", *(_rate(report.contradictions) for report in found.judges))
    alone.add_row("a win and a tie", *(_rate(report.unsteady) for report in found.judges))
    alone.add_row("favours the first", *(_rate(report.favours_first) for report in found.judges))
    alone.add_row("intransitive", *(f"{len(r.intransitive)} of {r.triples} triples" for r in found.judges))
    yield alone
    if found.pairs:
        two = Table(title="Agreement (intervals by resampling tasks)", title_justify="left")
        for header in ("judges", "in common", "tasks", "same answer", "Cohen's kappa"):
            two.add_column(header, justify="left" if header == "judges" else "right")
        for pair in found.pairs:
            kappa = "–" if pair.kappa is None else f"{pair.kappa:.2f}"
            if pair.interval is not None:
                kappa += f" [{pair.interval[0]:.2f}, {pair.interval[1]:.2f}]"
            two.add_row(Text(" · ".join(pair.judges)), str(pair.raw.n), str(pair.tasks), _rate(pair.raw), kappa)
        yield two
    for report in found.judges:
        for task, ids in report.intransitive[:CIRCLES]:
            yield Text(f"{report.judge} goes in a circle over {', '.join(ids)} of task {task}")
        if len(report.intransitive) > CIRCLES:
            yield Text(f"{report.judge}: {len(report.intransitive) - CIRCLES} more circles are in the report")


def show(key: str, judgements: Sequence[Judgement], trajectories: Mapping[str, Trajectory], console: Console) -> None:
    """Print one judgement, the votes, and both trajectories side by side.

    Args:
        key: The beginning of its key.
        judgements: Where it is looked for.
        trajectories: By id.
        console: Where it goes.

    Raises:
        TrainingError: If no judgement, or several, have such a key.
    """
    found = {judgement.key: judgement for judgement in judgements if judgement.key.startswith(key)}
    if len(found) != 1:
        raise TrainingError(f"{len(found)} judgements have a key that begins with {key!r}: give more, or other, digits")
    judgement = next(iter(found.values()))
    about = f"{judgement.judge} on task {judgement.task}: {judgement.winner}"
    console.print(Text(f"{about} ({judgement.reason})" if judgement.reason else about, style="bold"))
    console.print(Text(f"{judgement.key}  {judgement.time}", style="dim"))
    for vote in judgement.votes:
        console.print(Text(f"saw {vote.first} first and said {vote.winner}: {vote.answer.strip()}"))
    if judgement.step is not None:
        names = [_called(trajectories.get(judgement.one), judgement.step, call) for call in judgement.calls]
        console.print(Text(f"one: call {', '.join(names)} runs; other: it is refused"))
    console.print(
        side_by_side([(name, trajectories.get(name)) for name in dict.fromkeys((judgement.one, judgement.other))])
    )


def side_by_side(columns: Sequence[tuple[str, Trajectory | None]], limit: int = 12_000) -> Table:
    """Trajectories in columns, each under its heading, of at most `limit` characters."""
    table = Table(expand=True, show_lines=False)
    for heading, _ in columns:
        table.add_column(Text(heading), ratio=1, overflow="fold")
    table.add_row(
        *(Text("not in these traces" if trajectory is None else render(trajectory, limit)) for _, trajectory in columns)
    )
    return table


def _called(trajectory: Trajectory | None, number: int, call: int) -> str:
    steps = [step for step in trajectory.steps if step.step == number] if trajectory else []
    return call_name(steps[0], call) if steps else f"{number + 1}.{call + 1}"


def _rate(rate: Rate) -> str:
    if rate.value is None or rate.interval is None:
        return "–"
    return f"{rate.value:.0%} [{rate.interval[0]:.0%}, {rate.interval[1]:.0%}]"
