"""Which of two trajectories of one task is better: judges, what they said, and how far they agree."""

from __future__ import annotations

from mosaic_guard_training.judging.agreement import Agreement, agreement
from mosaic_guard_training.judging.cache import JudgementLog, read_judgements
from mosaic_guard_training.judging.hindsight import HindsightJudge
from mosaic_guard_training.judging.human import AskedJudge
from mosaic_guard_training.judging.judgement import Judge, JudgeFailedError, Judgement, StepJudge, Vote, latest
from mosaic_guard_training.judging.llm import LLMJudge
from mosaic_guard_training.judging.outcome import OutcomeJudge

__all__ = [
    "Agreement",
    "AskedJudge",
    "HindsightJudge",
    "Judge",
    "JudgeFailedError",
    "Judgement",
    "JudgementLog",
    "LLMJudge",
    "OutcomeJudge",
    "StepJudge",
    "Vote",
    "agreement",
    "latest",
    "read_judgements",
]
