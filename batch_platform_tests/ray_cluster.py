"""A real Ray cluster on this machine: a head, and nodes that can be added and killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from batch_platform_tests.project import REPOSITORY, wait_for

# A node that was killed is missed after 5 s, not 15.
_HEALTH_CHECKS = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}


class RayCluster:
    """Several Ray nodes as processes of this machine; each has its own processors to give away."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address: str = cluster.address

    @contextmanager
    def node(self, **resources: int) -> Iterator[Any]:
        """One more node, for a while."""
        node = self._add(**resources)
        try:
            yield node
        finally:
            self.kill(node)
            wait_for(lambda: self.up() == 1, "the cluster to learn that a node is gone", 100)

    def kill(self, node: Any) -> None:
        """End a node with all its processes, as a machine that is taken away; it may be dead already."""
        if node in self._cluster.worker_nodes:
            self._cluster.remove_node(node, allow_graceful=False)

    def up(self) -> int:
        """How many nodes the cluster believes in; of one that was killed it learns after seconds."""
        return sum(node["Alive"] for node in self._cluster.global_state.node_table())

    def actors(self) -> list[str]:
        """States of the actors that are not dead, in all jobs."""
        actors = self._cluster.global_state.actor_table(None, None, None)
        return [actor["State"] for actor in actors.values() if actor["State"] != "DEAD"]

    def _add(self, **resources: int) -> Any:
        return self._cluster.add_node(**{"num_cpus": 1, **resources})


@contextmanager
def ray_cluster(cpus: int = 1) -> Iterator[RayCluster]:
    """A cluster with one node; it ends with the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": cpus, "include_dashboard": False, "_system_config": _HEALTH_CHECKS}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", cluster.address)
        try:
            yield RayCluster(cluster)
        finally:
            ray.shutdown()
            cluster.shutdown()
            wait_for(lambda: not cluster.list_all_nodes(), "the end of the Ray nodes", 60)
