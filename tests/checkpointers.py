"""The savers that thread tests run on: in memory, SQLite in a file, and a real PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

Saver = BaseCheckpointSaver[Any]

KINDS = ["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


class Stores:
    """Stores of checkpoints of one kind.

    Attributes:
        kind: `memory`, `sqlite` or `postgres`.
    """

    def __init__(self, kind: str, folder: Path, new_database: Callable[[], str]) -> None:
        self.kind, self._folder, self._new_database = kind, folder, new_database
        self._made = 0

    def new(self) -> str:
        """The address of a new, empty store."""
        self._made += 1
        return self._new_database() if self.kind == "postgres" else str(self._folder / f"{self._made}.sqlite")

    @contextlib.contextmanager
    def saver(self, address: str) -> Iterator[Saver]:
        """A saver on a store. Those of a store on disk share it; one in memory has its own."""
        if self.kind == "memory":
            yield InMemorySaver()
            return
        kind: Any = SqliteSaver if self.kind == "sqlite" else PostgresSaver
        with kind.from_conn_string(address) as saver:
            yield saver

    @contextlib.asynccontextmanager
    async def async_saver(self, address: str) -> AsyncIterator[Saver]:
        """`saver` for event loops."""
        if self.kind == "memory":
            yield InMemorySaver()
            return
        kind: Any = AsyncSqliteSaver if self.kind == "sqlite" else AsyncPostgresSaver
        async with kind.from_conn_string(address) as saver:
            yield saver
