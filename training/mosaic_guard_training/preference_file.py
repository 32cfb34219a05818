"""A preference file: one pair a line with all that training reads, and where it comes from.

`datasets.load_dataset("json", data_files=FILE)` reads it. Every column has the same type in every part of the file, as
that reader needs: where there is no step, `step` is -1 and `calls` is [-1]; where a guard had no adapter, `adapter` is "".
(Names that all look like dates are read as dates by that reader, not by `read_preferences`.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import starmap, zip_longest
from pathlib import Path
from typing import Any, Literal

from mosaic_guard._transcript import Piece
from mosaic_guard_training.errors import TrainingError
from mosaic_guard_training.manifest import GUARD_DEFAULTS
from mosaic_guard_training.pairs import ALL_KINDS, PreferencePair, Side
from mosaic_guard_training.tokens import TokenSequence, side_sequences

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

Category = Literal["harmful", "benign", "unknown"]

NONE = -1


@dataclass(frozen=True)
class Source:
    """A trace file.

    Attributes:
        file: Its name.
        sha256: Of its contents, hexadecimal.
    """

    file: str
    sha256: str


@dataclass(frozen=True)
class Preference:
    """A pair with its provenance.

    Attributes:
        pair: The pair; its pieces have no log-probabilities.
        environment: The family of its task.
        category: Whether there is harm to be done in its task.
        judge: Who preferred one.
        base_model: Whose tokens they are.
        guards: The different guards that logged the two, at least one, as `logged_by` gives them.
        sources: The files that the two begin in, at least one.
        split: Which side of the split by environment it is on.
    """

    pair: PreferencePair
    environment: str
    category: Category
    judge: str
    base_model: str
    guards: tuple[Mapping[str, Any], ...] = field(hash=False)
    sources: tuple[Source, ...]
    split: Split = "train"

    @cached_property
    def id(self) -> str:
        """Digest of the tokens and losses of both sides: two pairs that train the same have the same."""
        chosen, rejected = self._digests
        return hashlib.sha256(chosen + rejected).hexdigest()

    @cached_property
    def opposite(self) -> str:
        """The id that the pair would have with its sides exchanged."""
        chosen, rejected = self._digests
        return hashlib.sha256(rejected + chosen).hexdigest()

    @property
    def says_nothing(self) -> bool:
        """Whether the two sides carry the same loss, so that there is nothing to prefer."""
        chosen, rejected = (side_sequences(side, sys.maxsize) for side in (self.pair.chosen, self.pair.rejected))
        return not any(starmap(_train_apart, zip_longest(chosen, rejected, fillvalue=TokenSequence())))

    @cached_property
    def _digests(self) -> tuple[bytes, bytes]:
        return _digest(self.pair.chosen), _digest(self.pair.rejected)

    def to_dict(self) -> dict[str, Any]:
        """The form that a preference file holds."""
        pair = self.pair
        return {
            "id": self.id,
            "task": pair.task,
            "environment": self.environment,
            "category": self.category,
            "split": self.split,
            "kind": pair.kind,
            "judge": self.judge,
            "base_model": self.base_model,
            "guards": [dict(guard) for guard in self.guards],
            "step": NONE if pair.step is None else pair.step,
            "calls": list(pair.calls) or [NONE],
            "chosen": _side_record(pair.chosen),
            "rejected": _side_record(pair.rejected),
            "source": [{"file": source.file, "sha256": source.sha256} for source in self.sources],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Preference:
        """Read what `to_dict` wrote.

        Raises:
            KeyError: If a field is missing.
            ValueError: If one holds something else.
        """
        if record["split"] not in SPLITS or record["kind"] not in ALL_KINDS:
            raise ValueError(f"split {record['split']!r} or kind {record['kind']!r} is not known")
        pair = PreferencePair(
            record["task"],
            record["kind"],
            _side(record["chosen"]),
            _side(record["rejected"]),
            None if record["step"] == NONE else int(record["step"]),
            tuple(int(call) for call in record["calls"] if call != NONE),
        )
        return cls(
            pair,
            record["environment"],
            record["category"],
            record["judge"],
            record["base_model"],
            tuple(logged_by(guard) for guard in record["guards"]),
            tuple(Source(source["file"], source["sha256"]) for source in record["source"]),
            record["split"],
        )


def logged_by(guard: Mapping[str, Any]) -> dict[str, Any]:
    """What a preference file keeps of a guard: its adapter ("" for none), and the options that a trained guard keeps.

    Args:
        guard: What `Guard.describe` says, as the header of a trace has it.
    """
    return {"adapter": str(guard.get("adapter") or "")} | {
        name: guard.get(name, default) for name, default in GUARD_DEFAULTS.items()
    }


def write_preferences(file: Path, preferences: Iterable[Preference]) -> None:
    """Write a preference file so that it is either whole or as it was before.

    Raises:
        TrainingError: If it cannot be written.
    """
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as stream:
            for preference in preferences:
                stream.write(json.dumps(preference.to_dict()) + "\n")
        os.replace(part, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise TrainingError(
            f"cannot write {str(file)!r} ({error.strerror}): make room, or name another --output"
        ) from error


def read_preference_records(file: str | os.PathLike[str]) -> Iterator[Preference]:
    """The lines of a preference file with their provenance, one after the other.

    Raises:
        TrainingError: If there is no such file, it cannot be read, or for a bad line, with file and line.
    """
    path = Path(file)
    if not path.is_file():
        raise TrainingError(f"no preference file at {str(path)!r}: write one with `python -m mosaic_guard pairs`")
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    record = Preference.from_dict(json.loads(line))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    what = f"missing field {error}" if isinstance(error, KeyError) else str(error)
                    raise TrainingError(
                        f"{path}:{number}: not a preference ({what}): write the file again with "
                        "`python -m mosaic_guard pairs`"
                    ) from error
                yield record
    except OSError as error:
        raise TrainingError(f"cannot read the preference file {str(path)!r}: {error.strerror}") from error


def read_preferences(file: str | os.PathLike[str], split: Split | None = None) -> list[PreferencePair]:
    """The pairs of a preference file.

    Args:
        file: What `write_preferences` wrote.
        split: Only those of one side of the split; None for all.

    Raises:
        TrainingError: If there is no such file, or for a bad line, with file and line.
    """
    return [record.pair for record in read_preference_records(file) if split is None or record.split == split]


def bare(side: Side) -> Side:
    """A side without log-probabilities, which a preference file does not hold."""
    return replace(side, segments=tuple(tuple(replace(p, logprobs=()) for p in pieces) for pieces in side.segments))


def _side_record(side: Side) -> dict[str, Any]:
    segments = [[{"kind": p.kind, "text": p.text, "ids": list(p.ids)} for p in pieces] for pieces in side.segments]
    return {"trajectory": side.trajectory, "twin": side.twin, "segments": segments}


def _side(record: Mapping[str, Any]) -> Side:
    segments = tuple(
        tuple(Piece(p["kind"], p["text"], tuple(p["ids"])) for p in pieces) for pieces in record["segments"]
    )
    return Side(record["trajectory"], segments, bool(record["twin"]))


def _train_apart(one: TokenSequence, other: TokenSequence) -> bool:
    """Whether loss falls on anything after what two segments share, which is what a row of them keeps (`tokens.merge`)."""
    if one == other:
        return False
    both = zip(zip(one.ids, one.loss, strict=True), zip(other.ids, other.loss, strict=True), strict=False)
    common = next((i for i, (mine, theirs) in enumerate(both) if mine != theirs), min(len(one), len(other)))
    return any(one.loss[common:]) or any(other.loss[common:])


def _digest(side: Side) -> bytes:
    """Of the tokens and losses of a side."""
    digest = hashlib.sha256()
    for sequence in side_sequences(side, sys.maxsize):
        digest.update(len(sequence).to_bytes(8) + array("q", sequence.ids).tobytes() + bytes(sequence.loss))
    return digest.digest()
