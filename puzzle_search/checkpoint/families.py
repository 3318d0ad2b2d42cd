"""Where a family's checkpoints store the tensors that are Llama's everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from puzzle_search.arch.families import Family
from puzzle_search.arch.variants import Shape

_LLAMA_NORMS = Family().stored_norms


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a tensor is made of.

    Attributes:
        name: of the stored tensor.
        shape: of that tensor.
        take: makes the one that is meant of it.
        give: makes it of the one that is meant, where it is made of no other.
    """

    name: str
    shape: Shape
    take: Callable[[torch.Tensor], torch.Tensor] = lambda stored: stored
    give: Callable[[torch.Tensor], torch.Tensor] = lambda meant: meant


def stored_elsewhere(family: Family, names: Mapping[str, Shape]) -> dict[str, Stored]:
    """Each tensor that a family stores under another name, within another, or in another order.

    Args:
        family: of a parent.
        names: Llama's name and shape of every tensor of it.
    """
    norms = dict(zip(_LLAMA_NORMS, family.stored_norms, strict=True))
    found: dict[str, Stored] = {}
    for name, shape in names.items():
        *path, module, kind = name.split(".")
        if norms.get(module, module) != module:
            found[name] = Stored(name=".".join([*path, norms[module], kind]), shape=shape)
        for fused, parts in family.fused.items():
            if module in parts:
                sizes = [names[".".join([*path, part, kind])][0] for part in parts]
                first = sum(sizes[: parts.index(module)])
                found[name] = Stored(
                    name=".".join([*path, fused, kind]),
                    shape=(sum(sizes), *shape[1:]),
                    take=_rows(first, first + shape[0]),
                )
        if family.stacked_experts and path[-1:] == ["mlp"]:
            found |= _stacked(name, shape)
    return found


def _rows(first: int, end: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda stored: stored[first:end].clone()


def _stacked(name: str, shape: Shape) -> dict[str, Stored]:
    """Experts of a layer in one tensor of (experts, in, out), gate and up by turns."""
    if ".mlp.gate." in name:
        return {name: Stored(name=name.replace(".mlp.gate.", ".mlp.router."), shape=shape)}
    kind = name.rpartition(".")[2]
    turned = (shape[0], shape[2], shape[1]) if len(shape) == 3 else shape
    both = {
        "gate_up_proj": (_gate_then_up, lambda meant: _turned(_by_turns(meant))),
        "gate_up_proj_bias": (_halves, _by_turns),
        "down_proj": (_turned, _turned),
    }
    if kind not in both:
        return {}
    take, give = both[kind]
    return {name: Stored(name=name, shape=turned, take=take, give=give)}


def _turned(stored: torch.Tensor) -> torch.Tensor:
    return stored.transpose(1, 2).contiguous()


def _halves(stored: torch.Tensor) -> torch.Tensor:
    return torch.cat([stored[:, ::2], stored[:, 1::2]], dim=1)


def _by_turns(halves: torch.Tensor) -> torch.Tensor:
    turns: torch.Tensor = halves.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return turns


def _gate_then_up(stored: torch.Tensor) -> torch.Tensor:
    return _halves(stored.transpose(1, 2))
