"""P(refuse) of every labelled call under a guard, kept on disk.

Lessons are scored in one pass per segment, each call after the right verdicts before it (`labelled.py`). Other traces carry no
right verdicts: they are replayed (`replay.rejudge`), each call after what the guard itself said before.

A file of scores is named after a digest of the weights and of the traces, and of the guard's options where it replays. What
stands in it is not scored again; a guard whose scores are all there is not loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_guard._evidence_model import EvidenceModel
from mosaic_guard_training.evaluation.labelled import score_traces
from mosaic_guard_training.evaluation.step_calls import Key, TraceSet
from mosaic_guard_training.manifest import FITTED
from mosaic_guard_training.outputs import data_digest, read_losses
from mosaic_guard_training.replay import rejudge
from mosaic_guard_training.twins import verdict_words

if TYPE_CHECKING:
    from mosaic_guard import Guard, Trajectory
    from mosaic_guard.models.local import LocalGuardModel

UNTRAINED = "untrained"


@dataclass(frozen=True)
class ScoredGuard:
    """A guard as it stands on disk, loaded only where it is needed.

    Attributes:
        name: As it was asked for.
        base: Path or hub id of the base model.
        adapter: Directory of its adapter; None for none.
        options: Options of `Guard` that its manifest names.
    """

    name: str
    base: str
    adapter: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, name: str) -> ScoredGuard:
        """The guard that `Guard.load` would load.

        Args:
            name: `default`, `untrained`, or a directory that training wrote.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If its manifest cannot be read.
        """
        from mosaic_guard.models.manifest import find_guard

        found = find_guard(name)
        return cls(name, found.base_model, found.adapter, found.guard_options)

    def untuned(self) -> ScoredGuard:
        """Its base model alone, in the same mode, with `Guard`'s own threshold."""
        kept = {key: value for key, value in self.options.items() if key not in FITTED}
        return ScoredGuard(UNTRAINED, self.base, None, kept)

    @property
    def threshold(self) -> float:
        """Where it refuses."""
        return float(self.options.get("threshold", 0.5))

    @cached_property
    def evidence_model(self) -> EvidenceModel | None:
        """What weighs its model's word; None for nothing."""
        text = self.options.get("evidence_model")
        return EvidenceModel.from_text(text) if text else None

    @cached_property
    def weights(self) -> str:
        """A digest that names its weights; a base model that is no directory goes by its name."""
        there = [each for each in (Path(self.base), self.adapter) if each is not None and each.is_dir()]
        digests = [data_digest(list(directory.glob("*.safetensors"))) for directory in there]
        return hashlib.sha256("\0".join([self.base, *digests]).encode()).hexdigest()

    def load(self, *, cached: bool) -> tuple[LocalGuardModel, Guard]:
        """The guard and its model.

        Args:
            cached: Whether the model keeps what it has read, which pays where it replays.

        Raises:
            MissingExtraError: If torch, transformers or peft are not installed.
            ModelLoadError: If the weights cannot be loaded.
        """
        from mosaic_guard import Guard
        from mosaic_guard.models.local import LocalGuardModel

        model = LocalGuardModel(self.base, adapter=self.adapter, cache_tokens=16384 if cached else 0)
        return model, Guard(model, **self.options)


def guard_scores(guard: ScoredGuard, traces: TraceSet, output: Path, *, progress: bool = False) -> dict[Key, float]:
    """The scores of a guard on the labelled calls of some traces, those of calls that it fails to judge 1.

    Args:
        guard: The guard.
        traces: The calls.
        output: Directory of the files of scores, created if it does not exist.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If lessons were written for another tokenizer.
        ModelLoadError: If the guard cannot be loaded.
    """
    file = output / _file_name(guard, traces)
    output.mkdir(parents=True, exist_ok=True)
    done = {entry["trajectory"]: entry["calls"] for entry in read_losses(file)}
    # A torn last line is taken off, so that the next one does not join it.
    file.write_text("".join(_line(name, calls) for name, calls in done.items()), encoding="utf-8")
    if any(each.id not in done for each in (*traces.lessons, *traces.outcomes)):
        missing = _missing(guard, traces, frozenset(done), progress)
        with file.open("a", encoding="utf-8") as stream, closing(missing):
            for name, calls in missing:
                done[name] = calls
                stream.write(_line(name, calls))
                stream.flush()
    found = {(name, step, call): float(p) for name, calls in done.items() for step, call, p in calls}
    # What is kept of lessons is the model's own word; what is replayed was weighed by the guard.
    weigher, lessons = guard.evidence_model, {each.id for each in traces.lessons}
    if weigher is not None:
        found |= {
            call.key: weigher.weigh(found[call.key], call.evidence)
            for call in traces.calls
            if call.trajectory in lessons
        }
    return {call.key: found[call.key] for call in traces.calls}


Calls = list[tuple[int, int, float]]
"""(step, call, P(refuse)) of each call of a trajectory."""


def _missing(
    guard: ScoredGuard, traces: TraceSet, done: frozenset[str], progress: bool
) -> Generator[tuple[str, Calls], None, None]:
    from rich.console import Console
    from rich.progress import Progress

    lessons = [each for each in traces.lessons if each.id not in done]
    outcomes = [each for each in traces.outcomes if each.id not in done]
    model, loaded = guard.load(cached=bool(outcomes))
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
        ticking = bar.add_task(f"{guard.name} on {traces.name}", total=len(lessons) + len(outcomes))
        for lesson in lessons:
            _check_tokens(lesson, model, traces)
            yield lesson.id, [(call.step, call.call, call.p_refuse) for call in score_traces([lesson], model)]
            bar.advance(ticking)
        for trajectory in outcomes:
            yield trajectory.id, replayed(trajectory, loaded)
            bar.advance(ticking)


def replayed(trajectory: Trajectory, guard: Guard) -> Calls:
    """The scores of a trajectory's calls under a guard that judges them anew; of those that no model judged, its verdict."""
    judged = zip(trajectory.steps, rejudge(trajectory, guard), strict=True)
    return [
        (record.step, each.call, float(each.verdict != "act") if each.p_refuse is None else each.p_refuse)
        for record, judgement in judged
        for each in judgement.decisions
    ]


def _check_tokens(lesson: Trajectory, model: LocalGuardModel, traces: TraceSet) -> None:
    """Make sure that a lesson's verdict words are the model's own tokens.

    Raises:
        ValueError: If they are not.
    """
    words = {model.word("act")[0], model.word("refuse")[0]}
    for step in lesson.steps:
        for where in verdict_words(step).values():
            word, line = step.pieces[where.start], step.pieces[where.start - 1]
            if word.ids[0] not in words or model.tokenizer.decode(list(line.ids)) != line.text:
                raise ValueError(
                    f"the lessons in {str(traces.path)!r} are tokens of {lesson.guard.get('base_model')!r}, which "
                    f"{model.base!r} does not read: write them again with --base-model {model.base}"
                )


def _file_name(guard: ScoredGuard, traces: TraceSet) -> str:
    options = json.dumps(guard.options, sort_keys=True) if traces.outcomes else ""
    digest = hashlib.sha256("\0".join((guard.weights, traces.digest, options)).encode()).hexdigest()[:16]
    named = re.sub(r"[^\w.-]+", "-", traces.name).strip("-.")[-80:]
    return f"{named}--{digest}.jsonl"


def _line(name: str, calls: Calls) -> str:
    return json.dumps({"trajectory": name, "calls": calls}) + "\n"
