"""GRPO as in the paper: n roll-outs of a guarded graph per task, rewarded by comparison with each other.

A roll-out is a real run: the guard judges with the weights that are being trained, its trace is what is trained on, and loss
falls on what it drew. TRL's trainer does the rest; `rollout_func` gives it the rows, and the row layout (the segments of a
trajectory, one after the other) goes around it to the model. The log-probabilities are those of the whole vocabulary,
although the grammar leaves only some tokens: the two differ in how much of the probability falls on what it allows.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

from mosaic_guard import Guard, Limits, LocalGuardModel, Outcome, TraceWriter, Trajectory, read_traces
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.ours import OurRows
from mosaic_guard_training.pairs import Side
from mosaic_guard_training.reading import RowReader, require_plain_attention, visible
from mosaic_guard_training.rewards import ended, excess, preferences, scalar
from mosaic_guard_training.shared_prefix import share
from mosaic_guard_training.tokens import SideRow, side_row
from mosaic_guard_training.twins import segments, verdict_words

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mosaic_guard._trace import StepRecord
    from mosaic_guard_training.settings import TrainSettings


PREFIXES = 512
"""After how many prefixes logits are kept: roll-outs of a task often say the same, and their next token is then drawn alike."""


class RolloutTask(Protocol):
    """A task that a guard can be run on, any number of times, each time from the beginning."""

    @property
    def id(self) -> str:
        """Names it among the others."""

    def run(self, guard: Guard, trace: TraceWriter, trajectory: str) -> Outcome:
        """Run a guarded graph once, under the trajectory's name in the trace; what became of it."""


def load_tasks(name: str) -> list[RolloutTask]:
    """The tasks that `--environment` names.

    Args:
        name: `module:factory`.

    Raises:
        TrainingError: If there is no such factory, or it returns no tasks, or two of one id.
    """
    module, _, factory = name.partition(":")
    try:
        tasks = list(getattr(import_module(module), factory)())
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise TrainingError(
            f"cannot get tasks from --environment {name!r} ({error}): name module:factory, a function without arguments"
        ) from error
    if not tasks or len({task.id for task in tasks}) < len(tasks):
        raise TrainingError(f"--environment {name!r} gives {'two tasks of one id' if tasks else 'no tasks'}")
    return tasks


@dataclass(frozen=True)
class Rollout:
    """One run of a task.

    Attributes:
        row: Its tokens, with loss where the guard drew.
        outcome: What became of it.
        ended: Share of its texts that the guard ended itself.
        written: Tokens that the guard wrote.
    """

    row: SideRow
    outcome: Outcome
    ended: float
    written: int


class Roller:
    """Runs tasks under a guard whose model is being trained.

    Args:
        tasks: What to run.
        settings: How the guard samples.
        base_model: The name of the base model, for the traces.
        max_length: Most tokens of a segment.
    """

    def __init__(self, tasks: Sequence[RolloutTask], settings: TrainSettings, base_model: str, max_length: int) -> None:
        self._tasks = {task.id: task for task in tasks}
        self._settings, self._base_model, self._max_length = settings, base_model, max_length

    def run(self, names: Sequence[str], model: Any, tokenizer: Any, draw: str) -> list[Rollout]:
        """One roll-out of each named task.

        Args:
            names: Ids of tasks; one that comes several times is run several times.
            model: In evaluation mode.
            tokenizer: Its tokenizer.
            draw: Decides, with the settings' seed, what is drawn.
        """
        settings = self._settings
        # Made anew each time: its prefix cache holds what the weights of the last step made of the tokens.
        guard_model = LocalGuardModel.of(model, tokenizer, name=self._base_model)
        guard_model.remember(PREFIXES)
        limits = Limits(plan=settings.plan_tokens, safety=settings.safety_tokens)
        outcomes = []
        with tempfile.TemporaryDirectory(prefix="mosaic-rollouts-") as directory:
            with TraceWriter(directory) as trace:
                for number, name in enumerate(names):
                    digest = hashlib.sha256(f"{settings.seed}\0{draw}\0{number}".encode()).digest()
                    guard = Guard(
                        guard_model,
                        check=settings.check,
                        plan=settings.plan,
                        sample=True if settings.sample == "all" else "decisions",
                        seed=int.from_bytes(digest[:4]),
                        limits=limits,
                    )
                    outcomes.append(self._tasks[name].run(guard, trace, f"{number}"))
            logged = {each.id: each for each in read_traces(Path(directory))} if _holds(directory) else {}
        return [self._rollout(logged.get(f"{number}"), outcome) for number, outcome in enumerate(outcomes)]

    def _rollout(self, trajectory: Trajectory | None, outcome: Outcome) -> Rollout:
        steps = trajectory.steps if trajectory is not None else []
        written = sum(len(piece.ids) for step in steps for piece in step.pieces if piece.kind == "sampled")
        drawn = steps if self._settings.sample == "all" else [_verdicts_only(step) for step in steps]
        name = trajectory.id if trajectory is not None else ""
        row = side_row(Side(name, segments(drawn)), self._max_length)
        # A roll-out in which nothing was drawn (a policy decided all) still counts for its group.
        return Rollout(row or SideRow([0, 0], [1, 1], [0, 0]), outcome, ended(steps), written)


def _holds(directory: str) -> bool:
    return any(Path(directory).glob("*.jsonl"))


def _verdicts_only(step: StepRecord) -> StepRecord:
    """A step whose texts were not drawn: only the verdicts may carry loss."""
    words = {i for word in verdict_words(step).values() for i in range(word.start, word.stop)}
    return replace(
        step,
        pieces=[
            replace(piece, kind="forced", logprobs=()) if piece.kind == "sampled" and i not in words else piece
            for i, piece in enumerate(step.pieces)
        ],
    )


class GuardGRPOTrainer(OurRows, GRPOTrainer):
    """TRL's GRPO on roll-outs of guarded graphs.

    Args:
        model: What is trained.
        roller: Runs the tasks.
        settings: The rewards.
        **options: As for TRL's trainer; the data set's `prompt` is a task's id.
    """

    def __init__(self, model: nn.Module, *, roller: Roller, settings: TrainSettings, **options: Any) -> None:
        require_plain_attention(model.config)
        self._roller = roller
        self._layout: tuple[Tensor, Tensor] | None = None
        super().__init__(
            model,
            reward_funcs=[function for function, _ in rewards(settings)],
            rollout_func=self._roll_out,
            **options,
        )

    def _roll_out(self, prompts: list[str], _trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`: a row is given as a prompt of one token and a completion of all others."""
        draw = f"{self.state.global_step}\0{self.accelerator.process_index}"
        with self._generating() as model:
            found = self._roller.run(prompts, model, self.processing_class, draw)
        rows = [rollout.row for rollout in found]
        self._layout = (_padded([row.segment_ids for row in rows], self), _padded([row.loss for row in rows], self))
        return {
            "prompt_ids": [row.input_ids[:1] for row in rows],
            "completion_ids": [row.input_ids[1:] for row in rows],
            "env_mask": [row.loss[1:] for row in rows],
            # On-policy: the trainer's own log-probabilities stand for those of the draw.
            "logprobs": None,
            "outcome": [rollout.outcome for rollout in found],
            "ended": [rollout.ended for rollout in found],
            "written": [rollout.written for rollout in found],
        }

    @contextmanager
    def _generating(self) -> Iterator[Any]:
        """The model with all its weights, in evaluation mode."""
        training = self.model.training
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            model.eval()
            try:
                yield model
            finally:
                model.train(training)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        assert self._layout is not None
        return {**output, "segment_ids": self._layout[0]}

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = inputs["completion_mask"] * inputs["tool_mask"]
        first = loss.new_zeros(len(loss), 1)
        self._layout = inputs["segment_ids"], torch.cat([first, loss], dim=1)
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        assert self._layout is not None
        segment_ids, loss = self._layout
        reader = RowReader.of(model, self.accelerator.unwrap_model(model))
        scored = []
        for start in range(0, len(input_ids), batch_size or len(input_ids)):
            some = slice(start, start + (batch_size or len(input_ids)))
            # Roll-outs of a group often say the same, and always begin alike: that is read once, and its gradients add up.
            each = torch.stack([input_ids[some], segment_ids[some], loss[some]], dim=1)
            (ids, segments, kept), back = _unique(each)
            shared = share(ids, segments, kept)
            with self.accelerator.autocast():
                found = reader(
                    input_ids=shared.input_ids,
                    attention_mask=visible(shared.segment_ids, shared.branch_ids),
                    position_ids=shared.position_ids,
                    previous=shared.previous,
                    labels=shared.input_ids.masked_fill(shared.loss == 0, -100),
                    fused_lm_head=True,
                )
            scored.append(tuple(shared.spread(each, kept)[back] for each in (found.log_probs, found.entropy)))
        logps, entropies = (torch.cat(parts) for parts in zip(*scored, strict=True))
        return logps, entropies if compute_entropy else None, None


def _unique(rows: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """The rows of (rows, 3, T) that differ, field by field, and which of them each row is."""
    different, back = torch.unique(rows, dim=0, return_inverse=True)
    ids, segment_ids, loss = different.unbind(1)
    return (ids, segment_ids, loss), back


def _padded(rows: Sequence[Sequence[int]], trainer: Any) -> Tensor:
    """Shape (rows, T), padded on the right with 0."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(trainer.accelerator.device)


def rewards(settings: TrainSettings) -> list[tuple[Callable[..., list[float | None]], float]]:
    """The reward functions that are switched on, as TRL calls them, and their weights."""
    size = settings.rollouts

    def preference(
        *, prompts: list[str], outcome: list[Outcome], log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float | None]:
        found: list[float | None] = []
        tied = 0
        for start in range(0, len(prompts), size):
            if len(set(prompts[start : start + size])) > 1 or start + size > len(prompts):
                raise ValueError("a group of roll-outs spans two processes")
            group = preferences(outcome[start : start + size], settings.reward)
            tied += len(set(group)) == 1
            found += group
        log_metric("tied_groups", tied * size / len(prompts))
        # Wins always share out alike; only outcomes by themselves tell whether the guard gets better.
        if known := [value for each in outcome if (value := scalar(each)) is not None]:
            log_metric("outcome", sum(known) / len(known))
        return found

    def format(*, ended: list[float], **_: Any) -> list[float | None]:
        return list(ended)

    def length(*, written: list[int], **_: Any) -> list[float | None]:
        return [-excess(tokens, settings.free_length) for tokens in written]

    weighted = (
        (preference, settings.preference_weight),
        (format, settings.format_weight),
        (length, settings.length_weight),
    )
    return [(function, weight) for function, weight in weighted if weight]
