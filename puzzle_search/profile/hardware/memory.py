"""Bytes as the allocator gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from puzzle_search.errors import InputError

M = TypeVar("M", bound=nn.Module)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the memory behind some tensors, shared memory once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def check_allocation(make: Callable[[], M], device: torch.device) -> M:
    """Make a module; on a GPU, check that the allocator was asked for its tensors and no more.

    Raises:
        InputError: it was asked for something besides.
    """
    if device.type != "cuda":
        return make()
    before = _requested_bytes(device)
    module = make()
    taken = _requested_bytes(device) - before
    held = storage_bytes(t for t in (*module.parameters(), *module.buffers()) if t.is_cuda)
    if taken > held:  # less where garbage of before was freed meanwhile
        raise InputError(
            f"making a {type(module).__name__} took {taken} bytes of the GPU's memory, its tensors "
            f"have {held}",
            remedy="end whatever else allocates in this process, and measure again",
        )
    return module


def _requested_bytes(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device)["requested_bytes.all.current"])


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Most that some work has allocated at once, beside what is there before it."""
    work()  # compiles, and keeps what it will keep
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    live = _LiveBytes()
    with live:
        work()
    return live.most


class _LiveBytes(TorchDispatchMode):
    """Counts the tensors that operators make; what a kernel takes inside itself is not seen.

    Attributes:
        most: bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = {StorageWeakRef(storage) for storage in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        for storage in _storages(made):
            reference = StorageWeakRef(storage)
            if reference not in given:  # a view, or written in place
                self._alive[reference] = storage.nbytes()
        self.most = max(self.most, sum(self._alive.values()))
        return made


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf.untyped_storage()
