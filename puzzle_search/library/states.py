"""Hidden states of the parent's layers: in memory, or in raw files that are read in parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """Hidden states at one place of the parent.

    Attributes:
        shape: blocks, length, hidden.
        dtype: of the numbers.
        held: the states, or the file that holds their bytes.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    held: torch.Tensor | Path

    def rows(self, rows: slice, device: torch.device | str = "cpu") -> torch.Tensor:
        """Some consecutive blocks, (blocks, length, hidden), on a device."""
        start, stop, _ = rows.indices(self.shape[0])
        if isinstance(self.held, torch.Tensor):
            return self.held[start:stop].to(device)
        row_bytes = self.shape[1] * self.shape[2] * self.dtype.itemsize
        content = np.fromfile(
            self.held, dtype=np.uint8, count=(stop - start) * row_bytes, offset=start * row_bytes
        )
        read = torch.from_numpy(content).view(self.dtype)
        return read.view(stop - start, *self.shape[1:]).to(device)

    def chunks(self, rows: int) -> list[slice]:
        """All blocks in slices of ``rows``; the last may be smaller."""
        return [
            slice(start, min(start + rows, self.shape[0]))
            for start in range(0, self.shape[0], rows)
        ]

    def delete(self) -> None:
        """Remove the file, if there is one."""
        if isinstance(self.held, Path):
            self.held.unlink(missing_ok=True)


class StatesWriter:
    """Takes hidden states in parts, in order; closes its file when the block ends.

    Args:
        shape: blocks, length, hidden, of the whole.
        dtype: of the numbers.
        file: where to write; None keeps them in memory.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, file: Path | None) -> None:
        self._shape, self._dtype, self._path = shape, dtype, file
        self._file = file.open("wb") if file is not None else None
        self._tensor = torch.empty(shape if file is None else (0,), dtype=dtype)
        self._rows = 0

    def __enter__(self) -> StatesWriter:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, part: torch.Tensor) -> None:
        """Add the next blocks."""
        if self._file is not None:
            content = part.detach().cpu().contiguous().view(torch.uint8).numpy()
            self._file.write(content.data)
        else:
            self._tensor[self._rows : self._rows + part.shape[0]] = part.detach()
        self._rows += part.shape[0]

    def finish(self) -> HiddenStates:
        """The states, once all blocks were given."""
        assert self._rows == self._shape[0]
        if self._file is not None:
            self._file.flush()
        held = self._tensor if self._path is None else self._path
        return HiddenStates(shape=self._shape, dtype=self._dtype, held=held)


@dataclass(frozen=True, kw_only=True)
class LayerActivations:
    """What a parent layer saw and gave.

    Attributes:
        inputs: hidden states before the layer.
        middle: after its attention subblock.
        outputs: after its FFN subblock.
    """

    inputs: HiddenStates
    middle: HiddenStates
    outputs: HiddenStates

    def delete(self) -> None:
        """Remove the files of what no later layer begins with."""
        self.inputs.delete()
        self.middle.delete()
