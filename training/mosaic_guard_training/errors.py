"""What can be wrong before or during training, said in one sentence with the next step."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says why and what to do."""
