"""One run of the judges over some traces: judge what was not judged yet, keep it, say how far they agree."""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from mosaic_guard._trace import Trajectory, read_traces
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.judging.agreement import Agreement, agreement
from mosaic_guard_training.judging.cache import JudgementLog
from mosaic_guard_training.judging.hindsight import HindsightJudge
from mosaic_guard_training.judging.human import AskedJudge
from mosaic_guard_training.judging.judgement import (
    Judge,
    JudgeFailedError,
    Judgement,
    StepJudge,
    by_task,
    judgement_key,
    now,
)
from mosaic_guard_training.judging.llm import LLMJudge, chat_model
from mosaic_guard_training.judging.outcome import OutcomeJudge
from mosaic_guard_training.options import check_ranges, setting
from mosaic_guard_training.outputs import write_json

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

JUDGES = ("outcome", "hindsight", "human", "llm")
GIVE_UP = 5
"""After so many failures without a single answer, a judge is not asked again."""

Pair = tuple[Trajectory, Trajectory]


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """What is judged by whom; `help` of each field says what it does.

    Raises:
        ValueError: If a number is outside its range, or a judge is not known; the message names the option.
    """

    traces: Path = setting("trace file, or directory of trace files")
    output: Path = setting("file of judgements: what stands there is not judged again, new ones are appended")
    judges: tuple[str, ...] = setting(f"who judges, of {', '.join(JUDGES)}", default=("outcome", "hindsight", "human"))
    model: str | None = setting(
        "the model of the judge llm: provider:model, local:PATH, or local for the default base model", default=None
    )
    model_options: str = setting("its keyword arguments, a JSON object", default="{}")
    pairs_per_task: int = setting("most pairs of one task, a random sample of more", default=64, low=1, high=10**9)
    max_characters: int = setting("most characters of a trajectory that llm reads", default=12_000, low=200, high=10**9)
    parallel: int = setting("requests to the model at once", default=4, low=1, high=1024)
    retries: int = setting("how often a failed request is made again", default=3, low=0, high=100)
    seed: int = setting("decides which pairs are drawn, and the resampling", default=0, low=0, high=2**32 - 1)
    report: Path | None = setting("where the agreement goes, as JSON (default: OUTPUT.agreement.json)", default=None)
    show: str | None = setting(
        "judge nothing; show the judgement whose key begins so, with what it compared", default=None
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        unknown = [name for name in self.judges if name not in JUDGES]
        if unknown or not self.judges:
            raise ValueError(f"--judges must be some of {', '.join(JUDGES)}, not {', '.join(unknown) or 'none'}")
        if "llm" in self.judges and self.model is None:
            raise ValueError("the judge llm needs --model, such as openai:gpt-5 or local:PATH")
        try:
            options = json.loads(self.model_options)
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise ValueError(f"--model-options must be a JSON object, not {self.model_options!r}")


@dataclass
class JudgeRun:
    """What came of a run.

    Attributes:
        judged: New judgements by judge.
        cached: Judgements by judge that were there already.
        failed: Pairs by judge that could not be judged; they are tried again by the next run.
        errors: What the failures said, with how many.
        agreement: Of all judgements in the file.
    """

    judged: Counter[str] = field(default_factory=Counter)
    cached: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    agreement: Agreement = field(default_factory=Agreement)


def judge(settings: JudgeSettings, console: Console | None = None, *, chat: BaseChatModel | None = None) -> JudgeRun:
    """Judge the trajectories of some traces.

    Args:
        settings: What, by whom.
        console: Where progress goes; default standard output.
        chat: The model of the judge `llm`, in place of the one that the settings name.

    Raises:
        TrainingError: If it cannot start, or a judge failed on all that it was asked.
        TraceError: For a bad trace record.
    """
    console = console or Console(highlight=False, emoji=False)
    keep_apart(settings.output, settings.traces)
    trajectories = read_with_notes(settings.traces, console)
    run = JudgeRun()
    pair_judges, step_judges = _judges(settings, chat)
    with JudgementLog(settings.output) as log:
        for each in step_judges:
            _judge_steps(each, trajectories, log, run)
        pairs = pairs_to_judge(trajectories, settings.pairs_per_task, settings.seed)
        gave_up: list[str] = []
        for judging in pair_judges:
            workers = settings.parallel if isinstance(judging, LLMJudge) else 1
            if error := _judge_pairs(judging, pairs, log, run, workers, console):
                gave_up.append(f"{judging.name}: {error}")
        run.agreement = agreement(log, seed=settings.seed)
    write_json(settings.report or Path(f"{settings.output}.agreement.json"), _report(run))
    if gave_up:
        raise TrainingError(f"a judge answered nothing that it was asked ({'; '.join(gave_up)}); the others are kept")
    return run


def read_with_notes(traces: Path, console: Console) -> list[Trajectory]:
    """The trajectories of some traces; warnings become notes.

    Raises:
        TrainingError: If there are none.
        TraceError: For a bad trace record.
    """
    from mosaic_guard_training.outputs import trace_files

    trace_files(traces)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trajectories = read_traces(traces)
    for warning in caught:
        console.print(f"note: {warning.message}", markup=False, soft_wrap=True)
    if not trajectories:
        raise TrainingError(f"no trajectories in {str(traces)!r}: log some with a TraceWriter first")
    return trajectories


def keep_apart(output: Path, *directories: Path) -> None:
    """Make sure that what is written does not land among the files of a directory that is read.

    Raises:
        TrainingError: If it would.
    """
    for directory in directories:
        if directory.is_dir() and output.resolve().parent == directory.resolve():
            raise TrainingError(
                f"--output {str(output)!r} would be read as one of {str(directory)!r}: name another place"
            )


def pairs_to_judge(trajectories: Sequence[Trajectory], per_task: int, seed: int) -> list[Pair]:
    """Pairs of trajectories of one task, the same for every judge; of many, a random sample."""
    found: list[Pair] = []
    for task, members in by_task(trajectories).items():
        pairs = list(combinations(members, 2))
        if len(pairs) > per_task:
            kept = sorted(random.Random(f"{seed}\0{task}").sample(range(len(pairs)), per_task))
            pairs = [pairs[i] for i in kept]
        found += pairs
    return found


def _judges(settings: JudgeSettings, chat: BaseChatModel | None) -> tuple[list[Judge], list[StepJudge]]:
    pair_judges: list[Judge] = []
    step_judges: list[StepJudge] = []
    for name in dict.fromkeys(settings.judges):
        if name == "outcome":
            pair_judges.append(OutcomeJudge())
        elif name == "llm":
            options: Mapping[str, Any] = json.loads(settings.model_options)
            pair_judges.append(
                LLMJudge(
                    chat or chat_model(str(settings.model), options),
                    name=settings.model,
                    retries=settings.retries,
                    max_characters=settings.max_characters,
                    settings=options,
                )
            )
        else:
            step_judges.append(HindsightJudge() if name == "hindsight" else AskedJudge())
    # Those that cost nothing first: whatever becomes of the others, theirs are kept.
    return sorted(pair_judges, key=lambda each: isinstance(each, LLMJudge)), step_judges


def _judge_steps(judge: StepJudge, trajectories: Sequence[Trajectory], log: JudgementLog, run: JudgeRun) -> None:
    """All that a judge has to say about steps; what it said before and says no longer is taken back."""
    said = {judgement.subject: judgement for each in trajectories for judgement in judge.judgements(each)}
    for judgement in said.values():
        _keep(judgement, log, run)
    known = {trajectory.id for trajectory in trajectories}
    before = {judgement.subject: judgement for judgement in log if judgement.judge == judge.name}
    for subject, judgement in before.items():
        current = log.current(judge.name, subject)
        if subject not in said and judgement.one in known and current is not None and current.winner != "abstain":
            log.add(_withdrawn(judgement))
            run.judged[judge.name] += 1


def _withdrawn(was: Judgement) -> Judgement:
    key = judgement_key(was.judge, "withdrawn", was.key)
    reason = "withdrawn: what it was about has changed"
    return Judgement(key, was.task, was.one, was.other, "abstain", was.judge, (), reason, now(), was.step, was.calls)


def _keep(judgement: Judgement, log: JudgementLog, run: JudgeRun) -> None:
    before = len(log)
    log.add(judgement)
    (run.judged if len(log) > before else run.cached)[judgement.judge] += 1


def _judge_pairs(
    judge: Judge, pairs: Sequence[Pair], log: JudgementLog, run: JudgeRun, workers: int, console: Console
) -> str:
    """Judge the pairs that are not in the log; returns what went wrong if not one question was ever answered."""
    missing = []
    # What reads the same is a tie without a question, and says nothing about whether the judge answers.
    answered = 0
    for one, other in pairs:
        known = log.known(judge.key(one, other))
        if known is None:
            missing.append((one, other))
        else:
            log.add(replace(known, time=now()))  # again, if a later judgement took its place
            run.cached[judge.name] += 1
            answered += bool(known.votes)
    errors: Counter[str] = Counter()
    with (
        Progress(transient=True, console=console, disable=not console.is_terminal) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        ticking = bar.add_task(judge.name, total=len(missing))
        futures = [pool.submit(judge.judge, one, other) for one, other in missing]
        try:
            for future in as_completed(futures):
                bar.advance(ticking)
                try:
                    judgement = future.result()
                    log.add(judgement)
                    run.judged[judge.name] += 1
                    answered += bool(judgement.votes)
                except JudgeFailedError as error:
                    errors[str(error)] += 1
                    if errors.total() >= GIVE_UP and not answered:
                        break
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    run.failed[judge.name] = errors.total()
    run.errors += errors
    return errors.most_common(1)[0][0] if errors and not answered else ""


def _report(run: JudgeRun) -> dict[str, Any]:
    counts = {name: dict(sorted(getattr(run, name).items())) for name in ("judged", "cached", "failed", "errors")}
    return {**counts, "agreement": run.agreement.to_dict()}
