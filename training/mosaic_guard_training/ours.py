"""What all trainers here share: rows that are tokens already, kept on disk, and no calls home."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset


class OurRows:
    """Mixed into TRL's trainers: data sets are taken as they are, no usage statistics, no model cards."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the manifest says what there is to say."""


def rows_dataset(rows: Sequence[Mapping[str, Any]], directory: Path) -> Dataset:
    """The data set that a trainer reads, in the order of `rows`.

    Args:
        rows: At least one.
        directory: Where the data set lies, and where TRL keeps the reference log-probabilities beside it, so that
            neither another process nor a resumed run need compute them again. What is there already is used.
    """
    if not directory.is_dir():
        part = directory.with_name(directory.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        Dataset.from_list([dict(row) for row in rows]).save_to_disk(str(part))
        part.rename(directory)
    return Dataset.load_from_disk(str(directory))
