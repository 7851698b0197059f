"""Calls on a thread of their own, that can be waited for with a deadline and be stopped.

A thread is stopped by raising an exception inside it: Python code notices at its next step, a single
native call only when it returns. A thread that was told to stop is never used again, whatever it was doing;
the next call gets a new one. What is called, and what a late call means, is decided elsewhere.
"""

import ctypes
import logging
import math
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

# Seconds that an unwanted thread gets: to end its call by itself, and then to notice that it is stopped.
ENDING = (1.0, 10.0)
# Most seconds that a signal can go unseen.
_BLOCKED = 0.5
_log = logging.getLogger(__name__)


class DeadlineError(Exception):
    """The call took too long and was stopped; its thread is gone."""


class StuckError(Exception):
    """The call took too long, was told to stop, and did not: its thread is still there."""


class _Stopped(BaseException):
    """Raised inside a thread to end it; no `except Exception` on its way holds it up."""


class Event:
    """Something that happens once, waited for by one thread at a time.

    Made for signal handlers that raise in the main thread. `threading.Event`, written in Python, can be left
    locked for ever by such an exception; one call into C cannot. And a signal that arrives just before that
    call blocks is not seen until it returns: so it never blocks for long.
    """

    def __init__(self) -> None:
        self._happened = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        self._happened = True
        self._lock.release()

    def is_set(self) -> bool:
        return self._happened

    def wait(self, seconds: float = math.inf) -> bool:
        """Whether it has happened, after at most so many seconds."""
        end = time.monotonic() + seconds
        left = seconds
        while not self._happened and left > 0:
            if self._lock.acquire(timeout=min(left, _BLOCKED)):
                return True
            left = end - time.monotonic()
        return self._happened


Wait = Callable[[Event, float], bool]


class Job(Generic[T]):
    """One call on a worker's thread."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._value: T | None = None
        self._error: BaseException | None = None
        self.done = Event()

    def run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # noqa: BLE001 -- raised again where the result is asked for
            self._error = error
        self.done.set()

    @property
    def was_stopped(self) -> bool:
        return not self.done.is_set() or isinstance(self._error, _Stopped)

    def result(self) -> T:
        """Wait for the call; returns what it returned, raises what it raised."""
        self.done.wait()
        if self._error is not None:
            raise self._error
        return cast(T, self._value)


class Worker:
    """At most one thread, which makes the calls given to it in their order. Used from one thread only.

    The thread is a daemon: one that never comes back does not keep the process from ending.
    """

    def __init__(
        self,
        name: str,
        wait: Wait = Event.wait,
        ending: tuple[float, float] = ENDING,
    ) -> None:
        self._name = name
        self._wait = wait
        self._ending = ending
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: Job[Any] | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A signal's exception can come between here and there, also in `close`: an idle thread ends all the same.
        self._jobs.put(None)

    def submit(self, call: Callable[[], T]) -> Job[T]:
        """Have a call made; returns at once."""
        if self._thread is None:
            self._start()
        job = self._last = Job(call)
        self._jobs.put(job)
        return job

    def call(self, call: Callable[[], T], seconds: float, grace: float) -> T:
        """Make a call and wait for it; returns what it returns, raises what it raises.

        Args:
            call: made on the thread.
            seconds: how long it may take.
            grace: seconds that the thread then has to stop.

        Raises:
            DeadlineError: it took longer, and was stopped.
            StuckError: it took longer, and could not be stopped.
        """
        job = self.submit(call)
        if not self._wait(job.done, seconds):
            if not self._end(0, grace):
                raise StuckError
            if job.was_stopped:
                raise DeadlineError
        return job.result()

    def close(self) -> None:
        """End the thread: after its call if that ends soon, else in the middle of it."""
        thread = self._thread
        if not self._end(*self._ending):
            _log.error(
                "thread %s is in a call that does not return; it is left behind and ends with the process",
                thread,
            )

    def _start(self) -> None:
        jobs = self._jobs = SimpleQueue()  # its own: a stuck thread must not take its successor's jobs
        thread = threading.Thread(target=_work, args=(jobs,), name=self._name, daemon=True)
        try:
            thread.start()
        except BaseException:
            jobs.put(None)  # a signal's exception can come up here, with the thread already running
            raise
        self._thread = thread

    def _end(self, patience: float, grace: float) -> bool:
        """Whether the thread is gone, after at most `patience` + `grace` seconds."""
        thread, self._thread = self._thread, None
        job, self._last = self._last, None
        if thread is None or job is None:
            return True
        try:
            if not job.done.wait(patience):
                _raise_in(thread)
        finally:
            # After the exception, so that this arrives before the thread leaves `_work`.
            self._jobs.put(None)
        thread.join(grace)
        return not thread.is_alive()


def _work(jobs: "SimpleQueue[Job[Any] | None]") -> None:
    try:
        while (job := jobs.get()) is not None:
            job.run()
            del job  # with its result; the next may be long in coming
    except _Stopped:
        pass  # between two calls; within one, it is the job's error


def _raise_in(thread: threading.Thread) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stopped))
