"""The processes that distil together: one by itself, or as many as ``torchrun`` started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from puzzle_search.distill.losses import Distiller


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def shard(self, distiller: Distiller) -> None:
        """Spread the weights of both models over the processes (FSDP2), block by block."""
        if self.size == 1:
            distiller.to(self.device)
            return
        mesh = init_device_mesh(self.device.type, (self.size,))
        for model in (distiller.parent, distiller.child):
            for block in model.blocks:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
        fully_shard(distiller, mesh=mesh)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def gathered(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors in the memory of the first process, none in the others."""
        gathered = {}
        for name, tensor in tensors.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.first:
                gathered[name] = whole.detach().cpu()
        return gathered


def put(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, on the device and in the shards of another."""
    placed = tensor.to(device=like.device, dtype=like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(placed, like.device_mesh, like.placements)
    return placed


@contextlib.contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes of ``torchrun``, over NCCL on GPUs and gloo on CPUs, or stay alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    own = torch.device(device)
    if size == 1:
        yield World(rank=0, size=1, device=own)
        return
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield World(rank=dist.get_rank(), size=size, device=own)
    finally:
        dist.destroy_process_group()
