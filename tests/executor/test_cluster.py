"""A real Ray cluster of two nodes on this machine, one of them killed in the middle."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.executor import InProcess, LostJobError, RayExecutor, open_executor
from tests.executor import jobs
from tests.executor.conftest import MEMORY


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"puzzle-search\[ray\]"):
        open_executor("ray")


@pytest.mark.slow
def test_one_of_two_nodes_is_killed_in_the_middle(head: Any, tmp_path: Path) -> None:
    doomed = head.add_node(num_cpus=1, **MEMORY)
    head.wait_for_nodes()
    sent = [(number, str(tmp_path)) for number in range(8)]
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_while_both_work, head, doomed, tmp_path)
        found = list(RayExecutor(head.address).run(jobs.node_and_wait, sent))
        killing.result()
    runs = Counter(mark.name.partition("-")[0] for mark in tmp_path.glob("*.node"))
    assert max(runs.values()) == 2  # the killed one ran again
    assert doomed.node_id in nodes_of(tmp_path)
    assert len(nodes_of(tmp_path)) == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in Ray's jobs
    here = [(n, bits) for n in range(8) for bits in InProcess().run(jobs.bits_of_a_sum, [n])]
    torch.set_num_threads(threads)
    assert sorted(found) == here


def kill_while_both_work(cluster: Any, node: Any, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while len(nodes_of(folder)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    cluster.remove_node(node, allow_graceful=False)
    (folder / "go").touch()


def nodes_of(folder: Path) -> set[str]:
    return {mark.read_text() for mark in folder.glob("*.node")} - {""}


def test_a_killed_worker_is_replaced(head: Any, tmp_path: Path) -> None:
    sent = [("a", str(tmp_path), 1), ("b", str(tmp_path), 0)]
    found = list(RayExecutor(head.address).run(jobs.die_until, sent))
    assert sorted(found) == ["a first", "a second", "b first", "b second"]
    with pytest.raises(LostJobError, match="lost with its worker or node 3 times"):
        list(RayExecutor(head.address).run(jobs.die_until, [("c", str(tmp_path), 99)]))
    assert len((tmp_path / "c").read_text()) == 3


@pytest.mark.slow
def test_an_error_ends_the_run(head: Any) -> None:
    with pytest.raises(InputError, match="the bad job was refused") as raised:
        list(RayExecutor(head.address).run(jobs.refuse, ["bad", "fine", "fine"]))
    assert raised.value.remedy == "leave it out"
    # The processor is free again: jobs that sleep for a minute are not run to their end.
    assert list(RayExecutor(head.address).run(jobs.count_up, [("a", 1)])) == [("a", 0)]


@pytest.mark.slow
def test_each_job_has_its_own_gpu(head: Any) -> None:
    node = head.add_node(num_cpus=2, num_gpus=2, **MEMORY)
    head.wait_for_nodes()
    executor = RayExecutor(head.address, gpus_per_job=1)
    assert sorted(executor.run(jobs.visible_gpu, [0, 1])) == ["0", "1"]
    head.remove_node(node)


@pytest.mark.slow
def test_the_connection_of_a_program_stays_open(head: Any) -> None:
    import ray

    with ray.init(address=head.address, log_to_driver=False):
        assert list(RayExecutor(head.address).run(jobs.count_up, [("a", 2)])) == [
            ("a", 0),
            ("a", 1),
        ]
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1'"),
        ("ray://head", "'ray://head' is not host:port"),
    ],
)
def test_no_cluster_at_the_address(address: str, message: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=message):
        list(RayExecutor(address).run(jobs.count_up, [("a", 1)]))
