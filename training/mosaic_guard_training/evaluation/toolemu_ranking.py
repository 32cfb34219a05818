"""Real data: train on some of ToolEmu's cases, then rank pairs of trajectories of the unseen ones by P(refuse).

    python -m mosaic_guard_training.evaluation.toolemu_ranking --data DIR --output DIR

The trajectories carry no guard tokens, so hindsight blocks are written for them: a plan computed from the evidence, and
`act`, for every call ran. Training is DPO on groups of trajectories of one case: safe ones as they were, and unsafe ones'
twins that refuse, are better than the safe ones' twins and the unsafe ones as they were. Loss falls on the verdict words
alone. A trajectory's score is the highest P(refuse) along it; a pair is ranked right if the less safe one has the higher
score (a tie counts half). No reference model and no outcome is looked at there.

Beside it stand *length only* (the number of steps) and *bag of words* (TF-IDF of all that was said and called, and logistic
regression), the latter trained on all labelled trajectories of the same cases, and on only those that the guard saw. Each
stage is kept in the output directory: the same command goes on where it was cut off. Needs the extra `fit`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mosaic_guard import Guard
from mosaic_guard._guard import PlanMode
from mosaic_guard._trace import Trajectory, read_traces
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.evaluation.toolemu_rows import RowLimits, training_rows
from mosaic_guard_training.evaluation.trajectory_ranking import (
    Pair,
    accuracy,
    bootstrap,
    highest,
    mean_right,
    rights,
    some_pairs,
)
from mosaic_guard_training.importing import ImportingError, import_files
from mosaic_guard_training.sources.toolemu import agreed_pairs, families, read_cases, split_cases


@dataclass(frozen=True)
class RankingSettings:
    """What is trained and ranked.

    Attributes:
        data: Directory of ToolEmu's files.
        output: Where every stage is kept.
        base: Path or hub id of the base model; None for the default.
        splits: File that says which cases are held out; None to draw families with `seed`.
        held_out: Number of cases held out.
        develop: Hold out this many families of the training cases instead, to choose settings by; 0 for the real thing.
        seed: Decides all that is drawn.
        group: Safe trajectories, and unsafe ones, of a case in one row.
        max_trajectory: Most tokens of a trajectory that is trained on.
        max_tokens: Tokens to train on.
        layers: How many of the model's last layers are adapted; fewer cost less, for nothing before them needs gradients.
        batch_size: Rows per optimizer step.
        learning_rate: Peak learning rate.
        beta: DPO's beta.
        evaluated: Trajectories of each held-out case that are scored.
        plan: Who writes the plan when ranking: computed from the evidence, as in training, or the model's own.
    """

    data: Path
    output: Path
    base: str | None = None
    splits: Path | None = None
    held_out: int = 44
    develop: int = 0
    seed: int = 0
    group: int = 3
    max_trajectory: int = 900
    max_tokens: int = 50_000
    layers: int = 10
    batch_size: int = 1
    learning_rate: float = 4e-4
    beta: float = 0.1
    evaluated: int = 5
    plan: str = "evidence"


@dataclass(frozen=True)
class Cases:
    """The trajectories on both sides, and the pairs to rank.

    Attributes:
        train: All trajectories of the training cases.
        test: All agreed pairs of the held-out cases.
        sample: Those of them whose two sides are scored.
        apart: Held-out cases that share no toolkit with a training case.
    """

    train: list[Trajectory]
    test: list[Pair]
    sample: list[Pair]
    apart: set[str]


def load(settings: RankingSettings) -> Cases:
    """Import the trajectories (once), split them by case, and draw the pairs to rank."""
    traces = settings.output / "traces"
    if not traces.exists():
        settings.output.mkdir(parents=True, exist_ok=True)
        import_files("toolemu", [settings.data], traces)
    cases = read_cases(settings.data)
    train, test = split_cases(cases, held_out=settings.held_out, seed=settings.seed, splits=settings.splits)
    if settings.develop:
        of = families([case for case in cases if case["name"] in set(train)])
        names = sorted(set(of.values()))
        held = set(random.Random(f"{settings.seed}\0develop").sample(names, settings.develop))
        train, test = [n for n in train if of[n] not in held], [n for n in train if of[n] in held]
    kits = {case["name"]: set(case["Toolkits"]) for case in cases}
    used = set().union(*(kits[name] for name in train))
    by_case: dict[str, list[Trajectory]] = {}
    for trajectory in read_traces(traces):
        by_case.setdefault(trajectory.task, []).append(trajectory)
    pairs = [pair for name in test for pair in agreed_pairs(by_case[name])]
    return Cases(
        [trajectory for name in train for trajectory in by_case[name]],
        pairs,
        some_pairs(pairs, settings.evaluated, settings.seed),
        {name for name in test if not kits[name] & used},
    )


def train_guard(settings: RankingSettings, cases: Cases) -> dict[str, Any]:
    """Train an adapter into `output/adapter`, or go on with it; returns what `output/training.json` says."""
    note = settings.output / "training.json"
    if note.exists():
        return dict(json.loads(note.read_text()))
    from mosaic_guard.models.weights import DEFAULT_BASE
    from mosaic_guard_training.hindsight import HindsightModel
    from mosaic_guard_training.material import Material
    from mosaic_guard_training.model import Start, load_start
    from mosaic_guard_training.outputs import Output, read_losses, write_json
    from mosaic_guard_training.progress import LossLog
    from mosaic_guard_training.settings import TrainSettings
    from mosaic_guard_training.trainer import build_trainer, quiet_libraries, save_result

    base = settings.base or DEFAULT_BASE
    options = TrainSettings(
        traces=settings.output / "traces",
        output=settings.output,
        epochs=1.0,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        beta=settings.beta,
        checkpointing="off",
        lora_targets="q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        seed=settings.seed,
    )
    output = Output(settings.output)
    model, tokenizer, lora = load_start(Start(base), options, "auto")
    depth = int(model.config.get_text_config().num_hidden_layers)
    lora.layers_to_transform = list(range(max(depth - settings.layers, 0), depth))
    limits = RowLimits(settings.group, settings.max_trajectory, settings.max_tokens)
    rows, seen = training_rows(cases.train, HindsightModel(tokenizer, name=base), limits, settings.seed)
    if not rows:
        raise TrainingError("no case has a safe and an unsafe trajectory that is short enough: raise --max-trajectory")
    tokens, longest = sum(map(len, rows)), max(map(len, rows))
    say(f"training on {len(rows)} rows of {len(seen)} trajectories, {tokens:,} tokens")
    digest = hashlib.sha256("".join(row.digest() for row in rows).encode()).hexdigest()
    material = Material(rows, {"toolemu": len(rows)}, tokens, longest, digest)
    with quiet_libraries():
        trainer = build_trainer(model, tokenizer, lora, material, options, output, limit=longest)
        trainer.add_callback(LossLog(output.losses))
        last = output.last_checkpoint()
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    save_result(trainer, base, output)
    losses = [entry["loss"] for entry in read_losses(output.losses)]
    result = {"rows": len(rows), "trajectories": seen, "tokens": tokens, "losses": losses}
    write_json(note, result)
    return result


def guard_scores(settings: RankingSettings, cases: Cases, adapter: Path | None) -> dict[str, float]:
    """The highest P(refuse) along each trajectory of the sample, kept in `output/scores-*.jsonl`; by id."""

    def guard() -> Guard:
        from mosaic_guard.models.local import LocalGuardModel

        plan: PlanMode = "computed" if settings.plan == "evidence" else "written"
        return Guard(LocalGuardModel(settings.base, adapter=adapter), plan=plan, check="never", threshold=1.0)

    file = settings.output / f"scores-{'before' if adapter is None else 'after'}-{settings.plan}.jsonl"
    sides = {side.id: side for pair in cases.sample for side in pair}
    return highest(guard, list(sides.values()), file, say)


def bag_of_words(train: Sequence[Trajectory], test: Sequence[Trajectory]) -> dict[str, float]:
    """P(harmful) of each test trajectory, by id, from the words of all that was said and called."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    known = [t for t in train if t.outcome is not None and t.outcome.harmful is not None]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(words.fit_transform(map(_text, known)), [t.outcome.harmful for t in known if t.outcome])
    found = model.predict_proba(words.transform(map(_text, test)))[:, 1]
    return {t.id: float(p) for t, p in zip(test, found, strict=True)}


def _text(trajectory: Trajectory) -> str:
    lines = []
    for step in trajectory.steps:
        lines += [str(message["data"]["content"]) for message in step.messages]
        lines += [f"{call['name']} {call['args']}" for call in step.calls]
    return "\n".join(lines)


def report(settings: RankingSettings) -> dict[str, Any]:
    """Every stage, then the table; written to `output/report.json`."""
    from mosaic_guard_training.outputs import write_json

    _claim(settings)
    cases = load(settings)
    say(f"{len(cases.test)} agreed pairs held out, of which {len(cases.sample)} are ranked")
    trained = train_guard(settings, cases)
    after = guard_scores(settings, cases, settings.output / "adapter")
    before = guard_scores(settings, cases, None)
    sides = {side.id: side for pair in cases.test for side in pair}
    seen = set(trained["trajectories"])
    rankers: dict[str, Mapping[str, float]] = {
        "guard before": before,
        "guard after": after,
        "length only": {key: len(side.steps) for key, side in sides.items()},
        "bag of words, all trajectories of the training cases": bag_of_words(cases.train, list(sides.values())),
        "bag of words, the trajectories trained on": bag_of_words(
            [t for t in cases.train if t.id in seen], list(sides.values())
        ),
    }
    kinds = dict(_kinds(cases))
    table = {
        name: {
            kind: asdict(accuracy(scores, pairs))
            for kind, pairs in kinds.items()
            if pairs and scores.keys() >= _ids(pairs)
        }
        for name, scores in rankers.items()
    }
    mine = rights(after, cases.sample)
    gains = {
        name: {
            "value": mean_right(mine.values()) - mean_right(rights(scores, cases.sample).values()),
            "interval": bootstrap([mine, rights(scores, cases.sample)], lambda a, b: mean_right(a) - mean_right(b)),
        }
        for name, scores in rankers.items()
        if name != "guard after"
    }
    result = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()},
        "pairs": {kind: len(pairs) for kind, pairs in kinds.items()},
        "cases": len({pair[0].task for pair in cases.test}),
        "trained_on": {key: value for key, value in trained.items() if key not in ("trajectories", "losses")}
        | {"trajectories": len(seen)},
        "accuracy": table,
        "guard_after_minus": gains,
    }
    write_json(settings.output / "report.json", result)
    return result


def _claim(settings: RankingSettings) -> None:
    """Note the settings in the output directory, or check that it holds a run with the same.

    Raises:
        TrainingError: If it holds another.
    """
    from mosaic_guard_training.outputs import write_json

    wanted = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    wanted.pop("output")
    note = settings.output / "settings.json"
    if not note.exists():
        (settings.output / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_json(note, wanted)
    elif changed := [key for key, value in wanted.items() if json.loads(note.read_text()).get(key) != value]:
        raise TrainingError(f"{str(settings.output)!r} holds a run with another {changed[0]}: name another --output")


def _kinds(cases: Cases) -> Iterator[tuple[str, list[Pair]]]:
    yield "ranked sample", cases.sample
    yield "with calls on both sides", [p for p in cases.sample if all(len(side.steps) > 1 for side in p)]
    yield "cases that share no toolkit", [p for p in cases.sample if p[0].task in cases.apart]
    yield "all agreed pairs", cases.test


def _ids(pairs: Sequence[Pair]) -> set[str]:
    return {side.id for pair in pairs for side in pair}


def say(text: str) -> None:
    """Tell the user how far it is."""
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole experiment from a command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Rank unseen ToolEmu trajectories by P(refuse), before and after training."
    )
    for spec in fields(RankingSettings):
        kind = {"Path": Path, "Path | None": Path, "int": int, "float": float}.get(str(spec.type), str)
        required = spec.name in ("data", "output")
        parser.add_argument(
            f"--{spec.name.replace('_', '-')}", type=kind, required=required, default=None if required else spec.default
        )
    settings = RankingSettings(**vars(parser.parse_args(arguments)))
    try:
        result = report(settings)
    except (ImportingError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, found in result["accuracy"].items():
        for kind, value in found.items():
            low, high = value["interval"]
            say(f"{name:55s} {kind:28s} {value['value']:.3f} [{low:.3f}, {high:.3f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
