"""A Ray cluster on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

MEMORY = {"object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A cluster of one node of one processor."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'puzzle-search[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, **MEMORY},
        )
        yield cluster
        cluster.shutdown()
