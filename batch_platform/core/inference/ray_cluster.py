"""A Ray cluster: reached or started, and what has a place on it.

It decides which cluster that is (`RAY_ADDRESS`; without one, a cluster of this machine alone), how many actors get how many
processors and GPUs, and how long they may wait for them. It does not know what the actors do.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from batch_platform.core.inference.device import computes_on_cpu_alone, resolve_device
from batch_platform.errors import InferenceError, SettingsError

ADDRESS_VARIABLE = "RAY_ADDRESS"
WAIT_VARIABLE = "BATCH_PLATFORM_RAY_WAIT"
_WAIT = 120.0  # seconds for places that somebody else has
_ANSWER = 10.0  # seconds that a cluster has to answer
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """A node that is up, and what it has in all, or has free."""

    cpus: float
    gpus: float

    def places(self, share: "Share") -> int:
        """How many actors have a place here."""
        places = int(self.cpus / share.cpus)
        return places if not share.gpus else min(places, int(self.gpus * share.models + 0.001))


@dataclass(frozen=True)
class Share:
    """What the actors of one model ask of the cluster.

    Attributes:
        actors: how many there are.
        cpus: processors of each.
        gpus: of each, one or none; models that score beside each other share it.
        models: that score beside each other.
    """

    actors: int
    cpus: float
    gpus: int
    models: int

    def fits(self, nodes: Sequence[Node], models: int | None = None) -> bool:
        """Whether the actors of so many models, by default of all, have a place at once."""
        models = self.models if models is None else models
        return sum(node.places(self) for node in nodes) >= self.actors * models

    def options(self) -> dict[str, Any]:
        """What Ray is asked for, for one actor; it is not put in the place of one that died: the executor does that."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus / self.models,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }


class Cluster:
    """The cluster that this process is connected to; the last of those that use it lets go of it."""

    _users = 0
    _is_ours = False

    def __init__(self) -> None:
        """Reach the cluster, or start one.

        Raises:
            InferenceError: Ray is not installed, or the cluster cannot be reached.
        """
        self._ray = _imported()
        if not Cluster._users:
            Cluster._is_ours = not self._ray.is_initialized()
            if Cluster._is_ours:
                _connect(self._ray)
        Cluster._users += 1
        self._is_left = False

    def leave(self) -> None:
        """Let go of it; one that was started here ends with its last user."""
        if self._is_left:
            return
        self._is_left = True
        Cluster._users -= 1
        if not Cluster._users and Cluster._is_ours:
            with _handlers_kept():
                self._ray.shutdown()

    def nodes(self) -> list[Node]:
        """The nodes that are up, with all that they have."""
        return [_node(node["Resources"]) for node in self._ray.nodes() if node["Alive"]]

    def free(self) -> list[Node]:
        """The same nodes with what they have free, as they told last."""
        from ray._private.state import available_resources_per_node

        return [_node(resources) for resources in available_resources_per_node().values()]


def share_out(cluster: Cluster, device: str, devices: int | str, flavor: str, models: int) -> Share:
    """What actors ask for: each its own GPU, or on processors as many of these as there are for each.

    Args:
        device: as the pipeline file says: auto, cpu or cuda.
        devices: how many actors; `all`: every GPU, or on processors an actor for each node.
        flavor: of the model.
        models: that score beside each other.

    Raises:
        InferenceError: there is no GPU, or no room for so many actors.
    """
    nodes = cluster.nodes()
    gpus = _gpus_each(device, flavor, nodes)
    count = _count(nodes, gpus) if isinstance(devices, str) else devices
    shares = [Share(count, cpus, gpus, models) for cpus in _numbers_of_cpus(nodes, models)]
    free, least = cluster.free(), shares[-1]
    possible = [share for share in shares if share.fits(nodes)]
    at_once = [share for share in possible if share.fits(free, models=1)]
    if possible:
        return (at_once or possible)[0]
    if WAIT_VARIABLE not in os.environ:
        raise InferenceError(no_room(least, nodes))
    return least


def no_room(share: Share, nodes: Sequence[Node]) -> str:
    """That a cluster cannot hold the actors, and what to do."""
    each = "a GPU and a processor" if share.gpus else "a processor"
    beside = f", of each of {share.models} models" if share.models > 1 else ""
    return (
        f"{share.actors} actors are asked for (inference.devices), with {each} for each{beside}, and "
        f"{described(nodes)} has no place for so many: ask for fewer, add nodes, or where nodes come by themselves set "
        f"{WAIT_VARIABLE} to the seconds that they take"
    )


def described(nodes: Sequence[Node]) -> str:
    """A cluster, for people."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return f"the Ray cluster (nodes: {len(nodes)}, processors: {cpus:g}, GPUs: {gpus:g})"


def patience() -> float:
    """Seconds that actors may wait for their places.

    Raises:
        SettingsError: the variable is no number.
    """
    value = os.environ.get(WAIT_VARIABLE)
    try:
        return _WAIT if value is None else float(value)
    except ValueError:
        raise SettingsError(f"{WAIT_VARIABLE}={value!r} is not a number of seconds") from None


def _node(resources: dict[str, float]) -> Node:
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def _gpus_each(device: str, flavor: str, nodes: Sequence[Node]) -> int:
    if device == "cpu" or (device == "auto" and computes_on_cpu_alone(flavor)):
        return 0
    if computes_on_cpu_alone(flavor):
        resolve_device(device, flavor)  # says what to do
    there = any(node.gpus >= 1 for node in nodes)
    if device == "cuda" and not there and WAIT_VARIABLE not in os.environ:
        raise InferenceError(
            f"device: cuda is asked for and {described(nodes)} has no GPU: add a node with one, set device: auto or cpu, "
            f"or where nodes come by themselves set {WAIT_VARIABLE} to the seconds that they take"
        )
    return int(there or device == "cuda")


def _count(nodes: Sequence[Node], gpus: int) -> int:
    count = sum(int(node.gpus) for node in nodes) if gpus else sum(node.cpus >= 1 for node in nodes)
    return max(1, count)


def _numbers_of_cpus(nodes: Sequence[Node], models: int) -> Iterator[float]:
    """How many processors an actor may get, the most first."""
    yield from range(int(max((node.cpus for node in nodes), default=0)), 0, -1)
    yield 1 / models


# -- Ray itself -------------------------------------------------------------------------------------------


def _imported() -> Any:
    try:
        with _handlers_kept():
            import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise InferenceError(
            "inference.executor: ray needs the package ray, which is not installed: pip install 'batch_platform[ray]', "
            "or set executor: local"
        ) from None
    return ray


def _connect(ray: Any) -> None:
    address = os.environ.get(ADDRESS_VARIABLE)
    if not address:
        _log.warning(
            "%s is not set: a Ray cluster of this machine alone is started, and ends with this process",
            ADDRESS_VARIABLE,
        )
    elif "://" in address:
        raise InferenceError(
            f"{ADDRESS_VARIABLE}={address}: give the cluster's own address, host:port, and run on one of its nodes (`ray "
            "start --address=host:port --num-cpus=0` makes this machine one)"
        )
    elif address not in ("auto", "local"):
        _refuse_silent(address)
    # What is started here sends nothing to anyone, and shows nothing to the network.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _handlers_kept():
            ray.init(
                address=address or "local",
                include_dashboard=False if address in (None, "", "local") else None,
                logging_level=logging.WARNING,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise InferenceError(
            f"the Ray cluster at {ADDRESS_VARIABLE}={address or 'local'} cannot be used: {told[0]}. Look whether this "
            "machine is one of its nodes, with the same version of Ray, and whether it asks for a token (RAY_AUTH_MODE)"
        ) from error


def _refuse_silent(address: str) -> None:
    """Refuse an address where nobody answers: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
    except (OSError, ValueError) as error:
        raise InferenceError(
            f"{ADDRESS_VARIABLE}={address}: no Ray cluster answers there ({error}); write host:port of its head node, or "
            "unset it for a cluster of this machine alone"
        ) from None


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray puts a handler of SIGTERM in the place of whoever's: a run that is stopped has to end as its owner wants."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main and before is not None:
            signal.signal(signal.SIGTERM, before)
