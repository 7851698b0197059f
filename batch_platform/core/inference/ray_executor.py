"""Shards of features over a Ray cluster: actors with an engine of their own, used like one engine.

It decides which actor gets which shard, gives results in the order of the shards, and gives the shards of an actor that died
to another one: so often, and no more. What is computed does not depend on the actors: batches never cross shards. The
process that commits keeps the ledger; actors see shards alone. It does not know how a shard is computed.
"""

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import pyarrow as pa

from batch_platform.core.inference.engine import Engine, ShardResult
from batch_platform.core.inference.ray_cluster import Cluster, described, no_room, patience, share_out
from batch_platform.core.inference.transport import HELD, Way, check_failed, packed, unpacked
from batch_platform.errors import BatchPlatformError, InferenceError

# Actors that may die with a shard in hand: the first may have been another shard's fault, the next had this one alone.
_TRIES = 3
# Deaths in a row, for each actor, with nothing computed in between.
_DEATHS = 3
_LOOK = 0.5  # seconds between two looks at the clock
_log = logging.getLogger(__name__)


class RayExecutor:
    """Engines in actors of a Ray cluster, used like one engine.

    Work begins when the first actor has the model loaded; others join when they have, also those in place of dead ones.

    Attributes:
        plan: how batches are cut, by all of them.
        backend: what computes, where there is a choice.
    """

    def __init__(
        self,
        load: Callable[[str], Engine],
        code: Callable[[], str],
        *,
        device: str,
        devices: int | str,
        flavor: str,
        models: int = 1,
    ) -> None:
        """Start the actors and load the model in the first of them.

        Args:
            load: loads an engine for a device; is sent to the actors.
            code: version of the code that computes; asked here and in each actor.
            device: as the pipeline file says: auto, cpu or cuda.
            devices: how many actors; `all`: every GPU, or on processors an actor for each node.
            flavor: of the model.
            models: that score beside each other, each with actors of its own.

        Raises:
            InferenceError: Ray or its cluster is not there, has no room for the actors, other code, or actors die.
            Whatever `load` raises there.
        """
        self._load, self._code = load, code
        self._device = device
        self._share_out = partial(share_out, device=device, devices=devices, flavor=flavor, models=models)
        self._cluster: Cluster | None = None
        self._members: list[_Member] = []
        self._hardware: list[Mapping[str, Any]] = []
        self._way: Way | None = None
        self._start()
        assert self._way is not None
        self.plan, self.backend = self._way.plan, self._way.backend

    @property
    def hardware(self) -> dict[str, Any]:
        """The machines; what differs among the nodes is told of all."""
        names = self._hardware[0]
        told = {name: dict.fromkeys(each[name] for each in self._hardware) for name in names}
        return {
            name: next(iter(of)) if len(of) == 1 else ", ".join(map(str, of)) for name, of in told.items()
        }

    @property
    def where(self) -> str:
        ready = [member for member in self._members if member.is_ready]
        nodes = len({member.node for member in ready})
        return f"by {_plural(len(ready), 'Ray actor')} on {_plural(nodes, 'node')}"

    def score_stream(self, shards: Iterator[pa.Table], tolerated: int | None = None) -> Iterator[ShardResult]:
        """Score shards, several at once; results come in the order of the shards.

        As `Engine.score_stream`; at most three shards are held for each actor.

        Raises:
            As `Engine.score_stream`.
            InferenceError: several actors died one after the other, or none has a place.
        """
        stream, failed = _Stream(shards, tolerated), 0
        try:
            if not self._members:
                self._start()
            while self._hand_out(stream):
                while stream.order[0].result is None:
                    self._take(stream)
                    self._hand_out(stream)
                result = stream.order.popleft().result
                assert result is not None
                failed += len(result.failures)
                check_failed(failed, tolerated)
                yield result
        except BaseException:
            self._kill()  # they may be in the middle of a shard that nobody wants any more
            raise
        for member in self._members:
            member.actor.end_stream.remote()

    def close(self) -> None:
        """End the actors, in the middle of what they do, and let go of the cluster; both come back when they are needed."""
        self._kill()
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.leave()

    # -- actors -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            if self._cluster is None:
                self._cluster = Cluster()
            self._share = self._share_out(self._cluster)
            self._since = time.monotonic()
            for _ in range(self._share.actors):
                self._add()
            stream = _Stream(iter(()), None)
            while not any(member.is_ready for member in self._members):
                self._take(stream)
        except BaseException:
            self.close()
            raise
        _log.info("the model is loaded %s, %g processors each", self.where, self._share.cpus)

    def _add(self) -> None:
        import ray

        host: Any = ray.remote(_Host).options(max_concurrency=HELD + 2, **self._share.options())
        actor = host.remote(max(1, int(self._share.cpus)))
        self._members.append(_Member(actor, actor.about.remote(self._code)))

    def _kill(self) -> None:
        import ray

        members, self._members = self._members, []
        for member in members:
            ray.kill(member.actor)

    # -- shards -------------------------------------------------------------------------------------------

    def _hand_out(self, stream: "_Stream") -> bool:
        """Give shards to actors with room; returns whether a result is to come."""
        ready = [member for member in self._members if member.is_ready]
        while ready:
            member = min(ready, key=lambda each: len(each.jobs))
            if not member.has_room(for_suspect=bool(stream.again)):
                break
            job = stream.next(limit=HELD * len(ready))
            if job is None:
                break
            member.give(job, stream.tolerated)
        return bool(stream.order)

    def _take(self, stream: "_Stream") -> None:
        """Wait for an answer of any actor, and see to it."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        waited = {ref: member for member in self._members for ref in member.answers}
        try:
            answered, _ = ray.wait(list(waited), num_returns=1, timeout=_LOOK)
        except SystemError as error:
            # What a signal's handler raises in there, Ray's own code returns beside a result; Python then makes this of it.
            raise error.__cause__ or error from None
        for ref in answered:
            member = waited[ref]
            try:
                answer = ray.get(ref)
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                self._replace(member, error, stream)
                continue
            if isinstance(answer, BatchPlatformError):
                raise answer
            self._see_to(member, ref, answer, stream)
        self._check_patience()

    def _see_to(self, member: "_Member", ref: Any, answer: Any, stream: "_Stream") -> None:
        if ref in member.jobs:
            outputs, failures, stats = answer
            member.jobs.pop(ref).result = ShardResult(unpacked(outputs), failures, stats)
            stream.deaths = 0
        elif isinstance(answer, Way):
            self._admit(member, answer)
        else:
            member.node, member.host, code = answer
            if code != self._code():
                raise InferenceError(
                    f"Ray node {member.host} has other code of batch_platform ({code}) than this process ({self._code()}): "
                    "install the same version on all nodes"
                )
            member.loading = member.actor.load.remote(self._load, self._device if self._share.gpus else "cpu")

    def _admit(self, member: "_Member", way: Way) -> None:
        """Let an actor work whose model is loaded."""
        if self._way is None:
            self._way = way
        self._way.refuse_unlike(way)
        if way.hardware not in self._hardware:
            if self._hardware:
                _log.warning(
                    "Ray node %s is another machine (%s) than the first: the last bits of values may differ",
                    member.host, way.hardware,
                )  # fmt: skip
            self._hardware.append(way.hardware)
        member.loading, member.is_ready = None, True

    def _replace(self, member: "_Member", error: Exception, stream: "_Stream") -> None:
        """Put an actor in the place of one that died; its shards are given out again, before any other.

        Raises:
            InferenceError: too many died with the same shard, or one after the other.
        """
        import ray

        if getattr(error, "actor_init_failed", False):
            raise InferenceError(
                f"batch_platform cannot be used on a node of the Ray cluster ({_last_line(error)}): install it there with "
                "all it needs, in the same version"
            ) from None
        why = _last_line(error)
        _log.warning(
            "a Ray actor on node %s died (%s): another one gets its %d shards",
            member.host, why, len(member.jobs),
        )  # fmt: skip
        ray.kill(member.actor)
        self._members.remove(member)
        stream.deaths += 1
        if stream.deaths >= _DEATHS * self._share.actors:
            raise InferenceError(
                f"{stream.deaths} Ray actors died one after the other, with nothing computed in between; the last: {why}. "
                "Look at its log on the node, and at memory, then run the partition again; finished shards are kept"
            )
        stream.give_again(list(member.jobs.values()), why)
        if not any(each.node for each in self._members):
            self._since = time.monotonic()
        self._add()

    def _check_patience(self) -> None:
        """Raise if no actor has a place and none got one for long."""
        if any(member.node for member in self._members) or time.monotonic() - self._since < patience():
            return
        assert self._cluster is not None
        nodes = self._cluster.nodes()
        if not self._share.fits(nodes):
            raise InferenceError(no_room(self._share, nodes))
        raise InferenceError(
            f"no actor got its place within {patience():g} s: others use {described(nodes)}; wait until they have ended, or "
            "ask for fewer inference.devices"
        )


@dataclass
class _Job:
    """A shard on its way."""

    number: int
    rows: int
    shard: Any  # in Ray's memory, as `packed` made it
    deaths: int = 0
    result: ShardResult | None = None


@dataclass
class _Stream:
    """What is to be scored, in order, and what was given out."""

    shards: Iterator[pa.Table]
    tolerated: int | None
    order: deque[_Job] = field(default_factory=deque)  # without those that were handed on
    again: deque[_Job] = field(default_factory=deque)  # of actors that died
    deaths: int = 0  # since the last result
    _given: int = 0
    _is_over: bool = False

    def next(self, limit: int) -> _Job | None:
        """A shard to give out; None where there is none, or so many are given out already."""
        import ray

        if self.again:
            return self.again.popleft()
        if self._is_over or len(self.order) >= limit:
            return None
        shard = next(self.shards, None)
        if shard is None:
            self._is_over = True
            return None
        self._given += 1
        self.order.append(_Job(self._given, shard.num_rows, ray.put(packed(shard))))
        return self.order[-1]

    def give_again(self, jobs: list[_Job], why: str) -> None:
        """Take back the shards of an actor that died.

        Raises:
            InferenceError: one of them was in hand too often when an actor died.
        """
        for job in jobs:
            job.deaths += 1
            if job.deaths == _TRIES:
                raise InferenceError(
                    f"{_TRIES} Ray actors died with the same {job.rows} rows in hand (shard {job.number} of this stream); "
                    f"the last: {why}. If memory ran out, set inference.shard_rows lower; finished shards are kept"
                )
        self.again.extend(jobs)


@dataclass
class _Member:
    """An actor, as the process that made it sees it."""

    actor: Any
    loading: Any  # the answer that is awaited before it can work
    node: str = ""  # Ray's id; empty until it has a place
    host: str = "not known"
    is_ready: bool = False
    jobs: dict[Any, _Job] = field(default_factory=dict)  # by the answer that is awaited

    @property
    def answers(self) -> list[Any]:
        return [*self.jobs, *([] if self.loading is None else [self.loading])]

    def has_room(self, for_suspect: bool) -> bool:
        """Whether it may get a shard; one that was in the hand of an actor that died is given alone."""
        if for_suspect:
            return not self.jobs
        return len(self.jobs) < HELD and not any(job.deaths for job in self.jobs.values())

    def give(self, job: _Job, tolerated: int | None) -> None:
        self.jobs[self.actor.score.remote(job.shard, tolerated)] = job


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _last_line(error: Exception) -> str:
    """What Ray says of a death, without what comes before and after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


# -- in the actor -----------------------------------------------------------------------------------------


class _Host:
    """An engine in a process of its own. Ray calls it in several threads; one computes."""

    def __init__(self, threads: int) -> None:
        os.environ.update(
            OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads)
        )  # before a library reads it
        self._inbox: SimpleQueue[tuple[Future[Any], pa.Buffer, int | None] | None] = SimpleQueue()
        self._engine: Engine | None = None

    def about(self, code: Callable[[], str]) -> tuple[str, str, str]:
        """The node's id and name, and the version of the code that is there."""
        import ray

        return ray.get_runtime_context().get_node_id(), socket.gethostname(), code()

    def load(self, load: Callable[[str], Engine], device: str) -> Way | BatchPlatformError:
        """Load the model; an error that explains itself is an answer: raised, Ray would make a page of it."""
        try:
            self._engine = load(device)
        except BatchPlatformError as error:
            return error
        threading.Thread(target=self._serve, daemon=True).start()
        return Way.of(self._engine)

    def score(self, shard: pa.Buffer, tolerated: int | None) -> Any:
        """Wait until a shard is scored."""
        result: Future[Any] = Future()
        self._inbox.put((result, shard, tolerated))
        try:
            return result.result()
        except BatchPlatformError as error:
            return error

    def end_stream(self) -> None:
        self._inbox.put(None)

    def _serve(self) -> None:
        while True:
            first = self._inbox.get()
            if first is not None:
                self._serve_stream(first)

    def _serve_stream(self, first: Any) -> None:
        assert self._engine is not None
        taken: deque[Future[Any]] = deque()

        def shards() -> Iterator[pa.Table]:
            message = first
            while message is not None:
                taken.append(message[0])
                yield unpacked(message[1])
                message = self._inbox.get()

        try:
            for result in self._engine.score_stream(shards(), first[2]):
                taken.popleft().set_result((packed(result.outputs), result.failures, result.stats))
        except BaseException as error:  # noqa: BLE001 -- raised in the process that asks
            for future in taken:
                future.set_exception(error)
