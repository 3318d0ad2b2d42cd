"""Where a family's checkpoints store the tensors that are Llama's everywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from puzzle_search.arch.families import Family
from puzzle_search.arch.variants import Shape

_LLAMA_NORMS = Family().stored_norms


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """Rows of a stored tensor.

    Attributes:
        name: of the stored tensor.
        rows: that are meant.
        of_rows: how many it has.
    """

    name: str
    rows: slice
    of_rows: int

    @property
    def is_whole(self) -> bool:
        """Whether all of them are meant."""
        return self.rows == slice(0, self.of_rows)


def stored_rows(family: Family, names: Mapping[str, Shape]) -> dict[str, StoredRows]:
    """Where each tensor lies that a family stores under another name, or within another tensor.

    Args:
        family: of a parent.
        names: Llama's name and shape of every tensor of it.
    """
    norms = dict(zip(_LLAMA_NORMS, family.stored_norms, strict=True))
    found: dict[str, StoredRows] = {}
    for name, shape in names.items():
        *path, module, kind = name.split(".")
        if norms.get(module, module) != module:
            stored = ".".join([*path, norms[module], kind])
            found[name] = StoredRows(name=stored, rows=slice(0, shape[0]), of_rows=shape[0])
        for fused, parts in family.fused.items():
            if module in parts:
                sizes = [names[".".join([*path, part, kind])][0] for part in parts]
                first = sum(sizes[: parts.index(module)])
                found[name] = StoredRows(
                    name=".".join([*path, fused, kind]),
                    rows=slice(first, first + shape[0]),
                    of_rows=sum(sizes),
                )
    return found
