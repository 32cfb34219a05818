"""A private PostgreSQL server for the tests: its own directory, a free port on 127.0.0.1, nothing kept."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from langgraph.checkpoint.postgres import PostgresSaver

REQUIRED = "MOSAIC_GUARD_REQUIRE_POSTGRES"
"""Set to 1 (as `.ci/run` does), a missing server fails the tests instead of skipping them."""
MISSING = "no PostgreSQL server is installed: apt-get install postgresql, or put initdb and postgres on the PATH"

_STARTS = 3
_SECONDS = 60.0
_TEMPLATE = "with_tables"


def binaries() -> Path | None:
    """The directory of `initdb` and `postgres`, the newest release first; None where there is none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_release, reverse=True)
    on_path = shutil.which("postgres")
    named = [*debian, Path(on_path).resolve().parent] if on_path else debian
    return next((found for found in named if (found / "initdb").exists() and (found / "postgres").exists()), None)


def _release(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0


class PostgresServer:
    """A running server.

    Attributes:
        port: Where it listens, on 127.0.0.1.
    """

    def __init__(self, port: int, password: str) -> None:
        self.port, self._password = port, password
        self._numbers = itertools.count()

    def url(self, database: str = "postgres") -> str:
        """How to connect to a database of it."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a new database in which the savers' tables are set up."""
        name = f"test_{next(self._numbers)}"
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE {_TEMPLATE}')
        return self.url(name)

    def set_up(self) -> None:
        """Set the savers' tables up once; other databases are copies of that one."""
        self._execute(f"CREATE DATABASE {_TEMPLATE}")
        with PostgresSaver.from_conn_string(self.url(_TEMPLATE)) as saver:
            saver.setup()

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a server; stop it and remove its files at the end.

    Raises:
        FileNotFoundError: If none is installed.
        RuntimeError: If it does not start; the message holds its log.
    """
    found = binaries()
    if found is None:
        raise FileNotFoundError(MISSING)
    folder = Path(tempfile.mkdtemp(prefix="mosaic-pg-"))
    try:
        as_user = _as_user(folder)
        password = secrets.token_hex(16)
        _init(found, folder, password, as_user)
        process, port = _start(found, folder, as_user)
        try:
            server = PostgresServer(port, password)
            server.set_up()
            yield server
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_user(folder: Path) -> dict[str, Any]:
    """PostgreSQL does not run as root: arguments of `subprocess` for another user, who gets the folder."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            os.chown(folder, user.pw_uid, user.pw_gid)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody")


def _init(found: Path, folder: Path, password: str, as_user: dict[str, Any]) -> None:
    secret = folder / "password"
    secret.write_text(password)
    secret.chmod(0o644)  # the folder itself is closed to others
    command = [found / "initdb", "-D", folder / "data", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]
    command += ["--auth=scram-sha-256", f"--pwfile={secret}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, **as_user)
    if done.returncode:
        raise RuntimeError(f"initdb failed: {done.stderr}")


def _start(found: Path, folder: Path, as_user: dict[str, Any]) -> tuple[subprocess.Popen[bytes], int]:
    log = folder / "log"
    for _ in range(_STARTS):
        port = _free_port()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": folder,
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": 400,
        }
        command = [str(found / "postgres"), "-D", str(folder / "data")]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with log.open("ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, start_new_session=True, **as_user)
        if _listens(process, port):
            return process, port
        # Somebody else has taken the port, or it does not start at all.
        _stop(process)
    raise RuntimeError(f"PostgreSQL does not start: {log.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="postgres", password="wrong", connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if "authentication failed" in str(error):
                # Another server may have taken the port; ours then ends.
                time.sleep(0.3)
                return process.poll() is None
        time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGINT is PostgreSQL's fast shutdown, SIGQUIT its immediate one."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
