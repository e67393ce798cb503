"""A Ray cluster of three nodes on this machine, one for all tests of the session."""

import logging
import os

import pytest


@pytest.fixture(scope="session")
def cluster():
    """The cluster, with this process connected to it: a head and two nodes, two CPUs each.

    A test that removes a node adds one first.
    """
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 2, "object_store_memory": 100 << 20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(2):
            made.add_node(wait=False, **node)  # both at a time
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
