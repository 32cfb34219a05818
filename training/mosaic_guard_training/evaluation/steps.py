"""Guards on labelled steps, beside baselines: `python -m mosaic_guard evaluate steps`.

Every labelled call of some traces gets a score from each guard and each baseline; the table says how well the scores tell
harmful calls from harmless ones. No agent runs: what a guard's refusals would have changed later on is not measured here but
by `evaluate agentdojo`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from mosaic_guard._errors import MissingExtraError
from mosaic_guard_training.evaluation.baselines import BASELINES
from mosaic_guard_training.evaluation.self_check import NAME as SELF_CHECK
from mosaic_guard_training.evaluation.self_check import SelfCheck
from mosaic_guard_training.evaluation.step_baselines import FITTED, fit, need_scikit_learn
from mosaic_guard_training.evaluation.step_calls import LabelledCall, TraceSet, read_set
from mosaic_guard_training.evaluation.step_rates import StepRates, step_rates
from mosaic_guard_training.evaluation.step_scores import ScoredGuard, guard_scores

ALL, CONTESTED = "all calls", "contested calls"
"""The rows of every directory; the others are a family and a category each."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What is scored.

    Attributes:
        guards: `default`, `untrained`, or directories that training wrote.
        traces: Directories of lessons, or of traces with outcomes.
        train: Lessons that baselines are fitted on; None to leave those baselines out.
        output: Where scores, table and record go.
        untrained: Whether the base model of the first guard is scored too, without its adapter.
        self_check: Whether that model is asked with a self-check prompt as well.
        limit: Take at most so many trajectories of each directory; None for all.
        seed: Decides which, and the bootstrap's draws.
        draws: Number of bootstrap draws.
    """

    guards: tuple[str, ...]
    traces: tuple[Path, ...]
    train: Path | None
    output: Path
    untrained: bool = True
    self_check: bool = False
    limit: int | None = None
    seed: int = 0
    draws: int = 1000


@dataclass(frozen=True)
class Row:
    """Some calls of a directory, and how each scorer did on them.

    Attributes:
        traces: Name of the directory.
        family: Their family of environments; empty for a row of all families.
        category: Their category; `ALL` or `CONTESTED` for a row of all families.
        harmful: How many are harmful.
        harmless: How many are not.
        groups: How many groups of twins they are of.
        rates: By the scorer's name.
    """

    traces: str
    family: str
    category: str
    harmful: int
    harmless: int
    groups: int
    rates: Mapping[str, StepRates]

    @property
    def name(self) -> str:
        """How tables call it."""
        return " ".join(part for part in (self.family, self.category) if part) or "no family on record"


@dataclass(frozen=True)
class StepReport:
    """What was found.

    Attributes:
        settings: What was asked for.
        sets: The traces, in order.
        thresholds: Of each scorer, by name: guards first.
        weights: Digest of each guard's weights, by name.
        seen: For each directory, how many of its groups the baselines were fitted on too.
        rows: For each directory all calls, the contested ones, and each family and category.
    """

    settings: StepSettings
    sets: tuple[TraceSet, ...]
    thresholds: Mapping[str, float]
    weights: Mapping[str, str]
    seen: Mapping[str, int]
    rows: tuple[Row, ...]


def evaluate_steps(settings: StepSettings, *, progress: bool = False) -> StepReport:
    """Score what is not scored yet, and measure.

    Args:
        settings: What to score.
        progress: Whether to show a progress bar.

    Raises:
        FileNotFoundError: If traces or a guard are not there.
        ValueError: If traces carry no labels, or cannot be read.
        MissingExtraError: If packages are missing.
        ModelLoadError: If a guard cannot be loaded.
    """
    if find_spec("numpy") is None:
        raise MissingExtraError("the table of labelled steps", "fit")
    if settings.train is not None:
        need_scikit_learn()
    guards = list(_guards(settings))
    names = set_names(settings.traces)
    sets = [read_set(path, names[path], settings.limit, settings.seed) for path in names]
    train = () if settings.train is None else read_set(settings.train, settings.train.name).calls
    baselines = dict(_baselines(train))
    if settings.self_check and guards:
        baselines[SELF_CHECK] = SelfCheck(guards[0].base, settings.output / "scores" / "self-check.jsonl")
    thresholds = {guard.name: guard.threshold for guard in guards} | dict.fromkeys(baselines, 0.5)
    learnt = {call.group for call in train}
    rows: list[Row] = []
    for each in sets:
        scores: dict[str, list[float]] = {}
        for guard in guards:
            found = guard_scores(guard, each, settings.output / "scores", progress=progress)
            scores[guard.name] = [found[call.key] for call in each.calls]
        scores |= {name: list(predict(each.calls)) for name, predict in baselines.items()}
        rows += _rows(each, scores, thresholds, settings)
    return StepReport(
        settings,
        tuple(sets),
        thresholds,
        {guard.name: guard.weights for guard in guards},
        {each.name: len(learnt & {call.group for call in each.calls}) for each in sets},
        tuple(rows),
    )


def set_names(paths: Sequence[Path]) -> dict[Path, str]:
    """What tables call each directory of traces: its last part, or the whole path where two share it."""
    paths = list(dict.fromkeys(paths))
    last = [path.name for path in paths]
    return {path: path.name if path.name and last.count(path.name) == 1 else str(path) for path in paths}


def _guards(settings: StepSettings) -> Iterator[ScoredGuard]:
    for name in settings.guards:
        if name in BASELINES or name in FITTED:
            raise ValueError(
                f"{name!r} is a baseline, which is scored in any case: a guard in such a directory is './{name}'"
            )
    found = [ScoredGuard.find(name) for name in dict.fromkeys(settings.guards)]
    yield from found
    if found and settings.untrained:
        untuned = found[0].untuned()
        if all(guard.name != untuned.name and guard.weights != untuned.weights for guard in found):
            yield untuned


def _baselines(
    train: Sequence[LabelledCall],
) -> Iterator[tuple[str, Callable[[Sequence[LabelledCall]], Sequence[float]]]]:
    for rule in BASELINES:
        yield rule, partial(_by_rule, rule)
    for name in FITTED if train else ():
        yield name, fit(name, train)


def _by_rule(rule: str, calls: Sequence[LabelledCall]) -> list[float]:
    return [call.rules[rule] for call in calls]


def _rows(
    traces: TraceSet, scores: Mapping[str, Sequence[float]], thresholds: Mapping[str, float], settings: StepSettings
) -> Iterator[Row]:
    contested = traces.contested
    subsets: dict[tuple[str, str], list[int]] = {("", ALL): [], ("", CONTESTED): []}
    families: dict[tuple[str, str], list[int]] = {}
    for at, call in enumerate(traces.calls):
        subsets["", ALL].append(at)
        if call.tool in contested:
            subsets["", CONTESTED].append(at)
        families.setdefault((call.family, call.category), []).append(at)
    for (family, category), places in [*subsets.items(), *sorted(families.items())]:
        if not places:
            continue
        labels, groups = [traces.calls[at].harmful for at in places], [traces.calls[at].group for at in places]
        rates = {
            name: step_rates(
                [of[at] for at in places], labels, groups, thresholds[name], draws=settings.draws, seed=settings.seed
            )
            for name, of in scores.items()
        }
        yield Row(traces.name, family, category, sum(labels), len(labels) - sum(labels), len(set(groups)), rates)
