"""Which Ray cluster is used, and what actors ask it for."""

import signal
import sys

import pytest

from batch_platform.core.inference import ray_cluster
from batch_platform.core.inference.ray_cluster import WAIT_VARIABLE, Node, Share
from batch_platform.errors import InferenceError, SettingsError


def test_without_an_address_one_of_this_machine_is_started_and_ended(monkeypatch, caplog):
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    first, second = ray_cluster.Cluster(), ray_cluster.Cluster()
    assert "RAY_ADDRESS is not set: a Ray cluster of this machine alone is started" in caplog.text
    (node,) = first.nodes()
    assert node.cpus >= 1
    first.leave()
    first.leave()
    assert ray.is_initialized()  # for the second
    second.leave()
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before  # Dagster's own ends a run as it should


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InferenceError, match=r"pip install 'batch_platform\[ray\]', or set executor: local"):
        ray_cluster.Cluster()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray cluster answers there"),
        ("somewhere", "no Ray cluster answers there"),
        ("ray://127.0.0.1:10001", "run on one of its nodes"),
    ],
)
def test_an_address_that_is_no_cluster(monkeypatch, address, said):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InferenceError, match=said):
        ray_cluster.Cluster()


def test_a_wait_that_is_no_number(monkeypatch):
    monkeypatch.setenv(WAIT_VARIABLE, "long")
    with pytest.raises(SettingsError, match="is not a number of seconds"):
        ray_cluster.patience()


class Cluster:
    def __init__(self, *nodes, free=None):
        self._nodes, self._free = nodes, nodes if free is None else free

    def nodes(self):
        return [Node(*each) for each in self._nodes]

    def free(self):
        return [Node(*each) for each in self._free]


@pytest.mark.parametrize(
    ("cluster", "asked", "share"),
    [
        (Cluster((16, 0), (16, 0)), ("auto", "all", "torch", 1), Share(2, 16, 0, 1)),
        (Cluster((0, 0), (16, 0), (4, 0)), ("cpu", "all", "torch", 1), Share(2, 8, 0, 1)),
        (Cluster((16, 0), (16, 0)), ("cpu", 4, "torch", 1), Share(4, 8, 0, 1)),
        (Cluster((16, 0), (16, 0)), ("cpu", 2, "torch", 2), Share(2, 8, 0, 2)),
        (Cluster((16, 0), free=[(5, 0)]), ("cpu", 2, "torch", 1), Share(2, 2, 0, 1)),
        (Cluster((16, 0), free=[(0, 0)]), ("cpu", 2, "torch", 1), Share(2, 8, 0, 1)),
        (Cluster((16, 0), free=[(8, 0)]), ("cpu", 1, "torch", 2), Share(1, 8, 0, 2)),
        (Cluster((16, 2), free=[(8, 1.0)]), ("cuda", "all", "torch", 2), Share(2, 4, 1, 2)),
        (Cluster((1, 0)), ("cpu", 1, "torch", 2), Share(1, 0.5, 0, 2)),
        (Cluster((16, 4), (32, 4), (8, 0)), ("auto", "all", "torch", 1), Share(8, 4, 1, 1)),
        (Cluster((16, 4), (32, 4)), ("cuda", 3, "torch", 2), Share(3, 8, 1, 2)),
        (Cluster((16, 4)), ("auto", 2, "lightgbm", 1), Share(2, 8, 0, 1)),
    ],
)
def test_what_an_actor_asks_for(cluster, asked, share):
    assert ray_cluster.share_out(cluster, *asked) == share


def test_trees_have_no_gpu_to_ask_for():
    with pytest.raises(InferenceError, match="a lightgbm model computes on the CPU"):
        ray_cluster.share_out(Cluster((16, 4)), "cuda", 1, "lightgbm", 1)


def test_places_on_a_node():
    share = Share(actors=3, cpus=4, gpus=1, models=1)
    assert [Node(16, 2).places(share), Node(7, 2).places(share), Node(16, 0).places(share)] == [2, 1, 0]
