"""Training steps of each supported architecture with random weights: tokens per second and peak memory.

    python scripts/gpu_step.py                          # all three, LoRA, rows of 4,096 tokens, on a CUDA GPU
    python scripts/gpu_step.py --tiny --tokens 128      # the same code on small copies of them, on any machine

The step is DPO's as `python -m mosaic_guard.train` takes it, on rows whose sides share all but their last tokens. Random
weights take the time and the memory of trained ones. Left out: reading data, and the reference's log-probabilities.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ENDS = 32
"""Tokens that each side has for itself."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", help="hub ids of the architectures; default all")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a row (default 4096)")
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed, after one that is not (default 4)")
    parser.add_argument("--tune", choices=("lora", "full"), default="lora")
    parser.add_argument("--tiny", action="store_true", help="small copies of the architectures")
    options = parser.parse_args()

    import torch

    from mosaic_guard_training.architectures import ARCHITECTURES

    if not (torch.cuda.is_available() or options.tiny):
        parser.error("there is no CUDA GPU here: --tiny tries the same code on small copies")
    for name in options.model or ARCHITECTURES:
        print(json.dumps(measure(name, options.tokens, options.steps, options.tune, options.tiny)), flush=True)


def measure(name: str, tokens: int, steps: int, tune: str, tiny: bool) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from mosaic_guard_training.architectures import config_of, memory_of, shape_of
    from mosaic_guard_training.material import Material
    from mosaic_guard_training.model import _new_adapter
    from mosaic_guard_training.outputs import Output
    from mosaic_guard_training.settings import TrainSettings
    from mosaic_guard_training.tokens import TokenSequence, merge
    from mosaic_guard_training.trainer import build_trainer, quiet_libraries

    config, cuda = config_of(name, tiny=tiny), torch.cuda.is_available()
    with torch.device("cuda" if cuda else "cpu"):
        dtype = torch.float32 if tune == "full" or not cuda else torch.bfloat16
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    draw = random.Random(0)

    def some(number: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, config.vocab_size) for _ in range(number))

    shared, loss = some(tokens - 2 * ENDS), (False,) * (tokens - 2 * ENDS) + (True,) * ENDS
    row = merge([TokenSequence((*shared, *some(ENDS)), loss)], [TokenSequence((*shared, *some(ENDS)), loss)])
    assert row is not None
    with tempfile.TemporaryDirectory() as directory, quiet_libraries():
        settings = TrainSettings(
            traces=Path(directory),
            output=Path(directory),
            tune=tune,
            batch_size=1,
            max_steps=steps + 1,
            epochs=steps + 1,
        )
        output = Output(Path(directory))
        output.checkpoints.mkdir()
        trainer = build_trainer(
            model, bare_tokenizer(), None if tune == "full" else _new_adapter(settings),
            Material([row], {}, len(row), len(row), ""), settings, output, limit=tokens,
        )  # fmt: skip
        trainer.args.save_strategy = "no"
        clock = clock_of(cuda)
        trainer.add_callback(clock)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    seconds = statistics.median(clock.seconds[1:])
    estimate = memory_of(shape_of(config), tune, tokens).total
    return {
        "model": name,
        "tiny": tiny,
        "tune": tune,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "tokens": len(row),
        "seconds": round(seconds, 4),
        "tokens_per_second": round(len(row) / seconds, 1),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "computed_bytes": round(estimate),
    }


def clock_of(cuda: bool) -> Any:
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._started = self._now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(self._now() - self._started)

        def _now(self) -> float:
            if cuda:
                torch.cuda.synchronize()
            return time.perf_counter()

    return Clock()


def bare_tokenizer() -> Any:
    """The trainer asks a tokenizer only for its padding."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")), pad_token="<pad>"
    )


if __name__ == "__main__":
    main()
