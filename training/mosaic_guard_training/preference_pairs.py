"""Judgements and trajectories become preferences: who is heard, what is compared, what is left out."""

from __future__ import annotations

import functools
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mosaic_guard._trace import Trajectory
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.judging.judgement import Judgement, latest
from mosaic_guard_training.pairs import PairKind, PreferencePair, Side, chose, step_pair
from mosaic_guard_training.preference_file import SPLITS, Category, Preference, Source, bare, logged_by
from mosaic_guard_training.preference_split import balance, environments_of, split_preferences
from mosaic_guard_training.twins import VerdictIds, logged_verdict_ids, segments, verdict_ids

if TYPE_CHECKING:
    from mosaic_guard_training.preferences import PreferenceSettings

Words = Callable[[], VerdictIds]
"""Gives the token ids of the verdict words; called only if a pair needs them."""


@dataclass
class Preferences:
    """What became of the judgements.

    Attributes:
        preferences: In a fixed order that depends on traces, judgements and settings only.
        dropped: Why judgements, trajectories and pairs were left out, with how many.
        notes: What else should be known.
    """

    preferences: list[Preference] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, Any]:
        """How many pairs of each split, kind, judge, category, and of each environment with its split."""
        found = self.preferences
        environments = Counter((p.environment, p.split) for p in found)
        return {
            "pairs": len(found),
            "tasks": len({p.pair.task for p in found}),
            "splits": {split: sum(p.split == split for p in found) for split in SPLITS},
            "kinds": dict(sorted(Counter(p.pair.kind for p in found).items())),
            "judges": dict(sorted(Counter(p.judge for p in found).items())),
            "categories": {
                split: dict(sorted(Counter(p.category for p in found if p.split == split).items())) for split in SPLITS
            },
            "environments": {name: {"split": s, "pairs": n} for (name, s), n in sorted(environments.items())},
        }


def make_preferences(
    trajectories: Sequence[Trajectory],
    judgements: Iterable[Judgement],
    settings: PreferenceSettings,
    words: Words | None = None,
) -> Preferences:
    """Preferences of some trajectories and what judges said of them.

    Args:
        trajectories: As `read_traces` returns them.
        judgements: In the order of their times.
        settings: The rules' numbers; its paths are not read.
        words: The token ids of the verdict words; default: from the trajectories, else from the base model's tokenizer.

    Raises:
        TrainingError: If the trajectories are of several base models and the settings name none.
    """
    made = Preferences()
    usable = _usable(trajectories, settings.base_model, made.dropped)
    settled = _settled(judgements, usable, settings.judges, made.dropped)
    tasks: dict[str, list[Trajectory]] = {}
    for trajectory in usable.values():
        tasks.setdefault(trajectory.task, []).append(trajectory)
    environments = {task: environments_of(task, members) for task, members in tasks.items()}
    known = {task: _category(members, [j for j in settled if j.task == task]) for task, members in tasks.items()}
    digests = _Digests()

    def preference(pair: PreferencePair, judge: str) -> Preference:
        both = [usable[pair.chosen.trajectory], usable[pair.rejected.trajectory]]
        guards = {str(guard): guard for guard in (logged_by(each.guard) for each in both)}
        return Preference(
            replace(pair, chosen=bare(pair.chosen), rejected=bare(pair.rejected)),
            min(environments[pair.task]),
            known[pair.task],
            judge,
            str(both[0].guard["base_model"]),
            tuple(guards[name] for name in sorted(guards)),
            tuple(digests[file] for file in dict.fromkeys(each.file for each in both)),
        )

    pairs = [
        *_whole_pairs(settled, usable, settings, made.dropped),
        *_step_pairs(settled, usable, settings, words or _words(list(usable.values())), made.dropped),
    ]
    different = _different([preference(pair, judge) for pair, judge in pairs], made.dropped)
    splits = split_preferences(
        different,
        environments,
        share=settings.held_out,
        held_out=settings.held_out_environments,
        seed=settings.seed,
    )
    kept = balance(splits, settings.balance, settings.seed)
    made.dropped["pairs beyond the balance of harmful and benign tasks"] += len(splits) - len(kept)
    made.dropped = +made.dropped
    made.preferences = sorted(kept, key=lambda p: (p.pair.task, p.pair.step or 0, p.id))
    made.notes = _notes(made.preferences, environments)
    return made


def _usable(trajectories: Sequence[Trajectory], base_model: str | None, dropped: Counter[str]) -> dict[str, Trajectory]:
    """The trajectories with tokens of one base model, by id."""
    found: dict[str, Trajectory] = {}
    for trajectory in trajectories:
        base = trajectory.guard.get("base_model")
        if base is None or not any(piece.ids for step in trajectory.steps for piece in step.pieces):
            dropped["trajectories without tokens of a local guard model"] += 1
        elif base_model is not None and base != base_model:
            dropped["trajectories of other base models"] += 1
        else:
            found[trajectory.id] = trajectory
    bases = sorted({str(trajectory.guard["base_model"]) for trajectory in found.values()})
    if len(bases) > 1:
        raise TrainingError(
            f"the traces are of {len(bases)} base models ({', '.join(bases)}): name one with --base-model, "
            "and write a preference file for each"
        )
    return found


def _settled(
    judgements: Iterable[Judgement], usable: Mapping[str, Trajectory], ranks: Sequence[str], dropped: Counter[str]
) -> list[Judgement]:
    """The judgements that count: with a winner, and not overruled; by rank, and not in the order of their times."""
    ordered = sorted(enumerate(latest(judgements)), key=lambda each: (each[1].time, each[0]), reverse=True)
    asked = [judgement for _, judgement in ordered if judgement.judge_kind in ranks]
    dropped["judgements of judges that were not asked for"] += len(ordered) - len(asked)
    asked.sort(key=lambda judgement: ranks.index(judgement.judge_kind))
    settled: list[Judgement] = []
    # What was said of each pair, and of each call of a step.
    said: dict[tuple[Any, ...], str] = {}
    for judgement in map(_in_order, asked):
        if judgement.one not in usable or judgement.other not in usable:
            dropped["judgements of trajectories that are not among those with tokens"] += 1
            continue
        if judgement.winner == "abstain":
            dropped["abstentions"] += 1
            continue
        about = [(judgement.one, judgement.other, judgement.step, call) for call in judgement.calls or (None,)]
        before = {said[each] for each in about if each in said}
        if before - {judgement.winner}:
            dropped["judgements overruled by a judge of a higher rank, or by a later one"] += 1
        elif all(each in said for each in about):
            dropped["judgements that repeat another judge's"] += 1
        else:
            said.update(dict.fromkeys(about, judgement.winner))
            if judgement.winner == "tie":
                dropped["ties"] += 1
            else:
                settled.append(judgement)
    # Where a run was stopped and went on must not show in what comes of it.
    return sorted(
        settled, key=lambda j: (ranks.index(j.judge_kind), j.judge, j.one, j.other, j.step or 0, j.calls, j.winner)
    )


def _in_order(judgement: Judgement) -> Judgement:
    """With its trajectories in the order of their ids, as every judge of ours names them."""
    if judgement.one <= judgement.other:
        return judgement
    winner = {"one": "other", "other": "one"}.get(judgement.winner, judgement.winner)
    return replace(judgement, one=judgement.other, other=judgement.one, winner=cast(Any, winner))


def _whole_pairs(
    settled: Sequence[Judgement],
    usable: Mapping[str, Trajectory],
    settings: PreferenceSettings,
    dropped: Counter[str],
) -> list[tuple[PreferencePair, str]]:
    tasks: dict[str, list[Judgement]] = {}
    for judgement in settled:
        if judgement.step is None and judgement.one != judgement.other:
            one, other = usable[judgement.one], usable[judgement.other]
            if one.task != other.task:
                dropped["judgements of trajectories of two tasks"] += 1
            else:
                tasks.setdefault(one.task, []).append(judgement)
    made = []
    for task, found in sorted(tasks.items()):
        if len(found) > settings.pairs_per_task:
            dropped[f"pairs of whole trajectories beyond {settings.pairs_per_task} of one task"] += (
                len(found) - settings.pairs_per_task
            )
            found = random.Random(f"{settings.seed}\0{task}").sample(found, settings.pairs_per_task)
        for judgement in found:
            winner, loser = judgement.one, judgement.other
            if judgement.winner == "other":
                winner, loser = loser, winner
            chosen, rejected = (Side(name, segments(usable[name].steps)) for name in (winner, loser))
            kind = cast(PairKind, judgement.judge_kind)
            made.append((PreferencePair(task, kind, chosen, rejected), judgement.judge))
    return made


def _step_pairs(
    settled: Sequence[Judgement],
    usable: Mapping[str, Trajectory],
    settings: PreferenceSettings,
    words: Words,
    dropped: Counter[str],
) -> list[tuple[PreferencePair, str]]:
    made = []
    for judgement in _drawn([j for j in settled if j.step is not None], usable, settings, dropped):
        trajectory = usable[judgement.one]
        at = _place(trajectory, judgement)
        acts = judgement.winner == "one"
        kind = cast(PairKind, judgement.judge_kind)
        if judgement.judge_kind == "hindsight":
            kind = "hindsight_harmless" if acts else "hindsight_harmful"
        pair = None if at is None else step_pair(kind, trajectory, at, judgement.calls, words(), act=acts)
        if pair is None:
            dropped["judged steps without the guard model's own tokens"] += 1
        else:
            made.append((pair, judgement.judge))
    return made


def _drawn(
    judgements: Sequence[Judgement],
    usable: Mapping[str, Trajectory],
    settings: PreferenceSettings,
    dropped: Counter[str],
) -> list[Judgement]:
    """All of the judgements of steps but hindsight's of harmless trajectories: of these, a few that the model chose."""
    kept = []
    harmless: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        if judgement.judge_kind != "hindsight" or judgement.winner != "one":
            kept.append(judgement)
            continue
        trajectory = usable[judgement.one]
        at = _place(trajectory, judgement)
        if at is None or not all(chose(trajectory.steps[at], call) for call in judgement.calls):
            dropped["legitimate calls that the model did not let through by itself"] += 1
        else:
            harmless.setdefault(judgement.one, []).append(judgement)
    for name, found in sorted(harmless.items()):
        most = min(settings.harmless_twins, len(found))
        dropped[f"legitimate calls beyond {settings.harmless_twins} of one harmless trajectory"] += len(found) - most
        kept += random.Random(f"{settings.seed}\0{name}").sample(found, most)
    return kept


def _place(trajectory: Trajectory, judgement: Judgement) -> int | None:
    return next((i for i, step in enumerate(trajectory.steps) if step.step == judgement.step), None)


def _different(preferences: Sequence[Preference], dropped: Counter[str]) -> list[Preference]:
    """The pairs that say something, each once, without those that contradict each other."""
    telling = [preference for preference in preferences if not preference.says_nothing]
    dropped["pairs whose sides train the same"] += len(preferences) - len(telling)
    ids = {preference.id for preference in telling}
    found: dict[str, Preference] = {}
    for preference in telling:
        if preference.opposite in ids:
            dropped["pairs that another pair contradicts token for token"] += 1
        elif preference.id in found:
            dropped["pairs that repeat another pair token for token"] += 1
        else:
            found[preference.id] = preference
    return list(found.values())


def _category(trajectories: Sequence[Trajectory], judgements: Sequence[Judgement]) -> Category:
    """Harmful: harm was done in the task, or proposed, or it is of a category other than benign."""
    outcomes = [trajectory.outcome for trajectory in trajectories if trajectory.outcome is not None]
    categories = {str(o.details["category"]) for o in outcomes if o.details.get("category")}
    steps = {judgement.winner for judgement in judgements if judgement.step is not None}
    if any(o.harmful or o.harmful_calls for o in outcomes) or categories - {"benign"} or "other" in steps:
        return "harmful"
    if any(o.harmful is False for o in outcomes) or categories or "one" in steps:
        return "benign"
    return "unknown"


def _words(trajectories: Sequence[Trajectory]) -> Words:
    @functools.cache
    def words() -> VerdictIds:
        known = logged_verdict_ids(trajectories)
        if known is not None:
            return known
        from mosaic_guard.models.weights import load_base_model

        return verdict_ids(load_base_model(str(trajectories[0].guard["base_model"]))[1])

    return words


class _Digests(dict[Path, Source]):
    """The source of each trace file, read once."""

    def __missing__(self, file: Path) -> Source:
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise TrainingError(f"cannot read {str(file)!r} again ({error.strerror}): put it back") from error
        self[file] = Source(file.name, digest)
        return self[file]


def _notes(preferences: Sequence[Preference], environments: Mapping[str, frozenset[str]]) -> list[str]:
    notes = []
    single = sum(names == {task} for task, names in environments.items())
    if single:
        notes.append(f"{single} tasks name no environment: each is taken as one of its own")
    for split in SPLITS:
        categories = Counter(p.category for p in preferences if p.split == split)
        if categories and not (categories["harmful"] and categories["benign"]):
            only = " and ".join(sorted(categories))
            notes.append(f"the split {split} has pairs of {only} tasks only: it is not balanced")
    if preferences and not any(p.split == "test" for p in preferences):
        notes.append("nothing is held out")
    return notes
