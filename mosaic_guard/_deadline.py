"""The time that the guard may take for a step: waiting ends there, and a model that looks at the deadline stops too.

Python cannot stop a thread. A call that is given up goes on in a daemon thread, which neither the caller, a pool of
threads nor the end of the process waits for; what it still returns is dropped.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")

_LOOK = 0.1
"""Seconds between two looks at the deadline while waiting for a lock: a call may be given up at any time."""


class GuardTimeoutError(TimeoutError):
    """The guard has taken longer for a step than it may, or nobody waits for its answer any more."""


class Deadline:
    """When an answer of the guard model is no longer waited for.

    Args:
        seconds: Time for the whole step; None for no limit.
        used: Seconds of it that are gone already.
    """

    def __init__(self, seconds: float | None, used: float = 0.0) -> None:
        self.seconds = seconds
        self._at = None if seconds is None else time.monotonic() + max(0.0, seconds - used)
        self._stopped = False

    @property
    def left(self) -> float | None:
        """Seconds until then, at least 0; None for no limit."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def stop(self) -> None:
        """From now on nobody waits."""
        self._stopped = True

    def check(self) -> None:
        """For a model to call wherever it can stop.

        Raises:
            GuardTimeoutError: If nobody waits any more.
        """
        if self.left == 0:
            raise self._error()
        if self._stopped:
            raise GuardTimeoutError("the step was given up")

    def run(self, func: Callable[[], T]) -> T:
        """What `func` returns, if it does so in time; with a limit it runs in a thread of its own.

        Raises:
            GuardTimeoutError: If it takes longer.
        """
        if self.seconds is None:
            return func()
        try:
            self.check()
            future = _start(func)
            concurrent.futures.wait([future], self.left)
            if future.done():
                return future.result()
            raise self._error()
        finally:
            self.stop()

    async def arun(self, func: Callable[[], Awaitable[T]]) -> T:
        """`run` for event loops: `func` is cancelled where it takes longer.

        Raises:
            GuardTimeoutError: If it takes longer.
        """
        try:
            self.check()
            try:
                async with asyncio.timeout(self.left) as scope:
                    answer = await func()
            except TimeoutError as error:
                # A model's own TimeoutError is not the guard's.
                raise (self._error() if scope.expired() else error) from None
            if scope.expired():  # it swallowed the cancellation
                raise self._error()
            return answer
        finally:
            # Also where the run itself is cancelled: a thread that works for it is to stop.
            self.stop()

    def _error(self) -> GuardTimeoutError:
        return GuardTimeoutError(f"the guard took longer than {self.seconds:g} seconds")


async def in_thread(func: Callable[..., T], *args: Any) -> T:
    """What `func(*args)` returns, from a daemon thread of its own.

    Unlike `asyncio.to_thread`: calls that were given up would fill the loop's pool, and the end of the loop waits for it.
    """
    return await asyncio.wrap_future(_start(func, *args))


@contextmanager
def held(lock: threading.Lock, deadline: Deadline | None) -> Iterator[None]:
    """`with lock`, but waiting for it ends at the deadline.

    Raises:
        GuardTimeoutError: If it is not free by then.
    """
    if deadline is None:
        lock.acquire()
    else:
        while not lock.acquire(timeout=_LOOK):
            deadline.check()
    try:
        yield
    finally:
        lock.release()


def _start(func: Callable[..., T], *args: Any) -> concurrent.futures.Future[T]:
    """Run a function in a daemon thread with a copy of this context."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()
    context = copy_context()

    def work() -> None:
        try:
            answer = context.run(func, *args)
        except StopIteration as error:
            # An asyncio future cannot hold one: whoever awaits it would wait for ever.
            future.set_exception(RuntimeError(f"the guard model raised {error!r}"))
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(answer)

    threading.Thread(target=work, name="mosaic-guard", daemon=True).start()
    return future
