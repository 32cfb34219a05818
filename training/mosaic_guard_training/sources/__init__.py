"""Public data as tasks: one module per source, each with `tasks(data)`, and the split that every stage uses.

    python -m mosaic_guard_training.sources injecagent --data DIR --output FILE.jsonl

Nothing of the data is in the project: a module names its public source and the SHA-256 of each file that it reads.
"""

from __future__ import annotations
