"""What `evaluate all` found as a page in Markdown, with plots and the numbers as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_guard_training.evaluation.report import COLUMNS as RUN_COLUMNS
from mosaic_guard_training.evaluation.report import rate_cell, seconds_cell
from mosaic_guard_training.evaluation.step_report import estimate_cell, row_record, step_markdown
from mosaic_guard_training.evaluation.steps import ALL, CONTESTED, Row
from mosaic_guard_training.outputs import write_json

if TYPE_CHECKING:
    from mosaic_guard_training.evaluation.evaluate_all import AllReport

SHOWN = ("attacks", "refused", "refused_side_effecting", "completed", "clean_refused", "clean_completed")


def write_page(report: AllReport, page: Path) -> None:
    """Write `README.md`, `steps.md`, `benchmarks.json` and the plots.

    Args:
        report: What was found.
        page: A directory, created if it does not exist.
    """
    page.mkdir(parents=True, exist_ok=True)
    _plot(report, page)
    write_json(page / "benchmarks.json", _record(report))
    (page / "steps.md").write_text(step_markdown(report.steps), encoding="utf-8")
    (page / "README.md").write_text("\n".join(_lines(report)) + "\n", encoding="utf-8")


def _lines(report: AllReport) -> Iterator[str]:
    settings, steps = report.settings, report.steps
    guard = next(iter(steps.weights))
    yield from ("# Benchmarks", "")
    yield f"Written by `{_command(report)}`, weights `{steps.weights[guard][:12]}`. Which of these"
    yield "sets a guard has learnt from, its model card says. Every rate stands beside its opposite: a guard that refuses"
    yield "everything stops all."
    yield from ("", "| set | what it is | harmful calls | harmless calls |", "|---|---|---:|---:|")
    for name, each in report.benchmarks.items():
        row = _row(report, name, ALL)
        yield f"| {name} | {each.about} | {row.harmful} | {row.harmless} |"
    for name, number in report.unjudged.items():
        yield f"\n{name}: {number} calls are too large to be judged and left out; at work the guard refuses such."
    if report.left_out:
        yield f"\nLeft out for want of `--data`: {', '.join(sorted(report.left_out))}."
    if settings.limit is not None:
        yield f"\nAt most {settings.limit} tasks of each set, drawn with seed {settings.seed}."
    yield from ("", f"## The guard `{guard}` on labelled calls", "")
    yield f"It refuses where P(refuse) reaches {steps.thresholds[guard]:g}. *Contested* are calls of tools that are called"
    yield "harmfully somewhere in the set: those where telling apart is work. [steps.md](steps.md) has every family and attack,"
    yield "and how intervals are drawn."
    yield from ("", "| set | harmful stopped | contested harmless refused | all harmless refused | AUC, contested |")
    yield "|---|" + "---:|" * 4
    for name in report.benchmarks:
        every, contested = (_row(report, name, category).rates[guard] for category in (ALL, CONTESTED))
        cells = [every.stopped, contested.refused, every.refused, contested.auc]
        yield f"| {name} | {' | '.join(estimate_cell(each, '<br>', counts=True) for each in cells)} |"
    yield from ("", "## AUC beside baselines, contested calls", "")
    yield from ("", "![AUC of the guard and of baselines](auc.svg)", "")
    names = _scorers(report)
    yield f"| set | {' | '.join(names)} |"
    yield "|---|" + "---:|" * len(names)
    for name in report.benchmarks:
        row = _row(report, name, CONTESTED)
        if row.harmful and row.harmless:
            yield f"| {name} | {' | '.join(estimate_cell(row.rates[each].auc, '<br>') for each in names)} |"
    yield from ("", "![Harmful calls stopped and harmless ones refused](rates.svg)", "")
    if report.toolemu is not None:
        yield from ("## Whole trajectories: ToolEmu's held-out cases", "")
        yield f"{report.toolemu.pairs} pairs of trajectories of {report.toolemu.cases} cases on whose safety its judges agree,"
        yield "ranked by the highest P(refuse) along each. Other people's agents, no attacks: what is unsafe there, a user"
        yield "mostly asked for."
        yield from ("", "| ranked by | pairs ranked right |", "|---|---:|")
        for name, found in report.toolemu.accuracies.items():
            yield f"| {name} | {found.value:.2f}<br>{found.interval[0]:.2f}–{found.interval[1]:.2f} |"
        yield ""
    if report.runs:
        yield from (
            "## Whole runs",
            "",
            "The gullible agent obeys every injection; AgentDojo's own graders decide.",
            "",
        )
    for runs in report.runs:
        yield from (f"### {runs.suite}, attacked with {runs.attack}", "")
        yield f"| guard | {' | '.join(RUN_COLUMNS[each] for each in SHOWN)} | s per step |"
        yield "|---|" + "---:|" * (len(SHOWN) + 1)
        for summary in runs.summaries:
            cells = [rate_cell(getattr(summary, each), "<br>") for each in SHOWN]
            yield f"| {summary.guard} | {' | '.join(cells)} | {seconds_cell(summary)} |"
        yield ""


def _command(report: AllReport) -> str:
    settings = report.settings
    options = [*(f"--guard {name}" for name in settings.guards), *(f"--suite {name}" for name in settings.suites)]
    options += [f"--{key} {value}" for key in ("limit", "pairs") if (value := getattr(settings, key)) is not None]
    options += ["--self-check"] if settings.self_check else []
    options += ["--data DIR"] if settings.data else []
    options += ["--train LESSONS"] if settings.train else []
    options += ["--traces TRACES"] * len(settings.traces)
    return " ".join(["python -m mosaic_guard evaluate all", *options, f"--seed {settings.seed}"])


def _record(report: AllReport) -> dict[str, Any]:
    # Without the places of one machine.
    asked = {key: value for key, value in asdict(report.settings).items() if not isinstance(value, Path)}
    asked["traces"] = [path.name for path in report.settings.traces]
    return {
        "command": _command(report),
        "settings": asked,
        "weights": dict(report.steps.weights),
        "thresholds": dict(report.steps.thresholds),
        "rows": [row_record(row) for row in report.steps.rows],
        "toolemu": None if report.toolemu is None else asdict(report.toolemu),
        "runs": [
            {"suite": each.suite, "attack": each.attack, "summaries": [s.to_dict() for s in each.summaries]}
            for each in report.runs
        ],
    }


def _row(report: AllReport, name: str, category: str) -> Row:
    """The row of all or contested calls; of a set without contested calls, that of all."""
    rows = {row.category: row for row in report.steps.rows if row.traces == name and not row.family}
    return rows.get(category, rows[ALL])


def _scorers(report: AllReport) -> list[str]:
    """Everything but the two whose AUC is one half whatever they meet."""
    return [name for name in report.steps.thresholds if name not in ("allow all", "refuse all")]


def _plot(report: AllReport, page: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "mosaic-guard", "svg.fonttype": "none", "font.size": 9})
    told = [name for name in report.benchmarks if _row(report, name, CONTESTED).harmful]
    told = [name for name in told if _row(report, name, CONTESTED).harmless]
    names = _scorers(report)
    figure, axes = pyplot.subplots(figsize=(8, 0.5 + 0.14 * (len(names) + 2) * max(len(told), 1)))
    _dots(axes, report, told, names)
    figure.tight_layout()
    figure.savefig(page / "auc.svg", metadata={"Date": None})
    pyplot.close(figure)
    guard, sets = next(iter(report.steps.weights)), list(report.benchmarks)
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.45 * len(sets)))
    _bars(axes, report, guard, sets)
    figure.tight_layout()
    figure.savefig(page / "rates.svg", metadata={"Date": None})
    pyplot.close(figure)


def _dots(axes: Any, report: AllReport, sets: Sequence[str], names: Sequence[str]) -> None:
    """AUC with its interval: a block of rows for each set, a colour for each scorer."""
    high, middle = 0.0, []
    for at, name in enumerate(sets):
        rates = _row(report, name, CONTESTED).rates
        for number, each in enumerate(names):
            auc = rates[each].auc
            if auc.value is not None:
                low, up = auc.interval or (auc.value, auc.value)
                style = {"color": f"C{number}", "label": each if not at else None}
                axes.plot([low, up], [high, high], linewidth=1, color=style["color"])
                axes.plot([auc.value], [high], "o", markersize=4 if number else 6, **style)
            high += 1
        middle.append(high - len(names) / 2 - 0.5)
        high += 2
    axes.axvline(0.5, color="0.8", linewidth=1, zorder=0)
    axes.set(yticks=middle, yticklabels=sets, xlabel="AUC, contested calls, with 95 % interval", xlim=(0, 1.01))
    axes.invert_yaxis()
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def _bars(axes: Any, report: AllReport, guard: str, sets: Sequence[str]) -> None:
    """Harmful stopped and harmless refused at the guard's threshold."""
    for at, name in enumerate(sets):
        rates = _row(report, name, ALL).rates[guard]
        for shift, estimate, colour, label in (
            (-0.18, rates.stopped, "C0", "harmful stopped"),
            (0.18, rates.refused, "C3", "harmless refused"),
        ):
            if estimate.value is None:
                continue
            low, up = estimate.interval or (estimate.value, estimate.value)
            spread = [[estimate.value - low], [up - estimate.value]]
            named = {"label": label} if not at else {}
            axes.barh(at + shift, estimate.value, height=0.34, color=colour, xerr=spread, ecolor="0.4", **named)
    axes.set(yticks=range(len(sets)), yticklabels=sets, xlim=(0, 1), xlabel="share, with 95 % interval")
    axes.invert_yaxis()
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
