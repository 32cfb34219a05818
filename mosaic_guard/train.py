"""Train the guard model on its own traces: `python -m mosaic_guard.train --traces DIR --output DIR`.

A thin door to `mosaic_guard_training`; `--help` lists the settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from mosaic_guard._errors import MissingExtraError, ModelLoadError

_NEEDED = ("torch", "transformers", "accelerate", "peft", "datasets", "trl", "matplotlib")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; None for this process's own.

    Returns:
        The exit code: 0 when the guard is written, 2 for an error that its user can mend, 130 when stopped.
    """
    from mosaic_guard_training.settings import parse_settings

    settings = parse_settings(arguments)
    # Before torch is loaded: threads that spin while they wait make training many times slower beside other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if any(find_spec(name) is None for name in _NEEDED):
            raise MissingExtraError("training", "train")
        from mosaic_guard_training.errors import TrainingError
        from mosaic_guard_training.run import Interrupted, leave_processes, train
    except MissingExtraError as error:
        return _failed(error)

    from mosaic_guard._trace import TraceError

    try:
        train(settings)
    except (TrainingError, TraceError, MissingExtraError, ModelLoadError) as error:
        return _failed(error)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped before training began", file=sys.stderr)
        return 130
    finally:
        leave_processes()
    return 0


def _failed(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
