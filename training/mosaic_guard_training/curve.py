"""The loss curve as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BESIDE = {
    "dpo": ("reward_accuracy", "pairs ranked right"),
    "sft": ("token_accuracy", "tokens guessed right"),
    "kto": ("reward_margin", "margin, good over bad"),
    "grpo": ("outcome", "mean outcome of roll-outs"),
}
"""What is drawn below the loss of each method, and what it is called."""


def draw_curve(losses: Sequence[Mapping[str, Any]], file: Path, method: str = "dpo") -> None:
    """Draw the loss over the optimizer steps, and below it what the method is about.

    Args:
        losses: Lines of a loss file, at least one.
        method: How was trained.
        file: The picture; its suffix names the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [line["step"] for line in losses]
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, key, label in ((upper, "loss", f"{method.upper()} loss"), (lower, *BESIDE[method])):
        # A step may have nothing to say, such as KTO's margin where all of a batch is good.
        values = [line.get(key, math.nan) for line in losses]
        axes.plot(steps, values, color="tab:blue", alpha=0.35, linewidth=1, marker="." if len(steps) < 40 else None)
        axes.plot(steps, smoothed(values), color="tab:blue", linewidth=2)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    if method == "dpo":
        upper.axhline(math.log(2), color="gray", linestyle=":", linewidth=1)
        upper.text(steps[-1], math.log(2), "no preference", color="gray", va="bottom", ha="right", fontsize="small")
    if method != "grpo":
        upper.set_ylim(bottom=0)
    if method in ("dpo", "sft"):
        lower.set_ylim(-0.02, 1.02)
    lower.set_xlabel("optimizer step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(file, dpi=150)


def smoothed(values: Sequence[float], span: int = 10) -> list[float]:
    """Running mean over up to `span` values before and including each."""
    return [sum(values[max(0, i + 1 - span) : i + 1]) / min(i + 1, span) for i in range(len(values))]
