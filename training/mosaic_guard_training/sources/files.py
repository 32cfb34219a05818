"""The files of a public source, read only if they are the very files that the source's module was written for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_guard_training.errors import TrainingError


@dataclass(frozen=True)
class SourceFiles:
    """What a source consists of.

    Attributes:
        name: The source's name, and that of its directory.
        public: Where it is published.
        licence: Its licence.
        sha256: SHA-256 of each file by its path in the directory, hexadecimal.
    """

    name: str
    public: str
    licence: str
    sha256: Mapping[str, str]

    def read(self, data: Path, file: str) -> bytes:
        """The contents of one file.

        Args:
            data: The directory that holds the source's directory.
            file: A path that `sha256` names.

        Raises:
            TrainingError: If it is not there, or is another file.
        """
        path = data / self.name / file
        try:
            content = path.read_bytes()
        except OSError as error:
            raise TrainingError(
                f"{str(path)!r} cannot be read ({error.strerror}): get it from {self.public}, and name with --data the "
                f"directory that holds {self.name}/"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256[file]:
            raise TrainingError(
                f"{str(path)!r} is not the file that is read here (SHA-256 {found[:16]}…, not "
                f"{self.sha256[file][:16]}…): get it from {self.public}"
            )
        return content

    def json(self, data: Path, file: str) -> Any:
        """A JSON file."""
        return json.loads(self.read(data, file))

    def lines(self, data: Path, file: str) -> list[Any]:
        """A file of JSON lines."""
        return [json.loads(line) for line in self.read(data, file).splitlines() if line.strip()]

    def origin(self, file: str) -> dict[str, str]:
        """What a task says about where it is from."""
        return {"file": f"{self.name}/{file}", "sha256": self.sha256[file], "licence": self.licence}
