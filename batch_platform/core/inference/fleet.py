"""Shards of features over several devices: one process with an engine of its own for each.

It decides which process gets which shard, and gives results in the order of the shards, so that whoever takes them sees
one fast engine. What is computed does not depend on how many processes there are: batches never cross shards. It does
not know how a shard is computed.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

import pyarrow as pa

from batch_platform.core.inference.engine import Engine, ShardResult
from batch_platform.core.inference.transport import HELD, Way, check_failed, packed, unpacked
from batch_platform.errors import BatchPlatformError, InferenceError

_ENDING = 5.0  # seconds
_log = logging.getLogger(__name__)


class Fleet:
    """Engines in processes of their own, used like one engine.

    Attributes:
        plan: how batches are cut, by all of them.
        backend: what computes, where there is a choice.
        hardware: this machine.
    """

    def __init__(self, load: Callable[[], Engine], device: str, count: int) -> None:
        """Start the processes and load the model in each.

        Args:
            load: loads an engine; is sent to the processes.
            device: cpu or cuda, of each of them. GPUs are taken in the order in which this process sees them; processors
                are shared out evenly.
            count: of processes.

        Raises:
            InferenceError: a process ended, or the devices are not alike.
            Whatever `load` raises there.
        """
        self._load = load
        self._environments = _environments(device, count)
        self._members: list[_Member] = []
        self._start()
        ways = [member.way for member in self._members if member.way is not None]
        try:
            for way in ways:
                ways[0].refuse_unlike(way)
        except InferenceError:
            self.close()
            raise
        self.plan, self.backend, self.hardware = ways[0].plan, ways[0].backend, ways[0].hardware

    @property
    def where(self) -> str:
        return f"in {len(self._environments)} processes"

    def score_stream(self, shards: Iterator[pa.Table], tolerated: int | None = None) -> Iterator[ShardResult]:
        """Score shards, several at once; results come in the order of the shards.

        As `Engine.score_stream`; at most three shards are held for each process.

        Raises:
            As `Engine.score_stream`.
            InferenceError: a process ended.
        """
        if not self._members:
            self._start()
        order: deque[_Member] = deque()  # who has which shard, the oldest first
        is_over, failed = False, 0
        try:
            while True:
                while not is_over and (member := self._idlest()).held < HELD:
                    shard = next(shards, None)
                    is_over = shard is None
                    if shard is not None:
                        member.give(shard, tolerated)
                        order.append(member)
                if not order:
                    break
                while not order[0].results:
                    _take(self._members)
                result = order.popleft().results.popleft()
                failed += len(result.failures)
                check_failed(failed, tolerated)
                yield result
        except BaseException:
            self.close()  # they may be in the middle of a shard that nobody wants any more
            raise
        for member in self._members:
            member.end_stream()

    def close(self) -> None:
        """End the processes, in the middle of what they do; they are started again when they are needed."""
        members, self._members = self._members, []
        for member in members:
            member.process.kill()
            member.connection.close()
        for member in members:
            member.process.join(_ENDING)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        for number, environment in enumerate(self._environments):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, self._load, environment), name=f"device-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self._members.append(_Member(process, ours))
        try:
            while any(member.way is None for member in self._members):
                _take(self._members)
        except BaseException:
            self.close()
            raise
        _log.info("%d processes have the model loaded", len(self._members))

    def _idlest(self) -> "_Member":
        return min(self._members, key=lambda member: member.held)


@dataclass
class _Member:
    """A process, as the one that started it sees it."""

    process: BaseProcess
    connection: Connection
    way: Way | None = None  # None until the model is loaded
    given: int = 0
    results: deque[ShardResult] = field(default_factory=deque)
    returned: int = 0

    @property
    def held(self) -> int:
        """Shards given whose results were not handed on."""
        return self.given - self.returned + len(self.results)

    def give(self, shard: pa.Table, tolerated: int | None) -> None:
        self._send((tolerated, packed(shard)))
        self.given += 1

    def end_stream(self) -> None:
        self._send(None)

    def take(self, message: Any) -> None:
        if isinstance(message, BaseException):
            raise message
        if self.way is None:
            self.way = message
            return
        outputs, failures, stats = message
        self.results.append(ShardResult(unpacked(outputs), failures, stats))
        self.returned += 1

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            raise self.is_gone() from None

    def is_gone(self) -> InferenceError:
        self.process.join(_ENDING)
        return InferenceError(
            f"process {self.process.pid} of {self.process.name} ended by itself (exit code {self.process.exitcode}; -9: "
            "killed, such as for memory): finished shards are kept; run the partition again"
        )


def _take(members: list[_Member]) -> None:
    """Wait for messages of whichever processes have any."""
    of_connection = {member.connection: member for member in members}
    for ready in wait(list(of_connection)):
        member = of_connection[ready]  # type: ignore[index]
        try:
            message = member.connection.recv()
        except (EOFError, OSError):
            raise member.is_gone() from None
        member.take(message)


def _environments(device: str, count: int) -> list[dict[str, str]]:
    """Environment variables of each process, so that it sees its own device or its share of the processors."""
    if device == "cpu":
        threads = str(max(1, len(os.sched_getaffinity(0)) // count))
        return [{"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}] * count
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(n) for n in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[:count]]


# -- in the process ---------------------------------------------------------------------------------------


def _serve(connection: Connection, load: Callable[[], Engine], environment: dict[str, str]) -> None:
    """Load the model, then score what comes until the other end is closed."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the terminal tells the whole group; the other process decides
    os.environ.update(environment)  # before a library reads it
    try:
        engine = load()
        connection.send(Way.of(engine))
        inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
        while True:
            _serve_stream(connection, engine, inbox)
    except BatchPlatformError as error:
        connection.send(error)


def _receive(connection: Connection, inbox: "SimpleQueue[Any]") -> None:
    """Read all the time: whoever sends must not wait for one that waits to send."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # the other process is gone, or wants nothing more


def _serve_stream(connection: Connection, engine: Engine, inbox: "SimpleQueue[Any]") -> None:
    first = inbox.get()
    if first is None:
        return

    def shards() -> Iterator[pa.Table]:
        message = first
        while message is not None:
            yield unpacked(message[1])
            message = inbox.get()

    for result in engine.score_stream(shards(), first[0]):
        connection.send((packed(result.outputs), result.failures, result.stats))
