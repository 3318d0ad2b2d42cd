"""An executor by its name."""

from __future__ import annotations

from puzzle_search.errors import InputError
from puzzle_search.executor.base import Executor, InProcess
from puzzle_search.executor.cluster import RayExecutor
from puzzle_search.executor.local import LocalProcesses


def open_executor(
    name: str = "local",
    *,
    workers: int | None = None,
    address: str | None = None,
    gpus_per_job: int | None = None,
) -> Executor:
    """The executor of that name.

    Args:
        name: ``local`` or ``ray``.
        workers: local processes; one worker, the default, is this process itself.
        address: of the Ray cluster; by default the one that this machine is in.
        gpus_per_job: GPUs that a job on the Ray cluster has for itself; none by default.

    Raises:
        InputError: the name is not known, or an option is of the other executor.
        MissingDependencyError: Ray is not installed.
    """
    if name == "local":
        if address is not None or gpus_per_job is not None:
            raise InputError(
                "--address and --gpus-per-job are of a Ray cluster", remedy="add --executor ray"
            )
        return InProcess() if workers in (None, 1) else LocalProcesses(workers)
    if name == "ray":
        if workers is not None:
            raise InputError(
                "--workers are local processes; on Ray, the cluster's processors are the limit",
                remedy="leave out --workers",
            )
        return RayExecutor(address or "auto", gpus_per_job=gpus_per_job or 0)
    raise InputError(f"executor {name!r} is not known", remedy="use local or ray")
