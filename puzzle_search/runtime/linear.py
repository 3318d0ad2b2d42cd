"""Matrix products in the serving precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from puzzle_search.errors import InputError
from puzzle_search.runtime.fuse import FP8_MAX, quantise
from puzzle_search.runtime.precision import Precision

RANDOM_STD = 0.02
_FP8_MULTIPLE = 16  # of both sizes of a matrix, asked by the libraries that multiply in FP8
_LEAST_SCALE = 1e-12  # of a matrix or input that is all zeros


class ServingLinear(nn.Module):
    """``x @ weight.T + bias``; in FP8 with one scale for the weights and one for the inputs.

    Scales of inputs are constants, as in TensorRT-LLM's and ModelOpt's FP8 checkpoints, so that
    quantising costs no pass of its own. They begin at 1; `calibrating` finds them.

    Attributes:
        fused_scale: what the maker of an input shall divide it by while it still is in registers;
            None for inputs that are taken as they are.

    Raises:
        InputError: sizes that cannot be multiplied in FP8.
    """

    weight_scale: torch.Tensor
    input_scale: torch.Tensor

    def __init__(
        self, out_features: int, in_features: int, precision: Precision, *, bias: bool = False
    ) -> None:
        super().__init__()
        self._fp8 = precision.is_fp8
        if self._fp8 and (out_features % _FP8_MULTIPLE or in_features % _FP8_MULTIPLE):
            raise InputError(
                f"a matrix of {out_features} x {in_features} cannot be multiplied in fp8: both "
                f"must be multiples of {_FP8_MULTIPLE}",
                remedy="use bf16, or other variants",
            )
        self._activation = precision.activation
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, dtype=precision.matrix), requires_grad=False
        )
        self.bias = (
            nn.Parameter(torch.zeros(out_features, dtype=precision.activation), requires_grad=False)
            if bias
            else None
        )
        self._observing = False
        if self._fp8:
            self.register_buffer("weight_scale", torch.ones(()))
            self.register_buffer("input_scale", torch.ones(()))

    @property
    def fused_scale(self) -> torch.Tensor | None:
        """See the class."""
        return self.input_scale if self._fp8 and not self._observing else None

    def load(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take these weights, (out, in), rounded to the precision."""
        weight = weight.to(self.weight.device)
        if self._fp8:
            self.weight_scale.copy_(_scale_of(weight))
            weight = quantise(weight, self.weight_scale)
        self.weight.copy_(weight)
        if self.bias is not None:
            assert bias is not None
            self.bias.copy_(bias)

    def randomise(self) -> None:
        """Take random normal weights of the size that trained ones have."""
        weight = torch.randn(self.weight.shape, dtype=self._activation, device=self.weight.device)
        self.load(weight * RANDOM_STD, self.bias)

    def forward(self, x_NI: torch.Tensor) -> torch.Tensor:
        """Apply to rows, (N, in) to (N, out); rows that come in FP8 are divided by the scale."""
        if not self._fp8:
            return F.linear(x_NI, self.weight, self.bias)
        if x_NI.dtype != self.weight.dtype:
            if self._observing:
                self.input_scale.copy_(torch.maximum(self.input_scale, _scale_of(x_NI)))
            x_NI = quantise(x_NI, self.input_scale)
        return torch._scaled_mm(
            x_NI,
            self.weight.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=self._activation,
            use_fast_accum=True,
        )

    def observe(self, observing: bool) -> None:
        """Begin, or end, to learn the scale of the inputs."""
        if self._fp8 and observing:
            self.input_scale.fill_(_LEAST_SCALE)
        self._observing = observing


def _scale_of(x: torch.Tensor) -> torch.Tensor:
    return x.abs().amax().float().clamp(min=_LEAST_SCALE) / FP8_MAX


@contextlib.contextmanager
def calibrating(module: nn.Module) -> Iterator[None]:
    """Within, every matrix of a module learns the largest input that it meets.

    Nothing changes where the precision is not FP8.
    """
    matrices = [part for part in module.modules() if isinstance(part, ServingLinear)]
    for matrix in matrices:
        matrix.observe(True)
    try:
        yield
    finally:
        for matrix in matrices:
            matrix.observe(False)
