"""Judgements on disk: appended one line at a time, never changed; the same file is the cache.

A judge that is asked again about the same contents finds its key there. Where the contents have changed, the new
judgement comes after the old one, and the last one counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.judging.judgement import Judgement, Subject


class JudgementWarning(UserWarning):
    """Something about a file of judgements that loses nothing but should be known: a torn last line."""


class JudgementLog:
    """The judgements of one file, open for more; one process at a time.

    Args:
        file: Created, with its directory, if it does not exist. A torn last line, left by a crash, is taken out.

    Raises:
        TrainingError: On entering, if another process writes to it or it holds something else.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._fd = -1
        self._size = 0
        self._keys: dict[str, Judgement] = {}
        self._current: dict[tuple[str, Subject], Judgement] = {}
        self._all: list[Judgement] = []

    def __enter__(self) -> Self:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise TrainingError(f"cannot write to {str(self.file)!r} ({error.strerror}): name another file") from error
        try:
            _lock(self._fd, self.file)
            whole = 0
            for judgement, end in _lines(self.file):
                self._note(judgement)
                whole = end
            os.ftruncate(self._fd, whole)
            self._size = whole
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def __iter__(self) -> Iterator[Judgement]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def known(self, key: str) -> Judgement | None:
        """The judgement of that key, whether or not a later one took its place."""
        return self._keys.get(key)

    def current(self, judge: str, subject: Subject) -> Judgement | None:
        """The judgement that counts."""
        return self._current.get((judge, subject))

    def add(self, judgement: Judgement) -> None:
        """Append a judgement, unless it is the one that counts already.

        Raises:
            TrainingError: If it cannot be written; what was written before is whole.
        """
        before = self.current(judgement.judge, judgement.subject)
        if before is not None and (before.key, before.winner) == (judgement.key, judgement.winner):
            return
        line = (json.dumps(judgement.to_dict()) + "\n").encode("ascii")
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise TrainingError(
                f"cannot write to {str(self.file)!r} ({error.strerror}): {len(self)} judgements are kept there; "
                "make room and run the same command again"
            ) from error
        self._size += len(line)
        self._note(judgement)

    def _note(self, judgement: Judgement) -> None:
        self._all.append(judgement)
        self._keys[judgement.key] = judgement
        self._current[judgement.judge, judgement.subject] = judgement


def read_judgements(path: str | os.PathLike[str]) -> list[Judgement]:
    """The judgements of a file, or of all `*.jsonl` files of a directory, in the order of their times.

    Raises:
        TrainingError: If there are none there, or for a bad line, with file and line. A torn last line is skipped with
            a `JudgementWarning`.
    """
    root = Path(path)
    files = sorted(root.glob("*.jsonl")) if root.is_dir() else [root] if root.is_file() else []
    if not files:
        raise TrainingError(f"no judgements at {str(root)!r}: write some with `python -m mosaic_guard judge`")
    found = [judgement for file in files for judgement, _ in _lines(file)]
    return sorted(found, key=lambda judgement: judgement.time)


def _lines(file: Path) -> Iterator[tuple[Judgement, int]]:
    """Each judgement, and where its line ends, in bytes."""
    end = 0
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            if not raw.endswith(b"\n"):
                warnings.warn(f"{file}:{number}: torn last line skipped", JudgementWarning, stacklevel=3)
                return
            end += len(raw)
            try:
                record = json.loads(raw)
                if not isinstance(record, dict):
                    raise ValueError("not a JSON object")
                judgement = Judgement.from_dict(record)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what = f"missing field {error}" if isinstance(error, KeyError) else str(error)
                raise TrainingError(
                    f"{file}:{number}: not a judgement ({what}): take the line out, or name another file"
                ) from error
            yield judgement, end


def _lock(fd: int, file: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two writers are not kept apart there
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise TrainingError(
            f"another process writes judgements to {str(file)!r}: wait for it, or name another file"
        ) from error
