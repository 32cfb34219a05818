"""The table of labelled steps for the terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mosaic_guard_training.evaluation.step_rates import RATES, Estimate, StepRates
from mosaic_guard_training.evaluation.steps import ALL, CONTESTED, Row, StepReport
from mosaic_guard_training.outputs import write_json

COLUMNS = (
    "AUC",
    "harmful stopped",
    "harmless refused",
    *(f"stopped at {100 * rate:g} % false alarms" for rate in RATES),
)
NARROW = ("AUC", "harmful\nstopped", "harmless\nrefused", *(f"stopped\nat {100 * rate:g} %" for rate in RATES))


def step_tables(report: StepReport) -> Iterator[Table | str]:
    """For the terminal: all calls and the contested ones for every scorer, families and categories for the guards; notes."""
    for traces in report.sets:
        rows = [row for row in report.rows if row.traces == traces.name]
        for row in rows:
            if not row.family and row.category in (ALL, CONTESTED):
                drawn = _table(f"{row.traces}, {row.name}: {row.harmful} harmful, {row.harmless} harmless")
                for name, rates in row.rates.items():
                    drawn.add_row(name, *(estimate_cell(each, "\n") for each in _estimates(rates)))
                yield drawn
        for name in report.weights:
            drawn = _table(f"{traces.name}, {name} by family and category")
            for row in rows:
                if row.category not in (ALL, CONTESTED):
                    named = row.name.replace("/", "/\n").replace(" ", "\n")
                    label = f"{named}\n[dim]{row.harmful} harmful\n{row.harmless} harmless[/dim]"
                    drawn.add_row(label, *(estimate_cell(each, "\n") for each in _estimates(row.rates[name])))
            yield drawn
    yield "\n".join([*_notes(report), f"Baselines by family and category: {report.settings.output / 'table.md'}"])


def _table(title: str) -> Table:
    drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("", overflow="fold")
    for header in NARROW:
        drawn.add_column(header, justify="right", no_wrap=True)
    return drawn


def step_markdown(report: StepReport) -> str:
    """The whole table in Markdown."""
    lines = ["# Labelled steps", ""]
    for row in report.rows:
        lines += [f"## {row.traces}: {row.name}", ""]
        lines += [f"{row.harmful} harmful calls, {row.harmless} harmless ones, of {row.groups} groups of twins.", ""]
        lines += [f"| scorer | threshold | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
        for name, rates in row.rates.items():
            cells = " | ".join(estimate_cell(each, "<br>", counts=True) for each in _estimates(rates))
            lines.append(f"| {name} | {report.thresholds[name]:g} | {cells} |")
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in _notes(report)), ""])


def save_steps(report: StepReport) -> None:
    """Write `steps.json` and `table.md` into the output directory, beside `scores/`."""
    output = report.settings.output
    output.mkdir(parents=True, exist_ok=True)
    settings = asdict(report.settings)
    for name in ("traces", "train", "output"):
        settings[name] = [*map(str, report.settings.traces)] if name == "traces" else str(settings[name])
    record = {
        "settings": settings | {"train": None if report.settings.train is None else settings["train"]},
        "scorers": {
            name: {"threshold": threshold, "weights": report.weights.get(name)}
            for name, threshold in report.thresholds.items()
        },
        "traces": {
            each.name: {
                "path": str(each.path),
                "sha256": each.digest,
                "lessons": len(each.lessons),
                "replayed": len(each.outcomes),
                "without_labels": each.left_out,
                "groups_fitted_on": report.seen[each.name],
                "contested": sorted(each.contested),
            }
            for each in report.sets
        },
        "rows": [row_record(row) for row in report.rows],
    }
    write_json(output / "steps.json", record)
    (output / "table.md").write_text(step_markdown(report), encoding="utf-8")


def row_record(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    rates = {
        name: {
            "auc": asdict(each.auc),
            "stopped": asdict(each.stopped),
            "refused": asdict(each.refused),
            "stopped_at": {f"{rate:g}": asdict(estimate) for rate, estimate in each.stopped_at.items()},
        }
        for name, each in row.rates.items()
    }
    return {**{key: value for key, value in vars(row).items() if key != "rates"}, "scorers": rates}


def _estimates(rates: StepRates) -> list[Estimate]:
    return [rates.auc, rates.stopped, rates.refused, *rates.stopped_at.values()]


def estimate_cell(estimate: Estimate, newline: str, *, counts: bool = False) -> str:
    """An estimate and its interval, on lines of their own; with `counts` k of n before them."""
    if estimate.value is None:
        return "–"
    if estimate.n is None:
        shown, ends = f"{estimate.value:.3f}", [f"{end:.3f}" for end in estimate.interval or ()]
    else:
        shown = f"{100 * estimate.value:.1f} %"
        ends = [f"{100 * end:.1f}".removesuffix(".0") for end in estimate.interval or ()]
    whole = [f"{estimate.k}/{estimate.n}"] if counts and estimate.n is not None else []
    return newline.join([*whole, shown, "–".join(ends) or "no interval"])


def _notes(report: StepReport) -> Iterator[str]:
    refuses = ", ".join(f"{name} at {report.thresholds[name]:g}" for name in report.weights)
    yield (
        f"A call is refused where P(refuse) reaches the threshold: {refuses}{', ' * bool(refuses)}fitted baselines at 0.5. "
        "Stopped at 1 % and 5 % false alarms: thresholds taken on these very calls, which flatters."
    )
    yield (
        f"95 % intervals: {report.settings.draws} bootstrap draws of groups of twins (AgentDojo: of user tasks, few and so "
        "narrower than the truth); for rates never narrower than Wilson's. Contested: tools called harmfully in the directory."
    )
    for each in report.sets:
        if each.lessons:
            yield f"{each.name}: {len(each.lessons)} lessons, each call after the right verdicts before it."
        if each.outcomes:
            yield (
                f"{each.name}: {len(each.outcomes)} trajectories with outcomes were replayed, each call after the guard's own "
                "verdicts before it; calls that no outcome names as harmful count as harmless."
            )
        if each.left_out:
            yield f"{each.name}: {each.left_out} trajectories carry no labels and are left out."
        if report.seen[each.name]:
            yield f"{each.name}: baselines were fitted on {report.seen[each.name]} of its groups of twins."
    if report.settings.limit is not None:
        yield f"At most {report.settings.limit} trajectories of each directory, drawn with seed {report.settings.seed}."
    if report.settings.train is None:
        yield "Without --train there are no fitted baselines."
