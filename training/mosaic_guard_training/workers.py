"""Processes that load what they need once and then do jobs, one at a time each; one that dies is replaced.

A process is started anew (`spawn`), so that it shares no threads, locks or accelerator with its parent. It ends when its
parent does, however that ends: it holds no copy of the parent's end of their pipe.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from mosaic_guard_training.errors import TrainingError


class Doer(Protocol):
    """What a process makes once, and has do its jobs."""

    def roll(self, job: Any, /) -> None:
        """Do one."""


@dataclass(frozen=True)
class Done:
    """A job that was tried.

    Attributes:
        job: Which.
        error: Why it failed, in one line; None if it did not.
        details: The traceback of that.
        fatal: Whether no later job could succeed.
    """

    job: Any
    error: str | None = None
    details: str = ""
    fatal: bool = False


def do_jobs(
    make: Callable[..., Doer], argument: Any, jobs: Sequence[Any], workers: int, fatal: type[Exception]
) -> Generator[Done, None, None]:
    """Do jobs, in this process (one worker) or in others; in the order in which they end.

    Args:
        make: What each process makes once, from `argument`; for several workers both must be picklable.
        argument: What it is made from.
        jobs: What is to be done.
        workers: How many processes; with 1 it is this one.
        fatal: An exception of a job after which no other could succeed.

    Raises:
        TrainingError: If a process cannot make what it needs. In this process, whatever `make` raises.
    """
    if workers == 1:
        doer = make(argument)
        for job in jobs:
            yield _do(doer, job, fatal)
        return
    pool = _Pool(make, argument, fatal)
    try:
        yield from pool.run(jobs, min(workers, max(len(jobs), 1)))
    finally:
        pool.close()


def _do(doer: Doer, job: Any, fatal: type[Exception]) -> Done:
    try:
        doer.roll(job)
    except Exception as error:
        return Done(job, said(error), traceback.format_exc(), isinstance(error, fatal))
    return Done(job)


def said(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


class _Pool:
    def __init__(self, make: Callable[..., Doer], argument: Any, fatal: type[Exception]) -> None:
        self._start = (make, argument, fatal)
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, Any] = {}

    def run(self, jobs: Sequence[Any], workers: int) -> Iterator[Done]:
        waiting, busy = list(reversed(jobs)), dict[Connection, Any]()
        for _ in range(workers):
            self._spawn()
        ready: set[Connection] = set()
        while waiting or busy:
            for connection in wait(list(self._processes)):
                assert isinstance(connection, Connection)
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    process = self._processes.pop(connection)
                    process.join()
                    if connection not in ready:
                        raise TrainingError(f"a worker ended with code {process.exitcode} while it loaded") from None
                    if connection in busy:
                        yield Done(busy.pop(connection), f"its worker ended with code {process.exitcode}")
                    if waiting:
                        self._spawn()
                    continue
                if kind == "failed":
                    raise TrainingError(content)
                if kind == "done":
                    del busy[connection]
                    yield content
                ready.add(connection)
                if waiting:
                    busy[connection] = waiting.pop()
                    with contextlib.suppress(OSError):  # its end is read in the next turn
                        connection.send(busy[connection])

    def _spawn(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, *self._start), daemon=True)
        with _ctrl_c_waits():
            process.start()
        theirs.close()
        self._processes[ours] = process

    def close(self) -> None:
        """End the processes; what they have not finished is lost."""
        for connection, process in self._processes.items():
            connection.close()
            process.terminate()
        for process in self._processes.values():
            process.join()
        self._processes.clear()


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C reaches this process when the block ends, and no process that begins in it, which would die while it loads."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, make: Callable[..., Doer], argument: Any, fatal: type[Exception]) -> None:
    """A process: make once, then one job after the other until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            doer = make(argument)
        except Exception as error:
            # What a user can put right says so itself; anything else is named.
            plain = isinstance(error, (TrainingError, ImportError, FileNotFoundError, ValueError, RuntimeError))
            connection.send(("failed", str(error) if plain and str(error) else said(error)))
            return
        connection.send(("ready", None))
        while True:
            connection.send(("done", _do(doer, connection.recv(), fatal)))


def share_cores(workers: int) -> None:
    """Give each process that is started from here its share of the cores, unless somebody has set it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
