"""Shared by all tests: no network, profiles of hypothesis, and the savers that thread tests run on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before any import of transformers: a test that reaches for a hub must fail at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The same numbers on every machine.
os.environ.setdefault("MOSAIC_GUARD_DTYPE", "float32")

import pytest
from checkpointers import KINDS, Stores
from hypothesis import HealthCheck, settings
from postgres_server import MISSING, REQUIRED, binaries, postgres_server
from tiny_model import tiny_model

if TYPE_CHECKING:
    from postgres_server import PostgresServer

for _name, _examples in (("dev", 60), ("ci", 200), ("nightly", 2000)):
    settings.register_profile(
        _name, max_examples=_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take minutes run only where a marker expression names them."""
    if "nightly" in config.option.markexpr:
        return
    late = [item for item in items if item.get_closest_marker("nightly")]
    if late:
        config.hook.pytest_deselected(items=late)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with the tiny model, as a base model to train."""
    directory = tmp_path_factory.mktemp("base")
    for each in tiny_model(window=8192):
        each.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a guard all of whose tiny weights are its own, as training writes it."""
    directory = tmp_path_factory.mktemp("guard")
    for each in tiny_model(window=8192):
        each.save_pretrained(directory)
    options = {"check": "never", "plan": "computed", "threshold": 0.4}
    (directory / "manifest.json").write_text(json.dumps({"adapter": None, "model": ".", "guard_options": options}))
    return directory


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A private PostgreSQL server, started for the first test that asks for it."""
    if binaries() is None and os.environ.get(REQUIRED) != "1":
        pytest.skip(MISSING)
    with postgres_server() as server:
        yield server


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """Stores of checkpoints, of each kind in turn."""
    # The server is started only where it is used.
    new_database: Callable[[], str] = (
        request.getfixturevalue("postgres").new_database if request.param == "postgres" else str
    )
    return Stores(request.param, tmp_path, new_database)


@pytest.fixture
def new_saver(stores: Stores) -> Iterator[Callable[[], Any]]:
    """Makes savers, each on a store of its own."""
    with contextlib.ExitStack() as open_savers:
        yield lambda: open_savers.enter_context(stores.saver(stores.new()))


@pytest.fixture
def saver(new_saver: Callable[[], Any]) -> Any:
    """A saver, of each kind in turn."""
    return new_saver()


@pytest.fixture
async def async_saver(stores: Stores) -> AsyncIterator[Any]:
    """A saver for event loops, of each kind in turn."""
    async with stores.async_saver(stores.new()) as saver:
        yield saver
