"""What came of the ablations: measures with intervals over seeds and tasks, as JSON and as Markdown tables.

Intervals are 95 % bootstrap intervals: seeds and held-out tasks are both drawn anew, 2,000 times, the same seeds and the same
tasks for all arms, so that differences are paired. So what differs between tasks counts as well as what differs between seeds.
No drawing of three seeds leaves the range of the three, so such an interval is too narrow: a difference is only said to show
where each seed by itself has it too, and each seed's is printed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.graded import GradedTask, Payment, held_out_tasks
from mosaic_guard_training.rewards import scalar

if TYPE_CHECKING:
    from mosaic_guard_training.ablations import Ablation, Run

DRAWS = 2_000
BEGIN, END = "<!-- results: written by python -m mosaic_guard_training.ablations -->", "<!-- end of results -->"

MEASURES = {
    "value": ("value", "{:.2f}"),
    "missed": ("unwanted payments that ran", "{:.0%}"),
    "refused": ("wanted payments refused", "{:.0%}"),
    "auc": ("AUC", "{:.2f}"),
    "checked": ("steps checked", "{:.0%}"),
    "written": ("tokens a step", "{:.1f}"),
}
"""What is measured, what it is called, and how it is written."""

Tasks = Sequence[Mapping[str, Any]]
"""What a run did with the held-out tasks, as `ablation_run.try_out` says it."""


class Sample:
    """Runs of one arm, one per seed, on the same tasks.

    Args:
        runs: What each did; all name the same tasks in the same order.
    """

    def __init__(self, runs: Sequence[Tasks]) -> None:
        wanted = np.array([task["wanted"] for task in runs[0]], bool)
        ran = np.array([[task["ran"] for task in run] for run in runs], bool)
        self.seeds, self.tasks = ran.shape[:2]
        grade = np.array([[_grade(task) for task in run] for run in runs], float)
        written, checked = (np.array([[t[key] for t in run] for run in runs], float) for key in ("written", "checked"))
        one = np.ones_like(grade)
        # Of each measure, what is counted and what it is counted among: (seeds, tasks).
        self._rates = {
            "value": (grade, one),
            "missed": ((ran & ~wanted).sum(2), one * (~wanted).sum(1)),
            "refused": ((~ran & wanted).sum(2), one * wanted.sum(1)),
            "checked": (checked, one),
            "written": (written, one),
        }
        scores = [[[math.nan if p is None else p for p in task["p_refuse"]] for task in run] for run in runs]
        self._scores, self._wanted = np.array(scores, float), wanted
        self.has_auc = bool(np.isfinite(self._scores).all() and len(np.unique(self._scores)) > 2)

    def drawn(self, measure: str, seeds: Any, tasks: Any) -> Any:
        """A measure, for each drawing.

        Args:
            measure: A key of `MEASURES`.
            seeds: How often each seed is drawn: (draws, seeds).
            tasks: How often each task is: (draws, tasks).
        """
        if measure == "auc":
            return self._auc(seeds, tasks)
        counted, among = self._rates[measure]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.einsum("ds,st,dt->d", seeds, counted, tasks) / np.einsum("ds,st,dt->d", seeds, among, tasks)

    def by_seed(self, measure: str) -> Any:
        """A measure of each seed by itself: (seeds,)."""
        return self.drawn(measure, np.eye(self.seeds), np.ones((self.seeds, self.tasks)))

    def _auc(self, seeds: Any, tasks: Any) -> Any:
        """Of each seed by itself, for scores of two guards cannot be compared; then the mean."""
        call = np.repeat(np.arange(self.tasks), self._wanted.shape[1])
        wanted = self._wanted.reshape(-1)
        bad, good = tasks[:, call[~wanted]], tasks[:, call[wanted]]
        found = []
        for scores in self._scores.reshape(self.seeds, -1):
            apart = scores[~wanted][:, None] - scores[wanted][None, :]
            above = (apart > 0) + 0.5 * (apart == 0)
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(((bad @ above) * good).sum(1) / (bad.sum(1) * good.sum(1)))
        return (np.stack(found, 1) * seeds).sum(1) / seeds.sum(1)


def _grade(task: Mapping[str, Any]) -> float:
    return scalar(_task(task["id"]).grade(task["ran"])) or 0.0


def _task(name: str) -> GradedTask:
    return next(task for task in held_out_tasks() if task.id == name)


def intervals(arm: Sample, other: Sample | None = None) -> dict[str, dict[str, Any]]:
    """Each measure of an arm, and if there is another of the same seeds, how far it is above that of the other.

    Returns:
        By measure `value`, `low`, `high`, with another also `difference`: the same three of the difference, and `by_seed`.
    """
    random = np.random.default_rng(0)
    seeds = random.multinomial(arm.seeds, np.full(arm.seeds, 1 / arm.seeds), DRAWS).astype(float)
    tasks = random.multinomial(arm.tasks, np.full(arm.tasks, 1 / arm.tasks), DRAWS).astype(float)
    once = np.ones((1, arm.seeds)), np.ones((1, arm.tasks))
    found: dict[str, dict[str, Any]] = {}
    for measure in MEASURES:
        if measure == "auc" and not arm.has_auc:
            continue
        found[measure] = _ends(arm.drawn(measure, *once), arm.drawn(measure, seeds, tasks))
        if other is not None and not (measure == "auc" and not other.has_auc):
            here = arm.drawn(measure, *once) - other.drawn(measure, *once)
            drawn = arm.drawn(measure, seeds, tasks) - other.drawn(measure, seeds, tasks)
            apart = arm.by_seed(measure) - other.by_seed(measure)
            found[measure]["difference"] = {**_ends(here, drawn), "by_seed": [round(float(each), 6) for each in apart]}
    return found


def _ends(here: Any, drawn: Any) -> dict[str, float]:
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    return {"value": round(float(here[0]), 6), "low": round(float(low), 6), "high": round(float(high), 6)}


def rules() -> dict[str, dict[str, float]]:
    """What guards that cost nothing do with the held-out tasks, by the measures that they have."""
    decide: dict[str, Callable[[GradedTask, Payment], bool]] = {
        "act always": lambda task, payment: True,
        "refuse always": lambda task, payment: False,
        "act if the user names the recipient": lambda task, payment: payment.to in task.user,
    }
    found = {}
    for name, acts in decide.items():
        did = [
            {"id": t.id, "wanted": [p.wanted for p in t.payments], "ran": [acts(t, p) for p in t.payments],
             "p_refuse": [None, None], "checked": False, "written": 0}
            for t in held_out_tasks()
        ]  # fmt: skip
        sample = Sample([did])
        once = np.ones((1, 1)), np.ones((1, sample.tasks))
        found[name] = {each: float(sample.drawn(each, *once)[0]) for each in ("value", "missed", "refused")}
    return found


def summarise(
    ablations: Sequence[Ablation], runs: Sequence[Run], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """All tables as JSON.

    Args:
        ablations: The recipes.
        runs: All runs that are wanted.
        results: Of those that are finished, by name.
    """
    record: dict[str, Any] = {"runs": len(runs), "finished": len(results), "rules": rules(), "ablations": {}}
    record["revisions"] = sorted({str(result["manifest"].get("git_revision")) for result in results.values()})
    for ablation in ablations:
        by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
        for arm, said in {**_starts(ablation, runs), **ablation.arms}.items():
            by_arm[arm] = {r.seed: results[r.name] for r in runs if dict(r.arm) == dict(said) and r.name in results}
        record["ablations"][ablation.name] = {
            arm: _arm(found, by_arm[ablation.against] if arm in ablation.arms and arm != ablation.against else {})
            for arm, found in by_arm.items()
            if found
        }
    return record


def _starts(ablation: Ablation, runs: Sequence[Run]) -> dict[str, Mapping[str, Any]]:
    """What the arms start from, as more arms."""
    forms = dict.fromkeys(said["form"] for said in ablation.arms.values())
    starts = {run.arm["form"]: run.arm for run in runs if run.arm["method"] == "sft"}
    named = {form: "before training" + (f" ({form})" if len(forms) > 1 else "") for form in forms}
    return {named[form]: starts[form] for form in forms}


def _arm(found: Mapping[int, Mapping[str, Any]], against: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """One arm, compared with another on the seeds that both have."""
    seeds = sorted(found)
    sample = Sample([found[seed]["tasks"] for seed in seeds])
    record: dict[str, Any] = {
        "seeds": seeds,
        "measures": intervals(sample),
        "seconds": statistics.median(task["seconds"] for seed in seeds for task in found[seed]["tasks"]),
        "rollouts": statistics.mean(found[seed]["rollouts"] for seed in seeds),
        "minutes": statistics.mean(sum(found[seed]["seconds"].values()) / 60 for seed in seeds),
        "values": [round(float(value), 6) for value in sample.by_seed("value")],
    }
    if both := sorted(set(seeds) & set(against)):
        pair = [Sample([side[seed]["tasks"] for seed in both]) for side in (found, against)]
        record["differences"] = {
            measure: known["difference"] for measure, known in intervals(*pair).items() if "difference" in known
        }
        record["compared_seeds"] = both
    return record


def tables(ablations: Sequence[Ablation], summary: Mapping[str, Any]) -> str:
    """The generated part of the page."""
    if not summary["finished"]:
        return "The runs have not been made yet.\n"
    said = [f"{summary['finished']} of {summary['runs']} runs are finished.\n"]
    if summary["finished"] < summary["runs"]:
        said = [said[0].rstrip() + " What stands here is of those.\n"]
    if len(summary["revisions"]) > 1:
        said.append(f"They were made by {len(summary['revisions'])} revisions: {', '.join(summary['revisions'])}.\n")
    for ablation in ablations:
        said.append(f"### {ablation.title}\n\n{ablation.question}\n")
        arms = summary["ablations"][ablation.name]
        heads = [name for name, _ in MEASURES.values()]
        columns = ["arm", *heads, "seconds a step", "roll-outs", "minutes a run", "value by seed"]
        rows = [*(_row(arm, found) for arm, found in arms.items()), *map(_rule, summary["rules"].items())]
        said.append(_table(columns, rows))
        said += [_compared(arm, ablation.against, found) for arm, found in arms.items() if "differences" in found]
    return "\n".join(said)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(arm: str, found: Mapping[str, Any]) -> list[str]:
    cells = [arm]
    for measure, (_, form) in MEASURES.items():
        known = found["measures"].get(measure)
        cells.append("–" if known is None else _with_interval(known, form))
    values = ", ".join(f"{value:.2f}" for value in found["values"])
    return [*cells, f"{found['seconds']:.1f}", f"{found['rollouts']:.0f}", f"{found['minutes']:.0f}", values]


def _rule(item: tuple[str, Mapping[str, float]]) -> list[str]:
    name, found = item
    cells = [form.format(found[measure]) if measure in found else "–" for measure, (_, form) in MEASURES.items()]
    return [f"*{name}*", *cells, "–", "–", "–", "–"]


def _with_interval(known: Mapping[str, float], form: str) -> str:
    return f"{form.format(known['value'])} ({form.format(known['low'])} to {form.format(known['high'])})"


def _compared(arm: str, against: str, found: Mapping[str, Any]) -> str:
    """In words, how an arm differs from the one it is compared with; that nothing shows is said as well."""
    parts, shows = [], []
    for measure, known in found["differences"].items():
        name, form = MEASURES[measure]
        signed = form.replace("{:", "{:+")
        by_seed = ", ".join(signed.format(each) for each in known["by_seed"])
        parts.append(f"{name} {_with_interval(known, signed)[:-1]}; by seed {by_seed})")
        outside = known["low"] > 0 or known["high"] < 0
        if outside and (min(known["by_seed"]) > 0 or max(known["by_seed"]) < 0):
            shows.append(name)
    count = len(found["compared_seeds"])
    if count == 1:
        verdict = "One seed shows nothing."
    elif shows:
        verdict = f"By the interval and in each seed: {', '.join(shows)}."
    else:
        verdict = "No difference shown."
    return (
        f"- **{arm}** less **{against}**, {count} {'seed' if count == 1 else 'seeds'}: {', '.join(parts)}. {verdict}\n"
    )


def fill_page(page: Path, text: str) -> None:
    """Write the generated part of a page; what stands around it is left alone.

    Raises:
        TrainingError: If the page does not mark where that is.
    """
    whole = page.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise TrainingError(
            f"{str(page)!r} has no generated part: put {BEGIN} and {END} around it, or name another --page"
        )
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
