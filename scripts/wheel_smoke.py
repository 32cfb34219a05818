"""Build the wheel and try it, bare, in an empty environment: `python scripts/wheel_smoke.py`.

What an editable install hides shows here: files that the wheel lacks, packages that only a checkout has, imports of
extras.
Not tested here: the extras themselves (the test suite runs with all of them).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "mosaic_guard",
    "mosaic_guard_training",
    "mosaic_guard_agentdojo",
    "mosaic_guard_langsmith",
    "mosaic_guard_openai_messages",
    "mosaic_guard_opentelemetry",
)
IMPORT_LIMIT = 1.0
IMPORT_RUNS = 5

TIME_IMPORT = "import time; t = time.perf_counter(); import mosaic_guard; print(time.perf_counter() - t)"
NO_TORCH = """
import importlib.util, sys
import mosaic_guard
assert "torch" not in sys.modules, "import mosaic_guard imports torch"
assert importlib.util.find_spec("torch") is None, "the bare wheel installs torch"
"""
TRAINING = """
import importlib.util, sys
import mosaic_guard_training
heavy = {"torch", "transformers", "peft", "trl", "datasets", "langgraph"} & set(sys.modules)
assert not heavy, f"import mosaic_guard_training imports {heavy}"
"""
NO_STRAYS = """
import importlib.util
names = ("training", "integrations", "examples", "tests", "scripts")
strays = [name for name in names if importlib.util.find_spec(name)]
assert not strays, f"top-level packages {strays}"
"""
LOCAL_MODEL = "from mosaic_guard import Guard; Guard()"
LOCAL_MODEL_ERROR = """
from mosaic_guard import Guard
try:
    Guard()
except ImportError as error:
    print(type(error).__name__, error, sep="\\n")
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mosaic-guard-smoke-") as scratch:
        wheel = build_wheel(Path(scratch, "dist"))
        check_contents(wheel)
        python = install(wheel, Path(scratch, "venv"))
        away = Path(scratch, "elsewhere")
        away.mkdir()
        check_import_time(python, away)
        for name, code in {"no torch": NO_TORCH, "training package": TRAINING, "no strays": NO_STRAYS}.items():
            run(python, "-c", code, cwd=away)
            print(f"ok: {name}")
        run(python.with_name("mosaic-guard"), "--help", cwd=away)
        print("ok: mosaic-guard --help")
        check_missing_extra(python, away)


def run(*command: str | Path, cwd: Path) -> str:
    """The command's standard output; its standard error is shown if it fails, and nothing else goes on."""
    # A PYTHONPATH of the caller's would hide what the wheel lacks.
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def build_wheel(directory: Path) -> Path:
    # From the sdist, so that one is tried as well.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT, cwd=ROOT)
    (wheel,) = directory.glob("*.whl")
    print(f"built: {wheel.name} ({wheel.stat().st_size / 1024:.0f} KiB)")
    return wheel


def check_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    unexpected = {name for name in top if name not in PACKAGES and not name.endswith(".dist-info")}
    if unexpected:
        sys.exit(f"unexpected at the top of the wheel: {sorted(unexpected)}")
    absent = [f"{package}/{file}" for package in PACKAGES for file in ("__init__.py", "py.typed")]
    absent = [name for name in absent if name not in names]
    if absent:
        sys.exit(f"not in the wheel: {absent}")
    print(f"ok: contents ({len(names)} files)")


def install(wheel: Path, directory: Path) -> Path:
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=directory)
    print("ok: bare install")
    return python


def check_import_time(python: Path, away: Path) -> None:
    # The best of several: the first run also compiles and reads from a cold disk.
    seconds = [float(run(python, "-c", TIME_IMPORT, cwd=away)) for _ in range(IMPORT_RUNS)]
    figures = ", ".join(f"{value:.2f}" for value in seconds)
    print(f"import mosaic_guard: {min(seconds):.2f} s (best of {figures})")
    if min(seconds) >= IMPORT_LIMIT:
        sys.exit(f"import mosaic_guard takes {min(seconds):.2f} s; the limit is {IMPORT_LIMIT:g} s")


def check_missing_extra(python: Path, away: Path) -> None:
    name, _, message = run(python, "-c", LOCAL_MODEL_ERROR, cwd=away).strip().partition("\n")
    if name != "MissingExtraError":
        sys.exit(f"Guard() without the extra raises {name or 'no ImportError'}, not MissingExtraError")
    if "mosaic-guard[local]" not in message or "\n" in message:
        sys.exit(f"not one sentence that names mosaic-guard[local]: {message!r}")
    # What a person sees who does not catch it.
    uncaught = subprocess.run([python, "-c", LOCAL_MODEL], cwd=away, capture_output=True, text=True, check=False)
    last = uncaught.stderr.strip().splitlines()[-1]
    if not last.endswith(message):
        sys.exit(f"the last line of the traceback is not that sentence: {last!r}")
    print(f"ok: missing extra: {message}")


if __name__ == "__main__":
    main()
